"""`rerankzoo`: the command line. Each command imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from rerankzoo.errors import HubError
from rerankzoo.reading import in_one_line

#: Command -> (module with a `main(arguments)` function, one line of help).
COMMANDS = {
    "quickstart": ("rerankzoo.cli.quickstart", "train, evaluate and use a reranker on simulated data, in minutes"),
    "prepare": ("rerankzoo.cli.prepare", "make a data folder: simulator, ml-100k, ml-1m, taobao-ad"),
    "fit": ("rerankzoo.cli.lightning", "train a model by a recipe"),
    "validate": ("rerankzoo.cli.lightning", "run one validation epoch"),
    "test": ("rerankzoo.cli.lightning", "run one test epoch"),
    "predict": ("rerankzoo.cli.lightning", "write the slates of the test split"),
    "mine": ("rerankzoo.cli.mine", "search for better slates with an evaluator, for a generator to learn"),
    "evaluate": ("rerankzoo.cli.evaluate", "compare a model with the upstream order and, where known, the truth"),
    "benchmark": ("rerankzoo.cli.benchmark", "train and evaluate models over several seeds"),
    "export": ("rerankzoo.cli.export", "write a model with its decoding as one graph: ONNX, AOTInductor"),
    "card": ("rerankzoo.cli.card", "write the model card of a checkpoint from the data in its folder"),
    "push": ("rerankzoo.cli.push", "publish a checkpoint or data folder on the Hub"),
    "bench": ("rerankzoo.cli.bench", "measure latency, throughput and memory of a model on this machine"),
    "recipes": ("rerankzoo.cli.recipes", "list or copy the shipped recipes"),
}

#: What is wrong with a file or folder that a command was given; any other `OSError` is trouble with the machine.
UNUSABLE_FILES = (
    HubError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        ["usage: rerankzoo COMMAND [options]", "", *lines, "", "rerankzoo COMMAND --help tells the options."]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Command and options; default: those of the process.

    Returns:
        The exit status: 0, or 2 for wrong usage, unusable input and a Hub that refuses.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command = arguments[0]
    if command == "--version":
        print(import_module("rerankzoo").__version__)
        return 0
    if command not in COMMANDS:
        print(f"rerankzoo: unknown command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    run = import_module(COMMANDS[command][0]).main
    try:
        run(arguments)
    except UNUSABLE_FILES as error:
        return _refuse(command, error)
    except Exception as error:
        if not import_module("rerankzoo.faults").is_refusal(error):
            raise
        return _refuse(command, error)
    return 0


def _refuse(command: str, error: Exception) -> int:
    """Says what is wrong in one line, without tokens; returns the exit status."""
    text = import_module("rerankzoo.faults").redact(in_one_line(error, limit=2000))
    print(f"rerankzoo {command}: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
