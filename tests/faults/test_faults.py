"""A few kills of every kind of command; `make test-faults` does many."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.hub.processes import ROOT


@pytest.mark.slow
def test_killed_commands_end_as_if_nothing_had_happened() -> None:
    commands = ["train", "mine", "predict", "push", "convert ml-100k"]
    done = subprocess.run(
        [sys.executable, "-m", "qa.faults", "--kills", "4", "--only", *commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    summary = re.fullmatch(
        r"seed 0: (\d+) kills, (\d+) of them inside a write, and (\d+) full disks in \d+ s: "
        r"0 lost, 0 duplicated, 0 different, 0 half, 0 failed",
        done.stdout.strip().splitlines()[-1],
    )
    assert summary is not None
    kills, inside, full = map(int, summary.groups())
    assert kills >= 6
    assert inside >= 5  # the first of every command
    assert full == 4  # of the commands that write files
