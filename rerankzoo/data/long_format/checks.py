"""What is wrong with a log, and what is suspicious: every check with a count and examples.

Rows that contradict one another, or that no data folder can hold, refuse the log. All else is reported and left to the
reader, who knows what the log should look like.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
_LARGE = 20  # times the median number of rows of a request
_LONG = "INTERVAL 1 HOUR"  # between the rows of a request, and of a clock that jumps back
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


@dataclass(frozen=True)
class _Check:
    name: str
    field: str
    condition: str  # of rows of the relation, which has `__row`
    values: str  # SQL list of what an example shows
    refuses: bool = False
    text: str = ""


def check_log(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[Finding]:
    """Runs all checks that fit the log.

    Raises:
        RerankingDataError: For the first fault that makes the data wrong; names field, row and values.
    """
    found: list[Finding] = []
    for relation, checks in _checks(plan):
        found += _run(connection, relation, checks)
    for finding in (
        *_clocks(connection),
        *_users(connection, plan),
        *_order(connection, plan),
        *_leaks(connection, plan),
    ):
        found.append(finding)
    return found


def _run(connection: duckdb.DuckDBPyConnection, relation: str, checks: list[_Check]) -> Iterator[Finding]:
    """Counts what meets the conditions, in one pass; then looks for examples."""
    counts = ", ".join(f"count(*) FILTER (WHERE {check.condition})" for check in checks)
    for check, count in zip(checks, connection.execute(f"SELECT {counts} FROM {relation}").fetchall()[0], strict=True):
        examples: list[str] = []
        if count:
            query = (
                f"SELECT __row, {check.values} FROM {relation} WHERE {check.condition} ORDER BY __row LIMIT {_EXAMPLES}"
            )
            for row, *values in connection.execute(query).fetchall():
                told = ", ".join(map(shown, values))
                if check.refuses:
                    more = f" ({count:,} in all)" if count > 1 else ""
                    raise RerankingDataError(f"{check.name}: {told}{more}", field=check.field, row=row)
                examples.append(f"row {row}: {told}")
        if not check.refuses or not count:
            yield Finding(check.name, int(count), check.text, tuple(examples))


def _checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    """Relations and what is asked of their rows."""
    yield "impressions", list(_row_checks(plan))
    yield _same_item(plan), list(_item_checks(plan))
    if plan.spec.position is not None:
        yield (
            _SAME_POSITION,
            [
                _Check(
                    "positions repeated",
                    plan.spec.position,
                    "__item <> __other",
                    "__request, __position, __item, __other",
                    True,
                )
            ],
        )
    yield "requests", list(_request_checks(plan))
    if plan.has_candidates:
        yield from _candidate_checks(plan)
    yield from _key_checks(plan)


def _row_checks(plan: Plan) -> Iterator[_Check]:
    spec, schema = plan.spec, plan.spec.schema
    for name, column in (("request", spec.request), ("item", schema.item_id)):
        yield _Check(f"{name} missing", column, f"__{name} IS NULL", f"__{name}", True)
    seen = "true" if spec.position is None else "__position IS NOT NULL"
    for target in schema.targets:
        name = quoted(target.name)
        value = f"__request, __item, {name}"
        yield _Check("feedback missing", target.name, f"{seen} AND {name} IS NULL", value, True)
        yield _Check("feedback is no finite number", target.name, _not_finite(name), value, True)
        yield _Check("feedback on an item that was not shown", target.name, f"NOT ({seen}) AND {name} > 0", value, True)
        text = "models that predict it need 0..1; amounts belong into `value` and `weight`"
        yield _Check(
            f"feedback outside 0..1: {target.name}", target.name, f"{name} NOT BETWEEN 0 AND 1", value, text=text
        )
    if schema.propensity in plan.labels:
        name = quoted(schema.propensity)
        wrong = f"{seen} AND NOT coalesce({name} > 0 AND {name} <= 1, false)"
        yield _Check("propensity outside (0, 1]", schema.propensity, wrong, f"__request, __item, {name}", True)
    for name in plan.logged:
        if schema.owner(schema.field(name)).name == schema.item_id:
            rewarded = " OR ".join(f"{quoted(target.name)} > 0" for target in schema.targets)
            last = f"({rewarded}) AND {quoted(name)}[-1]::VARCHAR = __item::VARCHAR"
            text = "was the history logged after the feedback?"
            yield _Check(
                "history that ends with the item that got the feedback", name, last, "__request, __item", text=text
            )
    yield from _number_checks(plan, "impressions")


def _number_checks(plan: Plan, table: str) -> Iterator[_Check]:
    homes = plan.request_fields | plan.candidate_fields
    values = {target.value for target in plan.spec.schema.targets}
    kinds = {field.name: field.kind for field in plan.spec.schema.fields}
    for name, home in homes.items():
        column = quoted(name)
        if home == table and kinds.get(name, "numeric") == "numeric":
            yield _Check("no finite float32 number", name, _not_finite(column), column, True)
        if home == table and name in values:
            yield _Check("value of a target missing", name, f"{column} IS NULL", column, True)


def _not_finite(column: str) -> str:
    return f"isnan({column}) OR abs({column}) > {FLOAT32_MAX}"


def _same_item(plan: Plan) -> str:
    """Rows of one item in one request, where there are several."""
    labels = [quoted(name) for name in plan.labels]
    ends = "".join(f", min({name}) AS {name}, max({name}) AS {quoted('__max ' + name[1:-1])}" for name in labels)
    return f"""(
        SELECT __request, __item, min(__row) AS __row, max(__row) AS __second, count(*) AS __rows,
            min(__position) AS __least, max(__position) AS __most{ends}
        FROM impressions GROUP BY __request, __item HAVING count(*) > 1)"""


_SAME_POSITION = """(
    SELECT __request, __position, min(__row) AS __row, min(__item) AS __item, max(__item) AS __other
    FROM impressions WHERE __position IS NOT NULL GROUP BY __request, __position HAVING count(*) > 1)"""


def _item_checks(plan: Plan) -> Iterator[_Check]:
    pairs = [(plan.spec.position or "", "__least", "__most")] if plan.spec.position else []
    pairs += [(name, quoted(name), quoted("__max " + name)) for name in plan.labels]
    for field, least, most in pairs:
        values = f"__request, __item, {least}, {most}"
        yield _Check("rows of one item contradict one another", field, f"{least} <> {most}", values, True)
    text = "the same row several times; one of them is kept"
    yield _Check("rows repeated", plan.spec.schema.item_id, "true", "__request, __item, __second", text=text)


def _request_checks(plan: Plan) -> Iterator[_Check]:
    spec = plan.spec
    if spec.user is not None:
        differs = "__user <> __max_user OR __bucket <> __max_bucket"
        yield _Check("request of several users", spec.user, differs, "__request, __user, __max_user", True)
    same = [name for name, home in plan.request_fields.items() if home == "impressions"]
    if spec.split.column:
        column = quoted(spec.split.column)
        same += [] if spec.split.column in same else [spec.split.column]
        yield _Check(
            "unknown split",
            spec.split.column,
            f"{column} NOT IN ('train', 'validation', 'test')",
            f"__request, {column}",
            True,
        )
    for name in same:
        least, most = quoted(name), quoted("__max " + name)
        yield _Check("changes within a request", name, f"{least} <> {most}", f"__request, {least}, {most}", True)
    if spec.history is not None and spec.history.times:
        times = spec.history.times
        yield _Check("history later than its request", times, "__latest > __time", "__request, __time, __latest", True)
    if spec.position is not None:
        gap = "__shown > 0 AND __end - __first + 1 > __shown"
        text = "slates hold the shown items in their order; what stood between them is not known"
        yield _Check("positions missing", spec.position, gap, "__request, __first, __end, __shown", text=text)
        late = "__shown > 0 AND __first > (SELECT min(__first) FROM requests)"
        text = "their first position is not the log's first"
        yield _Check("positions that begin late", spec.position, late, "__request, __first", text=text)
    text = "left out: no row of theirs has a position"
    yield _Check("requests that show nothing", spec.request, "__shown = 0", "__request, __rows", text=text)
    yield _Check(
        "requests without feedback", spec.request, "__rewarded = 0", "__request, __rows", text="nothing was earned"
    )
    yield _Check(
        "requests of one row", spec.request, "__rows = 1", "__request", text="is the request id that of a page?"
    )
    large = f"__rows > {_LARGE} * (SELECT median(__rows) FROM requests)"
    text = f"more than {_LARGE} times the median: an id that many requests share?"
    yield _Check("requests far larger than others", spec.request, large, "__request, __rows", text=text)
    long = f"__last - __time > {_LONG}"
    text = "more than an hour between their rows: an id that was used again?"
    yield _Check("requests that last", spec.request, long, "__request, __time, __last", text=text)


def _candidate_checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    spec = plan.spec
    item = spec.schema.item_id
    text = "no impressions have their request; left out"
    rows = [
        _Check("item missing", item, "__item IS NULL", "__request", True),
        *_number_checks(plan, "candidates"),
        _Check("candidates of unknown requests", spec.request, "__bucket IS NULL", "__request, __item", text=text),
    ]
    yield "candidates", rows
    twice = """(
        SELECT __request, __item, min(__row) AS __row, max(__row) AS __second
        FROM candidates WHERE __bucket IS NOT NULL GROUP BY __request, __item HAVING count(*) > 1)"""
    text = "the first row of each is kept"
    yield twice, [_Check("candidates repeated", item, "true", "__request, __item, __second", text=text)]
    missing = "(SELECT i.* FROM impressions i ANTI JOIN candidates c USING (__request, __item))"
    name = "shown item is not among the candidates"
    yield missing, [_Check(name, item, "true", "__request, __item", True)]


def _key_checks(plan: Plan) -> Iterator[tuple[str, list[_Check]]]:
    """Tables of items and users: one row per key, and for every key one."""
    spec = plan.spec
    users = "users" in plan.request_fields.values()
    for table, column, key, used in (
        ("items", spec.schema.item_id, "__item", plan.has_items),
        ("users", spec.user or "", "__user", users),
    ):
        if not used:
            continue
        twice = f"""(
            SELECT __key, min(__row) AS __row, max(__row) AS __second
            FROM {table} GROUP BY __key HAVING count(*) > 1)"""
        yield twice, [_Check(f"{table} repeated", column, "true", "__key, __second", True)]
        yield (
            table,
            [_Check(f"{table} without a key", column, "__key IS NULL", "__row", True), *_number_checks(plan, table)],
        )
        unknown = f"""(
            SELECT {key} AS __key, min(__row) AS __row, count(*) AS __rows FROM impressions i
            WHERE {key} IS NOT NULL AND {key} NOT IN (SELECT __key FROM {table}) GROUP BY ALL)"""
        text = f"their features are missing: the {table} have no row of them"
        yield unknown, [_Check(f"{table} unknown", column, "true", "__key, __rows", text=text)]


def _ask(connection: duckdb.DuckDBPyConnection, query: str) -> tuple[Any, ...]:
    row: tuple[Any, ...] = connection.execute(query).fetchall()[0]
    return row


def _clocks(connection: duckdb.DuckDBPyConnection) -> Iterator[Finding]:
    """Times far from the others, and, where the rows are in the order of time, steps back."""
    low, high = _ask(connection, "SELECT quantile_cont(epoch(__time), [0.01, 0.99]) FROM requests")[0]
    margin = 10 * (high - low) + 86_400
    far = f"epoch(__time) NOT BETWEEN {low - margin} AND {high + margin}"
    text = "more than ten times the log's length away from it"
    yield from _run(
        connection, "requests", [_Check("times far from the others", "", far, "__request, __time", text=text)]
    )
    steps = "(SELECT *, lag(__time) OVER (ORDER BY __row) AS __before FROM requests)"
    back = f"__before - __time > {_LONG}"
    count, total = _ask(connection, f"SELECT count(*) FILTER (WHERE {back}), count(*) FROM {steps}")
    if count > 0.05 * total:
        yield Finding("rows that are not in the order of time", int(count), "clock jumps were not looked for")
        return
    text = "the time goes back by more than an hour, in rows that are in its order otherwise"
    yield from _run(connection, steps, [_Check("clock jumps", "", back, "__request, __before, __time", text=text)])


def _users(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[Finding]:
    if plan.spec.user is None:
        return
    text = "their requests have no history"
    yield from _run(connection, "requests", [_Check("users missing", "", "__user IS NULL", "__request", text=text)])
    users = """(
        SELECT __user, count(*) AS __requests, sum(__rewarded) AS __rewarded, min(__row) AS __row
        FROM requests WHERE __user IS NOT NULL GROUP BY ALL)"""
    many = f"__requests >= {BOT_REQUESTS} AND __requests > {BOT_FACTOR} * (SELECT median(__requests) FROM {users})"
    text = (
        f"at least {BOT_REQUESTS} requests and {BOT_FACTOR} times the median user's: bots, or an id that means nobody?"
    )
    yield from _run(connection, users, [_Check("bots", "", many, "__user, __requests, __rewarded", text=text)])
    pages = """(
        SELECT __user, __time, __items, count(*) AS __pages, min(__row) AS __row, min(__request) AS __least,
            max(__request) AS __most
        FROM requests WHERE __user IS NOT NULL GROUP BY __user, __time, __items)"""
    text = "one user, one moment, the same items, under several request ids"
    yield from _run(connection, pages, [_Check("requests repeated", "", "__pages > 1", "__least, __most", text=text)])


def _order(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[Finding]:
    """Whether shown neighbours are in the order of the upstream score."""
    score = plan.spec.schema.upstream_score
    if score is None or plan.spec.position is None:
        return
    down, up = _ask(
        connection,
        f"""
        SELECT count(*) FILTER (WHERE __score < __before), count(*) FILTER (WHERE __score > __before) FROM (
            SELECT {quoted(score)} AS __score,
                lag({quoted(score)}) OVER (PARTITION BY __number ORDER BY __position) AS __before
            FROM ({candidates_sql(plan, 0)}) WHERE __shown)""",
    )
    name, share = "upstream score does not order the shown list", down / max(down + up, 1)
    if share == 1:
        text = "it always does: this log shows nothing but the upstream order, so no other order can be learned from it"
        yield Finding("upstream score decides all", int(down), text)
    text = f"of {down + up:,} neighbours that were shown, {share:.1%} are in the order of the score, highest first"
    yield Finding(name, int(up) if share < 0.55 else 0, text)


def _leaks(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Iterator[Finding]:
    """What a sample of the shown rows says of targets and fields."""
    fields = [*plan.candidate_fields, *(name for name, home in plan.request_fields.items() if home == "impressions")]
    listed = ", ".join(f"c.{quoted(name)}" for name in plan.candidate_fields)
    listed += "".join(f", r.{quoted(name)}" for name in fields[len(plan.candidate_fields) :])
    targets = ", ".join(f"c.{quoted('__label ' + target.name)}" for target in plan.spec.schema.targets)
    rows = connection.sql(f"""
        SELECT {listed}, {targets} FROM ({candidates_sql(plan, 0)}) c JOIN {requests_sql(0)} r USING (__number)
        WHERE c.__shown LIMIT {_LEAK_ROWS}""").to_arrow_table()
    for target in plan.spec.schema.targets:
        positives = rows.column(f"__label {target.name}").to_numpy() > 0
        text = f"of {len(positives):,} rows that were looked at"
        constant = len(positives) if positives.all() or not positives.any() else 0
        yield Finding(f"feedback is the same everywhere: {target.name}", constant, text)
        for name in fields:
            if (found := predictive(rows.column(name), positives)) >= LEAK_AUC:
                text = f"alone it predicts {target.name!r} with an AUC of {found:.3f}: known only afterwards?"
                yield Finding(f"future leak: {name}", len(positives), text)
    for name in fields:
        values = rows.column(name).combine_chunks()
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
    missing = values.is_null().to_numpy()
    scores = [missing.astype(np.float64)]
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
    labels = torch.tensor(positives)
    found = [float(auc(torch.tensor(score), labels)) for score in scores]
    return max(max(one, 1 - one) for one in found)
