"""What is wrong with a recipe, in one line that names the key.

jsonargparse says it, in between what all other types of a union would have wanted, and with the whole recipe behind it.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rerankzoo.errors import RecipeError, shown
from rerankzoo.text_files import read_yaml

#: Sections of a recipe; each holds further keys.
_SECTIONS = ("model", "data", "trainer", "checkpoint", "early_stopping", "export", "hub", "predictions")
_MOST_SHOWN = 200  # characters of a value
_MOST_SAID = 1_000  # and of the whole message

_KEY = re.compile(r'Parser key "(.*)":')
_CLASS = re.compile(r"Problem with given class_path '(.*)':")
_UNKNOWN = re.compile(r"(?:(Group|Subcommand) '(.*)' does not accept option|Option) '(.*?)'")
_MISSING = re.compile(r"the following arguments are required: (.*)")
_WANTED = re.compile(r"Expected a (?:<class '(.*?)'>|typing\.Literal\[(.*)\])(?:\. Got value: (.*))?")
_VALUE = re.compile(r"Given value: (.*)")
#: Lines that say what the parser tried, and not what is wrong.
_NOISE = re.compile(
    r"Does not validate|Subtypes: |Errors:|Given value|Subclass types expect|a class path \(str\)|a dict with|"
    r"Expected a path but|Class validation error|Validation error for field|Not a valid subclass of Callback"
)


def explain(message: str) -> str:
    """Turns a message of jsonargparse into one line.

    Args:
        message: What its parser, or the making of a class by it, says.

    Returns:
        `"key: what is wrong"`, as far as the message names a key.
    """
    keys: list[str] = []
    reasons: list[str] = []
    wanted: list[str] = []
    values: list[str] = []
    owner: str | None = None
    for line in _lines(message):
        if found := _KEY.match(line):
            keys += ["init_args", found[1]] if owner and keys else [found[1]]
        elif found := _CLASS.match(line):
            owner = owner or found[1]
        elif found := _WANTED.match(line):
            # What stands after the value is what the types around this one would have wanted.
            wanted += [] if values else [found[1] or f"one of {found[2]}"]
            values += [found[3]] if found[3] else []
        elif found := _VALUE.match(line):
            values.append(found[1])
        elif found := _UNKNOWN.match(line):
            keys += _unknown_key(found, owner, keys)
            reasons.append(f"unknown key{_suggestion(found[3], owner)}")
        elif found := _MISSING.match(line):
            reasons.append(f"missing: {found[1]}")
        elif not _NOISE.match(line):
            reasons.append(re.sub(r"^(?:Value|Type)Error: ", "", line))
    place = ".".join(keys)
    reason = reasons[0] if reasons else _expected(wanted, values)
    if owner and "init_args" not in keys and owner not in reason:
        reason = f"{owner}: {reason}"
    return _short(f"{place}: {reason}" if place else reason, _MOST_SAID)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _lines(message: str) -> Iterator[str]:
    for line in message.splitlines():
        if text := line.strip().removeprefix("- "):
            yield text


def _unknown_key(found: re.Match[str], owner: str | None, keys: Sequence[str]) -> list[str]:
    if found[1] == "Group":
        return [found[2], found[3]]
    return ["init_args", found[3]] if owner and keys else [found[3]]


def _suggestion(name: str, owner: str | None) -> str:
    """Of the arguments of a class that a recipe names: the nearest, and whose they are."""
    if owner is None:
        return ""
    module, _, attribute = owner.rpartition(".")
    try:
        known = list(inspect.signature(getattr(import_module(module), attribute)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):  # then the parser has not found it either
        return f" of {owner}"
    nearest = difflib.get_close_matches(name[:100], known, n=1, cutoff=0.5)
    return f" of {owner}" + (f"; did you mean {nearest[0]!r}?" if nearest else f"; it has {', '.join(known)}")


def _expected(wanted: Iterable[str], values: Sequence[str]) -> str:
    names = [name.replace("NoneType", "null") for name in dict.fromkeys(wanted)]
    value = values[0] if values else "something else"
    return f"expected {' or '.join(names) or 'something else'}, got {_short(value, _MOST_SHOWN)}"


def check_recipes(arguments: Sequence[str]) -> None:
    """Refuses recipe files that cannot be read, before the parser does.

    Args:
        arguments: Of the command line.

    Raises:
        FileNotFoundError: If a recipe is missing.
        UnreadableFileError: If it is no YAML; names the file and the place in it.
        RecipeError: If it, or a section in it, is no mapping.
    """
    for path in _recipes(arguments):
        if not path.is_file():
            raise FileNotFoundError(f"no recipe {path}; `rerankzoo recipes list` shows those that are shipped")
        recipe = read_yaml(path)
        if not isinstance(recipe, Mapping):
            raise RecipeError(f"{path} must hold keys such as model, data and trainer, got {shown(recipe)}")
        for name in _SECTIONS:
            _check_section(path, name, recipe.get(name))


def _check_section(path: Path, name: str, section: Any) -> None:
    if isinstance(section, Mapping):
        _check_section(path, f"{name}.init_args", section.get("init_args"))
    elif section is not None and not (isinstance(section, str) and name in ("model", "data")):  # a class or a file
        raise RecipeError(f"{path}: {name} must hold keys, got {shown(section)}")


def _recipes(arguments: Sequence[str]) -> Iterator[Path]:
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, rest = option.partition("=")
        if name in ("--config", "-c") and (equals or value):
            yield Path(rest if equals else value)
