"""What a log in long format is: which columns say which request, item, position...; histories; the split.

Its schema file is that of a data folder and one key more, `log`; docs/real-logs.md has an example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rerankzoo.errors import SchemaError, UnreadableFileError, shown
from rerankzoo.features.schema import FeatureSchema, known_keys, require_choice, require_names
from rerankzoo.text_files import read_yaml

TimeUnit = Literal["s", "ms", "us"]


@dataclass(frozen=True, kw_only=True)
class HistorySpec:
    """How histories are made: a user's items with positive feedback, strictly before the request's time less `gap`.

    Args:
        feedback: The target whose values above 0 count. Not used where `LogTables.events` says what happened.
        length: The most items of a history; of more, the newest.
        gap: Seconds before the request in which nothing is known yet, as in a service whose features arrive late.
        columns: History field -> column that it holds, of the impressions or items, or of `LogTables.events`. A field
            that is not named holds the field whose vocabulary it shares.
        times: List column of the impressions with the times of logged histories, which must not be later than the
            request. A field of kind `"time"` holds them.
    """

    feedback: str | None = None
    length: int = 50
    gap: float = 0.0
    columns: Mapping[str, str] | None = None
    times: str | None = None

    def __post_init__(self) -> None:
        require_names(self, "log.history", "feedback", "times", optional=True)
        if type(self.length) is not int or self.length < 1:
            raise SchemaError(f"length of log.history must be a positive integer, got {shown(self.length)}")
        if type(self.gap) not in (int, float) or not 0 <= self.gap < float("inf"):
            raise SchemaError(f"gap of log.history must be seconds, 0 or more, got {shown(self.gap)}")
        columns = {} if self.columns is None else self.columns
        if not isinstance(columns, Mapping) or not all(type(name) is str for name in columns.values()):
            raise SchemaError(f"columns of log.history must map history fields to columns, got {shown(self.columns)}")


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How requests are split: by time, or by a column that says it.

    Args:
        validation: Requests from this time on are of the validation split: an ISO date or time, or a number in the
            units of a numeric time column.
        test: Requests from this time on are of the test split.
        column: A column of the impressions, the same in all rows of a request, that holds "train", "validation" or
            "test", or null for requests that are left out (but for histories).
    """

    validation: str | int | float | None = None
    test: str | int | float | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        require_names(self, "log.split", "column", optional=True)
        for name in ("validation", "test"):  # YAML reads 2026-05-08 as a date
            value = getattr(self, name)
            if value is not None and type(value) not in (int, float):
                object.__setattr__(self, name, str(value))
        if (self.column is None) == (self.validation is None or self.test is None):
            raise SchemaError("log.split needs either 'column', or both 'validation' and 'test'")


@dataclass(frozen=True, kw_only=True)
class LogSpec:
    """A log in long format: the schema of the data folder it becomes, and the columns that only the log has.

    Where a column comes from: request fields from the impressions (one value per request), else from the users;
    candidate fields and the `value` of targets from the candidates (where there are none: the impressions), else the
    items; targets and `schema.propensity` from the impressions. `schema.item_id` is the item column of all tables. A
    history field whose name is a list column of the impressions is taken from there, as it was logged. Else one of kind
    `"time"` holds the hours from each past item to the request's time, and one of kind `"page"` how many of the user's
    pages with a past item ago it was, of histories that are made from impressions.

    Labels: the feedback of shown items stands beside `slate`. A target with `candidate_feedback` also gets that column:
    the feedback of shown items, and of the other candidates what the candidates table has in a column of the target's
    name, else null.

    Args:
        schema: Of the data folder.
        request: Column of the request id (integer or text); rows that have the same one are one page.
        time: Column of the time: a timestamp, a date, ISO text, or a number in `time_unit`. The earliest of a request's
            rows is the request's.
        split: How requests are split.
        user: Column of the user; rows may lack it, and their requests then have no history.
        position: Column of the display position (integers). A row without one is a candidate that was not shown.
            `None`: the order is not known; the folder has no slates and every target needs `candidate_feedback`.
        first_position: What a page's first position is called, where the log has only parts of pages: positions without
            a row, counted from it, stay open in the slate. `None`: slates hold the shown items in their order, without
            gaps.
        surface: A categorical request field that says the page type. Sizes are reported by it.
        history: How history fields are made; `None` if there are none, or all are logged.
        time_unit: Of a numeric time column: "s", "ms" or "us" since 1970.
    """

    schema: FeatureSchema
    request: str
    time: str
    split: SplitSpec
    user: str | None = None
    position: str | None = None
    first_position: int | None = None
    surface: str | None = None
    history: HistorySpec | None = None
    time_unit: TimeUnit = "s"

    def __post_init__(self) -> None:
        require_names(self, "log", "request", "time")
        require_names(self, "log", "user", "position", "surface", optional=True)
        if type(self.first_position) not in (int, type(None)):
            raise SchemaError(f"first_position of log must be an integer, got {shown(self.first_position)}")
        require_choice(self.time_unit, get_args(TimeUnit), "time_unit of log")
        self._check_history()
        if self.surface is not None:
            surface = self.schema.field(self.surface)
            if (surface.group, surface.kind) != ("request", "categorical"):
                raise SchemaError(f"surface {self.surface!r} of log must be a categorical request field")
        bare = [target.name for target in self.schema.targets if target.candidate_feedback is None]
        if self.position is None and bare:
            raise SchemaError(
                f"log has no position, so there are no slates: target {bare[0]!r} needs candidate_feedback"
            )
        if not self.schema.targets:
            raise SchemaError("the schema of a log needs targets")

    def _check_history(self) -> None:
        if self.history is None:
            return
        known = [spec.name for spec in self.schema.select("history", "categorical")]
        if unknown := [name for name in self.history.columns or () if name not in known]:
            raise SchemaError(f"log.history names {unknown[0]!r}, which is no history field; there are {known}")
        if self.history.feedback not in (None, *(target.name for target in self.schema.targets)):
            raise SchemaError(f"feedback {self.history.feedback!r} of log.history is no target")
        if self.user is None:
            raise SchemaError("log.history needs log.user")

    def history_column(self, name: str) -> str:
        """The column that a history field holds."""
        columns = (self.history and self.history.columns) or {}
        return columns.get(name) or self.schema.field(name).shares or name

    @classmethod
    def from_yaml(cls, path: Path) -> LogSpec:
        """Reads a schema file with the key `log`; a `SchemaError` names the file if it is invalid."""
        try:
            data = read_yaml(path)
            if not isinstance(data, Mapping) or not isinstance(data.get("log"), Mapping):
                raise SchemaError("expected a schema with a key 'log' that says which columns are which")
            schema = FeatureSchema.from_dict({key: value for key, value in data.items() if key != "log"})
            values = known_keys(cls, {"schema": schema, **data["log"]}, "log")
            for key, part in (("split", SplitSpec), ("history", HistorySpec)):
                if values.get(key) is not None:
                    values[key] = part(**known_keys(part, values[key], f"log.{key}"))
            return cls(**values)
        except (SchemaError, UnreadableFileError) as error:
            raise SchemaError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-able."""
        return {**asdict(self), "schema": self.schema.to_dict()}


@dataclass(frozen=True, kw_only=True)
class LogTables:
    """Where the rows are: each table a file, a glob of files (Parquet, CSV, JSON), or a query in DuckDB's SQL.

    Text that begins with SELECT, FROM or WITH is a query; it may use all tables of the connection.

    Args:
        impressions: One row per shown item (and, with a null position, per candidate that was not shown).
        candidates: One row per candidate of a request, shown or not, with request and item columns, where they are
            logged apart. Without it the rows of the impressions are the candidates.
        items: One row per item, by `schema.item_id`.
        users: One row per user, by `LogSpec.user`.
        events: What users did, of which histories are made instead of from the impressions: one row per event, with the
            user and time columns and those that history fields hold.
    """

    impressions: str
    candidates: str | None = None
    items: str | None = None
    users: str | None = None
    events: str | None = None
