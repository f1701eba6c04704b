"""`rerankzoo benchmark`: every kind of entry of its file, on tiny simulated logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rerankzoo.cli.benchmark import Benchmark, _cost, _Run, join_options
from rerankzoo.cli.main import main
from rerankzoo.errors import RecipeError
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.models.auto import load_checkpoint
from rerankzoo.models.registry import model_class

EVALUATOR = "degre/evaluator-simulator.yaml"
GENERATOR = "degre/generator-simulator.yaml"
GREEDY = {"greedy": {"num_beams": 1}}
FILE: dict[str, Any] = {
    "arguments": ["--data.init_args.world_seed={seed}"],
    "evaluator": EVALUATOR,
    "judge": EVALUATOR,
    "evaluators": {
        "pair": {"recipe": EVALUATOR, "members": 2, "arguments": ["--model.init_args.config.hidden_size=8"]}
    },
    "ceiling": True,
    "curve": {"axis": "slates kept", "metrics": ["utility", "hr@1%"]},
    "models": {
        "pointwise": {"recipe": "pointwise/simulator.yaml"},
        "search": {"decodings": {"exhaustive": {"num_beams": 720}, "beam 1": {"num_beams": 1}}},
        "degre": {"recipe": GENERATOR, "mine": {"num_requests": 16, "keep": 2}, "decodings": GREEDY, "at": 2},
        "degre-again": {
            "recipe": GENERATOR,
            "mine": {"num_requests": 16, "keep": 2},
            "arguments": ["--model.init_args.config.soft_label_weight=0"],
            "decodings": {
                "greedy": {"num_beams": 1},
                "2 beams + evaluator": {"num_beams": 2, "num_return_sequences": 2, "evaluator": True},
            },
        },
        "by-pair": {
            "recipe": GENERATOR,
            "evaluator": "pair",
            "mine": {"num_requests": 16, "keep": 1},
            "decodings": GREEDY,
            "at": 1,
        },
        "pair": {"evaluator": "pair", "decodings": {"exhaustive": {"num_beams": 720}}},
    },
}
TINY = {
    "--model.init_args.config.hidden_size": 16,
    "--data.init_args.num_train": 48,
    "--data.init_args.num_validation": 16,
    "--data.init_args.num_test": 6,
    "--trainer.max_epochs": 1,
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--trainer.accelerator": "cpu",
    "--trainer.devices": 1,
}


@pytest.fixture(autouse=True)
def _short_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps to the ceiling: enough to beat slates drawn at random."""
    monkeypatch.setattr("rerankzoo.data.simulator.ceiling._LEAST_STEPS", 80)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**FILE, **changes}, sort_keys=False), encoding="utf-8")
    return path


def test_a_benchmark_file_is_read(tmp_path: Path) -> None:
    found = Benchmark.from_yaml(write(tmp_path))
    assert list(found.models) == list(FILE["models"])
    assert found.evaluators["pair"].members == 2
    assert found.evaluators["pair"].arguments == ["--model.init_args.config.hidden_size=8"]
    folders = {name: entry.mined_folder() for name, entry in found.models.items()}
    assert folders["degre"] == folders["degre-again"] == "mined,keep=2,num_requests=16"
    assert folders["by-pair"] == "mined-pair,keep=1,num_requests=16"
    assert list(found.only(["pair", "pointwise"]).models) == ["pointwise", "pair"]
    with pytest.raises(RecipeError, match=r"unknown models \['degr'\]; there are \['pointwise'.*did you mean 'degre'"):
        found.only(["degr"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": {"a": {"recipe": GENERATOR, "mines": {}}}}, r"models\.a\.mines: unknown key; did you mean 'mine'"),
        ({"models": {"a": {"recipe": GENERATOR, "mine": {"keeps": 1}}}}, r"models\.a: mine\.keeps: unknown.*'keep'"),
        (
            {"models": {"a": {"recipe": GENERATOR, "mine": {"split": "../a"}}}},
            r"models\.a: mine\.split: expected a text that can name",
        ),
        (
            {"models": {"a": {"recipe": GENERATOR, "arguments": "--x"}}},
            r'models\.a: .*"arguments".*list.*Got value: --x',
        ),
        ({"models": {"a": {"recipe": GENERATOR, "evaluator": {"recipe": "a"}}}}, r'models\.a: .*"evaluator".*str.*'),
        ({"models": {"a": {"recipe": 3}}}, r'models\.a: .*"recipe".*str.*Got value: 3'),
        ({"models": {"../a": {"recipe": GENERATOR}}}, r"models: expected a text that can name a folder, got '\.\./a'"),
        ({"models": {4: {"recipe": GENERATOR}}}, "models"),
        (
            {"models": {"a": {"recipe": GENERATOR, "decodings": {"b": {"beams": 2}}}}},
            r"models\.a: .*'beams'",
        ),
        ({"models": {}}, "models: expected models by name, got none"),
        ({"models": None}, "models: expected models by name, got none"),
        ({"evaluators": {"a/b": EVALUATOR}}, r"evaluators: expected a text that can name a folder, got 'a/b'"),
        ({"judge": {"members": 2}}, "judge: .*required: recipe"),
        ({"judge": {"recipe": EVALUATOR, "members": 0}}, r'judge: .*"members".*PositiveInt: 0'),
        ({"curve": {"axis": "a", "metrics": "b"}}, r'curve: .*"metrics".*list.*Got value: b'),
        (
            {"models": {"a": {"recipe": GENERATOR, "evaluator": "nobody"}}},
            r"models\.a\.evaluator: no 'nobody' in evaluators",
        ),
        ({"evaluator": None, "models": {"a": {"recipe": GENERATOR, "mine": {}}}}, "models.a needs an evaluator"),
        ({"models": {"a": {}}}, "models.a: without a recipe it needs decodings"),
        ({"evaluator": {"recipe": EVALUATOR, "choose": "behaviour"}}, "evaluator: .*expected KEY=A,B"),
        ({"worlds": {"a": {"setting": "choice"}}}, r"worlds\.a\.setting: unknown key"),
        ({"ceiling": 1}, "ceiling: expected true or false, got 1"),
        (
            {"models": {"a": {"generators": ["b"], "decodings": GREEDY}, "b": {"recipe": GENERATOR}}},
            r"models\.a needs 'b', which must stand before it; there are \[\]",
        ),
        (
            {"models": {"a": {"recipe": GENERATOR, "arguments": ["--x={b}"]}, "b": {"recipe": GENERATOR}}},
            r"models\.a needs 'b', which must stand before it",
        ),
        ({"models": {"a": {"recipe": GENERATOR, "generators": ["b"]}}}, r"models\.a: generators: a pool has no recipe"),
        ({"models": {"a": {"generators": ["evaluator"], "decodings": GREEDY}}}, "evaluator chooses among their slates"),
        ({"modells": {}}, r"benchmark\.modells: unknown key; did you mean 'models'\?"),
    ],
)
def test_a_wrong_file_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path, **changes)
    if changes.get("evaluator", "") is None:
        values = {key: value for key, value in {**FILE, **changes}.items() if key not in ("evaluator", "judge")}
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(RecipeError, match=message):
        Benchmark.from_yaml(path)


@pytest.mark.parametrize("change", [{"judge": "no/such.yaml"}, {"models": {"a": {"recipe": "no/such.yaml"}}}])
def test_missing_recipes_are_missed_before_anything_is_trained(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file 'no/such\.yaml'"):
        Benchmark.from_yaml(write(tmp_path, **change))


def test_a_familys_own_decoding_parameter_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class BlockConfig(RerankingGenerationConfig):
        extra_parameters = ("num_blocks",)

    monkeypatch.setattr(model_class("DeGReGenerator"), "generation_config_class", BlockConfig)
    decodings = {"blocks": {"num_blocks": 2}}
    benchmark = Benchmark.from_yaml(write(tmp_path, models={"a": {"recipe": GENERATOR, "decodings": decodings}}))
    assert [one.parameters for one in benchmark.models["a"].named_decodings() or ()] == [{"num_blocks": 2}]
    with pytest.raises(RecipeError, match="num_blocks"):
        Benchmark.from_yaml(write(tmp_path, models={"a": {"recipe": "prm/simulator.yaml", "decodings": decodings}}))


def test_options_are_joined() -> None:
    assert join_options(["--a", "1", "--b=2", "--c", "x", "--d"]) == ["--a=1", "--b=2", "--c=x", "--d"]


@pytest.mark.slow
def test_all_kinds_of_models_in_one_run_that_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = [f"{name}={value}" for name, value in TINY.items()]
    command = ["benchmark", str(write(tmp_path)), "--seeds=2", f"--out={out}", f"--data.init_args.root={tmp_path}"]
    assert main([*command, *options]) == 0
    first = json.loads((out / "results.json").read_text())
    rows = {(row["model"], row["decoding"], row["seed"]): row["metrics"] for row in first["rows"]}
    assert {seed for _, _, seed in rows} == {0, 1}
    assert rows["upstream", "sort", 0] != rows["upstream", "sort", 1]  # another world
    assert rows["correctly specified", "best", 0]["utility"] > rows["random", "sample", 0]["utility"]

    for seed in range(2):
        assert rows["search", "exhaustive", seed]["hr@1%"] == rows["pair", "exhaustive", seed]["hr@1%"] == 1.0
        assert rows["search", "exhaustive", seed]["value"] >= rows["search", "beam 1", seed]["value"]
        assert "judge_hr@1%" in rows["degre", "greedy", seed]
        assert "judge_hr@1%" not in rows["by-pair", "greedy", seed]  # another feature extractor than the judge's
        assert rows["degre", "greedy", seed]["spearman"] == rows["search", "beam 1", seed]["spearman"]
        assert rows["degre", "greedy", seed]["spearman"] != rows["by-pair", "greedy", seed]["spearman"]
        costs = {key[:2]: metrics.get("cpu_seconds") for key, metrics in rows.items() if key[2] == seed}
        assert costs["upstream", "sort"] is None
        assert costs["pointwise", "16 beams + evaluator"] - costs["pointwise", "greedy"] == pytest.approx(
            costs["search", "exhaustive"]
        )
        assert costs["degre", "greedy"] > costs["search", "exhaustive"] > 0

    root = out / "seed-0"
    assert (root / "mined,keep=2,num_requests=16" / "dataset.json").is_file()
    assert (root / "evaluator-pair" / "member-1" / "best" / "model.safetensors").is_file()
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")

    weights = {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}
    capsys.readouterr()
    assert main([*command, *options, "--seeds=1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")} == weights
    again = json.loads((out / "results.json").read_text())["rows"]
    assert again == [row for row in first["rows"] if row["seed"] == 0]

    # Slates that another evaluator mined are not taken for this one's.
    evaluator = load_checkpoint(root / "evaluator" / "best").model
    with torch.no_grad():
        next(evaluator.parameters()).add_(0.1)
    evaluator.save_pretrained(root / "evaluator" / "best")
    capsys.readouterr()
    assert main([*command, *options, "--seeds=1"]) == 2
    assert "mined,keep=2,num_requests=16 was begun with" in capsys.readouterr().err


def test_what_a_model_needs_comes_with_it(tmp_path: Path) -> None:
    models = {
        "a": {"recipe": GENERATOR},
        "b": {"recipe": GENERATOR, "arguments": ["--x={a}"]},
        "c": {"recipe": GENERATOR},
        "d": {"generators": ["b", "c"], "decodings": GREEDY},
    }
    found = Benchmark.from_yaml(write(tmp_path, models=models))
    assert list(found.only(["c"]).every) == ["c"]
    pool = found.only(["d"])
    assert (list(pool.models), list(pool.companions)) == (["d"], ["a", "b", "c"])
    assert list(pool.only(["d"]).every) == ["a", "b", "c", "d"]


def test_the_evaluator_is_part_of_what_it_taught(tmp_path: Path) -> None:
    models = {
        "alone": {"recipe": GENERATOR},
        "taught": {"recipe": GENERATOR, "arguments": ["--x={evaluator}"]},
        "mined": {"recipe": GENERATOR, "mine": {}},
        "student": {"recipe": GENERATOR, "arguments": ["--x={taught}"]},
        "of one alone": {"generators": ["alone"], "decodings": GREEDY},
        "pool": {"generators": ["alone", "student"], "decodings": GREEDY},
        "search": {"decodings": GREEDY},
    }
    run = _Run(Benchmark.from_yaml(write(tmp_path, models=models)), tmp_path, 0, [], "cpu")
    taught = {name for name, entry in run.benchmark.models.items() if run._taught(entry)}
    assert taught == {"taught", "mined", "student", "pool", "search"}
    assert _cost({"evaluator": 2.0, "generator": 1.0}, True) == {"cpu_seconds": 3.0}
    assert _cost({"evaluator": 2.0, "generator": 1.0}, False) == {"cpu_seconds": 1.0}
    assert _cost({"evaluator": 2.0, "generator": None}, False) == {}


@pytest.mark.slow
def test_students_pools_and_evaluators_by_their_own_search(tmp_path: Path) -> None:
    student = [
        "--model.init_args.objective=rerankzoo.training.SequenceDistillation",
        "--model.init_args.objective.init_args.generator={teacher}",
    ]
    proposals = {"4 samples": {"do_sample": True, "num_return_sequences": 2, "evaluator": True}}
    models = {
        "student": {"recipe": "nar4rec/simulator.yaml", "arguments": student, "decodings": GREEDY},
        "pool": {"generators": ["teacher", "student"], "decodings": proposals},
        "yolor": {"recipe": "yolor/evaluator-simulator.yaml", "decodings": {"all slates": {}}},
    }
    companions = {"teacher": {"recipe": GENERATOR, "mine": {"num_requests": 16, "keep": 2}}}
    without = {"judge": None, "curve": None, "evaluators": {}}
    path, out = write(tmp_path, models=models, companions=companions, **without), tmp_path / "out"
    options = [f"{name}={value}" for name, value in TINY.items()]
    assert main(["benchmark", str(path), "--seeds=1", f"--out={out}", "--models", "pool", "yolor", *options]) == 0
    rows = {row["model"]: row["metrics"] for row in json.loads((out / "results.json").read_text())["rows"]}
    assert not rows.keys() & {"teacher", "student"}
    costs = {
        one.parent.name: json.loads(one.read_text())["cpu_seconds"]
        for one in (out / "seed-0").glob("*/cpu_seconds.json")
    }
    mined = json.loads(next((out / "seed-0").glob("mined*.json")).read_text())["cpu_seconds"]
    everything = costs["evaluator"] + mined + costs["teacher"] + costs["student"]
    assert rows["pool"]["cpu_seconds"] == pytest.approx(everything)
    assert rows["yolor"]["cpu_seconds"] == pytest.approx(costs["yolor"])


@pytest.mark.slow
def test_worlds_are_measured_one_by_one_with_the_evaluator_that_held_out_feedback_prefers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(checkpoint: Path, _: Any) -> torch.Tensor:  # "2" is better by 0.05 +- 0.6
        return torch.tensor([0.0, 1.0, 0.0, 1.0] if checkpoint.parent.name.endswith("-1") else [1.1, 0.0, 1.1, 0.0])

    monkeypatch.setattr("rerankzoo.cli.benchmark.log_likelihoods", told)
    choice = "model.init_args.config.num_hidden_layers=1,2"
    path = write(
        tmp_path,
        evaluator={"recipe": EVALUATOR, "choose": choice},
        evaluators={},
        judge=None,
        curve=None,
        pointwise=["pointwise"],
        worlds={name: {"arguments": [f"--data.init_args.setting={name}"]} for name in ("strong", "choice")},
        models={"pointwise": {"recipe": "pointwise/simulator.yaml", "decodings": {"greedy": {"num_beams": 1}}}},
    )
    out, options = tmp_path / "out", [f"{name}={value}" for name, value in TINY.items()]
    command = ["benchmark", str(path), "--seeds=1", f"--out={out}", f"--data.init_args.root={tmp_path}", *options]
    assert main([*command, "--worlds", "nowhere"]) != 0
    assert main(command) == 0
    found = json.loads((out / "worlds.json").read_text())
    assert {row["world"] for row in found["rows"]} == {"strong", "choice"}
    for world in ("strong", "choice"):
        assert found["notes"][world]["chosen, seed 0"] == "1"  # the first, which cannot be told from the best
        assert (out / world / "seed-0" / "evaluator-1" / "best" / "model.safetensors").is_file()
        assert (out / world / "results.json").is_file()
