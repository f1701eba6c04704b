"""Fixtures: a loopback Hub for each test, and processes that know no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import WRITER, LoopbackHub

ROOT = Path(__file__).parents[2]

_RUN_COMMANDS = """
import contextlib, io, json, os
import rerankzoo.hub.push as push
from rerankzoo.cli.main import main

push.DELAYS = (0.01,) * 4
for token, arguments in PAIRS:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    print(json.dumps({"status": status, "out": out.getvalue(), "err": err.getvalue()}), flush=True)
"""


@dataclass
class Run:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub().running() as running:
        yield running


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen[str]]:
    """The process that forks the others, see `tests.hub.forks`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.hub.forks"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        yield process


@pytest.fixture
def client(
    hub: LoopbackHub, forks: subprocess.Popen[str], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`client(script, cache="a", token=WRITER, **variables)`: runs Python in a process of its own.

    huggingface_hub reads its environment when it is imported, hence the process. Scripts that share a `cache` share
    what they downloaded; `variables` are further environment variables.
    """

    def run(
        script: str, cache: str = "cache", token: str | None = WRITER, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(ROOT),
            **({"HF_TOKEN": token} if token else {}),
            **variables,
        }
        order = {"script": script, "folder": str(tmp_path), "environment": environment}
        forks.stdin.write(json.dumps(order) + "\n")
        status = int(forks.stdout.readline())
        texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("client.out", "client.err")]
        assert not check or status == 0, "".join(texts)
        return subprocess.CompletedProcess(script, status, *texts)

    return run


@pytest.fixture
def command_line(client: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., list[Run]]:
    """`command_line(*commands)`: runs `rerankzoo` commands, one after the other in one process.

    A command may be preceded by the token to use: `(READER, ["push", ...])`.
    """

    def run(*commands: Any, **variables: str) -> list[Run]:
        pairs = [command if isinstance(command, tuple) else (WRITER, command) for command in commands]
        found = client(_RUN_COMMANDS.replace("PAIRS", repr(pairs)), **variables)
        return [Run(**json.loads(line)) for line in found.stdout.splitlines() if line.startswith('{"status"')]

    return run
