"""Checkpoints that earlier commits wrote load and answer the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

import rerankzoo
from rerankzoo.models.auto import AutoModelForReranking
from tests.checkpoints.make import MODELS, answers

KEPT = sorted(folder for folder in Path(__file__).parent.iterdir() if (folder / "answers.json").is_file())
CHECKPOINTS = [(folder, name) for folder in KEPT for name in MODELS]
checkpoints = pytest.mark.parametrize(("folder", "name"), CHECKPOINTS, ids=lambda value: getattr(value, "name", value))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same(actual: Any, expected: Any, place: str) -> None:
    """Equal, real numbers to 1e-5."""
    if isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5), place
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), place
        for key, value in expected.items():
            assert_same(actual[key], value, f"{place}[{key!r}]")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), place
        for index, value in enumerate(expected):
            assert_same(actual[index], value, f"{place}[{index}]")
    else:
        assert actual == expected, place


def test_there_are_checkpoints() -> None:
    assert KEPT


@checkpoints
def test_checkpoint_answers_as_when_it_was_written(folder: Path, name: str) -> None:
    expected = read(folder / "answers.json")[name]
    assert_same(answers(folder, name, read(folder / "requests.json")), expected, name)


@checkpoints
def test_files_of_a_checkpoint_load_and_fit_together(folder: Path, name: str) -> None:
    config = AutoConfig.from_pretrained(folder / name)
    extractor = AutoFeatureExtractor.from_pretrained(folder / name)
    class_name, config_name, values = MODELS[name]
    assert type(config) is getattr(rerankzoo, config_name)
    assert {key: getattr(config, key) for key in values} == values
    assert config.schema == extractor.schema
    auto = AutoModel if name.endswith("evaluator") else AutoModelForReranking
    model, report = auto.from_pretrained(folder / name, output_loading_info=True)
    assert type(model) is getattr(rerankzoo, class_name)
    assert not any(report.values()), report
    model.check_schema(extractor.schema)
