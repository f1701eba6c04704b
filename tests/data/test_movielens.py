from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rerankzoo.data.folder import read_metadata
from rerankzoo.data.sources import movielens
from rerankzoo.data.sources.movielens import FILES, convert_movielens
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema

NUM_USERS, NUM_ITEMS = 30, 80
RATINGS = 45  # of each user; sessions start one day apart, so late users fill validation and test
REAL = os.environ.get("RERANKZOO_ML100K")


def generate(seed: int = 0) -> pd.DataFrame:
    """Ratings in random order; two of a user share each timestamp, and her ids are not her row numbers."""
    rng = np.random.default_rng(seed)
    frames = []
    for user in range(NUM_USERS):
        items = rng.choice(NUM_ITEMS, RATINGS, replace=False)
        stars = np.clip(np.round(3.5 + np.sin(items) + rng.normal(size=RATINGS)), 1, 5).astype(int)
        times = 880_000_000 + user * 86_400 + np.arange(RATINGS) // 2
        frames.append(pd.DataFrame({"user": 100 + user, "item": 1_000 + items, "rating": stars, "timestamp": times}))
    return pd.concat(frames).sample(frac=1.0, random_state=seed).reset_index(drop=True)


def write_100k(folder: Path, ratings: pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ratings.to_csv(folder / "u.data", sep="\t", header=False, index=False)
    items = []
    for item in range(NUM_ITEMS):
        date = "" if item == 3 else f"01-Jan-{1950 + item % 40}"
        flags = "|".join(str(int(genre == item % 19)) for genre in range(19))
        items.append(f'{1_000 + item}|Caf\xe9\x85 "{item}"|{date}||http://x|{flags}')
    (folder / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
    users = [f"{100 + user}|{20 + user}|{'MF'[user % 2]}|writer|0" for user in range(NUM_USERS)]
    (folder / "u.user").write_text("\n".join(users) + "\n")


def write_1m(folder: Path, ratings: pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["::".join(map(str, row)) for row in ratings.itertuples(index=False)]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    items = [f"{1_000 + item}::Title: {item} ({1950 + item % 40})::Comedy|War" for item in range(NUM_ITEMS)]
    (folder / "movies.dat").write_text("\n".join(items) + "\n", encoding="latin-1")
    users = [f"{100 + user}::{'MF'[user % 2]}::25::{user % 7}::0-1" for user in range(NUM_USERS)]
    (folder / "users.dat").write_text("\n".join(users) + "\n")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("movielens")
    write_100k(folder / "raw", generate())
    convert_movielens(folder / "out", folder / "raw")
    return folder / "out"


def rows(folder: Path, split: str) -> list[dict]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def all_rows(folder: Path) -> list[dict]:
    return [{**row, "split": split} for split in ("train", "validation", "test") for row in rows(folder, split)]


def sorted_ratings() -> pd.DataFrame:
    return generate().sort_values(["user", "timestamp", "item"]).reset_index(drop=True)


def reference_windows(ratings: pd.DataFrame) -> dict[str, list[int]]:
    """The protocol, told slowly: walk each user's ratings; the stride depends on the window's split."""
    first, second = np.quantile(ratings["timestamp"], [0.8, 0.9])
    starts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for _, group in ratings.groupby("user"):
        position = 0
        while position + 10 <= len(group):
            last = group["timestamp"].iloc[position + 9]
            split = "train" if last <= first else "validation" if last <= second else "test"
            starts[split].append(group.index[position])
            position += 5 if split == "train" else 10
    return starts


def test_windows_follow_the_protocol(converted: Path) -> None:
    ratings = sorted_ratings()
    expected = reference_windows(ratings)
    assert min(map(len, expected.values())) > 5
    assert read_metadata(converted)["rows"] == {split: len(starts) for split, starts in expected.items()}
    for split, starts in expected.items():
        windows = {
            (ratings["user"][start], frozenset(ratings["item"][start : start + 10])): dict(
                zip(ratings["item"][start : start + 10], ratings["rating"][start : start + 10] >= 4, strict=True)
            )
            for start in starts
        }
        for row in rows(converted, split):
            labels = windows.pop((row["user_id"], frozenset(row["item_id"])))
            assert row["candidate_relevant"] == [float(labels[item]) for item in row["item_id"]]
        assert not windows
        times = [row["timestamp"] for row in rows(converted, split)]
        assert times == sorted(times)


def test_features_know_only_the_past(converted: Path) -> None:
    """Recomputes the features of every window from the ratings it may see."""
    ratings = sorted_ratings()
    train = ratings[ratings["timestamp"] <= np.quantile(ratings["timestamp"], 0.8)]
    genres = {item: (item - 1_000) % 19 for item in ratings["item"]}
    for row in all_rows(converted):
        mine = ratings[ratings["user"] == row["user_id"]]
        window = mine[mine["item"].isin(row["item_id"])]
        before = mine.loc[: window.index[0] - 1]
        seen = train[train["timestamp"] < window["timestamp"].iloc[0]]
        prior = (seen["rating"].sum() + 3.0) / (len(seen) + 1)
        prior_share = ((seen["rating"] >= 4).sum() + 0.5) / (len(seen) + 1)
        mean = (before["rating"].sum() + 5 * prior) / (len(before) + 5)
        assert row["user_mean_rating"] == pytest.approx(mean, rel=1e-5)
        assert row["history_length"] == len(before)
        assert row["history_item_id"] == before["item"].tolist()[-20:]
        hours = (window["timestamp"].iloc[0] - before["timestamp"]) / 3600  # to the window's first rating
        assert row["history_time"] == pytest.approx(hours.tolist()[-20:], rel=1e-6)
        for position, item in enumerate(row["item_id"]):
            stars = seen["rating"][seen["item"] == item]
            share = ((stars >= 4).sum() + 10 * prior_share) / (len(stars) + 10)
            assert row["upstream_score"][position] == pytest.approx(np.log(share / (1 - share)), rel=1e-4, abs=1e-5)
            assert row["item_mean_rating"][position] == pytest.approx(
                (stars.sum() + 10 * prior) / (len(stars) + 10), rel=1e-5
            )
            assert row["item_popularity"][position] == pytest.approx(
                np.log((len(stars) + 1) / (len(seen) / NUM_ITEMS + 1)), rel=1e-4, abs=1e-5
            )
            liked = before["rating"][before["item"].map(genres) == genres[item]]
            affinity = np.zeros(19)
            affinity[genres[item]] = (liked - mean).sum() / (len(liked) + 5)
            np.testing.assert_allclose(row["genre_affinity"][position], affinity, rtol=1e-4, atol=1e-5)


def test_own_labels_do_not_reach_the_inputs(tmp_path: Path) -> None:
    """Turning every rating of one window around changes no input of that window."""
    ratings = generate()
    write_100k(tmp_path / "raw", ratings)
    convert_movielens(tmp_path / "out", tmp_path / "raw")
    row = rows(tmp_path / "out", "train")[40]
    own = (ratings["user"] == row["user_id"]) & ratings["item"].isin(row["item_id"])
    write_100k(tmp_path / "raw", ratings.assign(rating=ratings["rating"].where(~own, 6 - ratings["rating"])))
    convert_movielens(tmp_path / "out", tmp_path / "raw")
    turned = rows(tmp_path / "out", "train")[40]
    assert turned["candidate_relevant"] != row["candidate_relevant"]
    labels = {"relevant", "candidate_relevant"}
    assert {name: turned[name] for name in turned.keys() - labels} == {name: row[name] for name in row.keys() - labels}


def test_slates_feedback_and_schema(converted: Path) -> None:
    schema = FeatureSchema.from_yaml(converted / "schema.yaml")
    assert schema.targets[0].candidate_feedback == "candidate_relevant"
    table = pq.read_table(converted / "train.parquet")
    assert {field.name for field in schema.fields} < set(table.column_names)
    for row in table.to_pylist():
        assert len(set(row["slate"])) == 4
        assert row["relevant"] == [row["candidate_relevant"][position] for position in row["slate"]]
        weights = np.exp(np.array(row["upstream_score"]) / 0.7)
        assert row["propensity"][0] == pytest.approx(weights[row["slate"][0]] / weights.sum(), rel=1e-4)
        assert (row["gender"], row["occupation"]) == ("MF"[row["user_id"] % 2], "writer")
        assert row["age"] == row["user_id"] - 80
        for position, item in enumerate(row["item_id"]):
            index = item - 1_000
            assert row["genres"][position] == [float(genre == index % 19) for genre in range(19)]
            median = np.median([1950 + other % 40 for other in range(NUM_ITEMS) if other != 3])
            assert row["year"][position] == (median if index == 3 else 1950 + index % 40)


def test_candidates_are_shuffled_by_the_seed(converted: Path, tmp_path: Path) -> None:
    ratings = sorted_ratings()
    rank = {
        (user, item): position
        for position, (user, item) in enumerate(zip(ratings["user"], ratings["item"], strict=True))
    }
    firsts = [np.argmin([rank[row["user_id"], item] for item in row["item_id"]]) for row in rows(converted, "train")]
    assert set(firsts) == set(range(10))  # the oldest rating may stand anywhere
    write_100k(tmp_path / "raw", generate())
    for name, seed in (("same", 0), ("other", 1)):
        convert_movielens(tmp_path / name, tmp_path / "raw", seed=seed)
    assert rows(tmp_path / "same", "train") == rows(converted, "train")
    assert rows(tmp_path / "other", "train") != rows(converted, "train")


def test_ml_1m_gives_the_same_windows(converted: Path, tmp_path: Path) -> None:
    write_1m(tmp_path / "raw", generate())
    convert_movielens(tmp_path / "out", tmp_path / "raw", "ml-1m")
    assert read_metadata(tmp_path / "out")["source"] == "ml-1m"
    assert FeatureSchema.from_yaml(tmp_path / "out" / "schema.yaml").field("genres").size == 18
    for ours, theirs in zip(all_rows(tmp_path / "out"), all_rows(converted), strict=True):
        for name in ("user_id", "item_id", "slate", "relevant", "upstream_score", "history_item_id", "split"):
            assert ours[name] == theirs[name]
        assert ours["occupation"] == str((ours["user_id"] - 100) % 7)
        assert ours["genres"][0] == [float(index in (4, 16)) for index in range(18)]  # Comedy, War
        assert ours["year"][0] == 1950 + (ours["item_id"][0] - 1_000) % 40


def replace_line(path: Path, line: int, text: str | None) -> None:
    lines = path.read_text(encoding="latin-1").split("\n")
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines), encoding="latin-1")


FLAGS = "|".join("0" * 19)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("u.data", "100\t1000\tfive\t880000000", r"u\.data, line 7: rating 'five' is not an integer"),
        ("u.data", "100\t1000\t880000000", r"u\.data, line 7: '100\\t1000\\t880000000' has not 4 parts"),
        ("u.data", "", r"u\.data, line 7: '' has not 4 parts"),
        ("u.data", "100\t1000\t6\t880000000", r"u\.data, line 7: rating 6 is outside 1\.\.5"),
        ("u.data", "99\t1000\t5\t880000000", r"u\.data, line 7: user 99 is not among the users"),
        ("u.data", "100\t999\t5\t880000000", r"u\.data, line 7: item 999 is not among the items"),
        ("u.item", f"x7|Title|01-Jan-1990||u|{FLAGS}", r"u\.item, line 7: id 'x7' is not an integer"),
        ("u.item", f"1000|Title|01-Jan-1990||u|{FLAGS}", r"u\.item, line 7: id 1000 appears twice"),
        ("u.item", f"1006|Title|Jan||u|{FLAGS}", r"u\.item, line 7: release date 'Jan' does not end in a year"),
        ("u.item", f"1006|Title|01-Jan-1990||u|2{FLAGS[1:]}", r"line 7: genre flag 0 '2' is neither 0 nor 1"),
        ("u.user", "106|old|M|writer|0", r"u\.user, line 7: age 'old' is not an integer"),
        ("u.user", "106|20|?|writer|0", r"u\.user, line 7: gender '\?' is neither M nor F"),
    ],
)
def test_garbled_files_are_refused_by_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    write_100k(tmp_path / "raw", generate())
    replace_line(tmp_path / "raw" / file, 7, text)
    with pytest.raises(RerankingDataError, match=message) as error:
        convert_movielens(tmp_path / "out", tmp_path / "raw")
    assert error.value.field == file
    assert not (tmp_path / "out").exists()


def test_unknown_genre_of_ml_1m_is_refused(tmp_path: Path) -> None:
    write_1m(tmp_path / "raw", generate())
    replace_line(tmp_path / "raw" / "movies.dat", 7, "1006::Title (1990)::Comedy|Manga")
    with pytest.raises(RerankingDataError, match=r"movies\.dat, line 7: genres 'Comedy\|Manga' has a genre that is"):
        convert_movielens(tmp_path / "out", tmp_path / "raw", "ml-1m")


def test_a_rating_given_twice_is_refused(tmp_path: Path) -> None:
    ratings = generate()
    write_100k(tmp_path / "raw", pd.concat([ratings, ratings.iloc[[3]]]))
    with pytest.raises(RerankingDataError, match=rf"line {len(ratings) + 1}: item .* was rated twice"):
        convert_movielens(tmp_path / "out", tmp_path / "raw")


@pytest.mark.parametrize("content", [None, ""])
def test_missing_and_empty_files_are_refused(tmp_path: Path, content: str | None) -> None:
    write_100k(tmp_path / "raw", generate())
    (tmp_path / "raw" / "u.item").unlink()
    if content is not None:
        (tmp_path / "raw" / "u.item").write_text(content)
    with pytest.raises(RerankingDataError, match=r"u\.item (not found|is empty)"):
        convert_movielens(tmp_path / "out", tmp_path / "raw")


def test_windows_line_ends_are_read(converted: Path, tmp_path: Path) -> None:
    write_100k(tmp_path / "raw", generate())
    for name in FILES["ml-100k"]:
        content = (tmp_path / "raw" / name).read_bytes()
        (tmp_path / "raw" / name).write_bytes(content.replace(b"\n", b"\r\n"))
    convert_movielens(tmp_path / "out", tmp_path / "raw")
    assert rows(tmp_path / "out", "test") == rows(converted, "test")


def test_too_few_ratings_and_unknown_variants_are_refused(tmp_path: Path) -> None:
    write_100k(tmp_path / "raw", generate().iloc[:100])
    with pytest.raises(ValueError, match="100 ratings are too few"):
        convert_movielens(tmp_path / "out", tmp_path / "raw")
    with pytest.raises(ValueError, match="unknown variant 'ml-20m'"):
        convert_movielens(tmp_path / "out", tmp_path / "raw", "ml-20m")  # type: ignore[arg-type]


def test_complete_data_must_give_the_documented_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_100k(tmp_path / "raw", generate())
    monkeypatch.setattr(movielens, "NUM_RATINGS", {"ml-100k": NUM_USERS * RATINGS})
    with pytest.raises(ValueError, match=r"must give .*14966.* windows, got"):
        convert_movielens(tmp_path / "out", tmp_path / "raw")


def make_zip(path: Path, raw: Path, names: tuple[str, ...]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../escaped.txt", "a path that must not be followed")
        for name in names:
            archive.write(raw / name, f"ml-100k/{name}")


def test_download_is_unpacked_once(converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_100k(tmp_path / "raw", generate())
    make_zip(tmp_path / "ml.zip", tmp_path / "raw", FILES["ml-100k"])
    monkeypatch.setattr(movielens, "URLS", {"ml-100k": (tmp_path / "ml.zip").as_uri()})
    convert_movielens(tmp_path / "out", cache=tmp_path / "cache")
    assert rows(tmp_path / "out", "test") == rows(converted, "test")
    files = sorted(path.relative_to(tmp_path / "cache").as_posix() for path in (tmp_path / "cache").rglob("*.*"))
    assert files == [f"ml-100k/{name}" for name in FILES["ml-100k"]]
    assert not (tmp_path / "escaped.txt").exists()
    (tmp_path / "ml.zip").unlink()
    convert_movielens(tmp_path / "again", cache=tmp_path / "cache")  # from the cache
    assert rows(tmp_path / "again", "test") == rows(converted, "test")


def test_bad_downloads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_100k(tmp_path / "raw", generate())
    monkeypatch.setattr(movielens, "URLS", {"ml-100k": (tmp_path / "ml.zip").as_uri()})
    (tmp_path / "ml.zip").write_text("<html>not found</html>")
    with pytest.raises(RerankingDataError, match="did not return a zip file"):
        convert_movielens(tmp_path / "out", cache=tmp_path / "cache")
    make_zip(tmp_path / "ml.zip", tmp_path / "raw", ("u.data", "u.user"))
    with pytest.raises(RerankingDataError, match=r"lacks \['u\.item'\]"):
        convert_movielens(tmp_path / "out", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.*"))


@pytest.mark.skipif(REAL is None, reason="set RERANKZOO_ML100K to a folder with u.data, u.item and u.user")
def test_real_ml_100k(tmp_path: Path) -> None:
    convert_movielens(tmp_path, REAL)
    assert read_metadata(tmp_path)["rows"] == {"train": 14_966, "validation": 972, "test": 971}
    positives = [np.mean([row["candidate_relevant"] for row in rows(tmp_path, s)]) for s in movielens.SPLITS]
    np.testing.assert_allclose(positives, [0.55, 0.57, 0.56], atol=0.005)
    test = rows(tmp_path, "test")
    labels, scores = (np.array([row[name] for row in test]) for name in ("candidate_relevant", "upstream_score"))
    mixed = (labels.max(axis=1) > 0) & (labels.min(axis=1) < 1)
    discounts = 1.0 / np.log2(np.arange(2, 6))
    top = np.take_along_axis(labels, np.argsort(-scores, axis=1)[:, :4], axis=1) @ discounts
    ideal = -np.sort(-labels, axis=1)[:, :4] @ discounts
    assert (top[mixed] / ideal[mixed]).mean() == pytest.approx(0.715, abs=0.015)
