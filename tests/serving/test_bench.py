from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qa.benchmarks import peers
from qa.benchmarks.comparisons import check_loaders, check_same, floor_ratio, logged_requests, training_sides
from qa.benchmarks.harness import Ratio, write_results
from qa.benchmarks.setting import full_batch, make_extractor, make_model
from rerankzoo import RerankingPipeline
from rerankzoo.cli.main import main
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import MatrixScorer
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.mining import mine_batch
from rerankzoo.models.degre import DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.serving import bench, random_requests
from rerankzoo.serving.bench import (
    Load,
    Times,
    bench_model,
    count_flops,
    end_to_end,
    finished,
    gemm,
    in_turns,
    loads_of,
)
from tests.serving.conftest import make_model as make_tiny

# --- measuring ------------------------------------------------------------------------------------------------------


def test_calls_take_turns() -> None:
    order: list[str] = []
    times = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.0, fewest=3)
    assert order == ["a", "a", "b", "b", *"ababab"]  # warmed up first
    assert all(len(values) == 3 for one in times.values() for values in one)


def test_a_call_on_an_accelerator_ends_when_it_has_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: order.append(f"wait for {device}"))
    for device in ("cuda:1", "cpu"):
        finished(lambda: order.append("call"), torch.device(device))()
    assert order == ["call", "wait for cuda:1", "call"]
    times = Times(cpu=np.array([1.0]), wall=np.array([2.0]))
    assert (times.on(torch.device("cuda:1")), times.on(torch.device("cpu"))) == (times.wall, times.cpu)


def test_counts_the_operations_of_a_product() -> None:
    left, right = torch.ones(3, 4), torch.ones(4, 5)
    assert count_flops(lambda: left @ right) == 2 * 3 * 4 * 5
    products, operations = gemm(rows=2000, hidden_size=32)
    assert count_flops(products) == operations


def test_the_floor_is_what_the_operations_take_at_the_gemms_rate(
    extractor: RerankingFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"call": np.array([6.0, 5.0, 7.0]), "gemm": np.array([2.0, 2.0, 9.0])}
    monkeypatch.setattr(bench, "gemm", lambda *_: (lambda: None, 100))
    monkeypatch.setattr(bench, "count_flops", lambda _: 50)
    monkeypatch.setattr(
        bench, "in_turns", lambda calls, _: {name: Times(cpu=seconds[name], wall=seconds[name]) for name in calls}
    )
    (found,) = bench_model(make_tiny(extractor), extractor, [Load(3, 2, 4)], seconds=0.0)
    assert found.floor_ratio == 6.0  # 6 seconds for 50 operations; the GEMM has 2 for 100
    ratio = floor_ratio(4, 50, 100, {"eager": 9, "onnx": 7, "aoti": 6, "gemm": 2}, 8, 5)
    assert (ratio.measured, ratio.met) == (6.0, "must")


def test_measures_every_load(extractor: RerankingFeatureExtractor) -> None:
    loads = loads_of([3, 5], [2], [4], [1, 2])
    assert loads[1] == Load(num_candidates=3, slate_size=2, batch_size=4, num_beams=2)
    found = list(bench_model(make_tiny(extractor), extractor, loads, seconds=0.0))
    sizes = [(m.num_candidates, m.slate_size, m.batch_size, m.num_beams) for m in found]
    assert sizes == [(n, 2, 4, w) for n in (3, 5) for w in (1, 2)]
    assert all(0 < m.p50_ms <= m.p99_ms and m.cpu_ms > 0 and m.mflops > 0 and m.floor_ratio > 0 for m in found)


def test_measures_a_model_whose_parameters_are_seen_through_views(extractor: RerankingFeatureExtractor) -> None:
    sizes = {"hidden_size": 8, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 8}
    model = NAR4RecForReranking(NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **sizes))
    (found,) = bench_model(model, extractor, [Load(3, 2, 1)], seconds=0.0)
    assert found.mflops > 0
    assert all(parameter.requires_grad for parameter in model.parameters())  # the caller's own is left alone


def test_refuses_more_positions_than_the_model_has(extractor: RerankingFeatureExtractor) -> None:
    with pytest.raises(ValueError, match="slate_size 9 exceeds the model's 4"):
        next(bench_model(make_tiny(extractor), extractor, [Load(3, 2, 1), Load(9, 9, 1)]))


def test_end_to_end_has_all_parts(extractor: RerankingFeatureExtractor) -> None:
    pipeline = RerankingPipeline(make_tiny(extractor), extractor)
    times = end_to_end(pipeline, random_requests(extractor, 2, 5), seconds=0.0, slate_size=2)
    assert list(times) == ["parse", "extract", "decode", "answer", "whole"]
    assert all(value >= 0 for value in times.values())


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_writes_what_it_measured(
    model_folder: Path,
    onnx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exports: list[Path] = []

    def export(model: Any, extractor: Any, out: Path, backend: str, config: Any, sizes: Any) -> None:
        """Copies the graph that there is."""
        assert (backend, config.slate_size, sizes) == ("onnx", 3, None)
        exports.append(shutil.copytree(onnx_folder, out))

    monkeypatch.setattr(bench, "export_model", export)
    arguments = ["--n", "3,5", "--m", "3", "--batch", "2", "--backend", "eager,onnx", "--seconds", "0.001"]
    assert main(["bench", str(model_folder), *arguments, "--out", str(tmp_path / "out")]) == 0
    assert len(exports) == 1  # one graph for both numbers of candidates
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [(entry["backend"], entry["device"], entry["num_candidates"]) for entry in written["calls"]] == [
        ("eager", "cpu", 3),
        ("onnx", "cpu", 3),
        ("eager", "cpu", 5),
        ("onnx", "cpu", 5),
    ]
    assert [entry["batch_size"] for entry in written["end_to_end"]] == [2, 2]
    machine = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    assert machine.items() <= written["machine"].items()
    assert (tmp_path / "out" / "bench.svg").is_file()
    assert "requests/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "argument --n: expected PositiveInt, got '0'"),
        (["--backend", "eager,tensorrt"], "expected one of eager, onnx, aoti, got 'tensorrt'"),
        (["--m", "9"], "slate_size 9 exceeds the model's 4"),
    ],
)
def test_command_refuses(
    model_folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(model_folder), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_command_needs_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(tmp_path / "nothing")]) == 2
    assert "rerankzoo bench: cannot load" in capsys.readouterr().err


# --- the comparisons: both sides give the same ----------------------------------------------------------------------


@pytest.mark.parametrize("num_beams", [1, 3])
def test_peers_decode_the_same_slates(num_beams: int) -> None:
    model, batch = make_model(DeGReGenerator), full_batch(3, 9)
    mask = batch["candidate_mask"]
    encoded = model.encode(batch)
    wrapper = peers.TransformersGenerator(model, 9).eval()
    options = {"num_beams": num_beams} if num_beams > 1 else {}
    naive = peers.naive_beam(model, encoded, mask, 4, num_beams) if num_beams > 1 else None
    check_same(
        {
            "ours": model.generate(**batch, slate_size=4, **options),
            "transformers": wrapper.slates(encoded, mask, 4, num_beams),
            "naive": peers.naive_greedy(model, encoded, mask, 4) if naive is None else naive,
        }
    )


@torch.no_grad()
def test_the_loop_selects_the_same_slates() -> None:
    model, batch = make_model(NAR4RecForReranking), full_batch(3, 9)
    batch["candidate_mask"][1, 5:] = False
    output = model(**batch)
    scorer = MatrixScorer(lambda _: (output.logits, output.candidate_states))
    found = contrastive_search(scorer, batch, 4, 0.3, None)
    mask = batch["candidate_mask"]
    slates, scores = peers.python_contrastive(output.logits, output.candidate_states, mask, 4, 0.3)
    check_same({"ours": found.slates[:, 0], "loop": slates})
    torch.testing.assert_close(found.step_scores[:, 0], scores, rtol=1e-4, atol=1e-5)


def test_naive_mining_finds_the_same_slates() -> None:
    model, batch = make_model(DeGReEvaluator), full_batch(2, 8)
    mined = mine_batch(model.scorer(), batch, 3, num_beams=4, keep=4)
    slates, values = peers.naive_mining(model, batch, 3, 4)
    check_same({"ours": mined.slates, "naive": slates})
    torch.testing.assert_close(mined.values, values, rtol=1e-4, atol=1e-5)


def test_the_plain_model_has_the_same_scores_and_both_learn() -> None:
    for step in training_sides(num_requests=4):  # compares the scores
        first, *_, last = [float(step().detach()) for _ in range(5)]
        assert last < first


def test_loaders_load_the_same() -> None:
    from datasets import Dataset

    check_loaders(Dataset.from_list(logged_requests(64)))
    assert make_extractor().schema.numeric_size("candidate") == 5


def test_different_slates_are_told() -> None:
    with pytest.raises(RuntimeError, match="b and a differ in 1 of 2 requests"):
        check_same({"a": torch.tensor([[0, 1], [2, 3]]), "b": torch.tensor([[0, 1], [3, 2]])})


def test_results_have_one_entry_per_ratio(tmp_path: Path) -> None:
    ratios = [Ratio("a / b", "at_least", 2.2, 2.0, 2.5, "note"), Ratio("share", "at_most", 0.2, 0.15, 0.08)]
    assert [ratio.met for ratio in ratios] == ["must", "short"]
    write_results(tmp_path / "bench" / "results.json", ratios)
    written = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert written == {
        "ratios": [
            {"row": "a / b", "direction": "at_least", "measured": 2.2, "must": 2.0, "aim": 2.5},
            {"row": "share", "direction": "at_most", "measured": 0.2, "must": 0.15, "aim": 0.08},
        ]
    }
