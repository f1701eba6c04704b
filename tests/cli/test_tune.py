"""A search finds the best of its trials, writes it as a recipe, and goes on where it was stopped."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rerankzoo.cli import tune as tune_module
from rerankzoo.cli.main import main
from rerankzoo.cli.tune import BEST_FILE, PLOT_FILE, TABLE_FILE, read_space
from rerankzoo.errors import RecipeError

optuna = pytest.importorskip("optuna")

SPACE = """
model.init_args.learning_rate: {low: 0.0001, high: 0.01, log: true}
model.init_args.config.hidden_size: {choices: [4, 8]}
model.init_args.config.num_hidden_layers: {low: 1, high: 2}
"""
QUICK = [
    *("--data.init_args.num_train=60", "--data.init_args.num_validation=20", "--data.init_args.num_test=8"),
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    path = tmp_path / "space.yaml"
    path.write_text(SPACE, encoding="utf-8")
    return path


def search(space: Path, out: Path, *options: str) -> int:
    return main(["tune", "pointwise/simulator.yaml", "--space", str(space), "--out", str(out), *options, *QUICK])


def values(out: Path) -> list[float]:
    rows = (out / TABLE_FILE).read_text(encoding="utf-8").splitlines()[2:]
    return [float(re.sub(r"\*", "", row.split(" | ")[1])) for row in rows]


def test_search_goes_on_and_writes_the_best_recipe(
    space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "search"
    assert search(space, out, "--trials=2") == 0
    assert len(values(out)) == 2
    trained: list[dict[str, object]] = []
    original = tune_module._Search.train

    def killed(self: tune_module._Search, settings: dict[str, object]) -> float:
        trained.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune_module._Search, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        search(space, out, "--trials=4")

    def recorded(self: tune_module._Search, settings: dict[str, object]) -> float:
        trained.append(settings)
        return original(self, settings)

    monkeypatch.setattr(tune_module._Search, "train", recorded)
    assert search(space, out, "--trials=4") == 0
    assert trained[0] == trained[1]  # what was stopped is done first
    assert len(trained) == 3
    found = values(out)
    assert found == sorted(found)
    assert len(found) == 4
    best = yaml.safe_load((out / BEST_FILE).read_text(encoding="utf-8"))
    study = optuna.load_study(study_name="rerankzoo", storage=f"sqlite:///{out / 'study.db'}")
    assert best["model"]["init_args"]["learning_rate"] == study.best_params["model.init_args.learning_rate"]
    assert best["model"]["init_args"]["config"]["slate_size"] == 4  # the recipe's own
    assert best["trainer"]["max_epochs"] == 2
    assert (out / PLOT_FILE).read_bytes()[:4] == b"\x89PNG"
    again = ["fit", "--config", str(out / BEST_FILE), f"--trainer.default_root_dir={tmp_path / 'again'}"]
    assert main(again) == 0
    assert (tmp_path / "again/best/model.safetensors").is_file()


def test_search_of_another_space_is_refused(space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert search(space, tmp_path / "out", "--trials=1") == 0
    space.write_text("model.init_args.learning_rate: {low: 0.1, high: 0.2}", encoding="utf-8")
    assert search(space, tmp_path / "out", "--trials=1") == 2
    assert f"field 'space': {tmp_path / 'out'} was begun with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold keys of the recipe"),
        ("a.b: 3", "a.b: expected choices, or low and high, got 3"),
        ("a.b: {choice: [1, 2]}", "a.b.choice: unknown key; did you mean 'choices'?"),
        ("a.b: {choices: [1]}", "a.b: expected a list of choices alone"),
        ("a.b: {low: 2, high: 1}", "a.b: expected numbers low < high, got 2 and 1"),
        ("a.b: {low: 2}", "a.b: expected numbers low < high, got 2 and None"),
        ("a.b: {low: false, high: true}", "a.b: expected numbers low < high"),
    ],
)
def test_spaces_that_are_invalid(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(message)):
        read_space(path)


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ("model.init_args.learning_rat: {low: 0.1, high: 0.2}", [], "learning_rat"),
        (SPACE, ["--metric=val/los", "--trials=1"], "val/los"),
    ],
)
def test_wrong_keys_and_metrics_end_it(
    line: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(line, encoding="utf-8")
    assert search(path, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_trials_on_ray(space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert search(space, tmp_path / "out", "--trials=3", "--workers=2") == 0
    assert len(values(tmp_path / "out")) == 3
