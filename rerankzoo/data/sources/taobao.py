"""Taobao's ad log (Ali_Display_Ad_Click) as a reranking data set, from its published files.

They hold neither a request id nor a display position: **lists are inferred** from times, as by LibRerank's and CMR's
script (`process_data_for_rerank`, github.com/lyingCS/Controllable-Multi-Objective-Reranking, Data/preprocess_ad.py). A
user's records are walked from the latest one back: a window takes all records up to 300 seconds older than its latest
one, and of these the 30 oldest count. Candidates are its ads in random order; the first `slate_size` by time are the
logged slate. The protocol "last-day" takes all windows and splits by the day of the latest record; "librerank" takes
each user's latest window with a click, and splits users as the script does, but for a validation part. "nlgr" has the
sizes of NLGR (WWW 2025 Companion) and YOLOR (CIKM 2025), 5 of 5 candidates and the last day as test; how they form
pages is not published: ours are windows cut into fives, and those without both labels are dropped, as YOLOR does.

First stage: `upstream_score` is the logit of a smoothed click rate, of training records of days *before the window's
first record* only. No window knows its own labels, or anything that came later. docs/taobao.md tells all of it.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import SPLITS, list_array, write_data_folder
from rerankzoo.data.work_database import load_csv, read_header, refuse_rows, work_database
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec

if TYPE_CHECKING:
    import duckdb

Protocol = Literal["last-day", "librerank", "nlgr"]

logger = logging.getLogger(__name__)

PROFILE_FIELDS = (
    "cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level", "occupation",
    "new_user_class_level",
)  # fmt: skip
AD_FIELDS = ("cate_id", "campaign_id", "customer", "brand")
HISTORY_FIELDS = ("cate", "brand", "btag")

FILES = MappingProxyType(
    {
        "raw_sample.csv": {
            "user": "INTEGER", "time_stamp": "BIGINT", "adgroup_id": "INTEGER", "pid": "VARCHAR", "clk": "INTEGER",
        },
        "ad_feature.csv": {"adgroup_id": "INTEGER", **dict.fromkeys(AD_FIELDS, "INTEGER"), "price": "DOUBLE"},
        "user_profile.csv": {"userid": "INTEGER", **dict.fromkeys(PROFILE_FIELDS, "INTEGER")},
        "behavior_log.csv": {
            "user": "INTEGER", "time_stamp": "BIGINT", "btag": "VARCHAR", "cate": "INTEGER", "brand": "INTEGER",
        },
    }
)  # fmt: skip
"""The columns that are read of each file, and their types."""

NUM_RECORDS = 26_557_961
NUM_LIBRERANK_LISTS = 483_049
WINDOW_SECONDS, MAX_CANDIDATES, HISTORY_LENGTH = 300, 30, 50
VALIDATION_DAY, TEST_DAY = 7, 8
LIBRERANK_SEED = 1234
SMOOTHING = 100.0  # exposures' worth of the rate that another rate is smoothed towards
PRIOR_RATE = 0.05  # before the first day is over

_KEYS = ("adgroup_id", "cate_id", "customer", "everything")  # whose clicks and exposures the first stage counts
_DAY = "(time_stamp + 8 * 3600) // 86400 - 17291"  # in China; 2017-05-06 is day 1
_DAYS = "train days 1-6, validation day 7, test day 8, in China time, by the latest record"
_BUCKET_ROWS = 2_000_000  # rows of the log converted at a time: memory does not grow with the data
_FIRST_STAGE = -1  # in place of a split: users whose records only train the first stage
_USER_BITS, _TIME_BITS = 30, 31  # so that a user and a time fit into one number


def convert_taobao(
    out: str | Path,
    raw: str | Path,
    protocol: Protocol = "last-day",
    *,
    slate_size: int = 4,
    history: bool = False,
    memory_limit: str = "2GB",
    seed: int = 0,
) -> None:
    """Converts Ali_Display_Ad_Click to a data folder; the module describes the protocols.

    Args:
        out: The data folder to write; work files of about the size of the raw files stand beside it meanwhile.
        raw: Folder with the unpacked raw files.
        protocol: "last-day", "librerank" or "nlgr".
        slate_size: Ads of a logged slate, at least 1; shorter windows are dropped. Of "nlgr" the ads of a page (5 in
            the papers).
        history: Whether to add the user's last 50 behaviours strictly before the window, from `behavior_log.csv`.
        memory_limit: Of DuckDB, such as "2GB"; beyond it, work files are used. Some hundred MB come on top.
        seed: Seed of the order of requests and of the candidates within.

    Raises:
        ValueError: If the protocol or the slate size is unusable, a split is empty, or the complete data does not give
            the published number of lists.
        RerankingDataError: If a raw file or one of its columns is missing, or a value is unusable; names the file.
        OutputError: If the folder or the work files cannot be written.
    """
    if protocol not in get_args(Protocol):
        raise ValueError(f"unknown protocol {protocol!r}, choose from {get_args(Protocol)}")
    if not 1 <= slate_size <= MAX_CANDIDATES:
        raise ValueError(f"slate_size must be in 1..{MAX_CANDIDATES}, got {slate_size}")
    out, raw = Path(out), Path(raw)
    names = [name for name in FILES if history or name != "behavior_log.csv"]
    for name in names:
        read_header(raw / name, list(FILES[name]))  # all of them before the first long read
    with work_database(out, memory_limit) as connection:
        counts = {name: load_csv(connection, raw / name, FILES[name]) for name in names}
        _check_values(connection, raw)
        _choose_users(connection, protocol, counts["raw_sample.csv"])
        _count_clicks(connection, protocol)
        buckets = -(-(counts["raw_sample.csv"] + counts.get("behavior_log.csv", 0)) // _BUCKET_ROWS)
        settings = {"protocol": protocol, "slate_size": slate_size, "history": history, "seed": seed}
        files = {name: {"rows": count, "bytes": (raw / name).stat().st_size} for name, count in counts.items()}
        tables = _tables(connection, protocol, slate_size, history, buckets, seed)
        write_data_folder(out, tables, taobao_schema(history), _metadata(settings, files))


def _metadata(settings: dict[str, Any], files: dict[str, dict[str, int]]) -> dict[str, Any]:
    protocol, slate_size = settings["protocol"], settings["slate_size"]
    split = {
        "last-day": f"all windows; {_DAYS}",
        "nlgr": (
            f"windows cut into pages of {slate_size} from their oldest record on, which are all of the candidates; "
            f"pages without both labels dropped; {_DAYS}"
        ),
        "librerank": (
            "the latest clicked window of each user with more than 2 records; users shuffled with seed "
            f"{LIBRERANK_SEED} and cut 40 % first stage, 45 % train, 5 % validation, 10 % test"
        ),
    }[protocol]
    return {
        "source": "taobao-ad",
        "protocol": (
            f"{protocol}: lists inferred from times, of a user's records within {WINDOW_SECONDS} s, from the latest "
            f"one back, the {MAX_CANDIDATES} oldest of each, at least {slate_size}; {split}; logged slate = the first "
            f"{slate_size} by time; upstream score = smoothed click rate from days before the window, training data "
            "only"
        ),
        "settings": settings,
        "raw": files,
        "license": "Alibaba's, see the page of the data set; the files are not redistributed here",
    }


def taobao_schema(history: bool = False) -> FeatureSchema:
    """The schema of a converted data set, with or without the histories of `behavior_log.csv`."""
    requests, ads = (*PROFILE_FIELDS, "pid", "hour"), ("adgroup_id", *AD_FIELDS)
    fields = [
        *(FieldSpec(name=name, group="request", kind="categorical") for name in requests),
        *(FieldSpec(name=name, group="candidate", kind="categorical", min_count=10) for name in ads),
        FieldSpec(name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize")),
        FieldSpec(name="upstream_score", group="candidate", kind="numeric", transforms=("standardize",)),
    ]
    if history:
        shared = {"cate": "cate_id", "brand": "brand", "btag": None}
        fields += [
            FieldSpec(name=f"history_{name}", group="history", kind="categorical", shares=shared[name])
            for name in HISTORY_FIELDS
        ]
        fields.append(FieldSpec(name="history_time", group="history", kind="time"))
    return FeatureSchema(
        name="taobao-ad",
        item_id="adgroup_id",
        fields=tuple(fields),
        targets=(TargetSpec(name="click", candidate_feedback="candidate_click"),),
        upstream_score="upstream_score",
    )


# Raw files into tables


def _check_values(connection: duckdb.DuckDBPyConnection, raw: Path) -> None:
    wrong = {
        "user": f'"user" IS NULL OR "user" NOT BETWEEN 0 AND {2**_USER_BITS - 1}',
        "time_stamp": f"time_stamp IS NULL OR time_stamp NOT BETWEEN 0 AND {2**_TIME_BITS - 1}",
        "adgroup_id": "adgroup_id IS NULL",
        "clk": "clk IS NULL OR clk NOT IN (0, 1)",
    }
    for column, condition in wrong.items():
        refuse_rows(connection, raw / "raw_sample.csv", column, condition, "is invalid")
    refuse_rows(connection, raw / "ad_feature.csv", "price", "price < 0 OR isnan(price)", "is not a price")
    for name, key in (("ad_feature.csv", "adgroup_id"), ("user_profile.csv", "userid")):
        repeated = f"{key} IN (SELECT {key} FROM {Path(name).stem} GROUP BY {key} HAVING count(*) > 1)"
        refuse_rows(connection, raw / name, key, f"{key} IS NULL OR {repeated}", "is missing or appears twice")


# The protocol: who takes part, and what the first stage knows


def _choose_users(connection: duckdb.DuckDBPyConnection, protocol: Protocol, num_records: int) -> None:
    """Makes the table `users` of users and their splits, empty where users are not split."""
    connection.execute('CREATE TABLE users ("user" INTEGER, split INTEGER)')
    if num_records != NUM_RECORDS:
        logger.warning("raw_sample.csv has %d rows, got %d: an excerpt", NUM_RECORDS, num_records)
    if protocol != "librerank":
        return
    query = """
        SELECT "user" FROM raw_sample GROUP BY "user" HAVING count(*) > 2 AND max(clk) = 1 ORDER BY min(rowid)"""
    found = connection.sql(query).to_arrow_table().column("user").to_pylist()
    if num_records == NUM_RECORDS and len(found) != NUM_LIBRERANK_LISTS:
        raise ValueError(f"the complete data must give {NUM_LIBRERANK_LISTS} lists, got {len(found)}")
    users, split = split_librerank_users(found)
    connection.register("chosen", pa.table({"user": users, "split": split}))
    connection.execute("INSERT INTO users SELECT * FROM chosen")


def split_librerank_users(users: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Splits users as LibRerank's script does its lists, one per user.

    It shuffles them in the order of a set, which depends only on the order in which its integers came.

    Args:
        users: In the order of their first record.

    Returns:
        The users in shuffled order, and -1 (first stage only) or the index of the split for each.
    """
    order = list(set(users))
    random.Random(LIBRERANK_SEED).shuffle(order)
    ends = [int(share * len(order)) for share in (0.4, 0.85, 0.9)]
    split = np.searchsorted(ends, np.arange(len(order)), side="right") + _FIRST_STAGE
    return np.array(order, dtype=np.int32), split.astype(np.int32)


def _count_clicks(connection: duckdb.DuckDBPyConnection, protocol: Protocol) -> None:
    """Makes tables `past_KEY` (key, day, clicks, exposures): what is known of each ad, category... before a day."""
    part = f"{_DAY} < {VALIDATION_DAY}"
    if protocol == "librerank":
        part = f'"user" IN (SELECT "user" FROM users WHERE split = {_FIRST_STAGE})'
    for key in _KEYS:
        value = "0" if key == "everything" else key
        connection.execute(f"""
            CREATE TABLE past_{key} AS
            WITH daily AS (
                SELECT {value} AS key, {_DAY} AS day, sum(clk) AS clicks, count(*) AS exposures
                FROM raw_sample LEFT JOIN ad_feature USING (adgroup_id) WHERE {part} GROUP BY ALL),
            days AS (SELECT DISTINCT {_DAY} AS day FROM raw_sample)
            SELECT daily.key, days.day, sum(clicks) AS clicks, sum(exposures) AS exposures
            FROM days JOIN daily ON daily.day < days.day WHERE key IS NOT NULL GROUP BY ALL""")


def smoothed_rates(counts: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Click rates of ads, smoothed towards category and customer, and these towards all.

    Args:
        counts: Clicks and exposures of "adgroup_id", "cate_id", "customer" and "everything", one entry per candidate.
    """

    def smoothed(key: str, towards: np.ndarray) -> np.ndarray:
        clicks, exposures = counts[key]
        return (clicks + SMOOTHING * towards) / (exposures + SMOOTHING)

    clicks, exposures = counts["everything"]
    overall = (clicks + PRIOR_RATE) / (exposures + 1.0)
    return smoothed("adgroup_id", (smoothed("cate_id", overall) + smoothed("customer", overall)) / 2)


# Windows


def cut_windows(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Cuts each user's records into windows of 300 seconds, from the latest record back.

    Args:
        users: (K,) non-negative users of the records, ascending.
        times: (K,) seconds, descending within each user.

    Returns:
        The row of the latest record of each window, ascending.
    """
    count = len(users)
    age = _ascending(users, -times)
    # The first record too old for the window of each record; past a user's last one, the next user's first.
    following = np.append(np.searchsorted(age, age + WINDOW_SECONDS, side="right"), count)
    starts = np.zeros(count + 1, dtype=bool)
    starts[count] = True
    frontier = np.flatnonzero(np.diff(users, prepend=-1))
    while len(frontier):  # one round per window of the user who has most
        starts[frontier] = True
        frontier = following[frontier]
        frontier = frontier[~starts[frontier]]
    return np.flatnonzero(starts[:count])


def _ascending(users: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One number for (user, value) that sorts like the pair; values within 31 bits of 0."""
    return (users.astype(np.int64) << (_TIME_BITS + 2)) + np.clip(values, -(2**_TIME_BITS), 2**_TIME_BITS)


def _choose_windows(
    records: dict[str, np.ndarray], protocol: Protocol, slate_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows that become requests, in random order: first row, row behind the last, and index into SPLITS."""
    start = cut_windows(records["user"], records["time_stamp"])
    stop = np.append(start[1:], len(records["user"]))
    split = np.searchsorted([VALIDATION_DAY, TEST_DAY], records["day"][start], side="right")
    if protocol == "librerank":
        clicked = np.flatnonzero(np.add.reduceat(records["clk"], start) > 0)
        _, first = np.unique(records["user"][start[clicked]], return_index=True)
        start, stop = start[clicked[first]], stop[clicked[first]]
        split = records["split"][start]
    elif protocol == "nlgr":
        pages = (stop - start) // slate_size
        split = np.repeat(split, pages)
        stop = np.repeat(stop, pages) - slate_size * (
            np.arange(pages.sum()) - np.repeat(np.cumsum(pages) - pages, pages)
        )
        clicks = np.concatenate([[0], np.cumsum(records["clk"])])
        start = stop - slate_size
        mixed = (clicks[stop] > clicks[start]) & (clicks[stop] < clicks[start] + slate_size)
        start, stop, split = start[mixed], stop[mixed], split[mixed]
    start = np.maximum(start, stop - MAX_CANDIDATES)
    kept = np.flatnonzero(stop - start >= slate_size)
    kept = kept[rng.permutation(len(kept))]
    return start[kept], stop[kept], split[kept]


# Requests


def _tables(
    connection: duckdb.DuckDBPyConnection, protocol: Protocol, slate_size: int, history: bool, buckets: int, seed: int
) -> Iterator[tuple[str, pa.Table]]:
    """The requests of each split, of one bucket of users after another; refuses data without any in a split."""
    written = dict.fromkeys(SPLITS, 0)
    for bucket in range(buckets):
        rng = np.random.default_rng([seed, bucket])
        records, pid = _read_records(connection, protocol, bucket, buckets)
        start, stop, splits = _choose_windows(records, protocol, slate_size, rng)
        if not len(start):
            continue
        first = stop - 1  # the earliest record
        table = _request_table(connection, records, pid, first)
        columns = _candidate_columns(connection, records, start, stop, slate_size, rng)
        if history:
            columns |= _histories(connection, records["user"][first], records["time_stamp"][first], bucket, buckets)
        for name, values in columns.items():
            table = table.append_column(name, values)
        for index, split in enumerate(SPLITS):
            part = table.filter(pa.array(splits == index))
            written[split] += part.num_rows
            if part.num_rows:
                yield split, part
    if not all(written.values()):
        raise ValueError(f"the records do not give windows of {slate_size} or more ads in every split, got {written}")


def _read_records(
    connection: duckdb.DuckDBPyConnection, protocol: Protocol, bucket: int, buckets: int
) -> tuple[dict[str, np.ndarray], pa.Array]:
    """The records of a bucket of users, latest first, and their `pid`; of split users only those with requests."""
    chosen = f"split <> {_FIRST_STAGE}" if protocol == "librerank" else "true"
    table = connection.sql(f"""
        SELECT "user", time_stamp, adgroup_id, pid, clk, {_DAY} AS day, split
        FROM raw_sample LEFT JOIN users USING ("user") WHERE "user" % {buckets} = {bucket} AND {chosen}
        ORDER BY "user", time_stamp DESC, raw_sample.rowid""").to_arrow_table()
    pid = table.column("pid").combine_chunks()
    return {name: table.column(name).to_numpy() for name in table.column_names if name != "pid"}, pid


def _request_table(
    connection: duckdb.DuckDBPyConnection, records: dict[str, np.ndarray], pid: pa.Array, first: np.ndarray
) -> pa.Table:
    """User, time, place and profile of windows, whose earliest records are the rows `first`."""
    columns = {"user_id": records["user"][first], "timestamp": records["time_stamp"][first], "pid": pid.take(first)}
    connection.register("requests", pa.table({"number": np.arange(len(first)), **columns}))
    return connection.sql(f"""
        SELECT user_id, "timestamp", (("timestamp" + 8 * 3600) // 3600 % 24)::INTEGER AS hour,
            {", ".join(PROFILE_FIELDS)}, pid
        FROM requests LEFT JOIN user_profile ON userid = user_id ORDER BY number""").to_arrow_table()


def _candidate_columns(
    connection: duckdb.DuckDBPyConnection,
    records: dict[str, np.ndarray],
    start: np.ndarray,
    stop: np.ndarray,
    slate_size: int,
    rng: np.random.Generator,
) -> dict[str, pa.Array]:
    """Candidates of windows in random order, with features and labels; the slate by time."""
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    owner = np.repeat(np.arange(len(start)), stop - start)
    order = np.lexsort((rng.random(len(owner)), owner))  # of the candidates; by time they come as in the window
    rows = (stop[owner] - 1 - np.arange(len(owner)) + offsets[owner])[order]
    click = records["clk"].astype(np.float32)
    shown, first = np.arange(slate_size), offsets[:-1, None]  # by time
    slates = (np.argsort(order)[first + shown] - first).astype(np.int32)
    ads = records["adgroup_id"][rows]
    features = _ad_features(connection, ads, records["day"][stop - 1][owner])
    lists = {"adgroup_id": pa.array(ads), **features, "candidate_click": pa.array(click[rows])}
    shared = pa.array(offsets.astype(np.int32))
    return {
        **{name: pa.ListArray.from_arrays(shared, values) for name, values in lists.items()},
        "slate": list_array(slates),
        "click": list_array(click[stop[:, None] - 1 - shown]),
    }


def _ad_features(connection: duckdb.DuckDBPyConnection, ads: np.ndarray, days: np.ndarray) -> dict[str, pa.Array]:
    """Features and upstream score of ads as they were known on days."""
    connection.register("candidates", pa.table({"number": np.arange(len(ads)), "adgroup_id": ads, "day": days}))
    joins = "\n".join(
        f"LEFT JOIN past_{key} ON past_{key}.key = {'0' if key == 'everything' else key} "
        f"AND past_{key}.day = candidates.day"
        for key in _KEYS
    )
    counts = ", ".join(
        f"coalesce(past_{key}.{what}, 0)::DOUBLE AS {what}_{key}" for key in _KEYS for what in ("clicks", "exposures")
    )
    table = connection.sql(f"""
        SELECT {", ".join(AD_FIELDS)}, price::FLOAT AS price, {counts}
        FROM candidates LEFT JOIN ad_feature USING (adgroup_id) {joins} ORDER BY number""").to_arrow_table()
    past = {
        key: (table.column(f"clicks_{key}").to_numpy(), table.column(f"exposures_{key}").to_numpy()) for key in _KEYS
    }
    rates = smoothed_rates(past)
    scores = np.log(rates / (1.0 - rates)).astype(np.float32)
    features = {name: table.column(name).combine_chunks() for name in (*AD_FIELDS, "price")}
    return {**features, "upstream_score": pa.array(scores)}


def _histories(
    connection: duckdb.DuckDBPyConnection, users: np.ndarray, times: np.ndarray, bucket: int, buckets: int
) -> dict[str, pa.Array]:
    """The behaviours of users strictly before times, newest last: a click on an ad is itself a behaviour.

    With the hours from each of them to the time.
    """
    table = connection.sql(f"""
        SELECT "user", time_stamp, {", ".join(HISTORY_FIELDS)} FROM behavior_log
        WHERE "user" % {buckets} = {bucket} AND "user" BETWEEN 0 AND {2**_USER_BITS - 1} AND time_stamp IS NOT NULL
        ORDER BY "user", time_stamp, rowid""").to_arrow_table()
    codes = _ascending(table.column("user").to_numpy(), table.column("time_stamp").to_numpy())
    stop = np.searchsorted(codes, _ascending(users, times))
    begin = np.searchsorted(codes, _ascending(users, np.full_like(times, -(2**_TIME_BITS))))
    start = np.maximum(begin, stop - HISTORY_LENGTH)
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    rows = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
    taken, shared = table.take(pa.array(rows)), pa.array(offsets.astype(np.int32))
    hours = (np.repeat(times, stop - start) - taken.column("time_stamp").to_numpy()) / 3600
    lists = {f"history_{name}": taken.column(name).combine_chunks() for name in HISTORY_FIELDS}
    lists["history_time"] = pa.array(hours.astype(np.float32))
    return {name: pa.ListArray.from_arrays(shared, values) for name, values in lists.items()}
