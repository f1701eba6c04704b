"""What is wrong with a log, and what is suspicious: every check with a count and examples.

Rows that contradict one another, or that no data folder can hold, refuse the log. All else is reported and left to the
reader, who knows what the log should look like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from rerankzoo.data.long_format.loading import Plan, quoted
from rerankzoo.data.long_format.requests import candidates_sql, requests_sql
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.schema import FLOAT32_MAX
from rerankzoo.metrics.classification import auc

if TYPE_CHECKING:
    import duckdb

BOT_REQUESTS, BOT_FACTOR = 500, 30  # a bot has as many requests, and so many times the median user's
LEAK_AUC = 0.95  # of one feature alone
_LEAK_ROWS = 200_000  # that are looked at for leaks
_EXAMPLES = 3


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    Attributes:
        name: Of the check.
        count: How many rows, requests, users... it is about; 0 where all is well.
        text: What it means.
        examples: Some of them.
    """

    name: str
    count: int
    text: str
    examples: tuple[str, ...] = ()


class _Check(NamedTuple):
    """A condition of the rows of a relation, which has `__row`; a check with a field refuses the log."""

    name: str
    condition: str
    values: str  # SQL list of what an example shows
    text: str = ""
    field: str | None = None


def _wrong(name: str, field: str, condition: str, values: str) -> _Check:
    return _Check(name, condition, values, field=field)


def check_log(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[Finding]:
    """Runs all checks that fit the log.

    Raises:
        RerankingDataError: For all faults together that make the data wrong; names field, row and values of each.
    """
    faults: list[RerankingDataError] = []
    found = [one for relation, checks in _checks(plan) for one in _run(connection, relation, checks, faults)]
    if faults:
        raise _as_one(faults, [one for one in found if one.count])
    return [*found, *_clocks(connection), *_order(connection, plan), *_sampled(connection, plan)]


def _as_one(faults: list[RerankingDataError], suspicious: list[Finding]) -> RerankingDataError:
    """An error about the first fault that tells the others, and what else was found until then."""
    first, *others = faults
    text = "; ".join([first.message, *map(str, others)])
    if suspicious:
        text += "; suspicious: " + ", ".join(f"{one.name} ({one.count:,})" for one in suspicious)
    return RerankingDataError(text, field=first.field, row=first.row)


def _run(
    connection: duckdb.DuckDBPyConnection, relation: str, checks: list[_Check], faults: list[RerankingDataError]
) -> Iterator[Finding]:
    """Counts what meets the conditions, in one pass; then looks for examples. What refuses the log joins the faults."""
    if not checks:
        return
    counts = ", ".join(f"count(*) FILTER (WHERE {check.condition})" for check in checks)
    for check, count in zip(checks, _ask(connection, f"SELECT {counts} FROM {relation}"), strict=True):
        query = f"SELECT __row, {check.values} FROM {relation} WHERE {check.condition} ORDER BY __row LIMIT {_EXAMPLES}"
        rows = connection.execute(query).fetchall() if count else []
        told = [(row, ", ".join(map(shown, values))) for row, *values in rows]
        if count and check.field is not None:
            text = f"{check.name}: {told[0][1]} ({count:,} in all)"
            faults.append(RerankingDataError(text, field=check.field, row=told[0][0]))
        else:
            yield Finding(check.name, int(count), check.text, tuple(f"row {row}: {text}" for row, text in told))


def _ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    return connection.execute(query).fetchall()[0]


def _checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    """Relations and what is asked of their rows."""
    spec = plan.spec
    yield "impressions", [*_row_checks(plan), *_number_checks(plan, "impressions")]
    yield from _item_checks(plan)
    if spec.position is not None:
        values = "__request, __position, __item, __other"
        yield _SAME_POSITION, [_wrong("positions repeated", spec.position, "__item <> __other", values)]
    yield "requests", list(_request_checks(plan))
    if plan.has_candidates:
        yield from _candidate_checks(plan)
    yield from _key_checks(plan, "items", spec.schema.item_id, "__item", plan.has_items)
    yield from _key_checks(plan, "users", spec.user or "", "__user", bool(plan.fields_of("users")))
    if spec.user is not None:
        yield from _user_checks()


def _row_checks(plan: Plan) -> Iterator[_Check]:
    spec, schema = plan.spec, plan.spec.schema
    yield _wrong("request missing", spec.request, "__request IS NULL", "__request")
    yield _wrong("item missing", schema.item_id, "__item IS NULL", "__item")
    seen = "true" if spec.position is None else "__position IS NOT NULL"
    for target in schema.targets:
        field, name, values = target.name, quoted(target.name), f"__request, __item, {quoted(target.name)}"
        yield _wrong("feedback missing", field, f"{seen} AND {name} IS NULL", values)
        yield _wrong("feedback is no finite number", field, _not_finite(name), values)
        yield _wrong("feedback on an item that was not shown", field, f"NOT ({seen}) AND {name} > 0", values)
        text = "models that predict it need 0..1; amounts belong into `value` and `weight`"
        if target.gain == "linear":
            yield _Check(f"feedback outside 0..1: {field}", f"{name} NOT BETWEEN 0 AND 1", values, text)
    if schema.propensity in plan.labels:
        name = quoted(schema.propensity)
        wrong = f"{seen} AND NOT coalesce({name} > 0 AND {name} <= 1, false)"
        yield _wrong("propensity outside (0, 1]", schema.propensity, wrong, f"__request, __item, {name}")
    for name in plan.logged:
        if schema.owner(schema.field(name)).name == schema.item_id:
            rewarded = " OR ".join(f"{quoted(target.name)} > 0" for target in schema.targets)
            last = f"({rewarded}) AND {quoted(name)}[-1]::VARCHAR = __item::VARCHAR"
            text = "was the history logged after the feedback?"
            yield _Check("histories that end with the item that got the feedback", last, "__request, __item", text)


def _number_checks(plan: Plan, table: str) -> Iterator[_Check]:
    values = {target.value for target in plan.spec.schema.targets}
    for field, kind in plan.fields_of(table).items():
        name = quoted(field)
        if kind == "number":
            yield _wrong("no finite float32 number", field, _not_finite(name), name)
        if field in values:
            yield _wrong("value of a target missing", field, f"{name} IS NULL", name)


def _not_finite(column: str) -> str:
    return f"isnan({column}) OR abs({column}) > {FLOAT32_MAX}"


_SAME_POSITION = """(
    SELECT __request, __position, min(__row) AS __row, min(__item) AS __item, max(__item) AS __other
    FROM impressions WHERE __position IS NOT NULL GROUP BY __request, __position HAVING count(*) > 1)"""


def _item_checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    """Rows of one item in one request: the same, or in contradiction."""
    ends = {name: (quoted(name), quoted("__max " + name)) for name in plan.labels}
    pairs = {**({plan.spec.position: ("__least", "__most")} if plan.spec.position else {}), **ends}
    columns = "".join(f", min({least}) AS {least}, max({least}) AS {most}" for least, most in ends.values())
    relation = f"""(
        SELECT __request, __item, min(__row) AS __row, max(__row) AS __second, min(__position) AS __least,
            max(__position) AS __most{columns}
        FROM impressions GROUP BY __request, __item HAVING count(*) > 1)"""
    name, text = "rows of one item contradict one another", "the same row several times; one of them is kept"
    yield (
        relation,
        [
            *(_wrong(name, field, f"{a} <> {b}", f"__request, __item, {a}, {b}") for field, (a, b) in pairs.items()),
            _Check("rows repeated", "true", "__request, __item, __second", text),
        ],
    )


def _request_checks(plan: Plan) -> Iterator[_Check]:
    spec = plan.spec
    same = [name for name, home in plan.request_fields.items() if home == "impressions"]
    if spec.user is not None:
        differs = "__user <> __max_user OR __bucket <> __max_bucket"
        yield _wrong("request of several users", spec.user, differs, "__request, __user, __max_user")
        yield _Check("users missing", "__user IS NULL", "__request", "their requests have no history")
    if spec.split.column:
        name = quoted(spec.split.column)
        wrong = f"{name} NOT IN ('train', 'validation', 'test')"
        yield _wrong("unknown split", spec.split.column, wrong, f"__request, {name}")
        same.append(spec.split.column)
    for field in dict.fromkeys(same):
        a, b = quoted(field), quoted("__max " + field)
        yield _wrong("changes within a request", field, f"{a} <> {b}", f"__request, {a}, {b}")
    if spec.history is not None and spec.history.times:
        late, values = "__latest > __time", "__request, __time, __latest"
        yield _wrong("history later than its request", spec.history.times, late, values)
    if spec.position is not None and spec.first_position is not None:
        early = f"__first < {spec.first_position}"
        yield _wrong("position before the first", spec.position, early, "__request, __first")
    if spec.position is not None:
        gap, text = "__end - __first + 1 > __shown", "they leave no gap in the slate, unless `first_position` is set"
        yield _Check("positions missing", f"__shown > 0 AND {gap}", "__request, __first, __end, __shown", text)
        late, text = (
            "__first > (SELECT min(__first) FROM requests)",
            "in the slate they come first, unless `first_position` is set",
        )
        yield _Check("positions that begin late", f"__shown > 0 AND {late}", "__request, __first", text)
    yield _Check("requests that show nothing", "__shown = 0", "__request, __rows", "left out: no row has a position")
    yield _Check("requests without feedback", "__rewarded = 0", "__request, __rows", "nothing was earned")
    yield _Check("requests of one row", "__rows = 1", "__request", "is the request id that of a page?")
    large, text = "__rows > 20 * (SELECT median(__rows) FROM requests)", "more than 20 times the median: a shared id?"
    yield _Check("requests far larger than others", large, "__request, __rows", text)
    long, text = "__last - __time > INTERVAL 1 HOUR", "more than an hour between their rows: an id that was used again?"
    yield _Check("requests that last", long, "__request, __time, __last", text)


def _candidate_checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    item, text = plan.spec.schema.item_id, "no impressions have their request; left out"
    checks = [_wrong("item missing", item, "__item IS NULL", "__request"), *_number_checks(plan, "candidates")]
    for name in map(quoted, plan.known_labels):
        checks.append(
            _wrong("feedback is no finite number", name[1:-1], _not_finite(name), f"__request, __item, {name}")
        )
    checks.append(_Check("candidates of unknown requests", "__bucket IS NULL", "__request, __item", text))
    yield "candidates", checks
    twice = """(
        SELECT __request, __item, min(__row) AS __row, max(__row) AS __second
        FROM candidates WHERE __bucket IS NOT NULL GROUP BY __request, __item HAVING count(*) > 1)"""
    text = "the first row of each is kept"
    yield twice, [_Check("candidates repeated", "true", "__request, __item, __second", text)]
    missing = "(SELECT i.* FROM impressions i ANTI JOIN candidates c USING (__request, __item))"
    named = "__request IS NOT NULL AND __item IS NOT NULL"
    yield missing, [_wrong("shown item is not among the candidates", item, named, "__request, __item")]


def _key_checks(plan: Plan, table: str, field: str, key: str, used: bool) -> Iterator[tuple[str, list[_Check]]]:
    """A table of items or users has one row per key, and for every key one."""
    if not used:
        return
    keys = f"SELECT __key, min(__row) AS __row, max(__row) AS __second FROM {table} GROUP BY __key HAVING count(*) > 1"
    yield f"({keys})", [_wrong(f"{table} repeated", field, "true", "__key, __second")]
    yield table, [_wrong(f"{table} without a key", field, "__key IS NULL", "__row"), *_number_checks(plan, table)]
    unknown = f"""(
        SELECT {key} AS __key, min(__row) AS __row, count(*) AS __rows FROM impressions
        WHERE {key} IS NOT NULL AND {key} NOT IN (SELECT __key FROM {table}) GROUP BY ALL)"""
    text = f"their features are missing: the {table} have no row of them"
    yield unknown, [_Check(f"{table} unknown", "true", "__key, __rows", text)]


def _user_checks() -> Iterator[tuple[str, list[_Check]]]:
    users = """(
        SELECT __user, count(*) AS __requests, sum(__rewarded) AS __rewarded, min(__row) AS __row
        FROM requests WHERE __user IS NOT NULL GROUP BY ALL)"""
    many = f"__requests >= {BOT_REQUESTS} AND __requests > {BOT_FACTOR} * (SELECT median(__requests) FROM {users})"
    text = f"{BOT_REQUESTS} requests or more, {BOT_FACTOR} times the median user's: bots, or an id that means nobody?"
    yield users, [_Check("bots", many, "__user, __requests, __rewarded", text)]
    pages = """(
        SELECT count(*) AS __pages, min(__row) AS __row, min(__request) AS __least, max(__request) AS __most
        FROM requests WHERE __user IS NOT NULL GROUP BY __user, __time, __items)"""
    text = "one user, one moment, the same items, under several request ids"
    yield pages, [_Check("requests repeated", "__pages > 1", "__least, __most", text)]


def _clocks(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Times far from the others, and, where the rows are in the order of time, steps back."""
    low, high = _ask(connection, "SELECT quantile_cont(epoch(__time), [0.01, 0.99]) FROM requests")[0]
    margin = 10 * (high - low) + 86_400
    far = f"epoch(__time) NOT BETWEEN {low - margin} AND {high + margin}"
    text = "more than ten times the log's length away from it"
    yield from _run(connection, "requests", [_Check("times far from the others", far, "__request, __time", text)], [])
    steps = "(SELECT *, lag(__time) OVER (ORDER BY __row) AS __before FROM requests)"
    back = "__before - __time > INTERVAL 1 HOUR"
    count, total = _ask(connection, f"SELECT count(*) FILTER (WHERE {back}), count(*) FROM {steps}")
    if count > 0.05 * total:
        yield Finding("rows that are not in the order of time", int(count), "clock jumps were not looked for")
        return
    text = "the time goes back by more than an hour, in rows that are in its order otherwise"
    yield from _run(connection, steps, [_Check("clock jumps", back, "__request, __before, __time", text)], [])


def _order(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[Finding]:
    """Whether shown neighbours are in the order of the upstream score."""
    score = plan.spec.schema.upstream_score
    if score is None or plan.spec.position is None:
        return
    before = f"lag({quoted(score)}) OVER (PARTITION BY __number ORDER BY __position)"
    steps = f"SELECT {quoted(score)} - {before} AS step FROM ({candidates_sql(plan, 0)}) WHERE __shown"
    query = f"SELECT count(*) FILTER (WHERE step < 0), count(*) FILTER (WHERE step > 0) FROM ({steps})"
    down, up = _ask(connection, query)
    text = "there is no other order to learn from"
    yield Finding("upstream score decides all", int(down) if not up else 0, text)
    text = f"of {down + up:,} neighbours that were shown, {down:,} are in the order of the score, highest first"
    name = "upstream score does not order the shown list"
    wrong = down < 0.55 * (down + up) - (down + up) ** 0.5  # by two standard errors
    yield Finding(name, int(up) if wrong else 0, text)


def _sampled(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[Finding]:
    """What a sample of the shown rows says of targets and fields."""
    fields = [f"c.{quoted(name)}" for name in plan.candidate_fields]
    fields += [f"r.{quoted(name)}" for name, home in plan.request_fields.items() if home == "impressions"]
    targets = [f"c.{quoted('__label ' + target.name)}" for target in plan.spec.schema.targets]
    rows = connection.sql(f"""
        SELECT {", ".join([*targets, *fields])} FROM ({candidates_sql(plan, 0)}) c JOIN {requests_sql(0)} r
        USING (__number) WHERE c.__shown LIMIT {_LEAK_ROWS}""").to_arrow_table()
    columns = dict(zip(rows.column_names, rows.columns, strict=True))
    labels = {target.name: columns.pop(f"__label {target.name}").to_numpy() > 0 for target in plan.spec.schema.targets}
    for target, positives in labels.items():
        text = f"of {len(positives):,} rows that were looked at"
        constant = len(positives) if positives.all() or not positives.any() else 0
        yield Finding(f"feedback is the same everywhere: {target}", constant, text)
        for name, values in columns.items():
            if (found := predictive(values, positives)) >= LEAK_AUC:
                text = f"alone it predicts {target!r} with an AUC of {found:.3f}: known only afterwards?"
                yield Finding(f"future leak: {name}", len(positives), text)
    for name, values in columns.items():
        if values.null_count >= 0.99 * len(values):
            yield Finding(f"field mostly missing: {name}", values.null_count, f"of {len(values):,} rows")
        elif not pa.types.is_nested(values.type) and len(values.unique()) == 1:
            yield Finding(f"field is constant: {name}", len(values), f"always {shown(values[0].as_py())}")


def predictive(values: pa.ChunkedArray, positives: np.ndarray) -> float:
    """How well one column alone tells positives from others, as an AUC.

    The largest of three: of the numbers, in either direction; of being missing; of the rate of positives that a value
    has in the other half of the rows. 0.5 where there are fewer than 20 of either, or of vectors.
    """
    if pa.types.is_nested(values.type) or min(positives.sum(), (~positives).sum()) < 20:
        return 0.5
    scores = [values.is_null().to_numpy().astype(np.float64)]
    if pa.types.is_floating(values.type):
        scores.append(values.fill_null(0.0).to_numpy())
    else:
        codes = values.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy() + 1
        half = np.arange(len(codes)) % 2 == 0
        scores.append(np.zeros(len(codes)))
        for learned, asked in ((half, ~half), (~half, half)):
            seen = np.bincount(codes[learned], minlength=codes.max() + 1)
            won = np.bincount(codes[learned], positives[learned], minlength=codes.max() + 1)
            scores[-1][asked] = ((won + positives.mean()) / (seen + 1))[codes[asked]]
    found = [float(auc(torch.tensor(score), torch.tensor(positives))) for score in scores]
    return max(max(one, 1 - one) for one in found)
