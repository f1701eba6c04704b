"""Requests of a bucket as rows of a data folder: candidates, slates, labels, histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import SPLITS
from rerankzoo.data.long_format.loading import Plan, quoted

if TYPE_CHECKING:
    import duckdb

_MICROSECONDS = 3_600_000_000  # of an hour


def request_tables(connection: duckdb.DuckDBPyConnection, plan: Plan, bucket: int) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each split of one bucket, in an order that tells nothing; splits without rows are left out."""
    spec = plan.spec
    users = [name for name, home in plan.request_fields.items() if home == "users"]
    joined = "".join(f", u.{quoted(name)}" for name in users)
    join = "LEFT JOIN users u ON u.__key = r.__user" if users else ""
    if plan.told and not plan.made:
        ago = f"(epoch_us(r.__time) - epoch_us(x)) / {_MICROSECONDS}"
        joined += f", list_transform(r.__times, lambda x: ({ago})::FLOAT) AS {quoted(plan.told[0].name)}"
    query = f"SELECT r.*{joined} FROM {requests_sql(bucket)} r {join} ORDER BY __number"
    requests = connection.sql(query).to_arrow_table()
    if not requests.num_rows:
        return
    rows = connection.sql(f"FROM ({candidates_sql(plan, bucket)}) ORDER BY __number, __place, __item").to_arrow_table()
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows.column("__number").to_numpy()))])
    columns = {name: requests.column(name) for name in (*plan.request_fields, *plan.logged)}
    columns |= {name: _lists(offsets, rows.column(name)) for name in plan.candidate_fields}
    labels = {target.candidate_feedback: target.name for target in spec.schema.targets if target.candidate_feedback}
    columns |= {name: _lists(offsets, rows.column(f"__all {target}")) for name, target in labels.items()}
    if spec.position is not None:
        columns |= _slates(plan, rows, offsets)
    if plan.made:
        columns |= _histories(connection, plan, requests, bucket)
    else:
        columns |= {field.name: requests.column(field.name) for field in plan.told}
    table = pa.table(columns)
    splits = requests.column("__split")
    for split in SPLITS:
        part = table.filter(pa.compute.equal(splits, split))
        if part.num_rows:
            yield split, part


def requests_sql(bucket: int) -> str:
    """The requests of a bucket that show anything and have a split, numbered."""
    return f"""(
        SELECT *, row_number() OVER (ORDER BY __order, __request) - 1 AS __number
        FROM requests WHERE __bucket = {bucket} AND __shown > 0 AND __split IS NOT NULL)"""


def candidates_sql(plan: Plan, bucket: int) -> str:
    """The candidates of a bucket: features, `__shown`, position, labels; `__all TARGET` is also there if not shown."""
    spec, schema = plan.spec, plan.spec.schema
    first = "QUALIFY row_number() OVER (PARTITION BY __request, __item ORDER BY __row) = 1"
    shown = f"(SELECT * FROM impressions WHERE __bucket = {bucket} {first})"
    rows = f"(SELECT * FROM candidates WHERE __bucket = {bucket} {first})" if plan.has_candidates else shown
    tables = {"candidates": "c", "impressions": "c", "items": "i"}
    columns = [
        f"{'c.__item' if name == schema.item_id else f'{tables[home]}.{quoted(name)}'} AS {quoted(name)}"
        for name, home in plan.candidate_fields.items()
    ]
    labels = "s" if plan.has_candidates else "c"
    was_shown = f"{labels}.__item IS NOT NULL" + (f" AND {labels}.__position IS NOT NULL" if spec.position else "")
    columns += [f"{labels}.{quoted(name)} AS {quoted('__label ' + name)}" for name in plan.labels]
    for target in schema.targets:
        if target.candidate_feedback:
            name = quoted(target.name)
            other = f"c.{name}" if target.name in plan.known_labels else "NULL"
            columns.append(
                f"CASE WHEN {was_shown} THEN {labels}.{name} ELSE {other} END AS {quoted('__all ' + target.name)}"
            )
    join = f"LEFT JOIN {shown} s ON s.__request = c.__request AND s.__item = c.__item" if plan.has_candidates else ""
    items = "LEFT JOIN items i ON i.__key = c.__item" if plan.has_items else ""
    return f"""
        SELECT r.__number, hash(c.__item, r.__order) AS __place, c.__item, {was_shown} AS __shown, {labels}.__position,
            {", ".join(columns)}
        FROM {rows} c JOIN {requests_sql(bucket)} r ON r.__request = c.__request {join} {items}"""


def _lists(offsets: np.ndarray, values: pa.ChunkedArray) -> pa.Array:
    """A column of lists; numbers are stored in 32 bits."""
    flat = values.combine_chunks()
    if flat.type == pa.float64():
        flat = flat.cast(pa.float32())
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), flat)


def _slates(plan: Plan, rows: pa.Table, offsets: np.ndarray) -> dict[str, pa.Array]:
    """The places of the shown candidates, by position, and what belongs to them; null where it is not known."""
    count = len(offsets) - 1
    owner = np.repeat(np.arange(count), np.diff(offsets))
    shown = np.flatnonzero(rows.column("__shown").to_numpy())
    position = rows.column("__position").combine_chunks().take(pa.array(shown)).to_numpy(zero_copy_only=False)
    order = np.lexsort((position, owner[shown]))
    shown, position, owner = shown[order], position[order].astype(np.int64), owner[shown[order]]
    sizes = np.bincount(owner, minlength=count)
    starts = np.cumsum(sizes) - sizes
    if plan.spec.first_position is None:
        places = np.arange(len(shown)) - np.repeat(starts, sizes)
    else:
        places = position - plan.spec.first_position
        sizes = np.maximum.reduceat(places, starts) + 1
    ends = np.concatenate([[0], np.cumsum(sizes)])
    at = np.full(ends[-1], -1)
    at[ends[owner] + places] = shown
    chosen, indexes = pa.array(at, mask=at < 0), (at - np.repeat(offsets[:-1], sizes)).astype(np.int32)
    slates = {plan.spec.schema.slate: pa.chunked_array([pa.array(indexes, mask=at < 0)])}
    slates |= {name: rows.column(f"__label {name}").take(chosen) for name in plan.labels}
    return {name: _lists(ends, values) for name, values in slates.items()}


def _histories(
    connection: duckdb.DuckDBPyConnection, plan: Plan, requests: pa.Table, bucket: int
) -> dict[str, pa.Array]:
    """What each request's user did strictly before its time less the gap, newest last; times in hours before it."""
    history = plan.spec.history
    length, gap = (history.length, history.gap) if history else (0, 0.0)
    names = ", ".join(map(quoted, plan.made))
    source = f"(SELECT * FROM events WHERE __bucket = {bucket})"
    if any(field.kind == "page" for field in plan.told):
        source = f"(SELECT *, min(__time) OVER (PARTITION BY __user, __request) AS __began FROM {source})"
        names += ", dense_rank() OVER (PARTITION BY __user ORDER BY __began, __request) AS __page"
    query = f"SELECT __user, epoch_us(__time) AS __at, {names} FROM {source} ORDER BY __user, __time, __row"
    events = connection.sql(query).to_arrow_table()
    users = pa.chunked_array(
        [*requests.column("__user").chunks, *events.column("__user").chunks], requests.schema.field("__user").type
    )
    codes = pa.compute.fill_null(users.combine_chunks().dictionary_encode().indices, -1).to_numpy()
    asked, done = codes[: requests.num_rows], codes[requests.num_rows :]
    at, happened = requests.column("__time").cast(pa.timestamp("us")).cast(pa.int64()).to_numpy(), events.column("__at")
    start, stop = past_events(asked, at - round(gap * 1e6), done, happened.to_numpy())
    start = np.maximum(start, stop - length)
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
    taken = events.take(pa.array(rows))
    columns = {name: taken.column(name) for name in plan.made}
    owner = np.repeat(np.arange(len(at)), stop - start)
    for field in plan.told:
        if field.kind == "time":
            ago = (at[owner] - taken.column("__at").to_numpy()) / _MICROSECONDS
        else:
            page, latest = taken.column("__page").to_numpy(), np.zeros(len(at), dtype=np.int64)
            np.maximum.at(latest, owner, page)
            ago = latest[owner] + 1 - page
        columns[field.name] = pa.chunked_array([pa.array(ago)])
    return {name: _lists(offsets, values) for name, values in columns.items()}


def past_events(
    users: np.ndarray, times: np.ndarray, event_users: np.ndarray, event_times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The events of a user strictly before a time.

    Args:
        users: (R,) of the requests; -1 where unknown, which have none.
        times: (R,) of the requests.
        event_users: (E,) of the events, those of a user together.
        event_times: (E,) of the events, ascending within each user.

    Returns:
        (R,) the first of the events of each request, and (R,) the one behind the last.
    """
    count = len(users)
    is_event = np.concatenate([np.zeros(count, dtype=bool), np.ones(len(event_users), dtype=bool)])
    # A request comes before an event of the same moment.
    order = np.lexsort((is_event, np.concatenate([times, event_times]), np.concatenate([users, event_users])))
    before = np.empty(len(order), dtype=np.int64)
    before[order] = np.cumsum(is_event[order])
    grouped = np.sort(event_users)
    rank = before[:count]
    begin = np.searchsorted(grouped, users)
    # `rank` counts events in the order of codes; the table has users in an order of its own.
    first = np.full(max(users.max(initial=-1), event_users.max(initial=-1)) + 2, 0, dtype=np.int64)
    heads = np.flatnonzero(np.diff(event_users, prepend=-2))
    first[event_users[heads]] = heads
    start = first[users]
    return start, start + rank - begin
