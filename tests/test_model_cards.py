"""The reviewed cards in `model_cards/`: valid metadata, links that lead somewhere, no figures without a source."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from rerankzoo import RerankingPipeline, example
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation.results import BASELINES
from rerankzoo.hub.card import CARD_FILE, RESULTS_FILE, CardDetails, write_card

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1] / "model_cards"
CARDS = sorted(path for path in ROOT.rglob(CARD_FILE) if path.parent != ROOT)
#: Folders with what the card of a trained checkpoint is rendered from.
TRAINED = sorted(path.parent for path in ROOT.rglob(RESULTS_FILE))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(f"/{CARD_FILE}")


def details(folder: Path) -> CardDetails:
    """What `rerankzoo card` was told beside the licence and the name, which it finds in the card."""
    rows = json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))["rows"]
    called = [row["model"] for row in rows if (row["model"], row["decoding"]) not in BASELINES]
    own = called[0] if folder.name != "evaluator" else None
    return CardDetails(repo_id=f"ORG/{folder.relative_to(ROOT).parts[0]}", results_name=own)


def test_there_are_cards() -> None:
    trained = {name(folder) for folder in TRAINED}
    for model in ("nar4rec", "degre"):
        for data in ("simulator", "ml-100k"):
            assert {f"{model}-{data}", f"{model}-{data}/evaluator"} <= trained
    assert "degre-taobao-ad" in {name(card) for card in CARDS} - trained


@pytest.mark.parametrize("path", CARDS, ids=name)
def test_metadata_is_valid(path: Path) -> None:
    card = ModelCard.load(path)  # refuses a model-index that is none
    data = card.data.to_dict()
    known = {"library_name", "license", "tags", "datasets", "model-index", "model_name"}
    assert set(data) <= known
    assert data["library_name"] == "rerankzoo"
    assert data["license"] in ("apache-2.0", "other")
    assert (data["license"] == "other") == ("Licence of the data" in card.content)
    assert {"reranking", "recommender-systems"} <= set(data["tags"])
    assert all(isinstance(tag, str) for tag in data["tags"])
    for result in card.data.eval_results or []:
        assert (result.task_type, result.task_name) == ("reranking", "List re-ranking")
        assert result.dataset_type
        assert result.metric_type
        assert math.isfinite(result.metric_value)


@pytest.mark.parametrize("path", CARDS, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert all((path.parent / link).is_file() for link in local)


@pytest.mark.parametrize("path", CARDS, ids=name)
def test_a_card_without_results_says_so(path: Path) -> None:
    card = ModelCard.load(path)
    assert bool(card.data.eval_results) == (path.parent in TRAINED)
    assert bool(card.data.eval_results) != ("Recipe only: not trained here" in card.content)


@pytest.mark.parametrize("folder", TRAINED, ids=name)
def test_a_card_says_what_its_files_say(folder: Path, tmp_path: Path) -> None:
    root = ROOT / folder.relative_to(ROOT).parts[0]
    copy = shutil.copytree(root, tmp_path / root.name) / folder.relative_to(root)
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    assert write_card(copy, details(folder)).read_text(encoding="utf-8") == text
    results = json.loads((copy / RESULTS_FILE).read_text(encoding="utf-8"))
    for row in results["rows"]:
        row["metrics"] = {metric: value + 0.01 for metric, value in row["metrics"].items()}
    (copy / RESULTS_FILE).write_text(json.dumps(results), encoding="utf-8")
    assert write_card(copy, details(folder)).read_text(encoding="utf-8") != text


@pytest.mark.parametrize("folder", TRAINED, ids=name)
def test_a_card_tells_all_that_is_asked_of_it(folder: Path) -> None:
    text = (folder / CARD_FILE).read_text(encoding="utf-8")
    heads = ["Model", "Features", "Training", "Results", "Use and limits", "Citation"]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == (
        heads if "/" in name(folder) else [*heads[:4], "Latency", *heads[4:]]
    )
    assert "| upstream | sort |" in text
    assert ("| oracle | pointwise |" in text) == ("simulator" in name(folder))
    assert re.search(r"one run, seed \d|over \d runs, seeds", text)


def test_there_is_nothing_but_text_without_places_of_a_machine() -> None:
    for path in ROOT.rglob("*.*"):
        if path.suffix == ".safetensors":
            assert path.stat().st_size < 1_000_000, path
            continue
        assert path.suffix in (".md", ".json", ".yaml") or path.name == "modeling_rerankzoo.py", path
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\s\"'](/(?!>)\w+)+/", text), path


EXAMPLES = sorted(path.parent for path in ROOT.glob("*/model.safetensors"))


@pytest.mark.parametrize("folder", EXAMPLES, ids=name)
def test_an_example_is_what_its_card_says(folder: Path) -> None:
    """Its weights, on the test requests of its world, reach the figure of the card."""
    assert example(folder.name) == folder
    pipeline = RerankingPipeline.from_pretrained(example(folder.name), evaluator=True)
    about = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["data"]
    simulator = Simulator.from_metadata(about)
    assert simulator is not None
    requests = simulator.requests("test", about["rows"]["test"])
    users, items = requests["user_id"].to_numpy(), np.array(requests["item_id"].to_pylist())
    slates = np.array([[[item["index"] for item in slate]] for slate in pipeline(requests)])
    best = simulator.all_utilities(users, items, slates.shape[-1]).max(axis=1)
    reached = (simulator.expected_utility(users, items, slates)[:, 0] / best).mean()
    told = next(  # the first decoding is the default
        result.metric_value
        for result in ModelCard.load(folder / CARD_FILE).data.eval_results or []
        if result.metric_type == "utility"
    )
    assert reached == pytest.approx(told, abs=0.003)  # a choice between near equals may fall otherwise elsewhere


@pytest.mark.parametrize("folder", EXAMPLES, ids=name)
def test_an_example_has_requests_that_it_takes(folder: Path) -> None:
    pipeline = RerankingPipeline.from_pretrained(folder, evaluator=True)
    requests = json.loads((folder / "requests.json").read_text(encoding="utf-8"))
    slates = pipeline(requests, num_beams=4, num_return_sequences=4)
    assert [len(slate) for slate in slates] == [4] * len(requests)


def test_the_wheel_has_the_examples() -> None:
    included = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = included["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {f"model_cards/{folder.name}" for folder in EXAMPLES} == {key for key in shipped if key != "recipes"}
    assert all(target == f"rerankzoo/{source}" for source, target in shipped.items())


def test_no_such_example() -> None:
    with pytest.raises(FileNotFoundError, match=r"no example 'degre-simulater'; did you mean 'degre-simulator'\?"):
        example("degre-simulater")
