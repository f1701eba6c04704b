from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rerankzoo.cli.main import main
from rerankzoo.data.folder import SPLITS, read_metadata
from rerankzoo.data.sources import taobao
from rerankzoo.data.sources.taobao import convert_taobao, cut_windows, smoothed_rates, split_librerank_users
from rerankzoo.errors import OutputError, RerankingDataError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema

FIRST_SECOND = 1_494_000_000  # 2017-05-06 00:00 in China
DAY = 86_400
NUM_USERS, NUM_ADS = 120, 40
PROFILE_HEADER = (
    "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,"
    "new_user_class_level \n"  # the trailing blank is the published file's
)


def at(day: int, seconds: int = 0) -> int:
    return FIRST_SECOND + (day - 1) * DAY + seconds


def write_samples(folder: Path, records: list[tuple[int, int, int, int]], pid: str = "430548_1007") -> None:
    """`raw_sample.csv` of (user, time, ad, click)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{user},{time},{ad},{pid},{1 - click},{click}\n" for user, time, ad, click in records]
    (folder / "raw_sample.csv").write_text("user,time_stamp,adgroup_id,pid,nonclk,clk\n" + "".join(lines))


def write_ads(folder: Path) -> None:
    """Ads of 5 categories and 7 customers; every third has no brand. The ad 39 is not listed."""
    lines = [
        f"{ad},{ad % 5},{ad // 2},{ad % 7},{'NULL' if ad % 3 == 0 else 900 + ad % 4},{ad + 0.5}\n"
        for ad in reversed(range(NUM_ADS - 1))
    ]
    (folder / "ad_feature.csv").write_text("adgroup_id,cate_id,campaign_id,customer,brand,price\n" + "".join(lines))


def write_profiles(folder: Path) -> None:
    """Users 0, 10, 20... have none; of the others every second lacks its last columns' values."""
    levels = {0: ("2", "4"), 1: ("", "")}
    lines = [
        f"{user},{user % 97},{user % 13},{1 + user % 2},{user % 7},{levels[user % 2][0]},3,0,{levels[user % 2][1]}\n"
        for user in range(NUM_USERS)
        if user % 10
    ]
    (folder / "user_profile.csv").write_text(PROFILE_HEADER + "".join(lines))


def write_all(folder: Path, records: list[tuple[int, int, int, int]]) -> Path:
    write_samples(folder, records)
    write_ads(folder)
    write_profiles(folder)
    return folder


def generate(seed: int = 0) -> list[tuple[int, int, int, int]]:
    """Sessions with ties, overlong ones (more than 30 records, more than 300 s) and single records, in random order."""
    rng = np.random.default_rng(seed)
    records = []
    for user in range(NUM_USERS):
        for _ in range(rng.integers(1, 12)):
            start = at(int(rng.integers(1, 9)), int(rng.integers(DAY - 2_000)))
            size = int(rng.choice([1, 3, 6, 12, 45]))
            times = start + np.sort(rng.integers(0, int(rng.choice([20, 400, 1_500])), size=size))
            for time in times:
                records.append((user, int(time), int(rng.integers(NUM_ADS)), int(rng.random() < 0.1)))
    rng.shuffle(records)
    return [tuple(map(int, record)) for record in records]  # type: ignore[misc]


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def by_time(row: dict[str, Any], size: int) -> list[tuple[int, float]]:
    """(ad, click) of the slate, in its order."""
    assert len(row["slate"]) == len(row["click"]) == size
    return [(row["adgroup_id"][place], click) for place, click in zip(row["slate"], row["click"], strict=True)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("raw"), generate())


@pytest.fixture(scope="module")
def last_day(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "last-day"
    convert_taobao(out, raw)
    return out


# --- windows, by hand -----------------------------------------------------------------------------------------------


def test_windows_start_at_the_latest_record_and_reach_300_seconds_back() -> None:
    users = np.array([3, 3, 3, 3, 3, 3, 5, 5, 8])
    times = np.array([1_000, 900, 700, 699, 400, 398, 2_000, 1_000, 950])
    # 1000..700 is one window (300 s are within), 699..399 the next, 398 a third.
    np.testing.assert_array_equal(cut_windows(users, times), [0, 3, 5, 6, 7, 8])


def test_windows_of_nothing() -> None:
    assert cut_windows(np.array([], dtype=np.int32), np.array([], dtype=np.int64)).tolist() == []


#: A dozen records of user 1 in file order: a window with a click on day 8, one without, one with on day 7, and one
#: on day 2; user 2 has two records only, user 4 no click.
DOZEN = [
    (1, at(8, 1_000), 11, 0),
    (1, at(8, 700), 12, 0),  # 300 s before the latest: in the first window
    (1, at(8, 699), 13, 0),  # the second window starts here
    (1, at(8, 500), 14, 1),
    (1, at(8, 500), 15, 0),  # same second, later in the file: taken as earlier
    (1, at(7, 50), 16, 1),
    (1, at(7, 40), 17, 0),
    (1, at(2, 100), 18, 1),
    (1, at(2, 90), 19, 0),
    (2, at(8, 10), 20, 1),
    (2, at(8, 20), 21, 1),
    (4, at(8, 10), 20, 0),
    (4, at(8, 12), 21, 0),
    (4, at(8, 14), 22, 0),
]


def test_last_day_by_hand(tmp_path: Path) -> None:
    write_all(tmp_path / "raw", DOZEN[::-1])
    write_samples(tmp_path / "raw", DOZEN)
    convert_taobao(tmp_path / "out", tmp_path / "raw", slate_size=2)
    found = {split: sorted(by_time(row, 2) for row in rows(tmp_path / "out", split)) for split in SPLITS}
    assert found == {
        "train": [[(19, 0.0), (18, 1.0)]],
        "validation": [[(17, 0.0), (16, 1.0)]],
        "test": [[(12, 0.0), (11, 0.0)], [(15, 0.0), (14, 1.0)], [(20, 0.0), (21, 0.0)], [(20, 1.0), (21, 1.0)]],
    }
    (long,) = [row for row in rows(tmp_path / "out", "test") if len(row["adgroup_id"]) == 3 and row["user_id"] == 1]
    assert sorted(zip(long["adgroup_id"], long["candidate_click"], strict=True)) == [(13, 0.0), (14, 1.0), (15, 0.0)]
    assert long["timestamp"] == at(8, 500)
    assert long["hour"] == 0
    assert read_metadata(tmp_path / "out")["raw"]["raw_sample.csv"]["rows"] == len(DOZEN)


def test_librerank_by_hand(tmp_path: Path) -> None:
    """Of user 1 the latest window with a click counts; users 2 and 4 have too few records or no click."""
    others = [(user, at(3, second), 20 + second, second % 2) for user in range(5, 24) for second in range(3)]
    write_all(tmp_path / "raw", [*others, *DOZEN])
    convert_taobao(tmp_path / "out", tmp_path / "raw", "librerank", slate_size=2)
    order = list({*range(5, 24), 1})
    random.Random(1234).shuffle(order)
    for split, users in {"train": order[8:17], "validation": order[17:18], "test": order[18:]}.items():
        assert sorted(row["user_id"] for row in rows(tmp_path / "out", split)) == sorted(users)
    assert 1 in order[8:]  # else the list below would not be written
    (mine,) = [row for split in SPLITS for row in rows(tmp_path / "out", split) if row["user_id"] == 1]
    assert by_time(mine, 2) == [(15, 0.0), (14, 1.0)]
    assert sorted(mine["adgroup_id"]) == [13, 14, 15]


# --- windows, against the protocol told slowly ----------------------------------------------------------------------


def walk(records: list[tuple[int, int, int, int]]) -> dict[int, list[list[tuple[int, int, int]]]]:
    """Each user's windows, latest first; a window is (time, ad, click), latest first."""
    per_user = defaultdict(list)
    for user, time, ad, click in records:
        per_user[user].append((time, ad, click))
    windows: dict[int, list[list[tuple[int, int, int]]]] = defaultdict(list)
    for user, mine in per_user.items():
        for record in sorted(mine, key=lambda record: record[0], reverse=True):
            if windows[user] and windows[user][-1][0][0] - record[0] <= 300:
                windows[user][-1].append(record)
            else:
                windows[user].append([record])
    return windows


def request(user: int, window: list[tuple[int, int, int]]) -> tuple[Any, ...]:
    """What identifies a request: user, ads with labels, slate with clicks."""
    kept = window[-30:][::-1]
    return (
        user,
        kept[0][0],
        tuple(sorted((ad, float(click)) for _, ad, click in kept)),
        tuple((ad, float(click)) for _, ad, click in kept[:4]),
    )


def identify(row: dict[str, Any]) -> tuple[Any, ...]:
    candidates = tuple(sorted(zip(row["adgroup_id"], row["candidate_click"], strict=True)))
    return row["user_id"], row["timestamp"], candidates, tuple(by_time(row, 4))


def test_last_day_follows_the_protocol(last_day: Path) -> None:
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for user, windows in walk(generate()).items():
        for window in windows:
            day = (window[0][0] - FIRST_SECOND) // DAY + 1
            if len(window) >= 4:
                expected["train" if day < 7 else "validation" if day == 7 else "test"].append(request(user, window))
    assert min(map(len, expected.values())) > 20
    assert max(len(identity[2]) for identity in expected["train"]) == 30
    for split in SPLITS:
        assert sorted(map(identify, rows(last_day, split))) == sorted(expected[split])
    assert read_metadata(last_day)["rows"] == {split: len(part) for split, part in expected.items()}


def test_librerank_follows_the_protocol(raw: Path, tmp_path: Path) -> None:
    records = generate()
    convert_taobao(tmp_path / "out", raw, "librerank")
    counts, users = defaultdict(int), []
    for user, *_ in records:
        users += [user] if user not in counts else []
        counts[user] += 1
    windows = walk(records)
    clicked = {user: [w for w in windows[user] if sum(click for *_, click in w)] for user in users}
    order = list(set([user for user in users if counts[user] > 2 and clicked[user]]))  # noqa: C403 (from a list)
    random.Random(1234).shuffle(order)
    ends = {"train": (0.4, 0.85), "validation": (0.85, 0.9), "test": (0.9, 1.0)}
    for split, (start, stop) in ends.items():
        part = order[int(start * len(order)) : int(stop * len(order))]
        expected = [request(user, clicked[user][0]) for user in part if len(clicked[user][0]) >= 4]
        assert len(expected) > 2
        assert sorted(map(identify, rows(tmp_path / "out", split))) == sorted(expected)


def test_users_are_split_by_the_published_script() -> None:
    users, split = split_librerank_users(list(range(1_000, 1_483_049 - 1_000_000 + 1_000)))
    assert len(set(users.tolist())) == 483_049
    # data.stat of LibRerank: 193,219 / 241,525 / 48,305; the second part is train and validation here.
    assert np.bincount(split + 1).tolist() == [193_219, 217_372, 24_153, 48_305]


# --- features -------------------------------------------------------------------------------------------------------


def test_features_come_from_the_files(last_day: Path) -> None:
    known, unknown = 0, 0
    for row in [row for split in SPLITS for row in rows(last_day, split)]:
        user = row["user_id"]
        values = [row[name] for name in taobao.PROFILE_FIELDS]
        if user % 10 == 0:
            assert values == [None] * 8
        else:
            blank = user % 2 == 1
            assert values[:5] == [user % 97, user % 13, 1 + user % 2, user % 7, None if blank else 2]
            assert values[5:] == [3, 0, None if blank else 4]
        assert row["pid"] == "430548_1007"
        assert row["hour"] == (row["timestamp"] - FIRST_SECOND) % DAY // 3_600
        for place, ad in enumerate(row["adgroup_id"]):
            found = tuple(row[name][place] for name in (*taobao.AD_FIELDS, "price"))
            if ad == NUM_ADS - 1:
                unknown += 1
                assert found == (None,) * 5
            else:
                known += 1
                assert found == (ad % 5, ad // 2, ad % 7, None if ad % 3 == 0 else 900 + ad % 4, ad + 0.5)
    assert known > 1_000
    assert unknown > 10


def score(seen: pd.DataFrame, ad: int) -> float:
    def rate(part: pd.DataFrame, towards: float) -> float:
        return (part["click"].sum() + 100 * towards) / (len(part) + 100)

    overall = (seen["click"].sum() + 0.05) / (len(seen) + 1)
    listed = seen[seen["ad"] != NUM_ADS - 1]
    group = [listed[listed["ad"] % size == ad % size] if ad != NUM_ADS - 1 else seen[:0] for size in (5, 7)]
    smoothed = rate(seen[seen["ad"] == ad], sum(rate(part, overall) for part in group) / 2)
    return float(np.log(smoothed / (1 - smoothed)))


@pytest.mark.parametrize("protocol", ["last-day", "librerank"])
def test_upstream_score_knows_only_training_records_of_earlier_days(
    raw: Path, tmp_path: Path, protocol: taobao.Protocol
) -> None:
    convert_taobao(tmp_path / "out", raw, protocol)
    log = pd.DataFrame(generate(), columns=["user", "time", "ad", "click"])
    log["day"] = (log["time"] - FIRST_SECOND) // DAY + 1
    if protocol == "last-day":
        source = log[log["day"] < 7]
    else:
        eligible = log.groupby("user", sort=False)["click"].agg(["size", "max"])
        users, split = split_librerank_users(eligible.index[(eligible["size"] > 2) & (eligible["max"] == 1)].tolist())
        source = log[log["user"].isin(users[split == -1])]
    checked = 0
    for name in SPLITS:
        for row in rows(tmp_path / "out", name)[:12]:
            seen = source[source["day"] < (row["timestamp"] - FIRST_SECOND) // DAY + 1]
            for place, ad in enumerate(row["adgroup_id"][:6]):
                assert row["upstream_score"][place] == pytest.approx(score(seen, ad), abs=1e-5)
                checked += 1
    assert checked > 50


def test_turning_later_and_own_labels_around_changes_no_input(raw: Path, last_day: Path, tmp_path: Path) -> None:
    """Clicks of day 4 and after reach no input of a request of day 4 or before, those of 7 and 8 none at all."""
    for first in (4, 7):
        turned = [(user, t, ad, 1 - click if t >= at(first) else click) for user, t, ad, click in generate()]
        write_all(tmp_path / "raw", turned)
        convert_taobao(tmp_path / "out", tmp_path / "raw")
        same = 0
        for split in SPLITS:
            for old, new in zip(rows(last_day, split), rows(tmp_path / "out", split), strict=True):
                inputs = old.keys() - {"click", "candidate_click"}
                if first == 7 or old["timestamp"] < at(5):
                    assert {name: old[name] for name in inputs} == {name: new[name] for name in inputs}
                    same += old["click"] != new["click"]
        assert same > 10  # the labels did change


def test_smoothed_rates_by_hand() -> None:
    counts = {
        "everything": (np.array([50.0]), np.array([999.0])),
        "cate_id": (np.array([10.0]), np.array([100.0])),
        "customer": (np.array([0.0]), np.array([0.0])),
        "adgroup_id": (np.array([3.0]), np.array([20.0])),
    }
    overall = 50.05 / 1_000
    expected = (3 + 100 * ((10 + 100 * overall) / 200 + overall) / 2) / 120
    np.testing.assert_allclose(smoothed_rates(counts), [expected])


def test_history_is_strictly_before_the_window(raw: Path, tmp_path: Path) -> None:
    records = generate()
    write_all(tmp_path / "raw", records)
    rng = np.random.default_rng(1)
    log = [
        (user, time + shift, str(rng.choice(["pv", "cart", "fav", "buy"])), int(rng.integers(5)), 900)
        for user, time, _, _ in records[::2]
        for shift in (-1, 0, 1)
        if user % 3
    ]
    log += [(1, -5, "pv", 1, 901), (NUM_USERS + 7, at(1), "pv", 1, 901)]  # times before 1970 exist; a stranger
    lines = [f"{user},{time},{btag},{cate},{'NULL' if cate == 2 else brand}\n" for user, time, btag, cate, brand in log]
    (tmp_path / "raw" / "behavior_log.csv").write_text("user,time_stamp,btag,cate,brand\n" + "".join(lines))
    convert_taobao(tmp_path / "out", tmp_path / "raw", history=True)
    lengths = set()
    for row in rows(tmp_path / "out", "test") + rows(tmp_path / "out", "train"):
        mine = [(time, order, b, c, d) for order, (user, time, b, c, d) in enumerate(log) if user == row["user_id"]]
        past = sorted(entry for entry in mine if entry[0] < row["timestamp"])[-50:]
        assert row["history_time"] == [np.float32((row["timestamp"] - entry[0]) / 3600) for entry in past]
        assert row["history_btag"] == [entry[2] for entry in past]
        assert row["history_cate"] == [entry[3] for entry in past]
        assert row["history_brand"] == [None if entry[3] == 2 else entry[4] for entry in past]
        lengths.add(len(past))
    assert {0, 50} <= lengths
    schema = FeatureSchema.from_yaml(tmp_path / "out" / "schema.yaml")
    assert schema.field("history_cate").shares == "cate_id"
    assert read_metadata(tmp_path / "out")["raw"]["behavior_log.csv"]["rows"] == len(log)


def test_the_extractor_takes_the_folder(last_day: Path) -> None:
    table = pq.read_table(last_day / "train.parquet")
    extractor = RerankingFeatureExtractor(FeatureSchema.from_yaml(last_day / "schema.yaml")).fit(table)
    batch = extractor(table)
    assert batch["slates"].shape == (table.num_rows, 1, 4)
    lengths = batch["candidate_mask"].sum(-1)
    assert (int(lengths.min()), int(lengths.max())) == (4, 30)
    assert extractor.schema.position("upstream_score") == 1
    assert batch["candidate_numeric"].isfinite().all()


# --- order, memory, errors ------------------------------------------------------------------------------------------


def test_candidates_are_shuffled_by_the_seed(raw: Path, last_day: Path, tmp_path: Path) -> None:
    assert {row["slate"][0] for row in rows(last_day, "train") if len(row["adgroup_id"]) == 6} == set(range(6))
    for name, seed in (("same", 0), ("other", 1)):
        convert_taobao(tmp_path / name, raw, seed=seed)
    assert rows(tmp_path / "same", "train") == rows(last_day, "train")
    assert rows(tmp_path / "other", "train") != rows(last_day, "train")
    assert sorted(map(identify, rows(tmp_path / "other", "train"))) == sorted(map(identify, rows(last_day, "train")))


def test_memory_is_bounded(raw: Path, last_day: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is on disk, under the given limit, and records are taken some users at a time."""
    connect, taken, seen = duckdb.connect, [], []
    read_records = taobao._read_records

    def watch(database: str, config: dict[str, str]) -> Any:
        connection = connect(database, config=config)
        assert Path(database).is_relative_to(tmp_path)
        seen.append(connection.execute("SELECT current_setting('memory_limit')").fetchone())
        return connection

    def count(*arguments: Any) -> Any:
        records, pid = read_records(*arguments)
        taken.append(len(pid))
        return records, pid

    monkeypatch.setattr(duckdb, "connect", watch)
    monkeypatch.setattr(taobao, "_read_records", count)
    monkeypatch.setattr(taobao, "_BUCKET_ROWS", 500)
    convert_taobao(tmp_path / "out", raw, memory_limit="200MiB")
    assert seen == [("200.0 MiB",)]
    assert sum(taken) == len(generate())
    assert max(taken) < 1_500
    for split in SPLITS:  # the same requests, whatever the buckets
        assert sorted(map(identify, rows(tmp_path / "out", split))) == sorted(map(identify, rows(last_day, split)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # no work files are left


def test_more_than_the_limit_is_refused_by_duckdb(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"(?i)memory"):
        convert_taobao(tmp_path / "out", raw, memory_limit="1MB")
    assert list(tmp_path.iterdir()) == []


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_quoted_headers_and_windows_line_ends_are_read(raw: Path, last_day: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "raw", generate())
    edit(tmp_path / "raw" / "raw_sample.csv", "user,time_stamp", '"user","time_stamp"')
    edit(tmp_path / "raw" / "user_profile.csv", "new_user_class_level ", "new_user_class_level")
    for path in (tmp_path / "raw").iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    convert_taobao(tmp_path / "out", tmp_path / "raw")
    assert rows(tmp_path / "out", "train") == rows(last_day, "train")


@pytest.mark.parametrize("name", ["raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv"])
def test_missing_files_are_named(raw: Path, tmp_path: Path, name: str) -> None:
    write_all(tmp_path / "raw", DOZEN)
    (tmp_path / "raw" / name).unlink(missing_ok=True)
    with pytest.raises(RerankingDataError, match=rf"{name} not found") as error:
        convert_taobao(tmp_path / "out", tmp_path / "raw", history=True)
    assert error.value.field == name
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("raw_sample.csv", "nonclk,clk", "nonclk,click", r"raw_sample\.csv has no column 'clk', it has \['user', "),
        ("ad_feature.csv", "customer", "client", r"ad_feature\.csv has no column 'customer'"),
        ("user_profile.csv", "new_user_class_level ", "level", r"has no column 'new_user_class_level'"),
        ("raw_sample.csv", ",12,", ",twelve,", r"raw_sample\.csv.* Line: 3 .*adgroup_id.*\"twelve\""),
        ("raw_sample.csv", f"1,{at(8, 700)},12", f",{at(8, 700)},12", r"raw_sample\.csv, line 3: user None is invalid"),
        ("raw_sample.csv", ",12,430548_1007,1,0", ",12,430548_1007,1,2", r"raw_sample\.csv, line 3: clk 2 is invalid"),
        ("raw_sample.csv", f"1,{at(8, 700)},12", "1,-7,12", r"line 3: time_stamp -7 is invalid"),
        ("raw_sample.csv", ",12,430548_1007,1,0", ",12", r"raw_sample\.csv: .* Line: 3 .*Columns: 6 Found: 3"),
        ("ad_feature.csv", "37.5", "-37.5", r"ad_feature\.csv, line 3: price -37\.5 is not a price"),
        ("ad_feature.csv", "\n37,", "\n38,", r"line 2: adgroup_id 38 is missing or appears twice"),
        ("user_profile.csv", "\n2,", "\n,", r"user_profile\.csv, line 3: userid None is missing or appears twice"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, old: str, new: str, message: str) -> None:
    write_all(tmp_path / "raw", DOZEN)
    edit(tmp_path / "raw" / name, old, new)
    with pytest.raises(RerankingDataError, match=message) as error:
        convert_taobao(tmp_path / "out", tmp_path / "raw", slate_size=2)
    assert error.value.field == name
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("content", ["", "user,time_stamp,adgroup_id,pid,nonclk,clk\n"])
def test_empty_files_are_refused(raw: Path, tmp_path: Path, content: str) -> None:
    write_all(tmp_path / "raw", DOZEN)
    (tmp_path / "raw" / "raw_sample.csv").write_text(content)
    with pytest.raises(RerankingDataError, match=r"raw_sample\.csv has no (rows|column 'user')"):
        convert_taobao(tmp_path / "out", tmp_path / "raw")


def test_unusable_arguments_are_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown protocol 'random'"):
        convert_taobao(tmp_path, raw, "random")  # type: ignore[arg-type]
    for slate_size in (0, 31):
        with pytest.raises(ValueError, match=rf"slate_size must be in 1\.\.30, got {slate_size}"):
            convert_taobao(tmp_path, raw, slate_size=slate_size)
    write_all(tmp_path / "raw", DOZEN)
    with pytest.raises(ValueError, match=r"4 or more ads in every split, got .*'train': 0"):
        convert_taobao(tmp_path / "out", tmp_path / "raw")
    assert not (tmp_path / "out").exists()


def test_complete_data_must_give_the_published_lists(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taobao, "NUM_RECORDS", len(generate()))
    with pytest.raises(ValueError, match=r"must give 483049 lists, got \d+$"):
        convert_taobao(tmp_path / "out", raw, "librerank")


def test_command(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["prepare", "taobao-ad", "--raw", str(raw), "--out", str(tmp_path / "out"), "--protocol", "librerank"]
    assert main([*command, "--slate-size", "3", "--memory-limit", "300MB"]) == 0
    assert "librerank: lists inferred from times" in capsys.readouterr().out
    assert read_metadata(tmp_path / "out")["settings"] == {
        "protocol": "librerank",
        "slate_size": 3,
        "history": False,
        "seed": 0,
    }
    assert main(["prepare", "taobao-ad", "--raw", "nowhere", "--out", str(tmp_path / "none")]) == 2


def test_nlgr_cuts_windows_into_pages_with_both_labels(raw: Path, tmp_path: Path) -> None:
    convert_taobao(tmp_path / "out", raw, "nlgr", slate_size=5)
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for user, windows in walk(generate()).items():
        for window in windows:
            day, oldest_first = (window[0][0] - FIRST_SECOND) // DAY + 1, window[::-1]
            for place in range(len(window) // 5):
                page = oldest_first[5 * place : 5 * place + 5]
                if 0 < sum(click for *_, click in page) < 5:
                    split = "train" if day < 7 else "validation" if day == 7 else "test"
                    expected[split].append((user, tuple((ad, float(click)) for _, ad, click in page)))
    assert min(map(len, expected.values())) > 10
    for split in SPLITS:
        found = [(row["user_id"], tuple(by_time(row, 5))) for row in rows(tmp_path / "out", split)]
        assert sorted(found) == sorted(expected[split])
