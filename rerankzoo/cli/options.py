"""The options of a command from its function: names, types and defaults from the signature, help from the docstring.

Parameters before `*` are positional arguments, those behind it options: `num_beams` is `--num-beams`. A `bool` is a
flag, a `list` takes several values and may be repeated, a `tuple` takes values between commas. What a `*further`
parameter takes is passed on unread. (jsonargparse, which builds the options of `rerankzoo fit`, has no flags, no
repeated options and none that are passed on.)
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

from rerankzoo.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    import torch

    from rerankzoo.engines import Workers

HELP = ("-h", "--help")


def takes(*sources: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Marks a command whose `**options` are the parameters with defaults of functions or dataclasses."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.sources = sources  # type: ignore[attr-defined]
        return function

    return mark


def usage(command: str, texts: Mapping[str, str]) -> str:
    """The help text of a command that has further ones, each with one line of help."""
    width = max(map(len, texts))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in texts.items())
    return f"usage: {command} COMMAND [options]\n\n{lines}\n\n{command} COMMAND --help tells the options."


def call(command: str, target: Callable[..., Any] | Mapping[str, Callable[..., Any]], arguments: Sequence[str]) -> None:
    """Runs a command, which is a function or further commands by name, with what follows its name.

    Raises:
        RecipeError: If an option is unknown, missing, or its value invalid.
        SystemExit: With status 0, after `--help`.
    """
    if isinstance(target, Mapping):
        name = arguments[0] if arguments else ""
        if name in HELP:
            texts = {name: str(_docstring(function).short_description) for name, function in target.items()}
            print(usage(f"rerankzoo {command}", texts))
        elif name not in target:
            raise RecipeError(f"expected one of {', '.join(target)}, got {name!r}{did_you_mean(name, target)}")
        else:
            call(f"{command} {name}", target[name], arguments[1:])
        return
    parser = _make_parser(command, target)
    passes_on = any(entry.kind is entry.VAR_POSITIONAL for entry in inspect.signature(target).parameters.values())
    known = parser._option_string_actions
    for name in [argument.partition("=")[0] for argument in arguments]:
        if name.startswith("--") and name not in known and not passes_on:
            raise RecipeError(f"unknown option {name}{did_you_mean(name, known)}")
    options, further = parser.parse_known_args(arguments)
    if further and not passes_on:
        raise RecipeError(f"unexpected arguments: {' '.join(further)}")
    values = vars(options)
    places = [action.dest for action in parser._actions if not action.option_strings]
    target(*(values.pop(name) for name in places if name in values), *further, **values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def _make_parser(command: str, function: Callable[..., Any]) -> _Parser:
    docstring = _docstring(function)
    about = " ".join(filter(None, (docstring.short_description, docstring.long_description)))
    parser = _Parser(f"rerankzoo {command}", None, about, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for parameter, hint, text in parameters(function):
        is_option, required = parameter.kind is parameter.KEYWORD_ONLY, parameter.default is parameter.empty
        settings: dict[str, Any] = {"help": text.replace("%", "%%")}
        if hint is bool:
            settings |= {"action": "store_true"}
        elif get_origin(hint) is list:
            settings |= {
                "type": _reader(get_args(hint)[0]),
                "nargs": "+",
                **({"action": "extend"} if is_option else {}),
            }
        else:
            metavar = f"{{{','.join(get_args(hint))}}}" if get_origin(hint) is Literal else None
            settings |= {"type": _reader(hint), "metavar": metavar}
        if is_option:
            parser.add_argument(f"--{parameter.name.replace('_', '-')}", required=required, **settings)
        else:
            settings |= {} if required else {"nargs": "?", "default": parameter.default}
            parser.add_argument(parameter.name, **settings)
    return parser


def parameters(function: Callable[..., Any]) -> Iterator[tuple[inspect.Parameter, Any, str]]:
    """Each parameter with the type of its values and its help."""
    seen: set[str] = set()
    for source in (function, *getattr(function, "sources", ())):
        texts = {entry.arg_name: " ".join((entry.description or "").split()) for entry in _docstring(source).params}
        hints = get_type_hints(getattr(source, "func", source))
        for name, parameter in inspect.signature(source).parameters.items():
            kinds = get_args(hints[name])
            hint = next(kind for kind in kinds if kind is not NoneType) if NoneType in kinds else hints[name]
            skipped = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in seen
            default = parameter.default
            if source is not function:
                parameter = parameter.replace(kind=parameter.KEYWORD_ONLY)
                is_word = isinstance(hint, type) and issubclass(hint, int | float | str)
                skipped |= default is parameter.empty or not (is_word or get_origin(hint) is Literal)
            if not skipped:
                seen.add(name)
                told = ",".join(map(str, default)) if isinstance(default, tuple) else default
                is_told = default is not parameter.empty and default is not None and default is not False
                yield parameter, hint, texts.get(name, "") + (f" (default: {told})" if is_told else "")


def _docstring(function: Callable[..., Any]) -> Any:
    from docstring_parser import parse

    return parse(inspect.getdoc(getattr(function, "func", function)) or "")


def _reader(hint: Any) -> Callable[[str], Any]:
    """Reads a value of a type from a text."""
    choices = get_args(hint)
    if get_origin(hint) is tuple:
        read_part = _reader(choices[0])
        return lambda text: tuple(read_part(part) for part in text.split(","))

    def read(text: str) -> Any:
        if choices and text not in choices:
            expected = f"one of {', '.join(choices)}"
            raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}{did_you_mean(text, choices)}")
        try:
            return text if choices else hint(text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(f"expected {hint.__name__}, got {text!r}") from error

    return read


def workers_of(options: dict[str, Any]) -> Workers | None:
    """Takes the options of `Workers` from those of a command; `None`: the command works in its own process.

    Raises:
        RecipeError: If an option is of other engines.
        ValueError: If an option is out of its range.
    """
    from rerankzoo.engines import Workers

    asked = Workers(**{entry.name: options.pop(entry.name) for entry in fields(Workers) if entry.name in options})
    if asked.engine != "local":
        return asked
    if asked != Workers():
        raise RecipeError(
            f"threads_per_worker is of the engine 'ray' here, got {asked.threads_per_worker} with 'local'"
        )
    return None


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name; `"auto"`: the accelerator where there is one.

    Raises:
        RecipeError: If there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise RecipeError(f"device: expected one such as cpu, cuda or cuda:1, got {name!r}: {reason}") from error
    return device
