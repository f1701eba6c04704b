from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from rerankzoo import DeGReGenerator, RerankingPipeline
from rerankzoo.cli.main import main
from rerankzoo.cli.quickstart import STORY
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.data.datamodule import SimulatorDataModule
from rerankzoo.models.auto import AutoModelForReranking
from tests.hub.processes import Run
from tests.hub.server import READER, LoopbackHub

pytestmark = pytest.mark.slow

DECODING = {"num_beams": 6, "num_return_sequences": 6}


def quickstart(out: Path) -> str:
    """What the command prints, without the name of its folder."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        arguments = ["--num-train", "300", "--num-mined", "64", "--max-epochs", "1", "--out", str(out)]
        assert main(["quickstart", *arguments]) == 0
    return told.getvalue().replace(str(out), "OUT").replace("\n", " ")


@pytest.fixture(scope="module", autouse=True)
def _small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Narrow models, few steps to the ceiling, and splits of a few rows; the command has no options for them."""
    story = yaml.safe_load(find_recipe(STORY).read_text(encoding="utf-8"))
    for part in (story["evaluator"], *story["models"].values()):
        part["arguments"] = [*part.get("arguments", ()), "--model.init_args.config.hidden_size=16"]
    path = tmp_path_factory.mktemp("story") / "story.yaml"
    path.write_text(yaml.safe_dump(story, sort_keys=False), encoding="utf-8")
    make = SimulatorDataModule.__init__
    defaults = [
        parameter for parameter in signature(make).parameters.values() if parameter.default is not Parameter.empty
    ]
    small = {"num_validation": 64, "num_test": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make, "__defaults__", tuple(small.get(each.name, each.default) for each in defaults))
        patch.setattr("rerankzoo.cli.quickstart.STORY", str(path))
        patch.setattr("rerankzoo.data.simulator.ceiling._LEAST_STEPS", 80)
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A quickstart's folder, and what it printed."""
    folder = tmp_path_factory.mktemp("quickstart") / "out"
    return folder, quickstart(folder)


def test_tells_the_same_story_twice(told: tuple[Path, str], tmp_path: Path) -> None:
    texts = [told[1], quickstart(tmp_path / "again")]
    first, second = (text[text.rindex("evaluating on test requests") : text.index("Checkpoints, ")] for text in texts)
    assert first == second
    rows = [json.loads((out / "results.json").read_text())["rows"] for out in (told[0], tmp_path / "again")]
    assert rows[0] == rows[1]


def test_leaves_checkpoints_and_results(told: tuple[Path, str]) -> None:
    folder, text = told
    for name in ("pointwise", "prm", "nar4rec", "degre"):
        AutoModelForReranking.from_pretrained(folder / name)
    for name in ("degre", "degre-evaluator", "nar4rec", "prm", "pointwise"):
        assert (folder / name / "model.safetensors").is_file()
        assert (folder / name / "preprocessor_config.json").is_file()
    results = json.loads((folder / "results.json").read_text())
    rows = {(row["model"], row["decoding"]): row["metrics"] for row in results["rows"]}
    assert ("upstream", "sort") in rows
    assert ("nar4rec", "greedy") in rows
    assert ("nar4rec", "16 beams + evaluator") in rows
    assert ("degre", "4 beams + evaluator") in rows
    for metrics in rows.values():
        assert 0 <= metrics["true_hr@1%"] <= metrics["true_hr@10%"] <= 1
        assert metrics["utility"] + metrics["regret"] == pytest.approx(1)
    assert "true expected utility: upstream" in text


# --- and its result travels -----------------------------------------------------------------------------------------

TAG = """
from huggingface_hub import HfApi

HfApi().create_tag("org/degre", tag="v1")
print(HfApi().model_info("org/degre").sha)
"""

LOAD = """
import json
import rerankzoo
from transformers import AutoModel
from rerankzoo import AutoModelForReranking, DeGReGenerator, RerankingFeatureExtractor, RerankingPipeline
from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import SimulatorDataModule

requests, decoding = json.load(open("requests.json")), DECODING
found = {
    revision: RerankingPipeline.from_pretrained("org/degre", evaluator=True, revision=revision)(requests, **decoding)
    for revision in ("main", "other", "v1", COMMIT)
}
extractor = RerankingFeatureExtractor.from_pretrained("org/degre")
evaluator = AutoModel.from_pretrained("org/degre", subfolder="evaluator")
for kind in (DeGReGenerator, AutoModel, AutoModelForReranking):
    model = kind.from_pretrained("org/degre")
    assert type(model) is DeGReGenerator
    found[kind.__name__] = RerankingPipeline(model, extractor, evaluator)(requests, **decoding)
assert main(["mine", "--evaluator", "org/degre", "--data", LOG, "--out", "mined", "--num-requests", "20"]) == 0
print(json.dumps(found))
"""


def scaled(folder: Path, factor: float, copy: Path) -> Path:
    """A copy of a checkpoint with other weights."""
    shutil.copytree(folder, copy)
    model = DeGReGenerator.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    model.save_pretrained(copy)
    return copy


def test_its_result_travels(
    told: tuple[Path, str],
    hub: LoopbackHub,
    client: Callable[..., subprocess.CompletedProcess[str]],
    command_line: Callable[..., list[Run]],
    tmp_path: Path,
) -> None:
    folder = told[0]
    evaluator = str(folder / "degre-evaluator")
    log = next((folder / "data").iterdir())
    requests = pq.read_table(log / "test.parquet").slice(0, 8).to_pylist()
    (tmp_path / "requests.json").write_text(json.dumps(requests), encoding="utf-8")
    trained = folder / "degre"
    other, newest = scaled(trained, 1.5, tmp_path / "other"), scaled(trained, -1.0, tmp_path / "newest")
    (first,) = command_line(["push", str(trained), "org/degre", "--evaluator", evaluator])
    assert first.status == 0, first.err
    commit = client(TAG).stdout.strip()
    assert first.out.strip().endswith(commit)
    later = command_line(["push", str(other), "org/degre", "--revision", "other"], ["push", str(newest), "org/degre"])
    assert [run.status for run in later] == [0, 0]
    assert "evaluator/model.safetensors" in hub.files("org/degre", "other")

    script = LOAD.replace("DECODING", repr(DECODING)).replace("COMMIT", repr(commit)).replace("LOG", repr(str(log)))
    found = json.loads(client(script, cache="fresh", token=READER).stdout.splitlines()[-1])
    weights = {"v1": trained, commit: trained, "other": other}
    answers = {path: RerankingPipeline.from_pretrained(str(path), evaluator=evaluator)(requests, **DECODING)
               for path in (trained, other, newest)}  # fmt: skip
    assert len({json.dumps(items(slates)) for slates in answers.values()}) == 3
    for way, slates in found.items():
        expected = answers[weights.get(way, newest)]
        assert items(slates) == items(expected), way
        scores = [item["score"] for slate in expected for item in slate]
        assert [item["score"] for slate in slates for item in slate] == pytest.approx(scores, abs=1e-6), way
    assert set(found) == {"main", "other", "v1", commit, "DeGReGenerator", "AutoModel", "AutoModelForReranking"}
    assert (tmp_path / "mined/dataset.json").is_file()


def items(slates: list[list[dict[str, Any]]]) -> list[list[Any]]:
    return [[item["item_id"] for item in slate] for slate in slates]
