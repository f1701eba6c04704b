from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from rerankzoo import (
    DeGReConfig,
    DeGReEvaluator,
    NAR4RecConfig,
    NAR4RecEvaluator,
    NAR4RecForReranking,
    RerankingPipeline,
)
from rerankzoo.cli.main import main
from rerankzoo.errors import RerankingDataError
from rerankzoo.evaluation.results import Comparison
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.hub.card import CardDetails, write_card

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 16,
    "embedding_size": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "utility_threshold": 1.0,
}
METRICS = {
    "monitor": "val/ndcg@4",
    "mode": "max",
    "value": 0.61237,
    "epoch": 1,
    "step": 1250,
    "metrics": {"val/loss": 1.25, "val/ndcg@4": 0.61237},
    "data": {
        "source": "shop",
        "protocol": "last day is the test",
        "license": "ours alone",
        "rows": {"train": 12345, "test": 678},
    },
}
BENCH = {
    "machine": {"processor": "Abacus 3", "threads": 2, "torch": "2.13.0"},
    "calls": [
        {
            "backend": "onnx",
            "num_candidates": 50,
            "slate_size": 4,
            "batch_size": 32,
            "num_beams": 1,
            "p50_ms": 1.2345,
            "p99_ms": 2.5,
            "cpu_ms": 9.0,
        }
    ],
}


def rows_of(model: str, decoding: str, *values: float, **more: float) -> list[dict[str, Any]]:
    return [
        {"model": model, "decoding": decoding, "seed": seed, "metrics": {"ndcg@4": value, "ndcg@4_low": 0.0, **more}}
        for seed, value in enumerate(values)
    ]


RESULTS = {
    "rows": [
        *rows_of("upstream", "sort", 0.5, 0.5),
        *rows_of("nar4rec", "greedy", 0.6, 0.62, calibration=0.97, cpu_seconds=60.0),
        *rows_of("nar4rec", "beam 4", 0.65, 0.67, calibration=0.97, cpu_seconds=60.0),
        *rows_of("prm", "greedy", 0.7, 0.7),
    ],
    "protocol": {
        "data": {"source": "shop"},
        "num_requests": 678,
        "labels": {"num_requests": 600},
        "slate_size": 4,
        "model": "/home/me/best",
        "training_cpu_seconds": 60,
    },
    "differences": [
        Comparison("ndcg@4", ("nar4rec", "greedy"), ("upstream", "sort"), 0.11, 0.1, 0.12, 678).to_dict(),
        Comparison("ndcg@4", ("nar4rec", "beam 4"), ("nar4rec", "greedy"), 0.05, 0.0, 0.1, 678).to_dict(),
        Comparison("ndcg@4", ("prm", "greedy"), ("upstream", "sort"), 0.2, 0.1, 0.3, 678).to_dict(),
    ],
}


@pytest.fixture
def pipeline(extractor: RerankingFeatureExtractor) -> RerankingPipeline:
    torch.manual_seed(0)
    config = {"feature_schema": extractor.schema.to_dict(), **TINY}
    model = NAR4RecForReranking(NAR4RecConfig(**config))
    model.generation_config = RerankingGenerationConfig(penalty_alpha=0.3, top_k=5)
    return RerankingPipeline(model, extractor, NAR4RecEvaluator(NAR4RecConfig(**config)))


@pytest.fixture
def folder(pipeline: RerankingPipeline, tmp_path: Path) -> Path:
    """A checkpoint of which everything is known but licence and datasets."""
    folder = tmp_path / "best"
    pipeline.save_pretrained(folder)
    recipe = {"seed_everything": 3, "trainer": {"max_epochs": 7, "max_steps": -1}}
    (folder / "metrics.json").write_text(json.dumps(METRICS), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    (folder / "bench.json").write_text(json.dumps(BENCH), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def test_tells_what_the_folder_holds(pipeline: RerankingPipeline, folder: Path) -> None:
    parameters = sum(parameter.numel() for parameter in pipeline.model.parameters())
    text = write_card(folder, CardDetails(repo_id="org/shop-nar4rec")).read_text(encoding="utf-8")
    for part in (
        "# shop-nar4rec\n",
        f"It has {parameters:,} parameters.",
        'RerankingPipeline.from_pretrained("org/shop-nar4rec", evaluator=True)',
        "| `hidden_size` | `16` |",
        "`evaluator` holds `NAR4RecEvaluator`",
        "Decoding by default: contrastive (`penalty_alpha=0.3`, `top_k=5`).",
        f"fingerprint `{pipeline.extractor.schema.fingerprint}`",
        "| `brand` | candidate | categorical | 7 ids, hashed |",
        "| `past_items` | history | categorical | ids of `item_id` |",
        "| `picture` | candidate | dense | 3 numbers |",
        "| `price` | candidate | numeric | log1p, standardize |",
        "| `upstream_score` | candidate | numeric |  |",
        "1 * `click` + 0.5 * `order` * `price`.",
        "The upstream order is that of `upstream_score`.",
        "Data: shop. Last day is the test. Requests: 12,345 train, 678 test. Licence of the data: ours alone.",
        "| `seed_everything` | `3` |",
        "| `trainer.max_epochs` | `7` |",
        "The checkpoint has the highest `val/ndcg@4`, 0.6124, in step 1,250.",
        "| val/loss | 1.2500 |",
        "Test requests: 678 (600 with labels of both kinds). Slates of 4.",
        "mean ± sample standard deviation over 2 runs, seeds 0, 1.",
        "| upstream | sort | 50.0 ± 0.0 |",
        "| nar4rec | greedy | 61.0 ± 1.4 |",
        "| nar4rec | beam 4 | **66.0 ± 1.4** |",
        "- nar4rec greedy - upstream: +11.0 points of ndcg@4, 95 % interval +10.0 to +12.0 (678 requests)",
        "Of the evaluator: calibration 0.970 ± 0.000.",
        "A call on random requests, by `rerankzoo bench` (Abacus 3, threads: 2, PyTorch 2.13.0): its wall time",
        "| onnx | 32 | 50 | 4 | 1 | 1.23 | 2.50 | 9.00 |",
        "**Position bias.**",
        "**Support of the logging policy.**",
        "**Exploitation gap.**",
        "10.1145/3637528.3671645",
    ):
        assert part in text, part
    for part in ("max_steps", "None", "prm", "beam 4 - ", "/home/me", "unknown", "oracle", "_low", "log2", "cpu_sec"):
        assert part not in text, part


def test_metadata_is_valid(folder: Path) -> None:
    write_card(folder, CardDetails(name="Shop", license="apache-2.0", datasets=("org/shop-log",)))
    data = ModelCard.load(folder / "README.md").data
    assert (data.library_name, data.license, data.datasets) == ("rerankzoo", "apache-2.0", ["org/shop-log"])
    assert data.tags == ["reranking", "recommender-systems", "nar4rec", "generator"]
    assert data.model_name == "Shop"
    found = {result.metric_name: result.metric_value for result in data.eval_results or []}
    assert found == {"ndcg@4 (greedy)": 0.61, "ndcg@4 (beam 4)": 0.66}
    assert {(result.task_type, result.dataset_name) for result in data.eval_results or []} == {("reranking", "shop")}


def test_renders_the_same_again_and_keeps_what_only_the_card_knows(folder: Path) -> None:
    path = write_card(folder, CardDetails(name="Shop", license="mit", datasets=("org/shop-log",), repo_id="org/shop"))
    text = path.read_text(encoding="utf-8")
    assert write_card(folder, CardDetails(repo_id="org/shop")).read_text(encoding="utf-8") == text
    assert write_card(folder, CardDetails(license="apache-2.0")).read_text(encoding="utf-8") != text


def test_leaves_out_what_it_does_not_know(pipeline: RerankingPipeline, tmp_path: Path) -> None:
    evaluator = pipeline.evaluator
    assert evaluator is not None
    evaluator.save_pretrained(tmp_path)
    text = write_card(tmp_path).read_text(encoding="utf-8")
    for part in (
        "## Results",
        "license",
        "datasets",
        "model-index",
        "Data:",
        "recipe is",
        "Decoding",
        "None",
        "unknown",
        "## Latency",
        "Licence of",
    ):
        assert part not in text, part
    assert "- evaluator\n" in text
    assert "it values slates of 4 positions" in text
    assert "generates none" in text
    assert "Nothing is known of the training" in text
    assert "NAR4RecEvaluator" in text


def test_an_evaluator_tells_of_itself(folder: Path) -> None:
    beside = folder / "evaluator"
    (beside / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    path = write_card(beside, CardDetails(repo_id="org/shop", name="Shop's evaluator"))
    data, text = ModelCard.load(path).data, path.read_text(encoding="utf-8")
    assert 'AutoModel.from_pretrained("org/shop", subfolder="evaluator")' in text
    assert "`nar4rec` is a generator whose slates it values and chooses" in text
    assert {result.metric_name: result.metric_value for result in data.eval_results or []} == {"calibration": 0.97}


def test_an_evaluator_that_searches_is_one(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    schema = dataclasses.replace(extractor.schema, position_discount="log2")
    config = DeGReConfig(feature_schema=schema.to_dict(), slate_size=4, hidden_size=16, num_attention_heads=2)
    DeGReEvaluator(config).save_pretrained(tmp_path)
    results = {**RESULTS, "rows": [*RESULTS["rows"], *rows_of("evaluator", "beam 8", 0.8)], "differences": []}
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    path = write_card(tmp_path, CardDetails(results_name="evaluator"))
    data, text = ModelCard.load(path).data, path.read_text(encoding="utf-8")
    assert "searches for the best ones (`generate`)" in text
    assert "divided by log2(t + 1)" in text
    assert "evaluator" in (data.tags or [])
    assert {result.metric_name: result.metric_value for result in data.eval_results or []} == {"ndcg@4 (beam 8)": 0.8}
    text = json.dumps(results).replace("nar4rec", "degre")
    (tmp_path / "results.json").write_text(text, encoding="utf-8")
    data = ModelCard.load(write_card(tmp_path)).data  # the generator's figures are not its own
    assert {result.metric_name: result.metric_value for result in data.eval_results or []} == {"calibration": 0.97}


def test_remembers_a_given_name_and_no_other(folder: Path) -> None:
    (folder / "results.json").unlink()
    assert "# org-name\n" in write_card(folder, CardDetails(repo_id="org/org-name")).read_text(encoding="utf-8")
    (folder / "README.md").unlink()
    assert "# NAR4RecForReranking\n" in write_card(folder).read_text(encoding="utf-8")
    assert "# Shop\n" in write_card(folder, CardDetails(name="Shop")).read_text(encoding="utf-8")
    assert "# Shop\n" in write_card(folder, CardDetails(repo_id="org/name")).read_text(encoding="utf-8")


def test_command_takes_results_of_evaluate(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "results.json").rename(tmp_path / "found.json")
    results = ["--results", str(tmp_path / "found.json")]
    assert main(["card", str(folder), *results, "--license", "mit", "--name", "Shop"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "README.md")
    assert "| nar4rec | greedy | 61.0 ± 1.4 |" in (folder / "README.md").read_text(encoding="utf-8")
    assert main(["card", str(folder), *results, "--results-name", "degre"]) == 2
    assert "no results of 'degre'; there are results of ['nar4rec', 'prm']" in capsys.readouterr().err
    assert main(["card", str(folder), "--results", str(tmp_path / "none.json")]) == 2
    assert main(["card", str(tmp_path)]) == 2
    assert "is not a checkpoint" in capsys.readouterr().err


def test_refuses_results_of_another_model(folder: Path) -> None:
    (folder / "results.json").write_text(json.dumps({**RESULTS, "rows": rows_of("prm", "greedy", 1.0)}))
    with pytest.raises(RerankingDataError, match="no results of 'nar4rec'"):
        write_card(folder)


def test_differences_survive_json() -> None:
    for values in RESULTS["differences"]:
        assert Comparison.from_dict(json.loads(json.dumps(values))).to_dict() == values
