"""`rerankzoo`: the command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any

from rerankzoo.atomic_writing import disk_error, name_output
from rerankzoo.cli.options import HELP, call, usage
from rerankzoo.errors import NonFiniteLossError, RecipeError, did_you_mean, in_one_line

#: Command -> (module and name of its function, or of a table of further commands; one line of help).
COMMANDS = {
    "quickstart": ("rerankzoo.cli.quickstart:quickstart", "train, evaluate and use a reranker on simulated data"),
    "start": (
        "rerankzoo.cli.start:start",
        "from a data folder to a verdict, trained models and a table",
    ),
    "prepare": (
        "rerankzoo.cli.prepare:SOURCES",
        "make a data folder: of your own log, simulator, ml-100k, ml-1m, taobao-ad",
    ),
    "fit": ("rerankzoo.cli.trying:fit", "train a model by a recipe, or with --try the best of several"),
    "tune": ("rerankzoo.cli.tune:tune", "search for the best settings of a recipe"),
    "validate": ("rerankzoo.cli.lightning:run", "run one validation epoch"),
    "test": ("rerankzoo.cli.lightning:run", "run one test epoch"),
    "predict": ("rerankzoo.cli.lightning:run", "write the slates of the test split"),
    "mine": ("rerankzoo.cli.mine:mine", "search for better slates with an evaluator, for a generator to learn"),
    "diagnose": ("rerankzoo.cli.diagnose:diagnose", "say what a log can support: would reranking pay, can it be told"),
    "rerank": ("rerankzoo.cli.rerank:rerank", "order the items of all requests of Parquet files, here or on Ray"),
    "evaluate": ("rerankzoo.cli.evaluate:evaluate", "compare models with the upstream order and with the truth"),
    "benchmark": ("rerankzoo.cli.benchmark:benchmark", "train and evaluate models over several seeds"),
    "board": ("rerankzoo.cli.board:ACTIONS", "write the page of a board of benchmarks, or make a row of it again"),
    "export": ("rerankzoo.cli.export:export", "write a model with its decoding as one graph: ONNX, AOTInductor"),
    "serve": ("rerankzoo.cli.serve:serve", "answer requests over HTTP, in dynamic batches"),
    "demo": ("rerankzoo.cli.demo:demo", "show a page to play with a model"),
    "card": ("rerankzoo.cli.card:card", "write the model card of a checkpoint from the data in its folder"),
    "push": ("rerankzoo.cli.push:push", "publish a checkpoint or data folder on the Hub"),
    "bench": ("rerankzoo.cli.bench:bench", "measure latency, throughput and memory of a model on this machine"),
    "recipes": ("rerankzoo.cli.recipes:ACTIONS", "list or copy the shipped recipes"),
}
#: Commands that Lightning's own parser reads.
LIGHTNING = ("fit", "validate", "test", "predict")

#: Of glibc's allocator: number and value of what it is told by `keep_freed_memory`.
_ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": (-1, 256 << 20), "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20)}

#: Exit status of a process that SIGTERM has ended, as shells tell it.
TERMINATED = 128 + signal.SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command with its options; default: those of the process.

    Returns:
        The exit status: 0; 2 for wrong usage, unusable input, a disk that is full and a Hub that refuses; 1 for a
        training that was stopped by a loss that is not finite.

    Raises:
        SystemExit: With status 0 after `--help`; with status 143, if SIGTERM has ended the command; what it has
            finished stays.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    if not arguments or arguments[0] in HELP:
        print(usage("rerankzoo", {name: text for name, (_, text) in COMMANDS.items()}))
        return 0
    command = arguments[0]
    if command == "--version":
        print(import_module("rerankzoo").__version__)
        return 0
    try:
        with _ended_by_sigterm():
            run_command(arguments)
    except Exception as error:
        hub_errors = import_module("rerankzoo.hub_errors")
        is_told = isinstance(error, OSError | RecipeError | NonFiniteLossError) or disk_error(error) is not None
        if not is_told and not hub_errors.is_refusal(error):
            raise
        text = name_output(error) or in_one_line(error, limit=8000)
        print(f"rerankzoo {command}: {hub_errors.redact(text)}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteLossError) else 2
    return 0


def keep_freed_memory() -> None:
    """Lets this process, and those that it starts, keep up to 256 MB of freed memory for the next tensors.

    glibc gives what is freed back to the system, which hands it out again page by page, each filled with zeros. What is
    set in the environment stands.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    for name, (number, value) in _ALLOCATOR.items():
        if name not in os.environ and mallopt is not None:
            mallopt(number, value)
            os.environ[name] = str(value)


def run_command(arguments: Sequence[str]) -> None:
    """Runs a command with its options; what is wrong with them is a RecipeError."""
    command = arguments[0]
    if command not in COMMANDS:
        near = did_you_mean(command, COMMANDS)
        raise RecipeError(f"unknown command {command!r}{near}; `rerankzoo --help` lists all")
    module, _, name = COMMANDS[command][0].partition(":")
    target: Any = getattr(import_module(module), name)
    target(arguments) if command in LIGHTNING else call(command, target, arguments[1:])


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Ends the command on SIGTERM like any other exception, so that nothing temporary is left.

    A library that is interrupted in its own code may make an error of its own of it, as DuckDB does, or swallow it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if arrived:  # whatever error came of it
            sys.exit(TERMINATED)


if __name__ == "__main__":
    sys.exit(main())
