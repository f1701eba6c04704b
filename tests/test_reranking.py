"""Batch reranking gives what the pipeline gives, whatever the engine, and goes on where it was stopped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.long_format import write_long_log
from rerankzoo.engines import Workers, ray_cluster
from rerankzoo.errors import RerankingDataError
from rerankzoo.evaluation import Evaluation, default_decodings, evaluate
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Exclude
from rerankzoo.mining import mine_folder
from rerankzoo.models.auto import load_checkpoint
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.reranking import RECORD_FILE, rerank_folder
from tests.data.test_long_format import make_log, read_spec, save
from tests.test_mining import SETTINGS as MINING
from tests.test_mining import contents, save_evaluator

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def checkpoint(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = PointwiseConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8, slate_size=4)
    RerankingPipeline(PointwiseForReranking(config), extractor).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def requests(make_rows: Callable[..., Rows], tmp_path: Path) -> Path:
    """Three files, one in a folder below, and a hidden one that is no Parquet."""
    folder = tmp_path / "requests"
    (folder / "day=2").mkdir(parents=True)
    for number, name in enumerate(("a.parquet", "b.parquet", "day=2/a.parquet")):
        rows = [{**row, "request_id": f"{number}-{index}"} for index, row in enumerate(make_rows(seed=number))]
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    (folder / "_SUCCESS.parquet").write_text("")
    return folder


def written(folder: Path) -> dict[str, pa.Table]:
    return {str(path.relative_to(folder)): pq.read_table(path) for path in sorted(folder.rglob("*.parquet"))}


def test_rows_are_the_pipelines(checkpoint: str, requests: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rules = [Exclude([1, 2, 3])]
    count = rerank_folder(
        checkpoint, str(requests), str(out), keep=["request_id"], batch_size=3, constraints=rules, slate_size=2
    )
    assert count == 24
    tables, pipeline = written(out), RerankingPipeline.from_pretrained(checkpoint)
    assert list(tables) == ["a.parquet", "b.parquet", "day=2/a.parquet"]
    for name, table in tables.items():
        rows = pq.read_table(requests / name)
        assert table.column_names == ["request_id", "slate", "item_ids", "scores"]
        assert table["request_id"].to_pylist() == rows["request_id"].to_pylist()
        for row, answer in zip(table.to_pylist(), pipeline(rows, rules, slate_size=2), strict=True):
            assert row["item_ids"] == [item["item_id"] for item in answer]
            assert row["slate"] == [item["index"] for item in answer]
            assert row["scores"] == pytest.approx([item["score"] for item in answer])


def test_goes_on_with_what_is_missing(checkpoint: str, requests: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"do_sample": True, "seed": 3}
    rerank_folder(checkpoint, str(requests), str(out), **options)
    first = written(out)
    (out / "b.parquet").unlink()
    kept = (out / "a.parquet").stat().st_mtime_ns
    assert rerank_folder(checkpoint, str(requests), str(out), **options) == 8
    assert (out / "a.parquet").stat().st_mtime_ns == kept
    assert written(out) == first  # what is drawn at random, too
    assert rerank_folder(checkpoint, str(requests), str(out), **options) == 0
    with pytest.raises(RerankingDataError, match=r"field 'seed': .* was begun with 3, not 4"):
        rerank_folder(checkpoint, str(requests), str(out), do_sample=True, seed=4)


def test_files_of_any_file_system(checkpoint: str, requests: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(requests), "/job/requests", recursive=True)
    rerank_folder(checkpoint, "memory://job/requests/*.parquet", "memory://job/out")
    rerank_folder(checkpoint, str(requests), str(tmp_path / "out"))
    found = sorted(name.removeprefix("/job/out/") for name in memory.find("/job/out"))
    assert found == ["a.parquet", "b.parquet", RECORD_FILE]
    with memory.open("/job/out/b.parquet") as stream:
        assert pq.read_table(stream) == written(tmp_path / "out")["b.parquet"]


def test_requests_that_cannot_be_used(checkpoint: str, requests: Path, tmp_path: Path) -> None:
    rows = pq.read_table(requests / "b.parquet").to_pylist()
    rows[5]["price"] = rows[5]["price"][:-1]
    pq.write_table(pa.Table.from_pylist(rows), requests / "b.parquet")
    out = tmp_path / "raised"
    with pytest.raises(RerankingDataError, match=r"field 'price', row 5: .*b\.parquet"):
        rerank_folder(checkpoint, str(requests), str(out), batch_size=4)
    assert [path.name for path in out.rglob("*.parquet")] == ["a.parquet"]
    for on_error, length in (("report", 8), ("skip", 7)):
        rerank_folder(checkpoint, str(requests), str(tmp_path / on_error), batch_size=4, on_error=on_error)
        table = written(tmp_path / on_error)["b.parquet"]
        assert len(table) == length
        assert ("error" in table.column_names) == (on_error == "report")
    reported = written(tmp_path / "report")["b.parquet"].to_pylist()
    assert "price" in reported[5]["error"]
    assert reported[5]["item_ids"] is None
    assert [row["error"] for row in reported if row["item_ids"]] == [None] * 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": ["requestid"]}, "no column 'requestid'"),
        ({"keep": ["slate"]}, "'slate' is the name of a column that is written"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_beam": 2}, "unknown parameters \\['num_beam'\\]"),
    ],
)
def test_settings_that_are_invalid(
    checkpoint: str, requests: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        rerank_folder(checkpoint, str(requests), str(tmp_path / "out"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "spark"}, "engine must be one of local, ray, got 'spark'"),
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"gpus_per_worker": -1}, "gpus_per_worker must not be negative, got -1"),
        ({"num_workers": 4}, "num_workers is of the engine 'ray', got 4 with 'local'"),
        ({"address": "auto"}, "address is of the engine 'ray', got 'auto' with 'local'"),
    ],
)
def test_workers_that_are_invalid(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workers(**options)


def test_no_files(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no Parquet files there"):
        rerank_folder(checkpoint, str(tmp_path / "missing"), str(tmp_path / "out"))


def test_command_line(checkpoint: str, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["rerank", checkpoint, "--requests", str(requests), "--out", str(out), "--num-beams", "2"]) == 0
    assert "24 requests" in capsys.readouterr().out
    rerank_folder(checkpoint, str(requests), str(tmp_path / "other"), num_beams=2)
    assert written(out) == written(tmp_path / "other")


def test_command_line_keeps_constraints(
    checkpoint: str, requests: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text('[{"type": "Exclude", "items": [1, 2, 3]}]', encoding="utf-8")
    command = ["rerank", checkpoint, "--requests", str(requests), "--constraints", str(rules), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    rerank_folder(checkpoint, str(requests), str(tmp_path / "other"), constraints=[Exclude([1, 2, 3])])
    assert written(tmp_path / "out") == written(tmp_path / "other")
    rules.write_text('[{"type": "Exclude", "item": [1]}]', encoding="utf-8")
    assert main([*command, str(tmp_path / "wrong")]) == 2
    assert "rules.json" in capsys.readouterr().err
    assert main([*command[:4], "--out", str(tmp_path / "wrong"), "--num-workers", "4"]) == 2
    assert "num_workers is of the engine 'ray', got 4 with 'local'" in capsys.readouterr().err


def test_other_weights_are_no_continuation(
    checkpoint: str, extractor: RerankingFeatureExtractor, requests: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint, model)
    rerank_folder(str(model), str(requests), str(tmp_path / "out"))
    torch.manual_seed(1)
    config = PointwiseConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8, slate_size=4)
    PointwiseForReranking(config).save_pretrained(model)
    with pytest.raises(RerankingDataError, match=r"field 'weights': .* was begun with"):
        rerank_folder(str(model), str(requests), str(tmp_path / "out"))


def test_a_failed_file_leaves_nothing(checkpoint: str, requests: Path, tmp_path: Path) -> None:
    rows = pq.read_table(requests / "a.parquet").to_pylist()
    rows[-1]["price"] = rows[-1]["price"][:-1]
    pq.write_table(pa.Table.from_pylist(rows), requests / "a.parquet")
    memory = fsspec.filesystem("memory")
    memory.put(str(requests), "/failed/requests", recursive=True)
    for source, out in ((str(requests), str(tmp_path / "out")), ("memory://failed/requests", "memory://failed/out")):
        with pytest.raises(RerankingDataError, match="price"):
            rerank_folder(checkpoint, source, out, batch_size=2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORD_FILE]
    assert [name.rpartition("/")[2] for name in memory.find("/failed/out")] == [RECORD_FILE]


class DyingEvaluator:
    """Prefers late candidates; kills its process at the first call, once."""

    def __init__(self, folder: Path) -> None:
        self.died = folder / "died"

    def score_slates(self, slates: torch.Tensor, /, **batch: torch.Tensor) -> torch.Tensor:
        if not self.died.exists():
            self.died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return (slates + 1).clamp(min=0).double() @ 0.1 ** torch.arange(slates.shape[-1], dtype=torch.float64)


def evaluate_units(checkpoint: str, data: Path, died: Path, **options: Any) -> Evaluation:
    """In batches of 8 requests, each a unit where workers are given."""
    model, extractor = load_checkpoint(checkpoint)
    decodings = default_decodings(has_evaluator=True)
    known = {"name": "model", "decodings": decodings, "evaluator": DyingEvaluator(died), "hr_requests": 20, "seed": 1}
    table = open_splits(data)["train"]
    return evaluate(model, table, extractor, batch_size=8, counterfactual=True, **known, **options)


def assert_same(found: Evaluation, expected: Evaluation) -> None:
    assert found.rows == expected.rows
    assert found.protocol == expected.protocol
    assert (found.counterfactual, found.logged) == (expected.counterfactual, expected.logged)
    assert all(torch.equal(found.per_request[key], values) for key, values in expected.per_request.items())


def test_an_evaluation_goes_on_with_the_batches_that_are_missing(
    checkpoint: str, data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "died").touch()
    here, work = evaluate_units(checkpoint, data_folder, tmp_path), tmp_path / "work"
    assert_same(evaluate_units(checkpoint, data_folder, tmp_path, workers=Workers(), work=work), here)
    files = sorted(work.iterdir())
    assert len(files) == 3
    files[1].unlink()
    kept = [file.stat().st_mtime_ns for file in (files[0], files[2])]
    done: list[int] = []
    again = {"workers": Workers(), "work": work, "on_progress": done.append}
    assert_same(evaluate_units(checkpoint, data_folder, tmp_path, **again), here)
    assert done == [8]
    assert [file.stat().st_mtime_ns for file in (files[0], files[2])] == kept
    with pytest.raises(ValueError, match="work must be given"):
        evaluate_units(checkpoint, data_folder, tmp_path, workers=Workers())


@pytest.mark.slow
def test_ray_writes_the_same_and_survives_a_killed_worker(
    checkpoint: str,
    requests: Path,
    data_folder: Path,
    extractor: RerankingFeatureExtractor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    evaluator = save_evaluator(extractor, tmp_path / "evaluator")
    monkeypatch.setattr("rerankzoo.data.long_format.loading.BUCKET_ROWS", 300)  # three buckets
    log = (read_spec(tmp_path), save(make_log(5), tmp_path / "raw"))
    two = Workers(engine="ray", num_workers=2)
    with ray_cluster(None, 2):
        assert rerank_folder(checkpoint, str(requests), str(tmp_path / "ray"), workers=two, do_sample=True) == 24
        mine_folder([evaluator], data_folder, tmp_path / "mined-on-ray", workers=two, **MINING)
        measured = evaluate_units(checkpoint, data_folder, tmp_path, workers=two, work=tmp_path / "work")
        write_long_log(tmp_path / "log-on-ray", *log, workers=two)
    rerank_folder(checkpoint, str(requests), str(tmp_path / "local"), do_sample=True)
    names = [path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*.parquet")]
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    mine_folder([evaluator], data_folder, tmp_path / "mined", **MINING)
    assert contents(tmp_path / "mined-on-ray") == contents(tmp_path / "mined")
    write_long_log(tmp_path / "log", *log)
    assert contents(tmp_path / "log-on-ray") == contents(tmp_path / "log")
    assert (tmp_path / "died").exists()
    assert_same(measured, evaluate_units(checkpoint, data_folder, tmp_path))
