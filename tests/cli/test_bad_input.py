"""Whatever a command is given, it answers with one line and status 2: no traceback, no page of options."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch  # noqa: F401  (makes its log handlers, which a fixture takes away)
import pytest
import torch
import yaml

from rerankzoo import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from rerankzoo.cli.main import main
from rerankzoo.features import RerankingFeatureExtractor

RECIPE: dict[str, Any] = {
    "model": {
        "class_path": "rerankzoo.RerankingModule",
        "init_args": {"architecture": "NAR4RecForReranking", "config": {"hidden_size": 16}, "learning_rate": 0.01},
    },
    "data": {"class_path": "rerankzoo.RerankingDataModule", "init_args": {"path": "DATA", "batch_size": 8}},
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
}
DELETE = object()


@pytest.fixture(autouse=True)
def lightning_logs_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handler keeps the stream of the test that imported it first."""
    monkeypatch.setattr(logging.getLogger("lightning.fabric"), "handlers", [logging.NullHandler()])
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "handlers", [logging.NullHandler()])


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command answers with."""
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    error = "\n".join(line for line in error.splitlines() if not line.startswith("mining "))  # the progress
    assert len(error.splitlines()) == 1, error
    assert error.startswith(f"rerankzoo {arguments[0]}: ")
    return error


def changed(key: str, value: Any) -> dict[str, Any]:
    """The recipe with another value (or none) at a key such as `trainer.max_epochs`."""
    recipe = copy.deepcopy(RECIPE)
    *path, last = key.split(".")
    section = recipe
    for part in path:
        section = section.setdefault(part, {})
    if value is DELETE:
        del section[last]
    else:
        section[last] = value
    return recipe


# key of the recipe, its value, words of the answer
BAD_KEYS: list[tuple[str, Any, list[str]]] = [
    ("foo", 3, ["option 'foo'"]),
    ("trainer.max_epoch", 3, ["'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
    ("trainer.max_epochs", "many", ["trainer.max_epochs", "<class 'int'>", "Got value: many"]),
    ("trainer.accelerator", "abacus", ["accelerator='abacus'"]),
    ("trainer.devices", -3, ["devices"]),
    ("trainer.precision", "12", ["trainer.precision", "Expected one of", "16-mixed", "Got value: 12"]),
    ("trainer", [1, 2], ["trainer must hold keys, got [1, 2]"]),
    ("trainer.callbacks", [{"class_path": "lightning.pytorch.callbacks.Nope"}], ["trainer.callbacks", "'Nope'"]),
    ("trainer.callbacks", [{"class_path": "os.system"}], ["trainer.callbacks", "os.system"]),
    (
        "trainer.callbacks",
        [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"deca": 1}}],
        ["trainer.callbacks", "'deca'", "did you mean 'decay'?"],
    ),
    ("early_stopping.patience", "x", ["early_stopping.patience", "<class 'int'>", "Got value: x"]),
    ("early_stopping.patienc", 3, ["'early_stopping.patienc'", "did you mean 'early_stopping.patience'?"]),
    ("checkpoint", 3, ["checkpoint must hold keys, got 3"]),
    ("hub.repo_id", [1], ["hub.repo_id", "<class 'str'>", "Got value: [1]"]),
    ("wandb", "x", ["wandb", "<class 'bool'>", "Got value: x"]),
    ("seed_everything", "x", ["seed_everything", "<class 'int'>", "Got value: x"]),
    ("model", DELETE, ["required: ", "model"]),
    ("model", 3, ["model", "subclass of RerankingModule", "Got value: 3"]),
    ("model.class_path", "os.system", ["model", "Import path os.system", "subclass of RerankingModule"]),
    ("model.class_path", "no.such.module", ["model", "no.such.module"]),
    ("model.init_args.architecture", DELETE, ["RerankingModule", "required: architecture"]),
    ("model.init_args.architecture", "NAR4RecReranker", ["is not one of", "did you mean 'NAR4RecForReranking'?"]),
    ("model.init_args.learning_rat", 1, ["RerankingModule", "'learning_rat'", "did you mean 'learning_rate'?"]),
    (
        "model.init_args.learning_rate",
        "fast",
        ["RerankingModule", "learning_rate", "<class 'float'>", "Got value: fast"],
    ),
    ("model.init_args.lr_scheduler_type", "zigzag", ["lr_scheduler_type", "zigzag"]),
    ("model.init_args.config", [1], ["RerankingModule", "config", "dict", "Got value: [1]"]),
    ("model.init_args.config.hidden_siz", 8, ["NAR4RecConfig has no fields ['hidden_siz']"]),
    ("model.init_args.config.hidden_size", "wide", ["hidden_size", "wide"]),
    ("model.init_args.config.hidden_size", 15, ["hidden_size 15 is not a multiple"]),
    ("model.init_args.config.utility_quantile", 7, ["utility_quantile", "got 7"]),
    ("model.init_args.generation", {"beams": 2}, ["beams"]),
    ("model.init_args.pretrained", "no/such/folder", ["no/such/folder"]),
    ("model.init_args.freeze", ["nothing"], ["nothing"]),
    ("data", DELETE, ["required: ", "data"]),
    ("data.init_args", [1], ["data", "RerankingDataModule", "'list'"]),
    ("data.init_args.batch_siz", 8, ["RerankingDataModule", "'batch_siz'", "did you mean 'batch_size'?"]),
    ("data.init_args.batch_size", 2.5, ["RerankingDataModule", "batch_size", "<class 'int'>", "Got value: 2.5"]),
    ("data.init_args.batch_size", 0, ["batch_size must be at least 1, got 0"]),
    ("data.init_args.path", "no/such/folder", ["no/such/folder"]),
    ("data.init_args.path", DELETE, ["RerankingDataModule", "required: path"]),
    ("data.init_args.extractor", "no/such/folder", ["no/such/folder"]),
    ("data.init_args.extend_extractor", True, ["extend_extractor needs an extractor"]),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD_KEYS)
def test_recipe(
    key: str, value: Any, words: list[str], data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = changed(key, value)
    text = yaml.safe_dump({**recipe, "trainer": recipe["trainer"]}).replace("DATA", str(data_folder))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    root = tmp_path / "run"
    answer = refuse(["fit", f"--config={tmp_path / 'recipe.yaml'}", f"--trainer.default_root_dir={root}"], capsys)
    for word in words:
        assert word in answer
    assert not list(root.rglob("*.ckpt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"model: [", ["recipe.yaml is invalid YAML", "line 1"]),
        (b"- 1\n- 2", ["recipe.yaml must hold keys", "[1, 2]"]),
        (b"", ["recipe.yaml must hold keys", "None"]),
        (b"model: \xff\xfe", ["recipe.yaml is invalid YAML"]),
        (b"model: " + b"[" * 1500, ["recipe.yaml is invalid YAML"]),
        (
            b"model: !!python/object/apply:os.system [echo]",
            ["recipe.yaml is invalid YAML", "python/object/apply:os.system"],
        ),
        (b"model: !!timestamp x", ["recipe.yaml is invalid YAML"]),
    ],
)
@pytest.mark.parametrize("command", ["fit", "benchmark"])
def test_file_that_is_no_recipe(
    command: str, text: bytes, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text)
    answer = refuse(["fit", "-c", str(path)] if command == "fit" else ["benchmark", str(path), "--out=x"], capsys)
    for word in words:
        assert word in answer or (command == "benchmark" and "must hold keys" in word)


@pytest.fixture(scope="module")
def checkpoint(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator with its evaluator in a subfolder."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoint")
    config = NAR4RecConfig(
        feature_schema=extractor.schema.to_dict(),
        slate_size=4,
        hidden_size=16,
        embedding_size=4,
        num_attention_heads=2,
        intermediate_size=16,
        utility_threshold=1.0,
    )
    for folder, model in ((root, NAR4RecForReranking), (root / "evaluator", NAR4RecEvaluator)):
        model(config).save_pretrained(folder)
        extractor.save_pretrained(folder)
    return root


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def copied(source: Path, target: Path, **files: bytes | str) -> str:
    """A copy of a folder with other content in some files, whose names have __ for their dot."""
    for path in source.iterdir():
        if path.is_file():
            write(target / path.name, path.read_bytes())
    for name, content in files.items():
        write(target / name.replace("__", "."), content)
    return str(target)


Case = Callable[[Path, Path, Path], list[str]]  # checkpoint, data folder, temporary folder -> command line

CASES: dict[str, Case] = {
    "no recipe": lambda model, data, folder: ["fit", "--config", str(folder / "nowhere.yaml")],
    "no arguments": lambda model, data, folder: ["fit"],
    "unknown option": lambda model, data, folder: ["fit", "--nonsense", "3"],
    "unknown subcommand option": lambda model, data, folder: ["predict", "--ckpt_path=nowhere.ckpt"],
    "no benchmark": lambda model, data, folder: ["benchmark", "nowhere.yaml", "--out", str(folder)],
    "a folder for a benchmark": lambda model, data, folder: ["benchmark", str(folder), "--out", str(folder)],
    "no model": lambda model, data, folder: ["evaluate", str(folder), "--data", str(data)],
    "no data": lambda model, data, folder: ["evaluate", str(model), "--data", str(folder)],
    "no split": lambda model, data, folder: ["evaluate", str(model), "--data", str(data), "--split", "train2"],
    "bad number": lambda model, data, folder: ["evaluate", str(model), "--data", str(data), "--penalty-alpha", "x"],
    "evaluator that is none": lambda model, data, folder: [
        *["evaluate", str(model), "--data", str(data), "--evaluator", copied(model, folder / "m")]
    ],
    "generator that is none": lambda model, data, folder: ["evaluate", str(model / "evaluator"), "--data", str(data)],
    "config that is invalid JSON": lambda model, data, folder: [
        *["evaluate", copied(model, folder / "m", config__json="{"), "--data", str(data)]
    ],
    "config of another kind": lambda model, data, folder: [
        *["evaluate", copied(model, folder / "m", config__json='{"model_type": "bert"}'), "--data", str(data)]
    ],
    "config without a type": lambda model, data, folder: [
        *["evaluate", copied(model, folder / "m", config__json="[1]"), "--data", str(data)]
    ],
    "weights cut off": lambda model, data, folder: [
        "evaluate",
        copied(model, folder / "m", model__safetensors=(model / "model.safetensors").read_bytes()[:-100]),
        *["--data", str(data)],
    ],
    "extractor that is invalid JSON": lambda model, data, folder: [
        *["evaluate", copied(model, folder / "m", preprocessor_config__json="x"), "--data", str(data)]
    ],
    "vocabulary cut off": lambda model, data, folder: [
        *["evaluate", copied(model, folder / "m", vocabularies__safetensors=b"x"), "--data", str(data)]
    ],
    "schema that is invalid YAML": lambda model, data, folder: [
        *["evaluate", str(model), "--data", copied(data, folder / "d", schema__yaml="a: [")]
    ],
    "dataset.json that is invalid JSON": lambda model, data, folder: [
        *["evaluate", str(model), "--data", copied(data, folder / "d", dataset__json="{")]
    ],
    "mine with a generator": lambda model, data, folder: [
        *["mine", "--evaluator", str(model), "--data", str(data), "--out", str(folder / "out")]
    ],
    "mine without data": lambda model, data, folder: [
        *["mine", "--evaluator", str(model / "evaluator"), "--data", str(folder), "--out", str(folder / "out")]
    ],
    "mine with a bad option": lambda model, data, folder: [
        *["mine", "--evaluator", str(model), "--data", str(data), "--out", str(folder), "--weight-temperature", "-1"]
    ],
    "mine on an abacus": lambda model, data, folder: [
        *["mine", "--evaluator", str(model), "--data", str(data), "--out", str(folder), "--accelerator", "abacus"]
    ],
    "export nothing": lambda model, data, folder: ["export", str(folder), "--format=onnx", f"--out={folder / 'o'}"],
    "export an evaluator": lambda model, data, folder: [
        *["export", str(model / "evaluator"), "--format=onnx", f"--out={folder / 'o'}"]
    ],
    "bench nothing": lambda model, data, folder: ["bench", str(folder)],
    "bench an evaluator": lambda model, data, folder: ["bench", str(model / "evaluator")],
    "bench a letter": lambda model, data, folder: ["bench", str(model), "--n", "x"],
    "card of nothing": lambda model, data, folder: ["card", str(folder)],
    "card of a broken config": lambda model, data, folder: ["card", copied(model, folder / "m", config__json="{")],
    "card with results that are none": lambda model, data, folder: [
        *["card", copied(model, folder / "m"), "--results", str(write(folder / "results.json", "[]"))]
    ],
    "push nothing": lambda model, data, folder: ["push", str(folder), "org/name"],
    "push to no name": lambda model, data, folder: ["push", str(model), "a/b/c"],
    "prepare from nothing": lambda model, data, folder: [
        *["prepare", "ml-100k", "--raw", str(folder / "raw"), "--out", str(folder / "out")]
    ],
    "prepare taobao from nothing": lambda model, data, folder: [
        *["prepare", "taobao-ad", "--raw", str(folder / "raw"), "--out", str(folder / "out")]
    ],
    "prepare too little": lambda model, data, folder: [
        *["prepare", "simulator", "--num-train", "0", "--out", str(folder / "out")]
    ],
    "quickstart with too little": lambda model, data, folder: [
        *["quickstart", "--num-train", "0", "--out", str(folder / "out")]
    ],
    "copy no recipe": lambda model, data, folder: ["recipes", "copy", "../../etc/passwd", str(folder)],
    "copy below a file": lambda model, data, folder: [
        *["recipes", "copy", "nar4rec/simulator.yaml", str(data / "schema.yaml" / "c.yaml")]
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_command(
    name: str, checkpoint: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = CASES[name](checkpoint, data_folder, tmp_path)
    print(refuse(arguments, capsys))
