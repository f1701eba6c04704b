"""The tables of a log, read into a work database: only the columns that are needed, typed, sorted by bucket.

Names that begin with `__` are ours: `__row` (of the source, from 0), `__request`, `__user`, `__time`, `__item`,
`__position`, `__bucket`. A bucket holds whole users, and so whole requests.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rerankzoo.data.long_format.spec import LogSpec, LogTables
from rerankzoo.data.work_database import has_table, unreadable
from rerankzoo.errors import RerankingDataError, did_you_mean, shown

if TYPE_CHECKING:
    import duckdb

_QUERY = re.compile(r"\s*(select|from|with)\b", re.IGNORECASE)
_READERS = {"parquet": "read_parquet", "csv": "read_csv", "tsv": "read_csv", "txt": "read_csv"}
_READERS |= dict.fromkeys(("json", "jsonl", "ndjson"), "read_json")
_WHOLE = re.compile(r"(U?(TINY|SMALL|BIG)INT|U?INTEGER|BOOLEAN)")
_NUMBER = re.compile(rf"{_WHOLE.pattern}|U?HUGEINT|FLOAT|DOUBLE|DECIMAL.*")
_TEXT = re.compile(r"VARCHAR|UUID|ENUM.*")
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_YEARS = "TIMESTAMP '1970-01-01' AND TIMESTAMP '2100-01-01'"
_LAST_SECOND = 4_102_444_800  # of that range
BUCKET_ROWS = 1_000_000  # rows of candidates that are put together at a time


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def files_of(table: str, name: str) -> list[Path] | None:
    """The files of a table, sorted; `None` of a query.

    Raises:
        RerankingDataError: If there are none.
    """
    if _QUERY.match(table):
        return None
    files = sorted(map(Path, glob.glob(table, recursive=True)))
    if not files:
        raise RerankingDataError(f"{table} not found", field=name)
    return files


@dataclass(frozen=True)
class Source:
    """A table where it is: its name, its SQL and the types of its columns."""

    name: str
    sql: str
    types: dict[str, str]

    @classmethod
    def open(cls, connection: duckdb.DuckDBPyConnection, name: str, table: str | Sequence[Path]) -> Source:
        """Reads the columns of a query or of files."""
        if isinstance(table, str):
            sql = f"({table.strip().rstrip(';')})"
        else:
            kinds = {
                next((part for part in path.name.lower().split(".")[:0:-1] if part in _READERS), "") for path in table
            }
            if len(readers := {_READERS.get(kind) for kind in kinds}) > 1 or None in readers:
                message = (
                    f"expected files of one kind of {', '.join(_READERS)}, got {shown([str(path) for path in table])}"
                )
                raise RerankingDataError(message, field=name)
            listed = ", ".join("'" + str(path).replace("'", "''") + "'" for path in table)
            sql = f"{readers.pop()}([{listed}], union_by_name = true)"
        import duckdb

        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
        except duckdb.Error as error:
            raise unreadable(Path(name), error) from error
        return cls(name, sql, {str(row[0]): str(row[1]) for row in described})

    def require(self, column: str) -> str:
        """The column's type; refuses one that is not there."""
        if column not in self.types:
            near = did_you_mean(column, self.types)
            raise RerankingDataError(f"missing column{near}; {self.name} have {shown(list(self.types))}", field=column)
        return self.types[column]


def open_sources(connection: duckdb.DuckDBPyConnection, tables: LogTables) -> dict[str, Source]:
    """The tables that are given, by name."""
    given = {name: table for name, table in vars(tables).items() if table is not None}
    return {name: Source.open(connection, name, files_of(table, name) or table) for name, table in given.items()}


class LogTypes:
    """SQL expressions that read columns as what they are for, after a look at what cannot be read.

    Raises:
        RerankingDataError: From each, if the type or a value does not fit.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.kinds: dict[str, tuple[str, str]] = {}  # column -> table that it was first read from, text or number

    def key(self, source: Source, column: str) -> str:
        """Integers or text; the same in all tables."""
        found, name = source.require(column), quoted(column)
        if _TEXT.fullmatch(found):
            kind, expression = "text", f"CAST({name} AS VARCHAR)"
        elif _NUMBER.fullmatch(found):
            kind, expression = "integers", f"CAST({name} AS BIGINT)"
            if not _WHOLE.fullmatch(found):
                self._refuse(source, column, f"{name} <> round({name}) OR abs({name}) > 9e18", "is no integer or text")
        else:
            raise RerankingDataError(f"expected integers or text, got {found} in the {source.name}", field=column)
        table, known = self.kinds.setdefault(column, (source.name, kind))
        if known != kind:
            raise RerankingDataError(f"{kind} in the {source.name}, but {known} in the {table}", field=column)
        return expression

    def number(self, source: Source, column: str) -> str:
        """A number."""
        found, name = source.require(column), quoted(column)
        if not _NUMBER.fullmatch(found):
            if not _TEXT.fullmatch(found):
                raise RerankingDataError(f"expected numbers, got {found} in the {source.name}", field=column)
            self._refuse(source, column, f"{name} IS NOT NULL AND TRY_CAST({name} AS DOUBLE) IS NULL", "is no number")
        return f"CAST({name} AS DOUBLE)"

    def time(self, source: Source, column: str, unit: str, *, optional: bool = False) -> str:
        """A timestamp, in UTC where it says its zone."""
        found, name = source.require(column), quoted(column)
        expression = f"CAST({name} AS TIMESTAMP)"
        wrong = f"{expression} NOT BETWEEN {_YEARS}"
        if _NUMBER.fullmatch(found):
            expression = f"make_timestamp(CAST({name} * {_UNITS[unit]} AS BIGINT))"
            wrong = f"NOT coalesce({name} BETWEEN 0 AND {_LAST_SECOND * 1_000_000 // _UNITS[unit]}, false)"
        elif _TEXT.fullmatch(found):
            expression = f"CAST(TRY_CAST({name} AS TIMESTAMPTZ) AS TIMESTAMP)"
            wrong = f"{expression} IS NULL OR {expression} NOT BETWEEN {_YEARS}"
        reason = f"is no time between 1970 and 2100 (time_unit {unit})"
        missing = f"{name} IS NOT NULL AND" if optional else f"{name} IS NULL OR"
        self._refuse(source, column, f"{missing} ({wrong})", reason)
        return expression

    def field(self, source: Source, column: str, kind: str) -> str:
        """What a field of a kind holds; a `numeric` column of a target is one, too."""
        if kind == "dense":
            return f"CAST({quoted(column)} AS FLOAT[])"
        return self.key(source, column) if kind == "categorical" else self.number(source, column)

    def _refuse(self, source: Source, column: str, condition: str, reason: str) -> None:
        query = f"""
            SELECT * FROM (SELECT row_number() OVER () - 1 AS n, {quoted(column)} FROM {source.sql})
            WHERE {condition} LIMIT 1"""
        for row, value in self.connection.execute(query).fetchall():
            raise RerankingDataError(f"{shown(value)} in the {source.name} {reason}", field=column, row=row)


@dataclass(frozen=True)
class Plan:
    """Which columns come from which table, and how many buckets there are."""

    spec: LogSpec
    request_fields: dict[str, str]  # column -> "impressions" or "users"
    candidate_fields: dict[str, str]  # column -> "candidates", "impressions" or "items"
    labels: tuple[str, ...]  # columns of the impressions
    known_labels: tuple[str, ...]  # targets that the candidates have a column of
    logged: tuple[str, ...]  # history fields that the impressions hold
    made: tuple[str, ...]  # history fields that are made
    buckets: int
    has_candidates: bool  # logged apart
    has_items: bool


def load_log(
    connection: duckdb.DuckDBPyConnection,
    spec: LogSpec,
    tables: LogTables,
    earlier: Sequence[Path],
    new: Sequence[Path],
) -> Plan:
    """Makes the work tables `impressions`, `requests`, `candidates`, `items`, `users`, `events`, where not there.

    Args:
        connection: The database.
        spec: What the columns are.
        tables: Where the rows are.
        earlier: Files of impressions that are in the folder already: of them only histories are made.
        new: Files of impressions; none if they are a query.
    """
    sources = open_sources(connection, tables)
    sources["impressions"] = Source.open(connection, "impressions", new or tables.impressions)
    loader = _Loader(connection, spec, sources)
    plan = loader.plan()
    for name, query in loader.queries(plan, Source.open(connection, "impressions", earlier) if earlier else None):
        if not has_table(connection, name):
            _create(connection, name, query)
    return plan


def _create(connection: duckdb.DuckDBPyConnection, name: str, query: str) -> None:
    import duckdb

    try:
        connection.execute(f"CREATE TABLE {name} AS {query}")
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise unreadable(Path(name), error) from error


class _Loader:
    def __init__(self, connection: duckdb.DuckDBPyConnection, spec: LogSpec, sources: dict[str, Source]) -> None:
        self.connection, self.spec, self.sources = connection, spec, sources
        self.types = LogTypes(connection)

    def plan(self) -> Plan:
        """Finds every column; refuses one that no table has."""
        spec, schema = self.spec, self.spec.schema
        impressions = self.sources["impressions"]
        rows = "candidates" if "candidates" in self.sources else "impressions"
        counts = [self._count(name) for name in {"impressions", rows, *({"events"} & self.sources.keys())}]
        if not counts[0]:
            raise RerankingDataError("no rows", field="impressions")
        histories = [field.name for field in schema.fields if field.group == "history"]
        logged = tuple(name for name in histories if impressions.types.get(name, "").endswith("[]"))
        made = tuple(name for name in histories if name not in logged)
        if made and spec.history is None:
            raise RerankingDataError("no list column of the impressions, and there is no log.history", field=made[0])
        candidate = dict.fromkeys(
            [schema.item_id, *(field.name for field in schema.fields if field.group == "candidate")]
        )
        candidate |= dict.fromkeys(target.value for target in schema.targets if target.value)
        return Plan(
            spec=spec,
            request_fields={
                field.name: self._home(field.name, "impressions", "users")
                for field in schema.fields
                if field.group == "request"
            },
            candidate_fields={name: self._home(name, rows, "items") for name in candidate},
            labels=(*(target.name for target in schema.targets), *self._propensity()),
            known_labels=tuple(
                target.name
                for target in schema.targets
                if rows == "candidates" and target.candidate_feedback and target.name in self.sources[rows].types
            ),
            logged=logged,
            made=made,
            buckets=-(-max(counts) // BUCKET_ROWS),
            has_candidates=rows == "candidates",
            has_items="items" in self.sources,
        )

    def _propensity(self) -> list[str]:
        """The propensity's column; none where it is `NULL`, as a query writes it of a log whose logger is not known."""
        name = self.spec.schema.propensity
        return [] if name is None or self.sources["impressions"].types.get(name) == '"NULL"' else [name]

    def _count(self, name: str) -> int:
        return int(self.connection.execute(f"SELECT count(*) FROM {self.sources[name].sql}").fetchall()[0][0])

    def _home(self, column: str, *names: str) -> str:
        homes = [name for name in names if name in self.sources]
        for name in homes:
            if column in self.sources[name].types:
                return name
        near = did_you_mean(column, [known for name in homes for known in self.sources[name].types])
        raise RerankingDataError(f"missing column: neither in the {' nor in the '.join(homes)}{near}", field=column)

    def queries(self, plan: Plan, earlier: Source | None) -> list[tuple[str, str]]:
        """Each work table's name and query."""
        spec = self.spec
        impressions = self.sources["impressions"]
        made = [("impressions", self._impressions(plan, impressions)), ("requests", _requests(plan))]
        if plan.has_candidates:
            made.append(("candidates", self._candidates(plan)))
        for name, key, homes in (
            ("items", spec.schema.item_id, plan.candidate_fields),
            ("users", spec.user, plan.request_fields),
        ):
            if name in self.sources and key is not None:
                wanted = {
                    column: self._kind(column) for column, home in homes.items() if home == name and column != key
                }
                past = self._history_columns(plan, name) if name == "items" else []
                made.append((name, self._keyed(self.sources[name], key, wanted | dict.fromkeys(past, "categorical"))))
        if plan.made:
            made.append(("events", self._events(plan, earlier)))
        return made

    def _keys(self, plan: Plan, source: Source) -> list[str]:
        """What every table of rows in time has: bucket, user, time."""
        spec = self.spec
        user = "NULL::BIGINT" if spec.user is None else self.types.key(source, spec.user)
        return [f"{user} AS __user", f"{self.types.time(source, spec.time, spec.time_unit)} AS __time"]

    def _impressions(self, plan: Plan, source: Source) -> str:
        spec, schema = self.spec, self.spec.schema
        request, item = self.types.key(source, spec.request), self.types.key(source, schema.item_id)
        position = "NULL::BIGINT" if spec.position is None else self.types.key(source, spec.position)
        if spec.position is not None and self.types.kinds[spec.position][1] == "text":
            raise RerankingDataError("expected integers, got text in the impressions", field=spec.position)
        columns = [
            f"{request} AS __request",
            f"{item} AS __item",
            f"{position} AS __position",
            *self._keys(plan, source),
        ]
        homes = plan.request_fields | plan.candidate_fields
        wanted = {
            name: self._kind(name) for name, home in homes.items() if home == "impressions" and name != schema.item_id
        }
        wanted |= dict.fromkeys(plan.labels, "numeric")
        columns += [f"{self.types.field(source, name, kind)} AS {quoted(name)}" for name, kind in wanted.items()]
        columns += [quoted(name) for name in plan.logged]
        if spec.split.column and source.require(spec.split.column) and spec.split.column not in wanted:
            columns.append(quoted(spec.split.column))
        if spec.history and spec.history.times:
            times = spec.history.times
            kind = source.require(times).removesuffix("[]")
            latest = f"(SELECT * REPLACE (list_max({quoted(times)}) AS {quoted(times)}) FROM {source.sql})"
            source = Source(source.name, latest, source.types | {times: kind})
            columns.append(f"{self.types.time(source, times, spec.time_unit, optional=True)} AS __latest")
        return f"""
            SELECT *, hash(coalesce(__user::VARCHAR, __request::VARCHAR)) % {plan.buckets} AS __bucket
            FROM (SELECT row_number() OVER () - 1 AS __row, {", ".join(columns)} FROM {source.sql}) ORDER BY __bucket"""

    def _kind(self, name: str) -> str:
        return next((field.kind for field in self.spec.schema.fields if field.name == name), "numeric")

    def _candidates(self, plan: Plan) -> str:
        source, spec = self.sources["candidates"], self.spec
        wanted = {name: self._kind(name) for name, home in plan.candidate_fields.items() if home == "candidates"}
        wanted.pop(spec.schema.item_id, None)
        wanted |= dict.fromkeys(plan.known_labels, "numeric")
        keys = f"{self.types.key(source, spec.request)} AS __request, "
        keys += f"{self.types.key(source, spec.schema.item_id)} AS __item"
        listed = "".join(f", {self.types.field(source, name, kind)} AS {quoted(name)}" for name, kind in wanted.items())
        return f"""
            SELECT c.*, r.__bucket FROM (SELECT row_number() OVER () - 1 AS __row, {keys}{listed} FROM {source.sql}) c
            LEFT JOIN requests r USING (__request) ORDER BY r.__bucket"""

    def _keyed(self, source: Source, key: str, wanted: dict[str, str]) -> str:
        columns = [f"{self.types.key(source, key)} AS __key"]
        columns += [f"{self.types.field(source, name, kind)} AS {quoted(name)}" for name, kind in wanted.items()]
        return f"SELECT row_number() OVER () - 1 AS __row, {', '.join(columns)} FROM {source.sql}"

    def _history_columns(self, plan: Plan, name: str) -> list[str]:
        """The columns that histories take from a table; an item's id is everywhere."""
        homes = ("events",) if "events" in self.sources else ("impressions", "items")
        wanted = [self.spec.history_column(field) for field in plan.made]
        return [column for column in wanted if self._home(column, *homes) == name]

    def _events(self, plan: Plan, earlier: Source | None) -> str:
        """What histories are made of, in the order of time: `__row` counts in the order of the sources."""
        spec, history = self.spec, self.spec.history
        if "events" in self.sources:
            source = self.sources["events"]
            columns = [self._event_column(source, field) for field in plan.made]
            rows = f"SELECT {', '.join([*self._keys(plan, source), *columns])} FROM {source.sql}"
            rows = f"SELECT *, row_number() OVER () - 1 AS __row FROM ({rows}) WHERE __user IS NOT NULL"
        else:
            if history is None or history.feedback is None:
                raise RerankingDataError("log.history needs 'feedback', or a table of events", field=plan.made[0])
            sources = [source for source in (earlier, self.sources["impressions"]) if source is not None]
            rows = " UNION ALL BY NAME ".join(self._positives(plan, source) for source in sources)
            rows = f"SELECT *, row_number() OVER () - 1 AS __row FROM ({rows})"
            rows = f"""
                SELECT * FROM ({rows}) QUALIFY row_number() OVER (PARTITION BY __request, __item ORDER BY __row) = 1"""
            if taken := self._history_columns(plan, "items"):
                named = {field: spec.history_column(field) for field in plan.made}
                columns = [f"i.{quoted(of)} AS {quoted(field)}" for field, of in named.items() if of in taken]
                rows = f"SELECT e.*, {', '.join(columns)} FROM ({rows}) e LEFT JOIN items i ON i.__key = e.__item"
        return f"SELECT *, hash(__user::VARCHAR) % {plan.buckets} AS __bucket FROM ({rows}) ORDER BY __bucket"

    def _positives(self, plan: Plan, source: Source) -> str:
        spec, history = self.spec, self.spec.history
        feedback = self.types.number(source, history.feedback if history and history.feedback else "")
        taken = self._history_columns(plan, "impressions")
        columns = [self._event_column(source, field) for field in plan.made if spec.history_column(field) in taken]
        keys = [f"{self.types.key(source, spec.request)} AS __request"]
        keys += [f"{self.types.key(source, spec.schema.item_id)} AS __item", *self._keys(plan, source)]
        return f"""
            SELECT {", ".join([*keys, *columns])} FROM {source.sql}
            WHERE {feedback} > 0 AND {quoted(spec.user or "")} IS NOT NULL"""

    def _event_column(self, source: Source, field: str) -> str:
        return f"{self.types.key(source, self.spec.history_column(field))} AS {quoted(field)}"


def _requests(plan: Plan) -> str:
    """One row per request: who, when, which split, how large; of columns that must be the same, least and greatest."""
    spec, split = plan.spec, plan.spec.split
    shown_rows = "count(*)" if spec.position is None else "count(__position)"
    same = [name for name, home in plan.request_fields.items() if home == "impressions"]
    same += [split.column] if split.column and split.column not in same else []
    columns = [
        f"min({quoted(name)}) AS {quoted(name)}, max({quoted(name)}) AS {quoted('__max ' + name)}" for name in same
    ]
    columns += [f"any_value({quoted(name)}) AS {quoted(name)}" for name in plan.logged]
    columns += ["max(__latest) AS __latest"] if spec.history and spec.history.times else []
    if split.column:
        value = quoted(split.column)
    else:
        ends = [_boundary(end, spec.time_unit) for end in (split.validation, split.test)]
        value = f"CASE WHEN __time >= {ends[1]} THEN 'test' WHEN __time >= {ends[0]} THEN 'validation' ELSE 'train' END"
    rewarded = " + ".join(f"sum(({quoted(target.name)} > 0)::INTEGER)" for target in spec.schema.targets)
    return f"""
        SELECT *, {value} AS __split, hash(__request) AS __order FROM (
            SELECT __request, min(__bucket) AS __bucket, max(__bucket) AS __max_bucket, min(__user) AS __user,
                max(__user) AS __max_user, min(__time) AS __time, max(__time) AS __last, min(__row) AS __row,
                max(__row) AS __last_row, count(*) AS __rows, {shown_rows} AS __shown, min(__position) AS __first,
                max(__position) AS __end, {rewarded} AS __rewarded, bit_xor(hash(__item)) AS __items
                {"".join(f", {column}" for column in columns)}
            FROM impressions GROUP BY __request)
        ORDER BY __bucket"""


def _boundary(value: str | int | float | None, unit: str) -> str:
    if isinstance(value, int | float):
        return f"make_timestamp({int(value * _UNITS[unit])})"
    return "CAST('" + str(value).replace("'", "''") + "' AS TIMESTAMP)"
