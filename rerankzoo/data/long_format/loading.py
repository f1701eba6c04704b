"""The tables of a log, read into a work database: only the columns that are needed, typed, sorted by bucket.

Names that begin with `__` are ours: `__row` (of the source, from 0), `__request`, `__user`, `__time`, `__item`,
`__position`, `__bucket`. A bucket holds whole requests and, where histories are made, whole users.
"""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from rerankzoo.data.long_format.spec import LogSpec, LogTables
from rerankzoo.data.work_database import has_table, unreadable
from rerankzoo.errors import RerankingDataError, did_you_mean, shown
from rerankzoo.features.schema import TOLD_ONCE, FieldSpec

_QUERY = re.compile(r"\s*(select|from|with)\b", re.IGNORECASE)
_WHOLE = re.compile(r"(U?(TINY|SMALL|BIG)INT|U?INTEGER|BOOLEAN)")
_NUMBER = re.compile(rf"{_WHOLE.pattern}|U?HUGEINT|FLOAT|DOUBLE|DECIMAL.*|\"NULL\"")
_TEXT = re.compile(r"VARCHAR|UUID|ENUM.*")
_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_LAST_MICROSECOND = 4_102_444_800_000_000  # before 2100
BUCKET_ROWS = 1_000_000  # rows of candidates that are put together at a time

#: Column by the name that it gets -> its name in the source, and what it is read as.
Wanted = dict[str, tuple[str, str]]


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def files_of(table: str, name: str) -> list[Path]:
    """The files of a table, sorted; empty of a query. A `RerankingDataError` if there are none."""
    files = [] if _QUERY.match(table) else sorted(map(Path, glob.glob(table, recursive=True)))
    if not files and not _QUERY.match(table):
        raise RerankingDataError(f"{table} not found", field=name)
    return files


@dataclass(frozen=True)
class Source:
    """A table where it is: its name, its SQL and the types of its columns."""

    connection: duckdb.DuckDBPyConnection
    name: str
    sql: str
    types: Mapping[str, str]

    @classmethod
    def open(cls, connection: duckdb.DuckDBPyConnection, name: str, table: str | Sequence[Path]) -> Source:
        """Looks at the columns of a query or of files."""
        texts = (
            [table.strip().rstrip(";")] if isinstance(table, str) else [f"FROM {_text(str(path))}" for path in table]
        )
        sql = f"({' UNION ALL BY NAME '.join(texts)})"
        try:
            described = connection.execute(f"DESCRIBE SELECT * FROM {sql}").fetchall()
        except duckdb.Error as error:
            raise unreadable(Path(name), error) from error
        return cls(connection, name, sql, {str(row[0]): str(row[1]) for row in described})

    def count(self) -> int:
        """The number of rows."""
        return int(self.connection.execute(f"SELECT count(*) FROM {self.sql}").fetchall()[0][0])

    def select(self, wanted: Wanted) -> str:
        """A query of columns, and of the number of the row as `__row`.

        They are read as a "key" (integers or text), an "integer", a "number", a "time" such as "time ms" (in UTC where
        it says its zone; "latest ms": the last of a list; "times ms": all of it), "dense" numbers, or "raw".

        Raises:
            RerankingDataError: If a column is missing, of another type, or holds what cannot be read.
        """
        columns = [f"{self._read(column, kind)} AS {quoted(name)}" for name, (column, kind) in wanted.items()]
        return f"SELECT row_number() OVER () - 1 AS __row, {', '.join(columns)} FROM {self.sql}"

    def _read(self, column: str, kind: str) -> str:
        if column not in self.types:
            near = did_you_mean(column, self.types)
            raise RerankingDataError(f"missing column{near}; {self.name} have {shown(list(self.types))}", field=column)
        found, name, (kind, _, unit) = self.types[column], quoted(column), kind.partition(" ")
        if kind in ("dense", "raw"):
            return name if kind == "raw" else f"CAST({name} AS FLOAT[])"
        listed = kind == "times" and found.endswith("[]")
        if kind in ("latest", "times"):
            found, name = found.removesuffix("[]"), "x" if listed else f"list_max({name})"
        expected = {"number": "no number", "integer": "no integer", "key": "no integer or text"}.get(kind, "no time")
        expected += f" between 1970 and 2100 (time_unit {unit})" if unit else ""
        read = _as_time(found, name, unit) if unit else _as_number(found, name) if kind == "number" else None
        read = read or (_as_key(found, name) if kind in ("key", "integer") else None)
        if read is None or (kind == "integer" and not _NUMBER.fullmatch(found)):
            raise RerankingDataError(f"{found} in the {self.name} is {expected}", field=column)
        expression, wrong = read
        if listed:
            return f"list_transform({quoted(column)}, lambda x: {expression})"
        rows = f"SELECT row_number() OVER () - 1, {quoted(column)} FROM {self.sql}"
        is_missing = f"{name} IS NULL" if kind == "time" else "false"
        query = f"{rows} QUALIFY {is_missing} OR ({name} IS NOT NULL AND {wrong}) LIMIT 1"
        for row, value in self.connection.execute(query).fetchall() if wrong != "false" else ():
            raise RerankingDataError(f"{shown(value)} in the {self.name} is {expected}", field=column, row=row)
        return expression


def _as_time(found: str, name: str, unit: str) -> tuple[str, str] | None:
    """SQL that reads a column as a timestamp, and of what it cannot read; `None` of another type."""
    if _NUMBER.fullmatch(found):
        wrong = f"{name} NOT BETWEEN 0 AND {_LAST_MICROSECOND // _UNITS[unit]}"
        return f"make_timestamp(CAST({name} * {_UNITS[unit]} AS BIGINT))", wrong
    is_text = _TEXT.fullmatch(found)
    read = f"CAST({f'TRY_CAST({name} AS TIMESTAMPTZ)' if is_text else name} AS TIMESTAMP)"
    wrong = f"coalesce({read} NOT BETWEEN TIMESTAMP '1970-01-01' AND TIMESTAMP '2100-01-01', true)"
    return (read, wrong) if is_text or found.startswith(("TIMESTAMP", "DATE")) else None


def _as_number(found: str, name: str) -> tuple[str, str] | None:
    wrong = "false" if _NUMBER.fullmatch(found) else f"TRY_CAST({name} AS DOUBLE) IS NULL"
    return (f"CAST({name} AS DOUBLE)", wrong) if wrong == "false" or _TEXT.fullmatch(found) else None


def _as_key(found: str, name: str) -> tuple[str, str] | None:
    if _NUMBER.fullmatch(found):
        wrong = "false" if _WHOLE.fullmatch(found) else f"({name} <> round({name}) OR abs({name}) > 9e18)"
        return f"CAST({name} AS BIGINT)", wrong
    return (f"CAST({name} AS VARCHAR)", "false") if _TEXT.fullmatch(found) else None


def open_sources(connection: duckdb.DuckDBPyConnection, tables: LogTables) -> dict[str, Source]:
    """The tables that are given, by name."""
    given = {name: table for name, table in vars(tables).items() if table is not None}
    return {name: Source.open(connection, name, files_of(table, name) or table) for name, table in given.items()}


@dataclass(frozen=True)
class Plan:
    """Which columns come from which table, and how many buckets there are."""

    spec: LogSpec
    request_fields: Mapping[str, str]  # column -> "impressions" or "users"
    candidate_fields: Mapping[str, str]  # column -> "candidates", "impressions" or "items"
    labels: tuple[str, ...]  # columns of the impressions
    known_labels: tuple[str, ...]  # targets that the candidates have a column of
    logged: tuple[str, ...]  # history fields that the impressions hold
    made: Mapping[str, str]  # history fields that are made -> "events", "impressions" or "items"
    told: tuple[FieldSpec, ...]  # history fields that say when and on which page, and are made
    buckets: int
    has_candidates: bool  # logged apart
    has_items: bool

    def kind(self, name: str) -> str:
        """What a column is read as."""
        kinds = {
            column: field.kind for field in self.spec.schema.fields for column in field.sources if not field.columns
        }
        return {"categorical": "key", "dense": "dense"}.get(kinds.get(name, ""), "number")

    def fields_of(self, table: str) -> dict[str, str]:
        """The columns of features that come from a table, and what they are read as; not the item's id."""
        homes = {**self.request_fields, **self.candidate_fields}
        item = self.spec.schema.item_id
        return {name: self.kind(name) for name, home in homes.items() if home == table and name != item}


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
    known = [Source.open(connection, "impressions", earlier)] if earlier else []
    plan = _plan(spec, sources, known)
    queries = {
        "impressions": lambda: _impressions(plan, sources["impressions"]),
        "requests": lambda: _requests(plan),
        "candidates": lambda: _candidates(plan, sources["candidates"], "JOIN" if known else "LEFT JOIN"),
        "items": lambda: _keyed(plan, sources["items"], spec.schema.item_id),
        "users": lambda: _keyed(plan, sources["users"], spec.user or ""),
        "events": lambda: _events(
            plan, [sources["events"]] if "events" in sources else [*known, sources["impressions"]]
        ),
    }
    for name, query in queries.items():
        needed = {"requests": True, "events": bool(plan.made), "users": bool(plan.fields_of("users"))}
        if needed.get(name, name in sources) and not has_table(connection, name):
            connection.execute(f"CREATE TABLE {name} AS {query()}")
    return plan


def _plan(spec: LogSpec, sources: Mapping[str, Source], known: Sequence[Source]) -> Plan:
    """Finds every column; refuses one that no table has."""
    schema, rows = spec.schema, "candidates" if "candidates" in sources else "impressions"

    def home(column: str, *names: str) -> str:
        given = [name for name in names if name in sources]
        found = [name for name in given if column in sources[name].types]
        if not found:
            near = did_you_mean(column, [known for name in given for known in sources[name].types])
            raise RerankingDataError(f"missing column: not in the {' or the '.join(given)}{near}", field=column)
        return found[0]

    count = sources["impressions"].count()
    if not count:
        raise RerankingDataError("no rows", field="impressions")
    share = count / (count + sum(source.count() for source in known))  # of the other tables' rows that are about them
    largest = max(count, *(share * sources[name].count() for name in {rows, "events"} & sources.keys()), 0)
    groups = {
        group: [name for field in schema.fields if field.group == group for name in field.sources]
        for group in ("request", "candidate", "history")
    }
    types = sources["impressions"].types
    logged = [name for name in groups["history"] if types.get(name, "").endswith("[]")]
    told = [
        field
        for field in schema.fields
        if field.group == "history" and field.kind in TOLD_ONCE and field.name not in logged
    ]
    made = [name for name in groups["history"] if name not in (*logged, *(field.name for field in told))]
    past = ("events",) if "events" in sources else ("impressions", "items")
    if made and (spec.history is None or (past[0] != "events" and spec.history.feedback is None)):
        message = "it is no list column of the impressions, and log.history names no feedback to make it of"
        raise RerankingDataError(message, field=made[0])
    for field in told:
        times = bool(spec.history and spec.history.times)
        if not (made or (field.kind == "time" and times)) or (field.kind == "page" and past[0] == "events"):
            message = f"it is no list column of the impressions, and nothing else tells a {field.kind} of past items"
            raise RerankingDataError(message, field=field.name)
    values = [target.value for target in schema.targets if target.value]
    labels = [target.name for target in schema.targets]
    propensity = schema.propensity
    if propensity and types.get(propensity) == '"NULL"':  # as a query writes it where the logger is not known
        propensity = None
    return Plan(
        spec=spec,
        request_fields={name: home(name, "impressions", "users") for name in groups["request"]},
        candidate_fields={name: home(name, rows, "items") for name in (schema.item_id, *groups["candidate"], *values)},
        labels=(*labels, *filter(None, [propensity])),
        known_labels=tuple(name for name in labels if rows == "candidates" and name in sources[rows].types),
        logged=tuple(logged),
        made={name: home(spec.history_column(name), *past) for name in made},
        told=tuple(told),
        buckets=math.ceil(largest / BUCKET_ROWS),
        has_candidates=rows == "candidates",
        has_items="items" in sources,
    )


def _impressions(plan: Plan, source: Source) -> str:
    spec = plan.spec
    wanted = _keys(plan) | {name: (name, kind) for name, kind in plan.fields_of("impressions").items()}
    wanted |= {name: (name, "number") for name in plan.labels} | {name: (name, "raw") for name in plan.logged}
    wanted |= {"__position": (spec.position, "integer")} if spec.position else {}
    wanted |= {spec.split.column: (spec.split.column, "key")} if spec.split.column else {}
    if spec.history and spec.history.times:
        wanted |= {f"__{kind}": (spec.history.times, f"{kind} {spec.time_unit}") for kind in ("latest", "times")}
    missing = "".join(f", NULL::BIGINT AS {name}" for name in ("__user", "__position") if name not in wanted)
    owner = "coalesce(__user::VARCHAR, __request::VARCHAR)" if plan.made else "__request::VARCHAR"
    bucket = f"hash({owner}) % {plan.buckets}"
    return f"SELECT *, {bucket} AS __bucket FROM (SELECT *{missing} FROM ({source.select(wanted)})) ORDER BY __bucket"


def _keys(plan: Plan) -> Wanted:
    spec = plan.spec
    keys = {"__request": (spec.request, "key"), "__item": (spec.schema.item_id, "key")}
    keys |= {"__user": (spec.user, "key")} if spec.user else {}
    return keys | {"__time": (spec.time, f"time {spec.time_unit}")}


def _candidates(plan: Plan, source: Source, join: str) -> str:
    """Of earlier files' requests, which are not unknown but not here, an inner join leaves none."""
    wanted = {"__request": (plan.spec.request, "key"), "__item": (plan.spec.schema.item_id, "key")}
    wanted |= {name: (name, kind) for name, kind in plan.fields_of("candidates").items()}
    wanted |= {name: (name, "number") for name in plan.known_labels}
    query = f"SELECT c.*, r.__bucket FROM ({source.select(wanted)}) c {join} requests r USING (__request)"
    return f"{query} ORDER BY r.__bucket"


def _keyed(plan: Plan, source: Source, key: str) -> str:
    wanted = {"__key": (key, "key")} | {name: (name, kind) for name, kind in plan.fields_of(source.name).items()}
    past = [plan.spec.history_column(name) for name, home in plan.made.items() if home == source.name]
    return source.select(wanted | {name: (name, "key") for name in past})


def _events(plan: Plan, sources: Sequence[Source]) -> str:
    """What histories are made of; `__row` counts in the order of the sources."""
    spec, history = plan.spec, plan.spec.history
    taken = {name: (spec.history_column(name), "key") for name, home in plan.made.items() if home != "items"}
    once = ""
    keys = {name: wanted for name, wanted in _keys(plan).items() if name in ("__user", "__time")}
    condition = "__user IS NOT NULL"
    if sources[0].name == "impressions" and history is not None:
        keys |= _keys(plan) | {"__feedback": (history.feedback or "", "number")}
        condition += " AND __feedback > 0"
        once = "QUALIFY row_number() OVER (PARTITION BY __request, __item ORDER BY __row) = 1"
    rows = " UNION ALL ".join(f"SELECT * FROM ({source.select(keys | taken)}) WHERE {condition}" for source in sources)
    rows = f"SELECT * FROM (SELECT * REPLACE (row_number() OVER () - 1 AS __row) FROM ({rows})) {once}"
    joined = {name: spec.history_column(name) for name, home in plan.made.items() if home == "items"}
    if joined:
        columns = ", ".join(f"i.{quoted(column)} AS {quoted(name)}" for name, column in joined.items())
        rows = f"SELECT e.*, {columns} FROM ({rows}) e LEFT JOIN items i ON i.__key = e.__item"
    return f"SELECT *, hash(__user::VARCHAR) % {plan.buckets} AS __bucket FROM ({rows}) ORDER BY __bucket"


def _requests(plan: Plan) -> str:
    """One row per request: who, when, which split, how large; of columns that must be the same, least and greatest."""
    spec, split = plan.spec, plan.spec.split
    same = {name: None for name, home in plan.request_fields.items() if home == "impressions"}
    same |= {split.column: None} if split.column else {}
    columns = [
        f"min({quoted(name)}) AS {quoted(name)}, max({quoted(name)}) AS {quoted('__max ' + name)}" for name in same
    ]
    columns += [f"any_value({quoted(name)}) AS {quoted(name)}" for name in plan.logged]
    if spec.history and spec.history.times:
        columns += ["max(__latest) AS __latest", "any_value(__times) AS __times"]
    value = quoted(split.column or "")
    if not split.column:
        ends = [_boundary(end, spec.time_unit) for end in (split.validation, split.test)]
        value = f"CASE WHEN __time >= {ends[1]} THEN 'test' WHEN __time >= {ends[0]} THEN 'validation' ELSE 'train' END"
    rewarded = " + ".join(f"sum(({quoted(target.name)} > 0)::INTEGER)" for target in spec.schema.targets)
    return f"""
        SELECT *, {value} AS __split, hash(__request) AS __order FROM (
            SELECT __request, min(__bucket) AS __bucket, max(__bucket) AS __max_bucket, min(__user) AS __user,
                max(__user) AS __max_user, min(__time) AS __time, max(__time) AS __last, min(__row) AS __row,
                count(*) AS __rows, count({"__position" if spec.position else "*"}) AS __shown,
                min(__position) AS __first, max(__position) AS __end, {rewarded} AS __rewarded,
                bit_xor(hash(__item)) AS __items {"".join(f", {column}" for column in columns)}
            FROM impressions GROUP BY __request)
        ORDER BY __bucket"""


def _boundary(value: str | int | float | None, unit: str) -> str:
    if isinstance(value, int | float):
        return f"make_timestamp({int(value * _UNITS[unit])})"
    return f"CAST(CAST({_text(str(value))} AS TIMESTAMPTZ) AS TIMESTAMP)"
