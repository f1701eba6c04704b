"""The few errors of rerankzoo: wrong input is a `ValueError`, trouble with the Hub or the disk an `OSError`.

Callers need not know this module to catch them.
"""

from __future__ import annotations


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
        self.field = field
        self.row = row


class SchemaError(ValueError):
    """A feature schema contradicts itself, or data was used before the schema was fitted."""


class SchemaMismatchError(SchemaError):
    """A model and a feature extractor (or two checkpoints) were made for different schemas."""


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


class ExportError(ValueError):
    """A model cannot be exported as asked, or the exported graph does not do what the model does."""


class HubError(OSError):
    """A checkpoint cannot be loaded from the Hub or pushed to it; the message is one line and says what to do."""


class OutputError(OSError):
    """A file or folder cannot be written: the disk is full, the folder read-only...; the message is one line."""


class CorruptFileError(ValueError):
    """A file is not what was written: cut off, overwritten...; the message is one line and says what to do."""
