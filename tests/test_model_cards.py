"""The reviewed cards in `model_cards/`: valid metadata, links that lead somewhere, no figures without a source."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rerankzoo.hub.card import CARD_FILE, RESULTS_FILE, CardDetails, write_card

ROOT = Path(__file__).parents[1] / "model_cards"
CARDS = sorted(path for path in ROOT.rglob(CARD_FILE) if path.parent != ROOT)
#: Folders with what the card of a trained checkpoint is rendered from.
TRAINED = sorted(path.parent for path in ROOT.rglob(RESULTS_FILE))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix().removesuffix(f"/{CARD_FILE}")


def details(folder: Path) -> CardDetails:
    """What `rerankzoo card` was told beside the licence and the name, which it finds in the card."""
    return CardDetails(repo_id=f"ORG/{folder.relative_to(ROOT).parts[0]}")


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
        assert path.suffix in (".md", ".json", ".yaml"), path
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"[\s\"'](/(?!>)\w+)+/", text), path
