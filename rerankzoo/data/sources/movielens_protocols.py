"""MovieLens-1M by two published protocols, ReChorus' and GFN4Rec's; `movielens.py` is our own.

ReChorus (github.com/THUwangcy/ReChorus, data/MovieLens_1M/MovieLens-1M.ipynb): 5-core on ratings of at least 4, split
at 80 and 90 % of the days, impressions of up to 20 ratings in the order of time, those without both labels dropped.
GFN4Rec (github.com/CharlieMat/GFN4Rec, ML1MPreprocess.ipynb, reader/MLSlateReader.py): 20-core, slates of 6 ratings in
the order of time, 50 candidates. GoalRank names the same sizes but publishes no script.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from rerankzoo.data.folder import list_array
from rerankzoo.data.long_format import HistorySpec, LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.movielens import NUM_RATINGS, read_items
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, history, history_time, numeric
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec

if TYPE_CHECKING:
    import duckdb

NUM_GENRES = 18
_PEOPLE = "gender VARCHAR, age INTEGER, occupation VARCHAR, zip VARCHAR"
IMPRESSION, SLATE_SIZE, NUM_CANDIDATES, HISTORY_LENGTH = 20, 6, 50, 50

_IMPRESSIONS = f"""
    WITH days AS (SELECT *, rowid AS line, (time + 8 * 3600) // 86400 AS day FROM ratings),
    parts AS (
        SELECT *, CASE WHEN day - low <= 0.8 * (high - low) THEN 'train' WHEN day - low <= 0.9 * (high - low)
            THEN 'validation' ELSE 'test' END AS split
        FROM days, (SELECT min(day) AS low, max(day) AS high FROM days)),
    known AS (
        SELECT *, row_number() OVER (PARTITION BY split, "user" ORDER BY time, line) - 1 AS place FROM parts
        WHERE split = 'train' OR ("user" IN (SELECT "user" FROM parts WHERE split = 'train')
            AND item IN (SELECT item FROM parts WHERE split = 'train')))
    SELECT *, concat_ws('-', split, "user", place // {IMPRESSION}) AS request, (stars >= 4)::INTEGER AS relevant
    FROM known QUALIFY min(relevant) OVER (PARTITION BY request) < max(relevant) OVER (PARTITION BY request)"""

# A slate is cut into test from the end and into train from the beginning; what is left between is in none.
_SLATES = f"""
    WITH placed AS (
        SELECT *, row_number() OVER rows_ - 1 AS place, count(*) OVER (PARTITION BY "user") AS total FROM ratings
        WINDOW rows_ AS (PARTITION BY "user" ORDER BY time, rowid)),
    parts AS (
        SELECT *, CASE WHEN place >= total - {SLATE_SIZE} THEN 'test' WHEN place >= total - {2 * SLATE_SIZE}
            THEN 'validation' ELSE 'train' END AS split
        FROM placed)
    SELECT *, concat_ws('-', split, "user", CASE split WHEN 'train' THEN place // {SLATE_SIZE} END) AS request,
        place AS position, (stars >= 3)::INTEGER AS is_click, (stars >= 4)::INTEGER AS is_like,
        (stars = 5)::INTEGER AS is_star
    FROM parts QUALIFY count(*) OVER (PARTITION BY request) = {SLATE_SIZE}"""

# More draws than are kept, since some repeat one another or the slate.
_SLATE_CANDIDATES = f"""
    WITH catalogue AS (SELECT item, row_number() OVER (ORDER BY item) - 1 AS place, count(*) OVER () AS size
        FROM (SELECT DISTINCT item FROM ratings)),
    draws AS (
        SELECT request, (md5_number_lower(request || '-' || draw) % size)::BIGINT AS place, min(draw) AS draw
        FROM (SELECT DISTINCT request FROM pages), (SELECT any_value(size) AS size FROM catalogue),
            range({2 * NUM_CANDIDATES}) AS draws(draw)
        GROUP BY ALL),
    others AS (
        SELECT request, item, draw FROM draws JOIN catalogue USING (place) ANTI JOIN pages USING (request, item)
        QUALIFY row_number() OVER (PARTITION BY request ORDER BY draw) <= {NUM_CANDIDATES - SLATE_SIZE})
    SELECT request, item, is_click, is_like, is_star FROM pages
    UNION ALL SELECT request, item, 0, 0, 0 FROM others"""


def movielens_1m(protocol: Literal["rechorus", "gfn4rec"] = "gfn4rec") -> PublicLog:
    """MovieLens-1M.

    Args:
        protocol: ReChorus' lists of labels, or GFN4Rec's slates of 6 out of 50 candidates (the sizes of GoalRank).
    """
    is_rechorus = protocol == "rechorus"
    core, condition = (5, "stars >= 4") if is_rechorus else (20, "true")
    core_numbers = {"ratings": 994_338, "users": 6_034, "items": 3_125}
    if not is_rechorus:
        core_numbers = {"ratings": 995_154, "users": 6_022, "items": 3_043}
    counted = {"ratings": "count(*)", "users": 'count(DISTINCT "user")', "items": "count(DISTINCT item)"}
    names = ("relevant",) if is_rechorus else ("is_click", "is_like", "is_star")
    how = {
        "rechorus": (
            "5-core on ratings of at least 4; split at 80 and 90 % of the days (of China: the script takes the "
            f"machine's zone), users and items unknown to train dropped; up to {IMPRESSION} ratings of a user in a row "
            "are one request, dropped without both labels; no slates, since ratings come in no display order"
        ),
        "gfn4rec": (
            f"20-core; slates of {SLATE_SIZE} ratings of a user in a row, the last one test, the one before validation "
            "(ours: the script has none and lets train reach into test); candidates = the slate and items drawn "
            f"evenly, {NUM_CANDIDATES} in all, whose labels count as 0"
        ),
    }[protocol]
    return PublicLog(
        name=f"ml-1m-{protocol}",
        title="MovieLens-1M by the protocols of ReChorus, and of GFN4Rec and GoalRank",
        size="1.0 million ratings",
        licence="GroupLens: research use, no redistribution",
        url="https://grouplens.org/datasets/movielens/1m/",
        files=(
            RawFile(
                "ratings.dat", "all_ratings", "user BIGINT, item BIGINT, stars INTEGER, time BIGINT", "::", header=False
            ),
            RawFile("movies.dat", "movies", "item BIGINT, genres FLOAT[], year DOUBLE", read=_read_movies),
            RawFile("users.dat", "people", f"user BIGINT, {_PEOPLE}", "::", header=False),
        ),
        published={
            "ratings": ("SELECT count(*) FROM all_ratings", NUM_RATINGS["ml-1m"]),
            **{
                f"{name} of the {core}-core": (f"SELECT {counted[name]} FROM ratings", number)
                for name, number in core_numbers.items()
            },
        },
        protocol=how,
        spec=LogSpec(
            schema=FeatureSchema(
                name=f"ml-1m-{protocol}",
                item_id="item",
                fields=(
                    *categorical("request", "gender", "occupation"),
                    numeric("request", "age"),
                    *categorical("candidate", "item"),
                    FieldSpec(name="genres", group="candidate", kind="dense", size=NUM_GENRES),
                    numeric("candidate", "year"),
                    history("history_item", "item"),
                    history_time(),
                ),
                targets=tuple(TargetSpec(name=name, candidate_feedback=f"candidate_{name}") for name in names),
                position_discount="log2",
            ),
            request="request",
            time="time",
            user="user",
            position=None if is_rechorus else "position",
            history=HistorySpec(length=HISTORY_LENGTH),
            split=SplitSpec(column="split"),
        ),
        tables=LogTables(
            impressions=_IMPRESSIONS if is_rechorus else _SLATES,
            candidates=None if is_rechorus else _SLATE_CANDIDATES,
            items="FROM movies",
            users="FROM people",
            events="FROM ratings WHERE stars >= 4" if is_rechorus else "FROM ratings",
        ),
        prepare=lambda connection: _keep_core(connection, core, condition),
    )


def _keep_core(connection: duckdb.DuckDBPyConnection, core: int, condition: str) -> None:
    """Makes `ratings` of the users and items that have `core` ratings with the condition among one another."""
    connection.execute("CREATE OR REPLACE TABLE ratings AS FROM all_ratings")
    removed = True
    while removed:
        often = [
            f'"{key}" NOT IN (SELECT "{key}" FROM ratings WHERE {condition} GROUP BY ALL HAVING count(*) >= {core})'
            for key in ("user", "item")
        ]
        removed = bool(connection.execute(f"DELETE FROM ratings WHERE {' OR '.join(often)}").fetchall()[0][0])


def _read_movies(raw: Path) -> Iterator[pa.Table]:
    items, genres = read_items(raw / "movies.dat", "ml-1m")
    yield pa.table({"item": items["id"], "year": items["year"], "genres": list_array(genres)})
