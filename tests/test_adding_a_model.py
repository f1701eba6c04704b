"""The models of docs/adding-a-model.md pass the common suite, and their recipes train them.

Their files are written to a temporary folder, which is then a part of `rerankzoo.models`; the test classes among them
are collected here.
"""

from __future__ import annotations

import runpy
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch

import rerankzoo.models
from qa.family_files import edited_files, page_files
from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule, SimulatorDataModule
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator
from rerankzoo.training import RerankingModule
from tests.models.common import ModelTestSuite, trainer

SMALL = {"num_train": 64, "num_validation": 32, "num_test": 32}
FILES = page_files()
RECIPES = sorted(path for path in FILES if path.startswith("recipes/"))
_TEMPORARY = tempfile.TemporaryDirectory(prefix="adding-a-model-")
FOLDER = Path(_TEMPORARY.name)

for _name, _text in FILES.items():
    (FOLDER / _name).parent.mkdir(parents=True, exist_ok=True)
    (FOLDER / _name).write_text(_text, encoding="utf-8")
rerankzoo.models.__path__.append(str(FOLDER / "rerankzoo/models"))
FAMILIES = sorted({Path(path).parent.name for path in FILES if path.startswith("rerankzoo/models/")})
for _name in FAMILIES:
    import_module(f"rerankzoo.models.{_name}")
SUITES: dict[str, Any] = {
    name: suite
    for path in sorted(FOLDER.glob("tests/models/test_*.py"))
    for name, suite in runpy.run_path(str(path)).items()
    if name.startswith("Test")
}
globals().update(SUITES)


def test_every_model_has_a_row_in_the_common_suite() -> None:
    assert SUITES
    assert all(issubclass(suite, ModelTestSuite) for suite in SUITES.values())
    assert sorted(suite.model_class.config_class.model_type for suite in SUITES.values()) == FAMILIES


def test_a_family_is_at_most_ten_files() -> None:
    assert 5 < len(edited_files("toy")) <= 10


def save_evaluator(extractor: RerankingFeatureExtractor, folder: Path) -> None:
    torch.manual_seed(0)
    config = DeGReConfig(feature_schema=extractor.schema.to_dict(), slate_size=4, hidden_size=32, num_hidden_layers=1)
    DeGReEvaluator(config).save_pretrained(folder)
    extractor.save_pretrained(folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(FOLDER))
    data = SimulatorDataModule(**SMALL)
    data.prepare_data()
    extractor = RerankingFeatureExtractor(FeatureSchema.from_yaml(Path(data.path) / "schema.yaml"))
    extractor.fit(pq.read_table(Path(data.path) / "train.parquet"))
    save_evaluator(extractor, tmp_path / "outputs/quickstart/degre-evaluator")
    small = [f"--data.init_args.{name}={value}" for name, value in SMALL.items()]
    command = ["fit", f"--config={FOLDER / recipe}", *small, "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    assert main([*command, "--trainer.default_root_dir=run"]) == 0
    assert (tmp_path / "run/best/model.safetensors").is_file()


class DrawnValues(L.Callback):
    """What the evaluator says of the slates drawn for the validation split, before training and after every epoch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.values.append(float(trainer.callback_metrics["val/value"]))


def test_a_model_that_imitates_its_best_slates_draws_better_ones(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    objective_class = import_module("best_of_drawn").BestOfDrawn
    data = RerankingDataModule(str(data_folder), batch_size=8)
    data.prepare_data()
    data.setup("fit")
    save_evaluator(data.extractor, tmp_path / "evaluator")
    objective = objective_class(str(tmp_path / "evaluator"), num_slates=16)
    config = SUITES["TestEchoForReranking"].config_values
    module = RerankingModule("EchoForReranking", config, objective=objective, learning_rate=0.01, warmup_steps=1)
    seen = DrawnValues()
    trainer(tmp_path, max_epochs=30, num_sanity_val_steps=-1, callbacks=[seen]).fit(module, datamodule=data)
    assert seen.values[-1] > seen.values[0] + 0.05 * abs(seen.values[0])
