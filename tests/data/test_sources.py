from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rerankzoo import RerankingDataModule, RerankingModule
from rerankzoo.cli.main import main
from rerankzoo.cli.prepare import SOURCES
from rerankzoo.data.folder import SPLITS, read_metadata, split_files
from rerankzoo.data.sources.avito import avito
from rerankzoo.data.sources.finn import _split_users, finn_slates
from rerankzoo.data.sources.kuairand import kuairand
from rerankzoo.data.sources.mind import mind
from rerankzoo.data.sources.movielens_protocols import movielens_1m
from rerankzoo.data.sources.open_bandit import open_bandit
from rerankzoo.data.sources.prm_public import prm_public
from rerankzoo.data.sources.public_log import PublicLog, convert_public_log
from rerankzoo.data.sources.rl4rs import rl4rs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from tests.data import raw_sources
from tests.training.common import make_trainer

#: Every public log, what writes its raw files, and whether it has slates.
LOGS: dict[str, tuple[PublicLog, Callable[[Path], None], bool]] = {
    "open-bandit": (open_bandit(), raw_sources.write_open_bandit, True),
    "kuairand-1k": (kuairand("1k"), raw_sources.write_kuairand, True),
    "kuairand-pure": (kuairand("pure"), lambda folder: raw_sources.write_kuairand(folder, "pure"), False),
    "kuairand-random": (kuairand("1k", "random"), raw_sources.write_kuairand, True),
    "rechorus": (movielens_1m("rechorus"), raw_sources.write_movielens_1m, False),
    "gfn4rec": (movielens_1m("gfn4rec"), raw_sources.write_movielens_1m, True),
    "finn": (finn_slates(), raw_sources.write_finn, True),
    "avito": (avito(), raw_sources.write_avito, True),
    "rl4rs": (rl4rs(), raw_sources.write_rl4rs, True),
    "mind": (mind(), raw_sources.write_mind, False),
    "prm": (prm_public(), raw_sources.write_prm, True),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The raw folder and the converted folder of a log, made once."""
    root, made = tmp_path_factory.mktemp("sources"), {}

    def folder(name: str) -> tuple[Path, Path]:
        if name not in made:
            log, write, _ = LOGS[name]
            write(root / name / "raw")
            convert_public_log(log, root / name / "raw", root / name / "out")
            made[name] = root / name / "raw", root / name / "out"
        return made[name]

    return folder


def rows(folder: Path, *splits: str) -> list[dict[str, Any]]:
    paths = [path for split in splits or SPLITS for path in split_files(folder, split)]
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def slate(row: dict[str, Any], item: str, *labels: str) -> list[tuple[Any, ...]]:
    """(item, label...) of the slate, in the order shown."""
    return list(zip([row[item][place] for place in row["slate"]], *(row[name] for name in labels), strict=True))


@pytest.mark.parametrize("name", LOGS)
def test_every_log_becomes_a_folder_that_a_model_can_read(
    name: str, folders: Callable[[str], tuple[Path, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    log, _, has_slates = LOGS[name]
    with caplog.at_level(logging.WARNING):
        raw, out = folders(name)
    metadata, schema = read_metadata(out), FeatureSchema.from_yaml(out / "schema.yaml")
    assert min(metadata["rows"][split] for split in SPLITS) > 0
    assert not metadata["complete"]
    assert "an excerpt" in caplog.text or not caplog.records
    assert metadata["license"] == log.licence
    assert metadata["raw"][log.files[0].name]["bytes"] == (raw / log.files[0].name).stat().st_size
    assert (out / "report.md").is_file()
    train = rows(out, "train")
    assert all((schema.slate in row) == has_slates for row in train)
    batch = RerankingFeatureExtractor(schema).fit(train)(rows(out, "test"))
    assert ("slates" in batch) == has_slates
    if not has_slates:
        assert "candidate_feedback" in batch


@pytest.mark.parametrize("name", LOGS)
def test_what_is_missing_is_named_before_anything_is_written(name: str, tmp_path: Path) -> None:
    log, write, _ = LOGS[name]
    write(tmp_path / "raw")
    for file in log.files:
        path = tmp_path / "raw" / file.name
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(RerankingDataError, match="not found"):
            convert_public_log(log, tmp_path / "raw", tmp_path / "out")
        if file.header and file.read is None:
            column = next(iter(file.types)).encode()
            path.write_bytes(content.replace(column, b"other", 1))
            with pytest.raises(RerankingDataError, match=f"no column '{column.decode()}'"):
                convert_public_log(log, tmp_path / "raw", tmp_path / "out")
        path.write_bytes(content)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("finn", "data.npz", lambda content: content[: len(content) // 2], "data.npz is damaged"),
        (
            "rl4rs",
            "rl4rs_dataset_a_sl.csv",
            lambda content: content.replace(b",", b",x", 1),
            "Could not convert string",
        ),
        ("prm", "set1.train.txt.part1", lambda content: content.replace(b"]]", b"]"), "Could not|can't be cast"),
        ("prm", "set1.train.txt.part2", lambda content: content.replace(b"|", b" "), "expected 6 parts"),
        ("mind", "train/behaviors.tsv", lambda content: content.replace(b"-0 ", b" ", 10), "click"),
        ("mind", "dev/behaviors.tsv", lambda content: content.replace(b"/2019", b"/x"), "Could not parse"),
        ("avito", "trainSearchStream.tsv", lambda content: content.replace(b"\t3\t", b"\tthree\t", 5), "three"),
    ],
)
def test_damaged_files_are_refused(
    name: str, file: str, change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    log, write, _ = LOGS[name]
    write(tmp_path / "raw")
    path = tmp_path / "raw" / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(RerankingDataError, match=message):
        convert_public_log(log, tmp_path / "raw", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_numbers_are_asserted(tmp_path: Path) -> None:
    raw_sources.write_mind(tmp_path / "raw")
    (first, (query, _)), (second, (other, _)) = mind().published.items()
    complete = {first: (query, 40), second: (other, 40)}
    convert_public_log(replace(mind(), published=complete), tmp_path / "raw", tmp_path / "out")
    assert read_metadata(tmp_path / "out")["complete"]
    wrong = replace(mind(), published=complete | {second: (other, 41)})
    with pytest.raises(ValueError, match="must give 41 dev impressions, got 40"):
        convert_public_log(wrong, tmp_path / "raw", tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_help_and_page_tell_every_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--help"]) == 0
    told, page = capsys.readouterr().out, (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
    for log, _, _ in LOGS.values():
        assert f"{log.size}; {log.licence}" in told
        assert log.url in page
    assert all(
        f"`{name}`" in page for name in set(SOURCES) - {"log", "simulator", "ml-100k", "ml-1m", "taobao-ad", "letor"}
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw_sources.write_mind(tmp_path / "raw")
    out = ["--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]
    assert main(["prepare", "mind", *out, "--variant", "medium"]) == 2
    assert "got 'medium'" in capsys.readouterr().err
    assert main(["prepare", "mind", *out, "--variant", "small"]) == 0
    assert "no slates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reason"), [("open-bandit", "one position, which tells nothing of neighbours"), ("mind", "only labels")]
)
def test_models_of_whole_slates_refuse_what_would_mislead_them(
    name: str, reason: str, folders: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    data = RerankingDataModule(str(folders(name)[1]), batch_size=32)
    with pytest.raises(RerankingDataError, match=f"InteractionEvaluator learns from whole slates: .*{reason}"):
        make_trainer(tmp_path).fit(RerankingModule("InteractionEvaluator", {}), datamodule=data)


# --- each log against its raw files, told slowly --------------------------------------------------------------------


def test_open_bandit_is_single_positions_with_all_items(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("open-bandit")
    log = pd.read_csv(raw / "men.csv", index_col=0)
    days = pd.to_datetime(log["timestamp"]).dt.day
    features = pd.read_csv(raw / "item_context.csv", index_col=0)
    for split, part in {"train": days < 29, "validation": days == 29, "test": days == 30}.items():
        found = rows(out, split)
        kept = log[part]
        assert sorted(slate(row, "item_id", "click")[0] for row in found) == sorted(
            zip(kept["item_id"], kept["click"], strict=True)
        )
        for row in found:
            assert sorted(row["item_id"]) == list(range(34))
            assert row["propensity_score"] == pytest.approx([1 / 34])
            assert row["item_feature_0"] == pytest.approx(features["item_feature_0"][row["item_id"]].tolist())
    # Row k has an affinity of k % 3 to item k % 34.
    affinities = [dict(zip(row["item_id"], row["affinity"], strict=True)) for row in rows(out)]
    expected = sorted((k % 34, k % 3) for k in range(len(log)) if k % 3)
    assert sorted((item, value) for row in affinities for item, value in row.items() if value) == expected


def kuairand_log(raw: Path, *parts: str) -> pd.DataFrame:
    return pd.concat([pd.read_csv(path) for part in parts for path in sorted(raw.glob(f"log_{part}_*.csv"))])


@pytest.mark.parametrize("name", ["kuairand-1k", "kuairand-pure"])
def test_kuairand_sessions_end_with_a_pause(name: str, folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders(name)
    log = kuairand_log(raw, "standard").sort_values(["user_id", "tab", "time_ms"], kind="stable")
    sessions: list[list[Any]] = []
    for (_, _), feed in log.groupby(["user_id", "tab"]):
        last = None
        for row in feed.itertuples():
            if last is None or row.time_ms - last > 600_000:
                sessions.append([])
            sessions[-1].append((row.video_id, row.is_click))
            last = row.time_ms
    expected = []
    for session in sessions:
        once = dict(reversed(session))  # of a video that came twice, the first, or where no order is known a click
        if name == "kuairand-pure":
            once = dict(sorted(session))
        kept = [(video, once[video]) for video in dict.fromkeys(video for video, _ in session)]
        expected += [tuple(kept)] if len(kept) > 1 else []
    if name == "kuairand-1k":
        found = [tuple(slate(row, "video_id", "is_click")) for row in rows(out)]
        assert sorted(found) == sorted(expected)
    else:
        found = [tuple(sorted(zip(row["video_id"], row["candidate_is_click"], strict=True))) for row in rows(out)]
        assert sorted(found) == sorted(tuple(sorted(session)) for session in expected)
    assert read_metadata(out)["rows"]["train"] > 100


def test_random_exposures_are_evenly_drawn_from_their_candidates(folders: Callable[[str], tuple[Path, Path]]) -> None:
    """The pool has ten videos here, so that all of them are candidates; the fifty of a larger pool: below."""
    raw, out = folders("kuairand-random")
    log = kuairand_log(raw, "random")
    found = rows(out)
    assert sorted(slate(row, "video_id", "is_click")[0] for row in found) == sorted(
        zip(log["video_id"], log["is_click"], strict=True)
    )
    assert all(sorted(row["video_id"]) == sorted(set(log["video_id"])) for row in found)
    assert all(row["propensity"] == pytest.approx([0.1]) for row in found)
    assert FeatureSchema.from_yaml(out / "schema.yaml") == LOGS["kuairand-1k"][0].spec.schema
    standard = kuairand_log(raw, "standard")
    clicks = standard[standard["is_click"] == 1]
    for row in found[:20]:
        (video, _) = slate(row, "video_id", "is_click")[0]
        same = log[(log["video_id"] == video)]
        histories = []
        for own in same.itertuples():
            past = clicks[(clicks["user_id"] == own.user_id) & (clicks["time_ms"] < own.time_ms)]
            past = past.sort_values("time_ms", kind="stable").iloc[-50:]
            hours = ((own.time_ms - past["time_ms"]) / 3.6e6).astype(np.float32)
            histories.append((past["video_id"].tolist(), hours.tolist()))
        assert (row["history_video_id"], row["history_time"]) in histories


def test_the_place_of_the_shown_video_among_fifty_tells_nothing(tmp_path: Path) -> None:
    raw_sources.write_kuairand(tmp_path / "raw")
    shown = [
        raw_sources.kuairand_row(k % 8, k % 211, raw_sources.KUAIRAND_MS + 10**9 + k, 1, 0, 1) for k in range(1_000)
    ]
    path = tmp_path / "raw" / "log_random_4_22_to_5_08_1k.csv"
    raw_sources.write_csv(path, raw_sources.KUAIRAND_LOG, shown)
    convert_public_log(kuairand("1k", "random"), tmp_path / "raw", tmp_path / "out")
    ranks = []
    for row in rows(tmp_path / "out"):
        assert len(set(row["video_id"])) == len(row["video_id"]) == 50
        assert row["propensity"] == pytest.approx([1 / 50])
        ranks.append(sorted(row["video_id"]).index(row["video_id"][row["slate"][0]]))
    assert len(ranks) == 1_000
    counts = np.bincount(ranks, minlength=50)
    assert ((counts - 20) ** 2 / 20).sum() < 90  # chi-squared of 49 degrees; 0.999 quantile is 85.4, and ids are few


def ratings_of(raw: Path) -> pd.DataFrame:
    names = ["user", "item", "stars", "time"]
    frame = pd.read_csv(raw / "ratings.dat", sep="::", header=None, names=names, engine="python")
    return frame.sort_values(["user", "time"], kind="stable").reset_index(drop=True)


def test_rechorus_impressions_by_day(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("rechorus")
    log = ratings_of(raw)
    day = (log["time"] + 8 * 3600) // 86_400
    day -= day.min()
    part = np.where(day <= 0.8 * day.max(), "train", np.where(day <= 0.9 * day.max(), "validation", "test"))
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for (split, _), mine in log.groupby([part, "user"]):
        for start in range(0, len(mine), 20):
            rated = mine.iloc[start : start + 20]
            labels = (rated["stars"] >= 4).astype(int)
            if labels.nunique() == 2:
                expected[split].append(sorted(zip(rated["item"], labels, strict=True)))
    for split in SPLITS:
        found = [sorted(zip(row["item"], row["candidate_relevant"], strict=True)) for row in rows(out, split)]
        assert sorted(found) == sorted(expected[split])


def test_gfn4rec_slates_of_six_end_with_the_test_slate(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("gfn4rec")
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for _, mine in ratings_of(raw).groupby("user"):
        rated = [
            (row.item, float(row.stars >= 3), float(row.stars >= 4), float(row.stars == 5)) for row in mine.itertuples()
        ]
        expected["test"].append(rated[-6:])
        expected["validation"].append(rated[-12:-6])
        expected["train"] += [rated[start : start + 6] for start in range(0, len(rated) - 12 - 5, 6)]
    names = ("is_click", "is_like", "is_star")
    ago = [row["history_time"] for row in rows(out, "test")]
    assert all(hours == sorted(hours, reverse=True) and hours[-1] > 0 for hours in ago)
    for split in SPLITS:
        assert sorted(slate(row, "item", *names) for row in rows(out, split)) == sorted(expected[split])
    for row in rows(out):
        assert len(set(row["item"])) == len(row["item"]) <= 50
        assert len(row["item"]) > 12  # a catalogue of 24
        for name in names:
            others = set(range(len(row["item"]))) - set(row["slate"])
            assert [row[f"candidate_{name}"][place] for place in row["slate"]] == row[name]
            assert not any(row[f"candidate_{name}"][place] for place in others)


def test_cores_keep_what_is_left_often_enough(tmp_path: Path) -> None:
    """A user of 19 ratings goes, and with her an item that had 20; of that, the others keep enough."""
    raw_sources.write_movielens_1m(tmp_path / "raw")
    log = ratings_of(tmp_path / "raw")
    log = log.drop(log[log["user"] == 1].index[:3])
    lines = "".join("::".join(map(str, row)) + "\n" for row in log.itertuples(index=False))
    (tmp_path / "raw" / "ratings.dat").write_text(lines)
    convert_public_log(movielens_1m("gfn4rec"), tmp_path / "raw", tmp_path / "out")
    while True:
        users, items = log["user"].map(log["user"].value_counts()), log["item"].map(log["item"].value_counts())
        if (users >= 20).all() and (items >= 20).all():
            break
        log = log[(users >= 20) & (items >= 20)]
    assert 0 < log["user"].nunique() < 30
    assert read_metadata(tmp_path / "out")["rows"]["test"] == log["user"].nunique()


def test_finn_pages_by_the_loaders_split(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("finn")
    data = np.load(raw / "data.npz")
    names = _split_users(len(data["userId"]))
    assert np.unique(names, return_counts=True)[1].tolist() == [2, 36, 2]
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for user, name in enumerate(names):
        clicked: list[int] = []
        for step in range(20):
            shown = [item for item in data["slate"][user, step] if item > 1]
            if shown:
                click = data["click"][user, step]
                page = [(item, float(item == click)) for item in shown]
                expected[name if step >= 5 else "train"].append((page, clicked[:]))
                clicked += [click] if click > 1 else []
    for split in SPLITS:
        found = [(slate(row, "item", "click"), row["history_item"]) for row in rows(out, split)]
        assert sorted(found) == sorted(expected[split])


def test_avito_pages_of_five_with_clicks_of_contextual_ads(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("avito")
    stream = pd.read_csv(raw / "trainSearchStream.tsv", sep="\t").sort_values(["SearchID", "Position"])
    dates = pd.read_csv(raw / "SearchInfo.tsv", sep="\t", parse_dates=["SearchDate"]).set_index("SearchID")[
        "SearchDate"
    ]
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for search, page in stream.groupby("SearchID"):
        if len(page) == 5:
            split = SPLITS[
                int(np.searchsorted(pd.to_datetime(["2015-05-12", "2015-05-14"]), dates[search], side="right"))
            ]
            expected[split].append(list(zip(page["AdID"], page["IsClick"].fillna(0.0), strict=True)))
    for split in SPLITS:
        assert sorted(slate(row, "ad_id", "click") for row in rows(out, split)) == sorted(expected[split])
    for row in rows(out):
        for kind, known in zip(row["object_type"], row["hist_ctr"], strict=True):
            assert (kind == 3) == (known is not None)


def test_rl4rs_slates_of_nine(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("rl4rs")
    log = pd.read_csv(raw / "rl4rs_dataset_a_sl.csv", sep="@")
    info = pd.read_csv(raw / "item_info.csv", sep=" ").set_index("item_id")
    digit = log["session_id"] % 10
    for split, part in {"train": digit < 5, "validation": digit == 5, "test": digit > 5}.items():
        expected = [
            (list(zip(*(map(int, text.split(",")) for text in (row.exposed_items, row.user_feedback)), strict=True)),
             list(map(int, row.user_seqfeature.split(","))))
            for row in log[part].itertuples()
        ]  # fmt: skip
        found = [(slate(row, "item_id", "purchase"), row["bought"]) for row in rows(out, split)]
        assert sorted(found) == sorted(expected)
    row = rows(out, "test")[0]
    assert row["price"] == [info["price"][item] for item in row["item_id"]]
    assert row["item_vec"][0] == pytest.approx(list(map(float, info["item_vec"][row["item_id"][0]].split(","))))
    assert len(row["portrait"]) == 32


def test_mind_has_labels_and_no_order(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("mind")
    names = ["id", "user", "time", "past", "shown"]
    expected: dict[str, list[Any]] = {split: [] for split in SPLITS}
    for part in ("train", "dev"):
        log = pd.read_csv(raw / part / "behaviors.tsv", sep="\t", header=None, names=names, keep_default_na=False)
        for row in log.itertuples():
            half = "test" if pd.to_datetime(row.time).hour >= 12 else "validation"
            entries = [entry.rsplit("-", 1) for entry in row.shown.split(" ")]
            labels = sorted((news, float(label)) for news, label in entries)
            expected["train" if part == "train" else half].append((labels, row.past.split()))
    for split in SPLITS:
        found = [
            (sorted(zip(row["news"], row["candidate_click"], strict=True)), row["history_news"])
            for row in rows(out, split)
        ]
        assert sorted(found) == sorted(expected[split])


def test_prm_lines_are_sampled_and_split_as_by_the_script(folders: Callable[[str], tuple[Path, Path]]) -> None:
    raw, out = folders("prm")
    random.seed(1234)
    lines = [line for part in (1, 2) for line in (raw / f"set1.train.txt.part{part}").read_text().splitlines()]
    kept = [line for line in lines if line.find("null") == -1 and random.random() < 0.1]
    random.shuffle(kept)
    num = len(kept)
    parts = [kept[int(0.4 * num) : int(0.9 * num)], kept[int(0.9 * num) :]]
    reranker = [*parts[0][: int(0.85 * num) - int(0.4 * num)]], parts[0][int(0.85 * num) - int(0.4 * num) :], parts[1]
    for split, part in zip(SPLITS, reranker, strict=True):
        expected = []
        for line in part:
            _, _, sparse, _, _, labels = line.split("|")
            items = [entry.split(",")[0] for entry in sparse.strip("[]").split("], [")]
            expected.append(list(zip(items, map(float, labels.strip("[]").split(",")), strict=True)))
        assert sorted(slate(row, "item_id", "click") for row in rows(out, split)) == sorted(expected)
