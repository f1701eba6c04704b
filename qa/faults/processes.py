"""Commands in processes that are killed: at a time, or inside the k-th step of writing a file or folder.

What takes long is imported once, and every command is a fork of that process. The steps of writing are those of
`rerankzoo.atomic_writing`, through which all outputs go: a file that has been written under its temporary name (and is
cut in half before the kill), a name that is about to take its place, and one that has; towards the Hub those are
requests that are about to be sent, and answers that nobody has read.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import get_session

from rerankzoo import atomic_writing
from rerankzoo.cli.main import COMMANDS, main

#: What the shell makes of a process that SIGTERM has ended.
TERMINATED = 143


@dataclass(frozen=True)
class Fault:
    """What happens to a command.

    Attributes:
        signal: SIGKILL or SIGTERM...
        step: ...inside the writing step of this number, counted from 0...
        seconds: ...or so long after its start.
        limit: No file may grow beyond so many bytes: whatever writes more is refused by the system, as on a full disk.
    """

    signal: signal.Signals | None = None
    step: int | None = None
    seconds: float | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Its exit status; negative: the signal it was killed by.
        seconds: How long it took.
        steps: The writing steps that it began, in words.
        text: What it printed.
    """

    status: int
    seconds: float
    steps: tuple[str, ...]
    text: str


def import_all() -> None:
    """Imports what the commands need, once for all processes. Nothing may compute here: threads do not fork."""
    import torch

    torch.set_num_threads(1)
    for name in {target.partition(":")[0] for target, _ in COMMANDS.values()}:
        import_module(name)
    import rerankzoo.data.long_format.writing
    import rerankzoo.data.sources.taobao  # noqa: F401


def run(arguments: list[str], log: Path, fault: Fault | None = None) -> Ended:
    """Runs `rerankzoo` in a process of its own.

    Args:
        arguments: Command and options.
        log: File for what it prints; the steps go beside it.
        fault: What happens to it; default: nothing.

    Returns:
        How it ended.
    """
    steps = log.with_suffix(".steps")
    steps.unlink(missing_ok=True)
    sys.stdout.flush()
    start = time.monotonic()
    process = os.fork()
    if process == 0:
        _be_child(arguments, log, steps, fault or Fault())
    if fault is not None and fault.signal is not None and fault.seconds is not None:
        _kill_at(process, start + fault.seconds, fault.signal)
    _, status = os.waitpid(process, 0)
    seconds = time.monotonic() - start
    begun = tuple(steps.read_text(encoding="utf-8").splitlines()) if steps.is_file() else ()
    return Ended(os.waitstatus_to_exitcode(status), seconds, begun, log.read_text(encoding="utf-8", errors="replace"))


def _kill_at(process: int, moment: float, number: signal.Signals) -> None:
    while time.monotonic() < moment:
        ended = os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return
        time.sleep(0.002)
    os.kill(process, number)


def _be_child(arguments: list[str], log: Path, steps: Path, fault: Fault) -> None:
    status: object = 70
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _watch(steps, fault)
        if fault.limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, fault.limit))
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:  # of a child that must not go on as its parent
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def _watch(log: Path, fault: Fault) -> None:
    """Counts the steps of writing, and kills this process inside the chosen one."""
    count = 0
    output = log.open("a", encoding="utf-8", buffering=1)

    def step(words: str, before_kill: Callable[[], None] = lambda: None) -> None:
        nonlocal count
        output.write(words + "\n")
        if fault.signal is not None and count == fault.step:
            if fault.signal == signal.SIGKILL:  # on SIGTERM the process may well go on with its file
                before_kill()
            os.kill(os.getpid(), fault.signal)
        count += 1

    files = atomic_writing
    sync, replace = files._sync, os.replace

    def watched_sync(path: Path) -> None:
        if not path.is_dir():
            step(f"half of {path.name}", lambda: os.truncate(path, path.stat().st_size // 2))
        sync(path)

    def watched_replace(source: Path, target: Path, **options: int) -> None:
        ours = ".tmp" in f"{source} {target}"  # a folder is moved aside, another one takes its place
        if ours:
            step(f"before {Path(target).name}")
        replace(source, target, **options)
        if ours:
            step(f"behind {Path(target).name}")

    client = type(get_session())  # huggingface_hub decides on the library
    send = client.send

    def watched_send(session: Any, request: Any, **options: Any) -> Any:
        if request.method in ("GET", "HEAD"):
            return send(session, request, **options)
        name = f"{request.method} {'/'.join(request.url.path.split('/')[-2:])[:30]}"
        step(f"before {name}")
        answer = send(session, request, **options)
        step(f"answer to {name}")
        return answer

    client.send = watched_send
    files._sync, os.replace = watched_sync, watched_replace  # type: ignore[assignment]
