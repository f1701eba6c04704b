from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from rerankzoo.atomic_writing import work_folder
from rerankzoo.cli.main import main
from rerankzoo.data.folder import SPLITS, read_metadata
from rerankzoo.data.long_format import HistorySpec, LogSpec, LogTables, loading, write_long_log, writing
from rerankzoo.data.long_format.requests import past_events
from rerankzoo.engines import Workers
from rerankzoo.errors import RerankingDataError, SchemaError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema

DAYS, PER_DAY, USERS, ITEMS, CANDIDATES, SHOWN = 5, 60, 20, 40, 8, 4
SCHEMA = """
name: shop
item_id: sku
upstream_score: score
propensity: propensity
fields:
  - {name: hour, group: request, kind: numeric, transforms: [standardize]}
  - {name: page, group: request, kind: categorical}
  - {name: age, group: request, kind: categorical}
  - {name: sku, group: candidate, kind: categorical}
  - {name: brand, group: candidate, kind: categorical}
  - {name: price, group: candidate, kind: numeric, transforms: [log1p, standardize]}
  - {name: score, group: candidate, kind: numeric, transforms: [standardize]}
  - {name: recent, group: history, kind: categorical, shares: sku}
  - {name: brands, group: history, kind: categorical, shares: brand}
  - {name: hours_ago, group: history, kind: time}
targets:
  - {name: click, candidate_feedback: any_click}
  - {name: order, weight: 5.0, value: price}
log:
  request: request_id
  time: shown_at
  user: user_id
  position: position
  surface: page
  history: {feedback: click, length: 3, gap: 3600}
  split: {validation: 2026-05-04, test: 2026-05-05}
"""

Frames = dict[str, pd.DataFrame]


def make_log(days: int = DAYS) -> Frames:
    """A clean log: candidates logged apart, shown in a noisy order of the score, clicks that depend on both."""
    rng = np.random.default_rng(0)
    rows, candidates = [], []
    for day in range(1, days + 1):
        for number in range(PER_DAY):
            time = pd.Timestamp(2026, 5, day) + pd.Timedelta(seconds=number * 1_400 + int(rng.integers(1_000)))
            request, user = f"d{day}-{number}", f"u{rng.integers(USERS)}"
            page, items = f"p{rng.integers(2)}", rng.choice(ITEMS, CANDIDATES, replace=False)
            score = rng.normal(size=CANDIDATES).round(3)
            candidates += [(request, f"s{item}", value) for item, value in zip(items, score, strict=True)]
            for place, shown in enumerate(np.argsort(-(score + rng.gumbel(size=CANDIDATES)))[:SHOWN], 1):
                click = int(rng.random() < 0.4 / np.sqrt(place))
                order = int(click and rng.random() < 0.3)
                propensity = round(rng.uniform(0.1, 1), 3)
                key = (request, time, user, page, time.hour, f"s{items[shown]}", place)
                rows.append((*key, score[shown], propensity, click, order))
    names = ["request_id", "shown_at", "user_id", "page", "hour", "sku", "position", "score", "propensity"]
    return {
        "impressions": pd.DataFrame(rows, columns=[*names, "click", "order"]),
        "candidates": pd.DataFrame(candidates, columns=["request_id", "sku", "score"]),
        "items": pd.DataFrame(
            {
                "sku": [f"s{item}" for item in range(ITEMS)],
                "brand": [f"b{item % 7}" for item in range(ITEMS)],
                "price": [1.5 + item for item in range(ITEMS)],
            }
        ),
        "users": pd.DataFrame({"user_id": [f"u{user}" for user in range(USERS)], "age": np.arange(USERS) % 5}),
    }


def save(frames: Frames, folder: Path) -> LogTables:
    """Impressions in a Parquet file per day, the rest as CSV."""
    folder.mkdir(exist_ok=True, parents=True)
    for day, part in frames["impressions"].groupby(
        pd.to_datetime(frames["impressions"]["shown_at"]).dt.date.astype(str)
    ):
        part.to_parquet(folder / f"{day}.parquet", index=False)
    for name, frame in frames.items():
        if name != "impressions":
            frame.to_csv(folder / f"{name}.csv", index=False)
    rest = {name: str(folder / f"{name}.csv") for name in frames if name != "impressions"}
    return LogTables(impressions=str(folder / "*.parquet"), **rest)


def read_spec(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda data: None) -> LogSpec:
    data = yaml.safe_load(SCHEMA)
    change(data)
    path = folder / "log.yaml"
    path.write_text(yaml.safe_dump(data))
    return LogSpec.from_yaml(path)


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.exists() else {}


@pytest.fixture(autouse=True)
def _no_pictures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take two thirds of the time; those of `folder`, which is made before, are looked at."""
    monkeypatch.setattr("rerankzoo.data.long_format.report.html_page", lambda *_: "")


@pytest.fixture(scope="module")
def frames() -> Frames:
    return make_log()


@pytest.fixture(scope="module")
def folder(frames: Frames, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log")
    write_long_log(path / "out", read_spec(path), save(frames, path / "raw"))
    return path / "out"


# --- the folder, against the log told slowly -------------------------------------------------------------------------


def hours(gap: pd.Timedelta) -> float:
    return gap.value // 1_000 / 3.6e9


def expected_rows(frames: Frames, gap: int = 3_600, length: int = 3) -> dict[str, dict[Any, dict[str, Any]]]:
    """What each request must become, by the set of its (item, score)."""
    items = frames["items"].set_index("sku")
    ages = frames["users"].set_index("user_id")["age"]
    clicked = defaultdict(list)
    for row in frames["impressions"].sort_values("shown_at", kind="stable").to_dict("records"):
        if row["click"]:
            clicked[row["user_id"]].append((row["shown_at"], row["sku"]))
    found: dict[str, dict[Any, dict[str, Any]]] = {split: {} for split in SPLITS}
    groups = dict(list(frames["candidates"].groupby("request_id")))
    for request, part in frames["impressions"].groupby("request_id"):
        part, first = part.sort_values("position"), part.iloc[0]
        day = first["shown_at"].day
        before = [one for one in clicked[first["user_id"]] if one[0] < first["shown_at"] - pd.Timedelta(seconds=gap)]
        past = [sku for _, sku in before]
        key = frozenset(zip(groups[request]["sku"], groups[request]["score"].astype(np.float32), strict=True))
        found["train" if day < 4 else "validation" if day == 4 else "test"][key] = {
            "hour": first["hour"],
            "page": first["page"],
            "age": ages[first["user_id"]],
            "shown": part["sku"].tolist(),
            "click": part["click"].tolist(),
            "order": part["order"].tolist(),
            "propensity": part["propensity"].astype(np.float32).tolist(),
            "recent": past[-length:],
            "brands": [items.loc[sku, "brand"] for sku in past[-length:]],
            "hours_ago": [np.float32(hours(first["shown_at"] - at)) for at, _ in before[-length:]],
            "any_click": dict.fromkeys(groups[request]["sku"]) | dict(zip(part["sku"], part["click"], strict=True)),
        }
    return found


def test_rows_are_those_of_the_log(folder: Path, frames: Frames) -> None:
    items = frames["items"].set_index("sku")
    places, histories = set(), set()
    for split, expected in expected_rows(frames).items():
        found = rows(folder, split)
        assert len(found) == len(expected) == {"train": 180, "validation": 60, "test": 60}[split]
        for row in found:
            want = expected[frozenset(zip(row["sku"], np.float32(row["score"]), strict=True))]
            assert row["brand"] == [items.loc[sku, "brand"] for sku in row["sku"]]
            assert row["price"] == [items.loc[sku, "price"] for sku in row["sku"]]
            assert [row["sku"][place] for place in row["slate"]] == want["shown"]
            assert dict(zip(row["sku"], row["any_click"], strict=True)) == want["any_click"]
            for name in want.keys() - {"shown", "any_click"}:
                assert row[name] == want[name], name
            places.add(row["slate"][0])
            histories.add(len(row["recent"]))
    assert places == set(range(CANDIDATES))  # the order of the candidates tells nothing
    assert histories == {0, 1, 2, 3}


def test_the_folder_trains_and_says_where_it_comes_from(folder: Path) -> None:
    table = pq.read_table(folder / "train-00000.parquet")
    batch = RerankingFeatureExtractor(FeatureSchema.from_yaml(folder / "schema.yaml")).fit(table)(table)
    assert batch["slates"].shape == (180, 1, SHOWN)
    assert batch["history_categorical"].shape == (180, 3, 2)
    metadata = read_metadata(folder)
    assert metadata["rows"] == {"train": 180, "validation": 60, "test": 60}
    assert "candidates as logged" in metadata["protocol"]
    assert "3 items with click until 3600 s before the request" in metadata["protocol"]
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 1
    assert "requests without feedback" in page
    assert not work_folder(folder).exists()


def test_past_events_are_strictly_earlier() -> None:
    users, times = np.array([2, 0, -1, 1, 2, 3]), np.array([5, 9, 9, 9, 6, 9])
    event_users, event_times = np.array([2, 2, 2, 0, 0]), np.array([1, 5, 5, 8, 9])
    start, stop = past_events(users, times, event_users, event_times)
    assert [(a, b) for a, b in zip(start.tolist(), stop.tolist(), strict=True)] == [
        (0, 1), (3, 4), (0, 0), (0, 0), (0, 3), (0, 0),
    ]  # fmt: skip


# --- other kinds of logs ---------------------------------------------------------------------------------------------


def without(data: dict[str, Any], *fields: str) -> None:
    data["fields"] = [field for field in data["fields"] if field["name"] not in fields]


def test_shown_items_are_the_candidates_where_none_are_logged(frames: Frames, tmp_path: Path) -> None:
    tables = save({name: frames[name] for name in ("impressions", "items", "users")}, tmp_path / "raw")
    write_long_log(tmp_path / "out", read_spec(tmp_path), tables)
    assert all(
        sorted(row["slate"]) == list(range(SHOWN)) == list(range(len(row["sku"])))
        for row in rows(tmp_path / "out", "test")
    )
    assert "the shown items are the candidates, for no others are logged" in read_metadata(tmp_path / "out")["protocol"]


def test_rows_without_a_position_are_candidates(frames: Frames, tmp_path: Path) -> None:
    impressions = frames["impressions"].copy()
    last = impressions["position"] == SHOWN
    impressions["position"] = impressions["position"].astype("Int64").mask(last)
    impressions.loc[last, ["click", "order"]] = 0
    tables = save({**frames, "impressions": impressions}, tmp_path / "raw")
    write_long_log(tmp_path / "out", read_spec(tmp_path), replace(tables, candidates=None))
    row = rows(tmp_path / "out", "test")[0]
    assert len(row["slate"]) == SHOWN - 1 == len(row["sku"]) - 1
    hidden = set(range(SHOWN)) - set(row["slate"])
    assert [row["any_click"][place] for place in hidden] == [None]


def test_parts_of_pages_leave_the_other_positions_open(frames: Frames, folder: Path, tmp_path: Path) -> None:
    part = frames["impressions"].query("position in (2, 4)")
    tables = save({**frames, "impressions": part}, tmp_path / "raw")
    spec = read_spec(tmp_path, lambda data: data["log"].update(first_position=1))
    write_long_log(tmp_path / "out", spec, tables)
    whole = {tuple(row["sku"]): row for row in rows(folder, "test")}
    for row in rows(tmp_path / "out", "test"):
        for name in ("slate", "click", "propensity"):
            _, second, _, fourth = whole[tuple(row["sku"])][name]
            assert row[name] == [None, second, None, fourth]
    table = pq.read_table(tmp_path / "out" / "train-00000.parquet")
    batch = RerankingFeatureExtractor(FeatureSchema.from_yaml(tmp_path / "out" / "schema.yaml")).fit(table)(table)
    assert (batch["slates"] == -100).sum(-1).eq(2).all()
    with pytest.raises(RerankingDataError, match="row 0: position before the first: 'd1-0', 2"):
        write_long_log(tmp_path / "late", replace(spec, first_position=3), tables)


def test_without_positions_there_are_labels_of_candidates_only(frames: Frames, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        del data["log"]["position"], data["propensity"]
        data["targets"] = [{"name": "click", "candidate_feedback": "any_click"}]

    tables = save({**frames, "impressions": frames["impressions"].drop(columns="position")}, tmp_path / "raw")
    write_long_log(tmp_path / "out", read_spec(tmp_path, change), tables)
    row = rows(tmp_path / "out", "test")[0]
    assert not row.keys() & {"slate", "click", "propensity"}
    assert sum(label is not None for label in row["any_click"]) == SHOWN
    with pytest.raises(SchemaError, match="target 'order' needs candidate_feedback"):
        read_spec(tmp_path, lambda data: data["log"].pop("position"))


def test_split_by_a_column_and_events_apart(frames: Frames, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["log"] |= {
            "split": {"column": "part"},
            "history": {"length": 2, "columns": {"recent": "bought"}},
            "time_unit": "ms",
        }
        without(data, "brands")

    impressions = frames["impressions"].copy()
    impressions["part"] = impressions["shown_at"].dt.day.map({1: "train", 2: "test", 3: "validation"})
    impressions["shown_at"] = impressions["shown_at"].astype("datetime64[ms]").astype("int64")
    at = int(impressions["shown_at"][impressions["user_id"] == "u1"].iloc[-1])
    events = pd.DataFrame({"user_id": "u1", "shown_at": [at, 1, 3, 2], "bought": ["now", "s1", "s3", "s2"]})
    raw = tmp_path / "raw"
    tables = save({**frames, "events": events, "impressions": frames["impressions"]}, raw)
    impressions.to_parquet(raw / "all.parquet")
    tables = replace(tables, impressions=f"FROM '{raw / 'all.parquet'}'")
    assert write_long_log(tmp_path / "out", read_spec(tmp_path, change), tables) == dict.fromkeys(SPLITS, PER_DAY)
    histories = [row["recent"] for split in SPLITS for row in rows(tmp_path / "out", split)]
    assert (
        sum(map(bool, histories))
        == impressions[impressions["part"].notna() & (impressions["user_id"] == "u1")]["request_id"].nunique()
    )
    assert {tuple(history) for history in histories} == {(), ("s2", "s3")}
    row = next(row for row in rows(tmp_path / "out", "train") if row["recent"])
    assert row["hours_ago"] == [pytest.approx(at / 3.6e6, rel=1e-3) for at in [int(impressions["shown_at"].min())] * 2]


def test_pages_of_past_items_are_counted_back(frames: Frames, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["fields"].append({"name": "pages_ago", "group": "history", "kind": "page"})
        data["log"]["history"]["length"] = 6

    impressions = frames["impressions"].copy()
    # Two pages of a user at once, whose rows take turns: the one that began first is the earlier one.
    mixed = impressions[impressions["user_id"] == "u3"]["request_id"].unique()[:2]
    start = pd.Timestamp(2026, 5, 1)
    turns = impressions["request_id"].isin(mixed)
    place = 2 * impressions["position"] + (impressions["request_id"] == mixed[1])
    impressions.loc[turns, "shown_at"] = start + pd.to_timedelta(place[turns], unit="s")
    impressions.loc[turns, "click"] = 1
    changed = {**frames, "impressions": impressions}
    write_long_log(tmp_path / "out", read_spec(tmp_path, change), save(changed, tmp_path / "raw"))
    began = impressions.groupby("request_id")["shown_at"].min()
    clicks = impressions[impressions["click"] > 0].sort_values("shown_at", kind="stable")
    by_key = {
        frozenset(zip(part["sku"], part["score"].astype(np.float32), strict=True)): request
        for request, part in frames["candidates"].groupby("request_id")
    }
    users = impressions.groupby("request_id")["user_id"].first()
    shared = 0
    for split in SPLITS:
        for row in rows(tmp_path / "out", split):
            request = by_key[frozenset(zip(row["sku"], np.float32(row["score"]), strict=True))]
            before = clicks["shown_at"] < began[request] - pd.Timedelta(hours=1)
            past = clicks[(clicks["user_id"] == users[request]) & before].iloc[-6:]
            all_pages = clicks[(clicks["user_id"] == users[request]) & before]["request_id"].unique()
            order = sorted(all_pages, key=lambda page: (began[page], page))
            latest = max((order.index(page) for page in past["request_id"]), default=0)
            assert row["pages_ago"] == [latest + 1 - order.index(page) for page in past["request_id"]]
            shared += len(row["pages_ago"]) - len(set(row["pages_ago"]))
    assert shared > 50
    tables = replace(save(changed, tmp_path / "raw"), events=f"FROM '{tmp_path / 'raw' / '*.parquet'}'")
    with pytest.raises(RerankingDataError, match=r"'pages_ago': it is no list column .* nothing else tells a page"):
        write_long_log(tmp_path / "events", read_spec(tmp_path, change), tables)


# --- days that come later, runs that are killed ----------------------------------------------------------------------


def test_a_new_day_adds_files_and_touches_no_other(frames: Frames, folder: Path, tmp_path: Path) -> None:
    spec, raw = read_spec(tmp_path), tmp_path / "raw"
    tables = save(frames, raw)
    late = (raw / "2026-05-05.parquet").rename(tmp_path / "2026-05-05.parquet")
    write_long_log(tmp_path / "out", spec, tables)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("*.parquet")}
    late.rename(raw / late.name)
    assert write_long_log(tmp_path / "out", spec, tables) == {"train": 0, "validation": 0, "test": PER_DAY}
    after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "out").glob("*.parquet")}
    assert after.keys() - before.keys() == {"test-00001.parquet"}
    assert {name: after[name] for name in before} == before
    assert read_metadata(tmp_path / "out")["rows"] == {"train": 180, "validation": 60, "test": 60}
    assert reported(tmp_path / "out").keys() == {
        "requests without feedback"
    }  # candidates of other days are not unknown

    def told(path: Path) -> list[str]:
        return sorted(map(str, rows(path, "test")))

    assert told(tmp_path / "out") == told(folder)  # with the histories of all days
    unchanged = contents(tmp_path / "out")
    assert sum(write_long_log(tmp_path / "out", spec, tables).values()) == 0
    again = frames["impressions"][frames["impressions"]["request_id"] == "d3-7"]
    again.to_parquet(raw / "2026-05-06.parquet")
    with pytest.raises(RerankingDataError, match="'d3-7' was in an earlier file"):
        write_long_log(tmp_path / "out", spec, tables)
    (raw / "2026-05-06.parquet").rename(raw / "2026-05-05.parquet")
    with pytest.raises(RerankingDataError, match=r"2026-05-05.parquet has changed since it was converted"):
        write_long_log(tmp_path / "out", spec, tables)
    (raw / "2026-05-05.parquet").unlink()
    with pytest.raises(RerankingDataError, match="histories need it"):
        write_long_log(tmp_path / "out", spec, tables)
    with pytest.raises(RerankingDataError, match="another schema file"):
        write_long_log(tmp_path / "out", replace(spec, history=HistorySpec(feedback="click", length=4)), tables)
    assert contents(tmp_path / "out") == unchanged


def test_a_run_that_was_stopped_goes_on(
    frames: Frames, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "BUCKET_ROWS", 500)  # five buckets
    spec, tables = read_spec(tmp_path), save(frames, tmp_path / "raw")
    written: list[str] = []
    write_shard = writing.write_shard

    def stop_at(path: Path, parts: Any) -> None:
        written.append(path.name)
        if len(written) == 8:
            raise KeyboardInterrupt
        write_shard(path, parts)

    monkeypatch.setattr(writing, "write_shard", stop_at)
    with pytest.raises(KeyboardInterrupt):
        write_long_log(tmp_path / "out", spec, tables)
    assert not (tmp_path / "out").exists()
    whole, first = written[:6], len(written)  # of two buckets; of the third a part
    assert write_long_log(tmp_path / "out", spec, tables) == {"train": 180, "validation": 60, "test": 60}
    assert not set(written[first:]) & set(whole)
    assert len({path.name for path in (tmp_path / "out").glob("*.parquet")}) == 15
    for split in SPLITS:
        assert sorted(map(str, rows(tmp_path / "out", split))) == sorted(map(str, rows(folder, split)))
    assert not work_folder(tmp_path / "out").exists()


def test_workers_write_the_same(frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUCKET_ROWS", 500)
    spec, tables = read_spec(tmp_path), save(frames, tmp_path / "raw")
    write_long_log(tmp_path / "here", spec, tables)
    write_long_log(tmp_path / "there", spec, tables, workers=Workers(threads_per_worker=2))
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert not work_folder(tmp_path / "there").exists()
    with duckdb.connect() as connection, pytest.raises(ValueError, match="expected one of the two, got both"):
        write_long_log(tmp_path / "out", spec, tables, connection=connection, workers=Workers())


# --- faults ----------------------------------------------------------------------------------------------------------


def at(table: str, column: str, value: Any, row: int = 5) -> Callable[[Frames], None]:
    """Puts a value into one row."""

    def plant(frames: Frames) -> None:
        frames[table][column] = frames[table][column].astype(object)
        frames[table].loc[row, column] = value
        if not isinstance(value, str):
            frames[table][column] = frames[table][column].convert_dtypes()

    return plant


def append(table: str, source: int = 5, **changes: Any) -> Callable[[Frames], None]:
    """Appends a copy of a row with changes."""

    def plant(frames: Frames) -> None:
        row = frames[table].iloc[[source]].assign(**changes)
        frames[table] = pd.concat([frames[table], row], ignore_index=True)

    return plant


def change(table: str, name: str, value: Callable[[pd.DataFrame], Any]) -> Callable[[Frames], None]:
    """Makes a column anew."""

    def plant(frames: Frames) -> None:
        frames[table] = frames[table].assign(**{name: value(frames[table])})

    return plant


def many(frames: Frames) -> None:
    """One user asks 700 times within a day."""
    bot = pd.concat([frames["impressions"].iloc[:4]] * 700, ignore_index=True)
    number = np.arange(len(bot)) // 4
    bot = bot.assign(request_id=[f"bot-{one}" for one in number], user_id="u0", hour=0)
    bot["shown_at"] = pd.Timestamp(2026, 5, 2) + pd.to_timedelta(number * 100, unit="s")
    items = pd.concat([frames["candidates"].iloc[:8]] * 700, ignore_index=True)
    items["request_id"] = [f"bot-{one}" for one in np.arange(len(items)) // 8]
    frames["impressions"] = pd.concat([frames["impressions"], bot]).sort_values("shown_at", kind="stable")
    frames["candidates"] = pd.concat([frames["candidates"], items])
    frames["impressions"] = frames["impressions"].reset_index(drop=True)


def clock(frames: Frames) -> None:
    """The clock of five requests in a row is two hours late."""
    late = frames["impressions"]["request_id"].isin([f"d2-{number}" for number in range(20, 25)])
    frames["impressions"].loc[late, "shown_at"] -= pd.Timedelta(hours=2)


def repeat_page(frames: Frames) -> None:
    """A page is logged again under another request id."""
    for table in ("impressions", "candidates"):
        copy = frames[table][frames[table]["request_id"] == "d1-3"].assign(request_id="d1-3-again")
        frames[table] = pd.concat([frames[table], copy], ignore_index=True)
    frames["impressions"] = frames["impressions"].sort_values("shown_at", kind="stable", ignore_index=True)


def leak(frames: Frames) -> None:
    """The score knows the clicks."""
    clicked = frames["impressions"].query("click == 1")[["request_id", "sku"]].assign(more=9.0)
    joined = frames["candidates"].merge(clicked, how="left")
    frames["candidates"]["score"] += joined["more"].fillna(0.0)


def apply(frames: Frames, plant: Callable[[Frames], None]) -> Frames:
    planted = {name: frame.copy() for name, frame in frames.items()}
    plant(planted)
    return planted


def drop(table: str, column: str, value: str) -> Callable[[Frames], None]:
    def plant(frames: Frames) -> None:
        frames[table] = frames[table][frames[table][column] != value].reset_index(drop=True)

    return plant


#: Fault: (what is planted, the column that the error names, words of it). Row 5 is the second item of the second
#: request.
REFUSED: dict[str, tuple[Callable[[Frames], None], str, str]] = {
    "request missing": (at("impressions", "request_id", None), "request_id", "row 5: request missing: None"),
    "item missing": (at("impressions", "sku", None), "sku", "row 5: item missing: None"),
    "time invalid": (
        at("impressions", "shown_at", pd.Timestamp(1960, 1, 1)), "shown_at", "row 0: datetime.* is no time",
    ),
    "feedback missing": (at("impressions", "click", None), "click", "row 5: feedback missing: 'd1-1', 's[0-9]+', None"),
    "feedback is no finite number": (at("impressions", "order", np.inf), "order", "row 5: feedback is no finite.*inf"),
    "feedback on an item that was not shown": (
        lambda frames: (at("impressions", "position", None)(frames), at("impressions", "click", 1)(frames)),
        "click", "row 5: feedback on an item that was not shown: 'd1-1', 's[0-9]+', 1.0",
    ),
    "position is no integer": (at("impressions", "position", 1.5), "position", "row 5: 1.5 in the impr.* no integer"),
    "positions repeated": (at("impressions", "position", 1), "position", "row 4: positions repeated: 'd1-1', 1, 's.*'"),
    "rows contradict one another": (
        append("impressions", position=9), "position", "row 5: rows of one item.*: 'd1-1', 's.*', 2, 9",
    ),
    "propensity outside (0, 1]": (at("impressions", "propensity", 0.0), "propensity", "row 5: propensity out.*, 0.0"),
    "request of several users": (at("impressions", "user_id", "u99"), "user_id", "row 4: request of.*'u[0-9]+', 'u99'"),
    "request field changes": (at("impressions", "page", "p9"), "page", "row 4: changes within.*: 'd1-1', 'p.', 'p9'"),
    "shown item is not among the candidates": (
        at("impressions", "sku", "s999"), "sku", "row 5: shown item is not among the candidates: 'd1-1', 's999'",
    ),
    "score is no finite number": (at("candidates", "score", np.inf), "score", "row 5: no finite float32 number: inf"),
    "text in a numeric column": (at("candidates", "score", "high"), "score", "row 5: 'high' in the can.* is no number"),
    "items repeated": (append("items"), "sku", "row 5: items repeated: 's5', 40"),
    "users repeated": (append("users"), "user_id", "row 5: users repeated: 'u5', 20"),
    "value of a target missing": (at("items", "price", None), "price", "row 5: value of a target missing: None"),
    "ids of two types": (
        change("items", "sku", lambda frame: frame["sku"].str[1:].astype(int)), "log", "ould not convert string 's",
    ),
    "column missing": (
        lambda frames: frames.update(items=frames["items"].rename(columns={"brand": "brnd"})), "brand", "'brnd'",
    ),
    "nothing to train on": (
        change("impressions", "shown_at", lambda frame: frame["shown_at"] + pd.Timedelta(days=9)), "split", "2026-05-1",
    ),
}  # fmt: skip

#: Fault: (what is planted, the count of the report).
REPORTED: dict[str, tuple[Callable[[Frames], None], int]] = {
    "rows repeated": (append("impressions"), 1),
    "positions missing": (at("impressions", "position", 9), 1),
    "positions that begin late": (
        change("impressions", "position", lambda frame: frame["position"] + 4 * (frame["request_id"] == "d1-1")), 1,
    ),
    "requests that last": (at("impressions", "shown_at", pd.Timestamp(2026, 5, 2, 12)), 1),
    "requests repeated": (repeat_page, 1),
    "requests that show nothing": (
        lambda frames: [
            change("impressions", name, lambda frame, name=name: frame[name].astype("Int64").mask(
                frame["request_id"] == "d1-1", value))(frames)  # noqa: B023
            for name, value in (("position", None), ("click", 0), ("order", 0))
        ], 1,
    ),
    "candidates of unknown requests": (append("candidates", request_id="nobody's"), 1),
    "candidates repeated": (append("candidates"), 1),
    "items unknown": (drop("items", "sku", "s3"), 1),
    "users unknown": (drop("users", "user_id", "u3"), 1),
    "users missing": (
        change("impressions", "user_id", lambda frame: frame["user_id"].mask(frame["request_id"] == "d1-1")), 1,
    ),
    "bots": (many, 1),
    "times far from the others": (
        change("impressions", "shown_at", lambda frame: frame["shown_at"].mask(
            frame["request_id"] == "d1-1", pd.Timestamp(2024, 1, 1))), 1,
    ),
    "clock jumps": (clock, 1),
    "upstream score does not order the shown list": (change("candidates", "score", lambda frame: -frame["score"]), 0),
    "future leak: score": (leak, 1200),
    "feedback is the same everywhere: order": (change("impressions", "order", lambda frame: 0), 1200),
    "requests without feedback": (lambda frames: None, 77),
    "upstream score decides all": (
        lambda frames: frames.update(
            impressions=frames["impressions"].assign(
                position=frames["impressions"].groupby("request_id")["score"].rank("first", False).astype(int))), 0,
    ),
    "feedback outside 0..1: click": (at("impressions", "click", 3), 1),
    "field is constant: page": (change("impressions", "page", lambda frame: "p0"), 1200),
    "field mostly missing: brand": (change("items", "brand", lambda frame: None), 1200),
}  # fmt: skip


def test_histories_that_were_logged_are_kept_and_checked(frames: Frames, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["log"]["history"] = {"times": "recent_at"}
        without(data, "brands")

    impressions = frames["impressions"].copy()
    impressions["recent"] = [["s1", "s2"]] * len(impressions)
    impressions["recent_at"] = [[at - pd.Timedelta(days=2), at] for at in impressions["shown_at"]]
    tables = save({**frames, "impressions": impressions}, tmp_path / "raw")
    write_long_log(tmp_path / "out", read_spec(tmp_path, change), tables)
    assert {tuple(row["recent"]) for row in rows(tmp_path / "out", "test")} == {("s1", "s2")}
    assert {tuple(row["hours_ago"]) for row in rows(tmp_path / "out", "test")} == {(48.0, 0.0)}
    with pytest.raises(RerankingDataError, match=r"'hours_ago': it is no list column .* nothing else tells a time"):
        write_long_log(tmp_path / "none", read_spec(tmp_path, lambda data: without(data, "brands")), tables)
    late = impressions["request_id"] == "d2-5"
    impressions["recent_at"] = [
        [*past, past[-1] + pd.Timedelta(seconds=60)] if one else past
        for past, one in zip(impressions["recent_at"], late, strict=True)
    ]
    tables = save({**frames, "impressions": impressions}, tmp_path / "raw")
    with pytest.raises(RerankingDataError, match="'recent_at', row 260: history later than its request: 'd2-5'"):
        write_long_log(tmp_path / "late", read_spec(tmp_path, change), tables)


def test_there_are_at_least_25() -> None:
    assert len(REFUSED) + len(REPORTED) >= 25


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_wrong_is_refused_and_nothing_written(fault: str, frames: Frames, tmp_path: Path) -> None:
    plant, field, words = REFUSED[fault]
    tables = save(apply(frames, plant), tmp_path / "raw")
    with pytest.raises(RerankingDataError, match=words) as caught:
        write_long_log(tmp_path / "out", read_spec(tmp_path), tables)
    assert caught.value.field == field
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "log.yaml"}


#: Faults of one log, each in rows of its own: a request has four.
TOGETHER: dict[str, Callable[[Frames], None]] = {
    "request_id', row 100: request missing": at("impressions", "request_id", None, 100),
    "sku', row 104: item missing": at("impressions", "sku", None, 104),
    "click', row 108: feedback missing": at("impressions", "click", None, 108),
    "order', row 112: feedback is no finite number": at("impressions", "order", np.inf, 112),
    "click', row 117: feedback on an item that was not shown": lambda frames: (
        at("impressions", "position", None, 117)(frames), at("impressions", "click", 1, 117)(frames)
    ),
    "order', row 108: feedback missing": at("impressions", "order", None, 108),
    "position', row 124: positions repeated": at("impressions", "position", 1, 125),
    "propensity', row 128: propensity outside (0, 1]": at("impressions", "propensity", 7.0, 128),
    "position', row 132: rows of one item contradict": append("impressions", 132, position=99),
    "click', row 140: rows of one item contradict": append("impressions", 140, click=9),
    "propensity', row 144: rows of one item contradict": append("impressions", 144, propensity=0.111),
    "order', row 148: rows of one item contradict": append("impressions", 148, order=9),
    "user_id', row 152: request of several users": at("impressions", "user_id", "u99", 153),
    "page', row 156: changes within a request": at("impressions", "page", "p9", 157),
    "hour', row 160: changes within a request": at("impressions", "hour", 99, 161),
    "sku', row 164: shown item is not among the candidates": at("impressions", "sku", "s999", 164),
    "score', row 9: no finite float32 number": at("candidates", "score", np.inf, 9),
    "sku', row 6: items repeated": append("items", 6),
    "user_id', row 6: users repeated": append("users", 6),
    "price', row 7: value of a target missing": at("items", "price", None, 7),
    "rows repeated (": append("impressions", 172),
    "positions missing (": at("impressions", "position", 9, 176),
    "requests that last (": at("impressions", "shown_at", pd.Timestamp(2026, 5, 3, 12), 180),
    "candidates of unknown requests (": append("candidates", request_id="nobody's"),
    "candidates repeated (": append("candidates", 12),
    "users missing (": lambda frames: frames["impressions"].__setitem__(
        "user_id", frames["impressions"]["user_id"].mask(frames["impressions"].index.isin(range(184, 188)))
    ),
}  # fmt: skip


def test_all_faults_of_one_log_are_told_together(
    frames: Frames, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = save(apply(frames, lambda planted: [plant(planted) for plant in TOGETHER.values()]), tmp_path / "raw")
    read_spec(tmp_path)
    options = [word for name, table in vars(tables).items() if table for word in (f"--{name}", table)]
    out = ["--schema", str(tmp_path / "log.yaml"), "--out", str(tmp_path / "out")]
    assert main(["prepare", "log", *options, *out]) == 2
    told = capsys.readouterr().err
    assert [fault for fault in TOGETHER if fault not in told] == []
    assert told.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "log.yaml"}


@pytest.mark.parametrize("fault", REPORTED)
def test_what_is_suspicious_is_reported(fault: str, frames: Frames, tmp_path: Path) -> None:
    plant, count = REPORTED[fault]
    write_long_log(tmp_path / "out", read_spec(tmp_path), save(apply(frames, plant), tmp_path / "raw"))
    found = reported(tmp_path / "out")
    assert found.keys() == {fault, "requests without feedback"}
    assert found[fault] == count or (found[fault] > 0 and not count)


def reported(out: Path) -> dict[str, int]:
    found = (out / "report.md").read_text().partition("## What was found")[2]
    lines = re.findall(r"^\| ([^|]+) \| ([0-9,]+) \|", found, re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in lines}


def test_infer_writes_a_schema_that_works(frames: Frames, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def plant(frames: Frames) -> None:
        dwell = frames["impressions"]["click"] * frames["impressions"]["position"] * 9.5
        frames["impressions"] = frames["impressions"].assign(dwell=dwell.mask(dwell == 0), note="x")
        frames["items"]["sales"] = 2.0 ** np.arange(ITEMS)

    planted = apply(frames, plant)
    tables = save({name: planted[name] for name in ("impressions", "items", "users")}, tmp_path / "raw")
    options = [word for name, table in vars(tables).items() if table for word in (f"--{name}", table)]
    schema = tmp_path / "schema.yaml"
    assert main(["prepare", "log", *options, "--schema", str(schema), "--infer"]) == 0
    text, told = schema.read_text(), capsys.readouterr().out
    for doubt in ("dwell is left out: it predicts click with an AUC of 1.000", "note is left out: it is always x"):
        assert doubt in text
        assert doubt in told
    spec = LogSpec.from_yaml(schema)
    assert (spec.request, spec.time, spec.user, spec.position) == ("request_id", "shown_at", "user_id", "position")
    assert (spec.surface, spec.schema.upstream_score, spec.schema.propensity) == ("page", "score", "propensity")
    assert [target.name for target in spec.schema.targets] == ["click", "order"]
    fields = {field.name: (field.group, field.kind) for field in spec.schema.fields}
    assert fields == {
        **dict.fromkeys(("sku", "brand"), ("candidate", "categorical")),
        **dict.fromkeys(("price", "score", "sales"), ("candidate", "numeric")),
        **dict.fromkeys(("page", "hour"), ("request", "categorical")),
        "age": ("request", "numeric"),
        "history": ("history", "categorical"),
        "history_time": ("history", "time"),
    }
    assert spec.schema.field("sales").transforms == ("log1p", "standardize")
    assert main(["prepare", "log", *options, "--schema", str(schema), "--out", str(tmp_path / "out")]) == 0
    assert "300 of them now" in capsys.readouterr().out
    assert main(["prepare", "log", *options, "--schema", str(schema), "--infer"]) == 2  # it is there
    assert main(["prepare", "log", *options, "--schema", str(schema)]) == 2
    assert "expected either --out or --infer" in capsys.readouterr().err
