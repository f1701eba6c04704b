"""What a command takes: CPU and wall time, and the anonymous memory of its process while it runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PERIOD = 0.05


@dataclass(frozen=True)
class Usage:
    """What a process took.

    Attributes:
        cpu: Seconds of CPU time, of all its threads.
        wall: Seconds.
        peak: The most anonymous memory (RssAnon) that was seen, looked at every `PERIOD` seconds, in bytes.
        output: What it printed.
    """

    cpu: float
    wall: float
    peak: int
    output: str


def anonymous(pid: int | str = "self") -> int:
    """RssAnon of a process in bytes: what it holds in memory that is no file's; 0 once it has ended.

    Pages of memory-mapped files do not count, for the system drops them when it needs the room.
    """
    return _status(pid, "RssAnon")


def resident(pid: int | str = "self") -> int:
    """VmRSS of a process in bytes: everything of it that is in memory."""
    return _status(pid, "VmRSS")


def run(arguments: Sequence[str], environment: Mapping[str, str], data_limit: int | None = None) -> Usage:
    """Runs Python and watches it.

    Args:
        arguments: Of the interpreter, such as `["-m", "rerankzoo.cli.main", "mine", ...]`.
        environment: Variables beside those of this process.
        data_limit: RLIMIT_DATA of the process, in bytes: how much memory it may map that is no file's, touched or not.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """

    def limit() -> None:
        if data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))

    with tempfile.TemporaryFile("w+") as output:
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=limit,
        )
        peak, ended = 0, 0
        while not ended:
            peak = max(peak, anonymous(process.pid))
            time.sleep(PERIOD)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen waits for it again
        wall = time.monotonic() - start
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{text[-3000:]}")
    return Usage(used.ru_utime + used.ru_stime, wall, peak, text)


def _status(pid: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
