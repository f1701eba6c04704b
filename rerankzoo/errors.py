"""The few errors of rerankzoo.

Wrong input is a `ValueError`, trouble with the Hub or the disk an `OSError`, a loss that is no number an
`ArithmeticError`: callers need not know this module to catch them.
"""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

#: What other libraries raise about a file whose content is not what they expect.
LIBRARY_ERRORS = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, AssertionError)


class RerankingDataError(ValueError):
    """A row of a request table cannot be used.

    Args:
        message: What is wrong, with the offending value.
        field: The column or field concerned.
        row: The row within the data that was passed in, counted from 0; `None` where the whole column is concerned.
    """

    def __init__(self, message: str, *, field: str, row: int | None = None) -> None:
        place = f"field {field!r}" if row is None else f"field {field!r}, row {row}"
        super().__init__(f"{place}: {message}")
        self.message = message
        self.field = field
        self.row = row

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), field=self.field, row=self.row), (self.message,)


class SchemaError(ValueError):
    """A feature schema contradicts itself, or data was used before the schema was fitted."""


class SchemaMismatchError(SchemaError):
    """A model and a feature extractor (or two checkpoints) were made for different schemas."""


class UnreadableFileError(ValueError):
    """A file is not what its name says or what was written (no YAML, cut off...); one line that names the file."""


class RecipeError(ValueError):
    """A recipe, a benchmark file or an option of the command line cannot be used; one line that names the key."""


class InfeasibleConstraintError(ValueError):
    """No slate of a request keeps the constraints, or none was found.

    Args:
        message: What is wrong.
        row: The request within the data that was passed in, counted from 0.
        constraints: The constraints that exclude one another, as text; without any one of them there is a slate.
    """

    def __init__(self, message: str, *, row: int, constraints: tuple[str, ...]) -> None:
        super().__init__(f"row {row}: {message}")
        self.message = message
        self.row = row
        self.constraints = constraints

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), row=self.row, constraints=self.constraints), (self.message,)


class ExportError(ValueError):
    """A model cannot be exported as asked, or the exported graph does not do what the model does."""


class NonFiniteLossError(ArithmeticError):
    """Training was stopped by a loss that is NaN or infinite; the message is one line and names the saved batch."""


class HubError(OSError):
    """A checkpoint cannot be loaded from the Hub or pushed to it; the message is one line and says what to do."""


class OutputError(OSError):
    """A file or folder cannot be written: the disk is full, the folder read-only...; the message is one line."""


def shown(value: Any) -> str:
    """A value as an error message shows it: `repr`, but never long, whatever the value is."""
    return _REPR.repr(value)


def in_one_line(error: BaseException, limit: int = 500) -> str:
    """What an error says, without line breaks and never long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """What to add to the message about an unknown name: `"; did you mean 'batch_size'?"`, if any is near."""
    nearest = difflib.get_close_matches(str(name)[:100], list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def refuse_other_settings(folder: object, begun: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises a RerankingDataError if work in a folder was begun with other settings (as JSON) than are asked now."""
    for name, value in json.loads(json.dumps(asked)).items():
        if begun.get(name) != value:
            was = f"was begun with {shown(begun.get(name))}, not {shown(value)}"
            raise RerankingDataError(f"{folder} {was}; choose another folder or delete it", field=name)


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


class _ShortRepr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return f"an integer of {x.bit_length()} bits" if x.bit_length() > 1000 else super().repr_int(x, level)

    def repr_instance(self, x: Any, level: int) -> str:
        return " ".join(super().repr_instance(x, level).split())  # of an array, over several lines


_REPR = _ShortRepr()
_REPR.maxstring = _REPR.maxother = 120  # room for what people write
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 8
_REPR.maxlevel = 3
