"""What a command takes: CPU and wall time, and the anonymous memory of its process while it runs."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERIOD = 0.05


@dataclass(frozen=True)
class Usage:
    """What a process took.

    Attributes:
        cpu: Seconds of CPU time, of all its threads.
        wall: Seconds.
        peak: The most anonymous memory (RssAnon) that was seen, looked at every `PERIOD` seconds, in bytes.
    """

    cpu: float
    wall: float
    peak: int


def anonymous(pid: int | str = "self") -> int:
    """RssAnon of a process in bytes: what it holds in memory that is no file's; 0 once it has ended.

    Pages of memory-mapped files do not count, for the system drops them when it needs the room.
    """
    return _status(pid, "RssAnon")


def resident(pid: int | str = "self") -> int:
    """VmRSS of a process in bytes: everything of it that is in memory."""
    return _status(pid, "VmRSS")


def run(
    work: Callable[[], Any],
    output: Path,
    data_limit: int | None = None,
    kill_when: Callable[[], bool] = lambda: False,
) -> Usage:
    """Runs a function in a process of its own and watches it.

    The process is a fork of this one: what is imported here need not be imported there, and counts as its memory. What
    may have threads, such as a computation by torch, must not have run here.

    Args:
        work: What to run.
        output: File that keeps what it prints.
        data_limit: RLIMIT_DATA of the process, in bytes: how much memory it may map that is no file's, touched or not.
        kill_when: Asked every `PERIOD` seconds; once it says so, the process gets SIGKILL.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """
    sys.stdout.flush()
    start, process = time.monotonic(), os.fork()
    if process == 0:
        _run_and_exit(work, output, data_limit)
    peak, ended, killed = 0, 0, False
    while not ended:
        peak = max(peak, anonymous(process))
        if not killed and kill_when():
            os.kill(process, signal.SIGKILL)
            killed = True
        time.sleep(PERIOD)
        ended, status, used = os.wait4(process, os.WNOHANG)
    if status and not killed:
        text = output.read_text(encoding="utf-8", errors="replace")
        raise RuntimeError(f"ended with {os.waitstatus_to_exitcode(status)}:\n{text[-3000:]}")
    return Usage(used.ru_utime + used.ru_stime, time.monotonic() - start, peak)


def _run_and_exit(work: Callable[[], Any], output: Path, data_limit: int | None) -> None:
    status = 1
    try:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        # Anew: where a test runner captures output, these are its own.
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        if data_limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the caller's stack must not go on in two processes


def _status(pid: int | str, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
