"""MovieLens as a reranking data set, from GroupLens' own files (Harper and Konstan 2015, ACM TiiS 5, 4, Article 19).

A request is a window of 10 consecutive ratings of one user, sorted by (timestamp, item id); relevant means a rating of
at least 4. It belongs to the split of its last timestamp, against the 80 % and 90 % quantiles of all timestamps.
Windows start 5 ratings apart in train and 10 apart afterwards, where they do not overlap.

Item statistics and the first-stage score count only ratings of the train period *strictly before the window's first
timestamp*: means over the whole train period hold the very labels that a train window asks for. User statistics, genre
affinity and history count the user's ratings before the window. The logged slate is a Plackett-Luce sample by the
first-stage score. Labels do not depend on the slate, so a pointwise ranker is optimal; docs/movielens.md tells more.

GroupLens' terms forbid redistribution: a converted folder is for its maker's own use.
"""

from __future__ import annotations

import io
import logging
import shutil
import urllib.request
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.data.folder import SPLITS, list_table, write_data_folder
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec, Transform
from rerankzoo.slates import plackett_luce_slates

Variant = Literal["ml-100k", "ml-1m"]

logger = logging.getLogger(__name__)

URLS = MappingProxyType(
    {
        "ml-100k": "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "ml-1m": "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    }
)
FILES = MappingProxyType(
    {"ml-100k": ("u.data", "u.item", "u.user"), "ml-1m": ("ratings.dat", "movies.dat", "users.dat")}
)
"""Raw files of each variant: ratings, items, users."""

NUM_RATINGS = MappingProxyType({"ml-100k": 100_000, "ml-1m": 1_000_209})
EXPECTED_ROWS = MappingProxyType({"ml-100k": {"train": 14_966, "validation": 972, "test": 971}})
DEFAULT_CACHE = Path("~/.cache/rerankzoo")

NUM_CANDIDATES, SLATE_SIZE, HISTORY_LENGTH = 10, 4, 20
TRAIN_STRIDE, LATER_STRIDE = 5, 10
RELEVANT_RATING = 4
LOGGING_TEMPERATURE = 0.7
ITEM_SMOOTHING, USER_SMOOTHING = 10.0, 5.0  # ratings' worth of the mean over all items (or of the user) in a mean

_GENRES_100K = 19
_GENRES_1M = (
    "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Raw:
    ratings: pd.DataFrame  # user, item (row numbers), rating, timestamp; sorted by (user, timestamp, item id)
    items: pd.DataFrame  # id, year
    genres: np.ndarray  # (items, G) float64 flags
    users: pd.DataFrame  # id, age, gender, occupation


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """Requests, each `NUM_CANDIDATES` consecutive rows of the sorted ratings."""

    start: np.ndarray  # (R,) row of the first rating
    user_start: np.ndarray  # (R,) row of the user's first rating
    split: np.ndarray  # (R,) index into SPLITS
    train_end: int  # first timestamp after the train period


def convert_movielens(
    out: str | Path,
    raw: str | Path | None = None,
    variant: Variant = "ml-100k",
    *,
    cache: str | Path = DEFAULT_CACHE,
    seed: int = 0,
) -> None:
    """Converts MovieLens to a data folder; the module describes the protocol.

    Args:
        out: The data folder to write.
        raw: Folder with the unpacked raw files; `None` downloads GroupLens' zip (once).
        variant: "ml-100k" (`u.data`, `u.item`, `u.user`) or "ml-1m" (`ratings.dat`, `movies.dat`, `users.dat`).
        cache: Where downloaded files are kept.
        seed: Seed of the order of candidates and of the logged slates.

    Raises:
        ValueError: If the variant is unknown, a split is empty, or the complete ML-100K does not give the
            documented number of windows.
        RerankingDataError: If a raw file is not found or garbled; names the file, the line and the value.
        OSError: If the download fails.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"unknown variant {variant!r}, choose from {get_args(Variant)}")
    folder = _download(variant, Path(cache).expanduser()) if raw is None else Path(raw)
    data = _read(folder, variant)
    windows = _cut_windows(data.ratings)
    table = _build_table(data, windows, np.random.default_rng(seed))
    tables = {split: table.filter(pa.array(windows.split == index)) for index, split in enumerate(SPLITS)}
    rows, num_ratings = {split: part.num_rows for split, part in tables.items()}, len(data.ratings)
    if not all(rows.values()):
        raise ValueError(f"{num_ratings} ratings are too few for windows in every split, got {rows}")
    if num_ratings != NUM_RATINGS[variant]:
        logger.warning("%s has %d ratings, got %d: an excerpt", variant, NUM_RATINGS[variant], num_ratings)
    elif rows != EXPECTED_ROWS.get(variant, rows):
        raise ValueError(f"{variant} must give {EXPECTED_ROWS[variant]} windows, got {rows}")
    metadata = {
        "source": variant,
        "protocol": (
            f"windows of {NUM_CANDIDATES} consecutive ratings of a user, {TRAIN_STRIDE} apart in train and "
            f"{LATER_STRIDE} apart later; chronological split by a window's last timestamp at the 80 % and 90 % "
            f"quantiles; relevant = rating >= {RELEVANT_RATING}; item statistics from train ratings strictly before "
            f"the window; slates of {SLATE_SIZE} by Plackett-Luce at temperature {LOGGING_TEMPERATURE}"
        ),
        "ratings": num_ratings,
        "seed": seed,
        "license": "GroupLens: research use with acknowledgement; do not redistribute without permission",
    }
    write_data_folder(out, tables, movielens_schema(variant, data.genres.shape[1]), metadata)


def movielens_schema(variant: str, num_genres: int) -> FeatureSchema:
    """The schema of a converted data set; ML-100K has 19 genres, ML-1M 18."""
    standard: tuple[Transform, ...] = ("standardize",)
    return FeatureSchema(
        name=variant,
        item_id="item_id",
        fields=(
            FieldSpec(name="gender", group="request", kind="categorical"),
            FieldSpec(name="occupation", group="request", kind="categorical"),
            FieldSpec(name="age", group="request", kind="numeric", transforms=standard),
            FieldSpec(name="user_mean_rating", group="request", kind="numeric", transforms=standard),
            FieldSpec(name="history_length", group="request", kind="numeric", transforms=("log1p", "standardize")),
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="genres", group="candidate", kind="dense", size=num_genres),
            FieldSpec(name="genre_affinity", group="candidate", kind="dense", size=num_genres),
            FieldSpec(name="item_mean_rating", group="candidate", kind="numeric", transforms=standard),
            FieldSpec(name="item_popularity", group="candidate", kind="numeric", transforms=standard),
            FieldSpec(name="year", group="candidate", kind="numeric", transforms=standard),
            FieldSpec(name="upstream_score", group="candidate", kind="numeric", transforms=standard),
            FieldSpec(name="history_item_id", group="history", kind="categorical", shares="item_id"),
            FieldSpec(name="history_time", group="history", kind="time"),
        ),
        targets=(TargetSpec(name="relevant", candidate_feedback="candidate_relevant"),),
        position_discount="log2",
        upstream_score="upstream_score",
        propensity="propensity",
    )


# Windows and features


def _cut_windows(ratings: pd.DataFrame) -> _Windows:
    """Cuts windows, in the order of their last timestamp."""
    times = ratings["timestamp"].to_numpy()
    train_end, validation_end = (int(end) + 1 for end in np.quantile(times, [0.8, 0.9]))
    _, first, counts = np.unique(ratings["user"].to_numpy(), return_index=True, return_counts=True)
    final = first + counts - NUM_CANDIDATES  # start of the user's last possible window
    owner, start = _grid(first, final, TRAIN_STRIDE)
    in_train = times[start + NUM_CANDIDATES - 1] < train_end
    # A user's timestamps ascend, so her train windows come first and the later grid begins one stride after them.
    begin = first + TRAIN_STRIDE * np.bincount(owner[in_train], minlength=len(first))
    later_owner, later_start = _grid(begin, final, LATER_STRIDE)
    owner, start = np.concatenate([owner[in_train], later_owner]), np.concatenate([start[in_train], later_start])
    last = times[start + NUM_CANDIDATES - 1]
    order = np.lexsort((start, last))
    split = np.searchsorted([train_end, validation_end], last, side="right")
    return _Windows(start=start[order], user_start=first[owner[order]], split=split[order], train_end=train_end)


def _grid(begin: np.ndarray, final: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """For each k the numbers begin[k], begin[k] + stride, ... up to final[k]: their k, and the numbers."""
    counts = np.maximum(0, (final - begin) // stride + 1)
    owner = np.repeat(np.arange(len(begin)), counts)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, begin[owner] + stride * step


def _running_sums(values: np.ndarray) -> np.ndarray:
    """Sums (R + 1, V) of the first 0..R rows of `values` (R, V)."""
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0, dtype=np.float64)])


def _sums_before(
    keys: np.ndarray, times: np.ndarray, values: np.ndarray, asked_keys: np.ndarray, asked_times: np.ndarray
) -> np.ndarray:
    """Sums (..., V) of values (K, V) over the rows of a key strictly before a time, for keys and times (...)."""
    first, span = int(times.min()), int(np.ptp(times)) + 2
    codes = keys * span + times - first
    order = np.argsort(codes, kind="stable")
    sums, codes = _running_sums(values[order]), codes[order]
    stop = np.searchsorted(codes, asked_keys * span + np.clip(asked_times - first, 0, span - 1))
    return sums[stop] - sums[np.searchsorted(codes, asked_keys * span)]


def _build_table(data: _Raw, windows: _Windows, rng: np.random.Generator) -> pa.Table:
    ratings, size = data.ratings, len(windows.start)
    order = rng.permuted(np.broadcast_to(np.arange(NUM_CANDIDATES), (size, NUM_CANDIDATES)), axis=1)
    rows = windows.start[:, None] + order  # (R, N) rows of the ratings
    items = ratings["item"].to_numpy()[rows]
    prior_rating, item_columns = _item_features(data, windows, items)
    user_columns, affinity = _user_features(data, windows, prior_rating)
    logits = item_columns["upstream_score"] / LOGGING_TEMPERATURE
    slates, propensities = plackett_luce_slates(logits, SLATE_SIZE, rng)
    relevant = (ratings["rating"].to_numpy()[rows] >= RELEVANT_RATING).astype(np.float32)
    genres = data.genres[items]
    columns = user_columns | {
        "item_id": data.items["id"].to_numpy()[items],
        "genres": genres,
        "genre_affinity": genres * affinity[:, None],
        **item_columns,
        "year": data.items["year"].to_numpy()[items],
        "slate": slates,
        "relevant": np.take_along_axis(relevant, slates, axis=1),
        "candidate_relevant": relevant,
        "propensity": propensities,
    }
    table = list_table(columns)
    for name, values in _histories(data, windows).items():
        table = table.append_column(name, values)
    return table


def _item_features(data: _Raw, windows: _Windows, items: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """From train ratings before each window: the mean rating (R,) of all items, and columns of candidates (R, N)."""
    train = data.ratings[data.ratings["timestamp"] < windows.train_end]
    keys, times = train["item"].to_numpy(), train["timestamp"].to_numpy()
    stars = train["rating"].to_numpy(dtype=np.float64)
    values = np.stack([stars, stars >= RELEVANT_RATING, np.ones_like(stars)], axis=1)
    cutoff = np.minimum(data.ratings["timestamp"].to_numpy()[windows.start], windows.train_end)[:, None]
    overall = _sums_before(np.zeros_like(keys), times, values, np.zeros_like(cutoff), cutoff)
    prior = (overall[..., :2] + [3.0, 0.5]) / (overall[..., 2:] + 1.0)  # mid-scale at the outset
    sums = _sums_before(keys, times, values, items, cutoff)
    count = sums[..., 2]
    smoothed = (sums[..., :2] + ITEM_SMOOTHING * prior) / (count[..., None] + ITEM_SMOOTHING)
    mean, share = smoothed[..., 0], smoothed[..., 1]
    # Relative to the average item: counts grow with time, and train windows are earlier than test windows.
    average = overall[..., 2] / len(data.items)
    return prior[:, 0, 0], {
        "item_mean_rating": mean,
        "item_popularity": np.log((count + 1.0) / (average + 1.0)),
        "upstream_score": np.log(share / (1.0 - share)),
    }


def _user_features(data: _Raw, windows: _Windows, prior_rating: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Request columns, and the user's genre affinity (R, G): how far her past ratings of a genre exceed her mean."""
    ratings, start, begin = data.ratings, windows.start, windows.user_start
    stars = ratings["rating"].to_numpy(dtype=np.float64)[:, None]
    genres = data.genres[ratings["item"].to_numpy()]
    past = (_running_sums(values) for values in (stars, genres, genres * stars))
    star_sums, genre_counts, genre_sums = (sums[start] - sums[begin] for sums in past)
    length = start - begin
    mean = (star_sums[:, 0] + USER_SMOOTHING * prior_rating) / (length + USER_SMOOTHING)
    affinity = (genre_sums - genre_counts * mean[:, None]) / (genre_counts + USER_SMOOTHING)
    users = data.users.iloc[ratings["user"].to_numpy()[start]]
    columns = {
        "user_id": users["id"].to_numpy(),
        "timestamp": ratings["timestamp"].to_numpy()[start + NUM_CANDIDATES - 1],
        "gender": users["gender"].to_numpy(dtype=object),
        "occupation": users["occupation"].to_numpy(dtype=object),
        "age": users["age"].to_numpy(dtype=np.float32),
        "user_mean_rating": mean,
        "history_length": length.astype(np.float32),
    }
    return columns, affinity


def _histories(data: _Raw, windows: _Windows) -> dict[str, pa.Array]:
    """The ids of the user's last items before each window, newest last, and the hours from each to its first rating."""
    begin = np.maximum(windows.user_start, windows.start - HISTORY_LENGTH)
    owner, rows = _grid(begin, windows.start - 1, 1)
    offsets = pa.array(np.concatenate([[0], np.cumsum(windows.start - begin)]).astype(np.int32))
    times, ids = data.ratings["timestamp"].to_numpy(), data.items["id"].to_numpy()
    hours = (times[windows.start][owner] - times[rows]) / 3600
    return {
        "history_item_id": pa.ListArray.from_arrays(offsets, pa.array(ids[data.ratings["item"].to_numpy()[rows]])),
        "history_time": pa.ListArray.from_arrays(offsets, pa.array(hours.astype(np.float32))),
    }


# Raw files


def _download(variant: Variant, cache: Path) -> Path:
    """Fetches the zip's files unless the cache holds them; returns their folder."""
    folder, names = cache / variant, FILES[variant]
    if all((folder / name).is_file() for name in names):
        return folder
    content = io.BytesIO()
    with urllib.request.urlopen(URLS[variant], timeout=60) as response:
        shutil.copyfileobj(response, content)
    if not zipfile.is_zipfile(content):
        raise RerankingDataError(f"{URLS[variant]} did not return a zip file", field=f"{variant}.zip")
    with zipfile.ZipFile(content) as archive:
        if missing := [name for name in names if f"{variant}/{name}" not in archive.namelist()]:
            raise RerankingDataError(f"{URLS[variant]} lacks {missing}", field=f"{variant}.zip")
        for name in names:  # by their exact names, so no path in the zip decides where a file goes
            write_atomically(folder / name, partial(Path.write_bytes, data=archive.read(f"{variant}/{name}")))
    return folder


def _read(folder: Path, variant: Variant) -> _Raw:
    ratings_file, items_file, users_file = (folder / name for name in FILES[variant])
    if variant == "ml-100k":
        ratings = _split_lines(ratings_file, "\t", ("user", "item", "rating", "timestamp"))
        users = _split_lines(users_file, "|", ("id", "age", "gender", "occupation", "zip"))
    else:
        ratings = _split_lines(ratings_file, "::", ("user", "item", "rating", "timestamp"))
        users = _split_lines(users_file, "::", ("id", "gender", "age", "occupation", "zip"))
    items, genres = read_items(items_file, variant)
    users["id"], users["age"] = _unique_ids(users["id"], users_file), _integers(users["age"], users_file)
    _refuse(~users["gender"].isin(["M", "F"]), users["gender"], users_file, "is neither M nor F")
    return _Raw(ratings=_sorted_ratings(ratings, items, users, ratings_file), items=items, genres=genres, users=users)


def read_items(path: Path, variant: Variant) -> tuple[pd.DataFrame, np.ndarray]:
    """Ids and years, and genres; an unknown year is the median of the known ones (an input must be a number)."""
    if variant == "ml-100k":
        flags = [f"genre flag {index}" for index in range(_GENRES_100K)]
        table = _split_lines(path, "|", ("id", "title", "release date", "video release date", "url", *flags))
        for flag in flags:
            _refuse(~table[flag].isin(["0", "1"]), table[flag], path, "is neither 0 nor 1")
        genres, dates = table[flags] == "1", table["release date"]
        _refuse(~dates.str.fullmatch(r"(.*[0-9]{4})?"), dates, path, "does not end in a year")
        years = dates.str.extract(r"([0-9]{4})$")[0]
    else:
        table = _split_lines(path, "::", ("id", "title", "genres"))
        genres = table["genres"].str.get_dummies("|").reindex(columns=list(_GENRES_1M), fill_value=0)
        known = table["genres"].map(lambda names: set(names.split("|")) <= set(_GENRES_1M))
        _refuse(~known, table["genres"], path, f"has a genre that is none of {', '.join(_GENRES_1M)}")
        years = table["title"].str.extract(r"\(([0-9]{4})\)\s*$")[0]
    numbers = years.astype(float)
    middle = numbers.median() if numbers.notna().any() else 0.0
    items = pd.DataFrame({"id": _unique_ids(table["id"], path), "year": numbers.fillna(middle)})
    return items, genres.to_numpy(dtype=np.float64)


def _split_lines(path: Path, separator: str, names: tuple[str, ...]) -> pd.DataFrame:
    """Reads a file without header into text columns."""
    if not path.is_file():
        raise RerankingDataError(f"{path} not found", field=path.name)
    # Not splitlines(): in Latin-1 it would also split at bytes such as 0x85.
    lines = path.read_text(encoding="latin-1").removesuffix("\n").split("\n")
    if lines == [""]:
        raise RerankingDataError(f"{path} is empty", field=path.name)
    parts = [line.split(separator) for line in lines]
    wrong = pd.Series([len(part) != len(names) for part in parts])
    _refuse(wrong, pd.Series(lines), path, f"has not {len(names)} parts between {separator!r}")
    return pd.DataFrame(parts, columns=list(names))


def _refuse(wrong: pd.Series, values: pd.Series, path: Path, reason: str) -> None:
    """Raises for the first wrong line."""
    if wrong.any():
        line = int(np.argmax(wrong.to_numpy()))
        column = "" if values.name is None else f"{values.name} "
        value = values.tolist()[line]
        raise RerankingDataError(f"{path}, line {line + 1}: {column}{value!r} {reason}", field=path.name)


def _integers(values: pd.Series, path: Path) -> pd.Series:
    _refuse(~values.str.fullmatch(r"[0-9]{1,18}"), values, path, "is not an integer")
    return values.astype(np.int64)


def _unique_ids(values: pd.Series, path: Path) -> pd.Series:
    ids = _integers(values, path)
    _refuse(ids.duplicated(), ids, path, "appears twice")
    return ids


def _sorted_ratings(ratings: pd.DataFrame, items: pd.DataFrame, users: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Checks the ratings, replaces ids by row numbers, and sorts by (user, timestamp, item id)."""
    numbers = ratings.apply(_integers, path=path)
    _refuse(~numbers["rating"].between(1, 5), numbers["rating"], path, "is outside 1..5")
    _refuse(numbers.duplicated(["user", "item"]), numbers["item"], path, "was rated twice by the same user")
    ordered = numbers.copy()
    for name, table in (("user", users), ("item", items)):
        rows = pd.Index(table["id"]).get_indexer(numbers[name])
        _refuse(pd.Series(rows < 0), numbers[name], path, f"is not among the {name}s")
        ordered[name] = rows
    order = np.lexsort((numbers["item"], numbers["timestamp"], numbers["user"]))
    return ordered.iloc[order].reset_index(drop=True)
