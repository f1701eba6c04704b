"""The reviewed cards in `model_cards/`: valid metadata, links that lead somewhere, no figures without a source."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

CARDS = sorted((Path(__file__).parents[1] / "model_cards").glob("*.md"))


def test_there_are_cards() -> None:
    assert CARDS


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_metadata_is_valid(path: Path) -> None:
    data = ModelCard.load(path).data
    assert data.library_name == "rerankzoo"
    assert data.license == "apache-2.0"
    assert "rerankzoo" in data.tags


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert local
    assert all((path.parent / link).is_file() for link in local)


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_a_card_without_results_says_so(path: Path) -> None:
    card = ModelCard.load(path)
    assert bool(card.data.eval_results) != ("Recipe only: not trained here" in card.content)
