"""jsonargparse's parser with errors of one line that name the key and suggest what was meant."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from rerankzoo.errors import RecipeError, did_you_mean, error_chain

_MOST_SAID = 1_000  # characters
_UNION = "Does not validate against any of the Union subtypes"


class RecipeParser(LightningArgumentParser):
    """Lightning's parser, whose errors are one line."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def parse_args(self, *args: Any, **settings: Any) -> Any:
        """See `ArgumentParser.parse_args`.

        Raises:
            RecipeError: If a key or a value is not what it must be, or is so odd that the parser stumbles.
        """
        try:
            return super().parse_args(*args, **settings)
        except (TypeError, AttributeError, LookupError, RecursionError, OverflowError) as error:
            raise RecipeError(explain(error)) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises `RecipeError`, or what the parser around this one wants to read."""
        message += self._suggestion(message, ex)
        if not self.exit_on_error:
            super().error(message, ex)
        raise RecipeError(explain(ex, message)) from ex

    def _suggestion(self, message: str, error: Exception | None) -> str:
        if message.startswith("unrecognized arguments: --"):
            name = message.split()[2].partition("=")[0].lstrip("-")
        elif isinstance(error, KeyError):  # "Group 'trainer' does not accept option 'max_epoch'"
            name = message.split("'")[-2]
        else:
            return ""
        known = [option.lstrip("-") for option in _options(getattr(error, "subcommand_parser", self))]
        return did_you_mean(name, [*known, *(option.rpartition(".")[2] for option in known)])


def _options(parser: ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for further in action.choices.values():
                yield from _options(further)


def explain(error: BaseException | None, message: str = "") -> str:
    """What jsonargparse says of a value, in one line: where it is, and what is wrong there.

    Args:
        error: What was raised; the lines that say most begin the messages of its causes.
        message: What the parser made of it.
    """
    parts: list[str] = []
    alternatives = ""
    for text in (message, *_messages(error)):
        first, *further = [line.strip() for line in text.strip().splitlines()] or [""]
        if first == _UNION and further:
            alternatives = further[0].removeprefix("Subtypes: ")
        if first.startswith((_UNION, "- Expected a path")) or any(first in part for part in parts):
            continue
        wanted, got, value = first.partition(". Got value: ")
        several = alternatives and got and wanted.startswith("Expected a ")
        parts.append(f"Expected one of {alternatives}{got}{value}" if several else first)
        alternatives = ""
    text = " ".join(parts)
    return text if len(text) <= _MOST_SAID else f"{text[:_MOST_SAID]}..."


def _messages(error: BaseException | None) -> Iterator[str]:
    for link in error_chain(error) if error is not None else ():
        yield f"{link}{did_you_mean(link.name, dir(link.obj)) if isinstance(link, AttributeError) else ''}"
