from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import read_metadata
from rerankzoo.data.sources import letor
from rerankzoo.data.sources.letor import convert_letor
from rerankzoo.errors import RerankingDataError

#: As MSLR writes them: grade, query, features from 1 on, all of them.
TRAIN = """2 qid:10 1:3 2:-0.5 3:0
0 qid:10 1:1 2:2.5 3:7
1 qid:17 1:0 2:1 3:1e10 # docid = GX000-00-0000000
"""
TEST = "0 qid:3 1:1 2:1.797693134862316e+308 3:2\n4 qid:3 1:2 2:1 3:3\n"


def write(folder: Path, **texts: str) -> dict[str, Path]:
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return {name: folder / f"{name}.txt" for name in texts}


def rows(folder: Path, split: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def test_folder_by_hand(tmp_path: Path) -> None:
    files = write(tmp_path, train=TRAIN, validation="1 qid:5 2:4\n", test=TEST)
    convert_letor(tmp_path / "out", **files)
    first, second = rows(tmp_path / "out", "train")
    assert first == {
        "query": "10",
        "document": [0, 1],
        "features": [[3.0, -0.5, 0.0], [1.0, 2.5, 7.0]],
        "grade": [2, 0],
    }
    assert second == {"query": "17", "document": [2], "features": [[0.0, 1.0, 1e10]], "grade": [1]}
    assert rows(tmp_path / "out", "validation")[0]["features"] == [[0.0, 4.0, 0.0]]  # what is left out is 0
    (tested,) = rows(tmp_path / "out", "test")
    assert tested["features"] == [[1.0, None, 2.0], [2.0, 1.0, 3.0]]  # Istella's largest number says that there is none
    assert tested["document"] == [4, 5]
    metadata = read_metadata(tmp_path / "out")
    assert metadata["protocol"].startswith(
        "4 queries with 6 documents of 3 features, from train.txt, test.txt; validation"
    )
    data = RerankingDataModule(str(tmp_path / "out"))
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["candidate_feedback"].tolist() == [[[0.0], [15.0]]]  # 2^4 - 1
    assert batch["candidate_numeric"].shape == (1, 2, 3)
    assert data.loader("train").labels() == {"candidates"}


def test_lightgbm_counts_its_queries_beside_and_may_begin_with_index_0(tmp_path: Path) -> None:
    lines = [f"{n % 3} 0:{n} 3:0.5\n" for n in range(10)]
    files = write(tmp_path, train="".join(lines), test="1 0:1\n")
    (tmp_path / "train.txt.query").write_text("2\n3\n1\n2\n2\n")
    (tmp_path / "test.txt.group").write_text("1\n")  # XGBoost's
    convert_letor(tmp_path / "out", **files, seed=3)
    train, held_out = rows(tmp_path / "out", "train"), rows(tmp_path / "out", "validation")
    assert len(held_out) == 1
    assert sorted(int(row["query"]) for row in train + held_out) == [0, 1, 2, 3, 4]
    starts = np.cumsum([0, 2, 3, 1, 2, 2])
    for row in train + held_out:
        expected = list(range(starts[int(row["query"])], starts[int(row["query"]) + 1]))
        assert [vector[0] for vector in row["features"]] == row["document"] == expected
        assert all(vector[1:] == [0.0, 0.0, 0.5] for vector in row["features"])
    convert_letor(tmp_path / "again", **files, seed=3)
    assert rows(tmp_path / "again", "validation") == held_out


def test_tables_of_a_few_queries_make_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, train=TRAIN, validation=TEST, test=TEST)
    convert_letor(tmp_path / "whole", **files)
    monkeypatch.setattr(letor, "_TABLE_VALUES", 1)
    convert_letor(tmp_path / "parts", **files)
    for split in ("train", "validation", "test"):
        assert rows(tmp_path / "parts", split) == rows(tmp_path / "whole", split)


def test_published_counts_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, train=TRAIN, validation=TEST, test=TEST)
    message = "'mslr-web10k': expected 10,000 queries with 1,200,192 documents of 136 features, got 4 queries with 7"
    with pytest.raises(RerankingDataError, match=message):
        convert_letor(tmp_path / "out", **files, collection="mslr-web10k")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(letor, "COLLECTIONS", {"mslr-web10k": (4, 7, 3)})
    convert_letor(tmp_path / "out", **files, collection="mslr-web10k")
    assert read_metadata(tmp_path / "out")["source"] == "mslr-web10k"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 qid:1 1:2\n0 qid:1 1:x\n", "train.txt, line 2: expected a grade and pairs index:value, got '0 1 1:x'"),
        ("1 qid:1 1:2\n0 qid:1 1:2:3\n", "train.txt, line 2: an index from 0 to 10,000 is required, got"),
        ("1 qid:1 1:2\n0 qid:1 1:2 2:3:4 3:1\n", "train.txt, line 2: expected a grade and pairs"),
        ("y qid:1 1:2\n", "train.txt, line 1: expected a grade and pairs"),
        ("1 qid:1 1:2\nnan qid:1 1:2\n", "train.txt, line 2: expected a grade and numbers"),
        ("1 qid:1 1:nan\n", "train.txt, line 1: expected a grade and numbers"),
        ("1 qid:1 2:1 1:2 3:1\n", "train.txt, line 1: .* growing indexes"),
        ("1 qid:1 1:1 1:2\n", "train.txt, line 1: .* growing indexes"),
        ("1 qid:1 a:1\n", "train.txt, line 1: an index from 0 to 10,000 is required, got"),
        ("1 qid:1 1:1 99999:2\n", "train.txt, line 1: an index from 0 to 10,000 is required, got"),
        ("1 qid:1 1:1\n1 qid:2 1:1\n1 qid:1 1:1\n", "train.txt, line 3: query '1' began before"),
        ("1 1:1\n", "train.txt, line 1: expected qid:, or a file train.txt.query"),
        ("", "train.txt: 0 documents, the file has 0 lines"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    files = write(tmp_path, train=text, test=TEST)
    with pytest.raises(RerankingDataError, match=message):
        convert_letor(tmp_path / "out", **files)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("counts", "message"), [("2\n", "2 documents, the file has 3 lines"), ("3 -1\n", "got '-1'")])
def test_counts_that_are_none(tmp_path: Path, counts: str, message: str) -> None:
    files = write(tmp_path, train=TRAIN, test=TEST)
    (tmp_path / "train.txt.query").write_text(counts)
    with pytest.raises(RerankingDataError, match=message):
        convert_letor(tmp_path / "out", **files)
