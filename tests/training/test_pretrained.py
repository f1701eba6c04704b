"""A run that starts from a checkpoint has its weights, and says what it cannot have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rerankzoo.atomic_writing import CHECKSUMS_FILE
from rerankzoo.cli.main import main
from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.simulator import SimulatorSettings, write_simulator_folder
from rerankzoo.errors import HubError, RerankingDataError, SchemaMismatchError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.models.base import RerankingConfig
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.training import RerankingModule
from rerankzoo.training.callbacks import save_checkpoint_folder
from rerankzoo.training.initial_weights import copy_modules
from tests.families import CONFIGS
from tests.training.test_module import TINY, trainer

DEGRE = {**TINY, "field_size": 8, "num_hidden_layers": 1, "num_decoder_layers": 1}


@pytest.fixture(scope="module")
def fitted(data_folder: Path) -> RerankingFeatureExtractor:
    data = RerankingDataModule(str(data_folder))
    data.setup()
    return data.extractor


def save(folder: Path, kind: Any, config: Any, extractor: RerankingFeatureExtractor, **generation: Any) -> str:
    """A checkpoint of an untrained model."""
    torch.manual_seed(1)
    model = kind(config)
    if generation:
        model.generation_config = model.generation_config_class(**generation)
    save_checkpoint_folder(folder, model, extractor)
    return str(folder)


@pytest.fixture(scope="module")
def generator(fitted: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> str:
    """With sizes and a threshold of its own, decoding with 2 beams."""
    values = {**DEGRE, "utility_threshold": 7.0, "soft_label_weight": 0.3, "feature_schema": fitted.schema.to_dict()}
    return save(tmp_path_factory.mktemp("g") / "best", DeGReGenerator, DeGReConfig(**values), fitted, num_beams=2)


@pytest.fixture(scope="module")
def evaluator(fitted: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> str:
    config = DeGReConfig(**{**DEGRE, "num_hidden_layers": 2, "feature_schema": fitted.schema.to_dict()})
    return save(tmp_path_factory.mktemp("e") / "best", DeGReEvaluator, config, fitted)


def started(data_folder: Path, folder: Path, architecture: str = "DeGReGenerator", **arguments: Any) -> Any:
    """The model of a run before its first step."""
    module = RerankingModule(architecture, **arguments)
    trainer(folder).validate(module, datamodule=RerankingDataModule(str(data_folder)), verbose=False)
    assert module.model is not None
    return module.model


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    state = found.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(state[name], value), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_name_fields_that_they_have(kind: type[RerankingConfig]) -> None:
    assert kind.training_fields | kind.measured_fields <= set(kind.own_fields())


# --- the whole model ------------------------------------------------------------------------------------------------


def test_whole_model_has_weights_config_and_decoding(data_folder: Path, tmp_path: Path, generator: str) -> None:
    model = started(data_folder, tmp_path, pretrained=generator)
    source = DeGReGenerator.from_pretrained(generator)
    assert_same(model, source)
    for name in DEGRE:
        assert getattr(model.config, name) == getattr(source.config, name)
    assert model.config.soft_label_weight == 0.3
    assert model.generation_config.num_beams == 2


def test_training_may_differ_and_the_log_is_measured_anew(data_folder: Path, tmp_path: Path, generator: str) -> None:
    config = {"hard_label_weight": 0.5, "hidden_dropout_prob": 0.25, "hidden_size": 16, "utility_quantile": 0.8}
    model = started(data_folder, tmp_path, pretrained=generator, config=config, generation={"penalty_alpha": 0.1})
    assert {name: getattr(model.config, name) for name in config} == config
    assert model.config.soft_label_weight == 0.3
    data = RerankingDataModule(str(data_folder))
    data.setup()
    assert model.config.utility_threshold == data.utility_quantile(0.8)  # not the checkpoint's 7
    assert model.generation_config.strategy == "contrastive"
    assert_same(model, DeGReGenerator.from_pretrained(generator))


@pytest.mark.parametrize(("name", "value", "kept"), [("hidden_size", 32, 16), ("slate_size", 6, 4)])
def test_the_network_may_not_differ(
    data_folder: Path, tmp_path: Path, generator: str, name: str, value: int, kept: int
) -> None:
    with pytest.raises(RerankingDataError, match=rf"config\.{name}.*{value} is asked for.*has {kept}"):
        started(data_folder, tmp_path, pretrained=generator, config={name: value})


def test_other_classes_are_refused(
    data_folder: Path, tmp_path: Path, evaluator: str, fitted: RerankingFeatureExtractor
) -> None:
    with pytest.raises(RerankingDataError, match=r"DeGReEvaluator, this is a DeGReGenerator.*pretrained_modules"):
        started(data_folder, tmp_path, pretrained=evaluator)
    config = NAR4RecConfig(**TINY, feature_schema=fitted.schema.to_dict())
    other = save(tmp_path / "nar4rec", NAR4RecForReranking, config, fitted)
    for modules in (None, ["pointer"]):
        with pytest.raises(RerankingDataError, match="not of the same family"):
            started(data_folder, tmp_path, pretrained=other, pretrained_modules=modules, config=DEGRE)


def test_another_extractor_is_refused_with_a_hint(
    data_folder: Path, schema: FeatureSchema, rows: Any, tmp_path: Path
) -> None:
    extractor = RerankingFeatureExtractor(schema).fit(rows)
    config = DeGReConfig(**DEGRE, feature_schema=extractor.schema.to_dict())
    path = save(tmp_path / "other", DeGReGenerator, config, extractor)
    with pytest.raises(SchemaMismatchError, match=f"'item_id' has other ids.*--data.init_args.extractor {path}, "):
        started(data_folder, tmp_path, pretrained=path)
    module = RerankingModule("DeGReGenerator", pretrained=path)
    data = RerankingDataModule(str(data_folder), extractor=path)
    trainer(tmp_path).validate(module, datamodule=data, verbose=False)
    assert_same(module.model, DeGReGenerator.from_pretrained(path))  # type: ignore[arg-type]


def test_damaged_and_missing_checkpoints_are_refused(data_folder: Path, tmp_path: Path, generator: str) -> None:
    with pytest.raises(HubError, match="cannot load"):
        started(data_folder, tmp_path, pretrained=str(tmp_path))
    folder = tmp_path / "damaged"
    shutil.copytree(generator, folder)
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("positions.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / CHECKSUMS_FILE).unlink()
    with pytest.raises(HubError, match=r"missing keys positions\.weight"):
        started(data_folder, tmp_path, pretrained=str(folder))
    (folder / "model.safetensors").unlink()
    torch.save({**weights, "positions.weight": lost}, folder / "pytorch_model.bin")
    with pytest.raises(HubError, match="safetensors"):  # a pickle is not opened
        started(data_folder, tmp_path, pretrained=str(folder))


# --- parts of it ----------------------------------------------------------------------------------------------------


def test_only_the_named_modules_are_taken(data_folder: Path, tmp_path: Path, evaluator: str) -> None:
    source = DeGReEvaluator.from_pretrained(evaluator)
    torch.manual_seed(0)
    given = {"pretrained": evaluator, "pretrained_modules": ["item_encoder"], "config": DEGRE}
    model = started(data_folder, tmp_path, **given)
    assert_same(model.item_encoder, source.item_encoder)
    assert model.config.num_hidden_layers == 1  # the recipe's, the evaluator has 2
    assert not torch.equal(model.positions.weight, source.positions.weight)
    given["pretrained_modules"] = ["item_encoder.fields", "positions"]
    model = started(data_folder, tmp_path, **given)
    assert_same(model.item_encoder.fields, source.item_encoder.fields)
    assert_same(model.positions, source.positions)
    own, other = (part.item_encoder.candidate_projection.weight for part in (model, source))
    assert not torch.equal(own, other)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("item_enkoder", r"DeGReEvaluator has no module 'item_enkoder'; it has \['item_encoder', 'layers', 'norm', "),
        ("layers", r"DeGReGenerator has no module 'layers'; it has \['decoder_layers', .*'item_encoder', "),
        ("", "has no module ''"),
    ],
)
def test_unknown_modules_are_refused(
    data_folder: Path, tmp_path: Path, evaluator: str, module: str, message: str
) -> None:
    with pytest.raises(RerankingDataError, match=message):
        started(data_folder, tmp_path, pretrained=evaluator, pretrained_modules=[module], config=DEGRE)


def test_widths_must_agree(data_folder: Path, tmp_path: Path, evaluator: str) -> None:
    config = {**DEGRE, "hidden_size": 32}
    message = r"item_encoder: tensor 'candidate_projection.bias' is \[16\] in the checkpoint and \[32\] in the model"
    with pytest.raises(RerankingDataError, match=message):
        started(data_folder, tmp_path, pretrained=evaluator, pretrained_modules=["item_encoder"], config=config)


def test_nothing_is_copied_where_a_tensor_does_not_fit() -> None:
    source, target = (nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, size)}) for size in (2, 3))
    before: dict[str, Tensor] = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(RerankingDataError, match=r"b: tensor 'bias' is \[2\] in the checkpoint and \[3\]"):
        copy_modules(source, target, ["a", "b"])
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    with pytest.raises(RerankingDataError, match=r"'0\.weight' is missing in the checkpoint"):
        copy_modules(nn.ModuleDict({"a": nn.ReLU()}), nn.ModuleDict({"a": nn.Sequential(nn.Linear(1, 1, False))}), "a")


def test_modules_need_a_checkpoint() -> None:
    for pretrained, modules in ((None, ["item_encoder"]), ("somewhere", [])):
        with pytest.raises(ValueError, match="give both, or neither"):
            RerankingModule("DeGReGenerator", pretrained=pretrained, pretrained_modules=modules)
    with pytest.raises(ValueError, match=r"no fields \['hiden_size'\]"):
        RerankingModule("DeGReGenerator", {"hiden_size": 16}, pretrained="somewhere")


# --- afterwards the checkpoint is not needed ------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [None, ["item_encoder"]])
def test_lightning_checkpoint_loads_without_it(
    data_folder: Path, tmp_path: Path, generator: str, modules: list[str] | None
) -> None:
    copy = shutil.copytree(generator, tmp_path / "gone")
    module = RerankingModule(
        "DeGReGenerator", {} if modules is None else DEGRE, pretrained=str(copy), pretrained_modules=modules
    )
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=RerankingDataModule(str(data_folder)))
    run.save_checkpoint(tmp_path / "run.ckpt")
    shutil.rmtree(copy)
    loaded = RerankingModule.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu", weights_only=True)
    assert_same(loaded.model, module.model)  # type: ignore[arg-type]
    assert loaded.model.config.to_dict() == module.model.config.to_dict()  # type: ignore[union-attr]
    assert loaded.model.generation_config.num_beams == (2 if modules is None else None)  # type: ignore[union-attr]
    more = trainer(tmp_path, max_epochs=2)
    more.fit(loaded, datamodule=RerankingDataModule(str(data_folder)), ckpt_path=tmp_path / "run.ckpt")
    assert more.current_epoch == 2


# --- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Options of the generator's recipe on tiny data, and a checkpoint with the recipe's sizes."""
    folder = tmp_path_factory.mktemp("simulated")
    write_simulator_folder(folder / "data", SimulatorSettings(), num_train=64, num_validation=16, num_test=16)
    data = RerankingDataModule(str(folder / "data"))
    data.setup()
    recipe = recipes_folder() / "degre" / "generator-simulator.yaml"
    values = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]["init_args"]["config"]
    config = DeGReConfig(**values, feature_schema=data.extractor.schema.to_dict())
    save(folder / "best", DeGReGenerator, config, data.extractor)
    options = [
        f"--config={recipe}",
        f"--config={recipes_folder() / 'trainer/cpu.yaml'}",
        f"--data.init_args.path={folder / 'data'}",
        "--data.init_args.batch_size=16",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.max_steps=-1",
    ]
    return options, folder / "best"


STILL = "--model.init_args.learning_rate=0"  # so that the weights at the end are those at the start


def assert_close(found: Path, expected: Path) -> None:
    """The same weights, but for the rounding of the average over training steps."""
    state = load_file(found / "model.safetensors")
    for name, value in load_file(expected / "model.safetensors").items():
        torch.testing.assert_close(state[name], value, msg=name)


def test_fit_starts_from_a_folder_and_resumes_without_it(
    simulated: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, best = simulated
    copy = shutil.copytree(best, tmp_path / "gone")
    command = ["fit", *options, f"--trainer.default_root_dir={tmp_path}", f"--model.init_args.pretrained={copy}"]
    assert main([*command, STILL, "--trainer.max_epochs=1"]) == 0
    assert_close(tmp_path / "best", best)
    shutil.rmtree(copy)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert main([*command, "--trainer.max_epochs=2", f"--ckpt_path={last}"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 2 * 4  # 64 rows in batches of 16
    assert main([*command, "--trainer.max_epochs=1"]) == 2
    assert f"cannot load {copy}" in capsys.readouterr().err


# --- the evaluator that a generator carries with it -----------------------------------------------------------------


def test_a_guide_comes_with_its_weights_and_stays(data_folder: Path, tmp_path: Path, evaluator: str) -> None:
    teacher = DeGReEvaluator.from_pretrained(evaluator)
    copied = tmp_path / "evaluator"
    shutil.copytree(evaluator, copied)
    module = RerankingModule("DeGReGenerator", {**DEGRE, "slate_size": 4}, guide=str(copied))
    run = trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    run.fit(module, datamodule=RerankingDataModule(str(data_folder), extractor=str(copied)))
    assert module.model.config.guide["architectures"] == ["DeGReEvaluator"]
    assert_same(module.model.guide.evaluator, teacher)
    run.save_checkpoint(tmp_path / "run.ckpt")
    shutil.rmtree(copied)
    loaded = RerankingModule.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu", weights_only=True)
    assert_same(loaded.model, module.model)
    resumed = RerankingModule("DeGReGenerator", **{k: loaded.hparams[k] for k in ("config", "guide")})
    data = RerankingDataModule(str(data_folder), extractor=evaluator)
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(resumed, datamodule=data, ckpt_path=tmp_path / "run.ckpt")
    assert_same(resumed.model.guide.evaluator, teacher)


def test_guides_are_evaluators_of_the_same_data(
    data_folder: Path, tmp_path: Path, generator: str, make_rows: Any, schema: FeatureSchema
) -> None:
    with pytest.raises(ValueError, match="PRMForReranking carries no evaluator with it"):
        RerankingModule("PRMForReranking", guide="somewhere")
    with pytest.raises(HubError, match="evaluator"):
        started(data_folder, tmp_path, config=DEGRE, guide=generator)
    stranger = RerankingFeatureExtractor(schema).fit(make_rows(seed=9, sizes=(5, 5)))
    config = DeGReConfig(**{**DEGRE, "feature_schema": stranger.schema.to_dict()})
    other = save(tmp_path / "other", DeGReEvaluator, config, stranger)
    with pytest.raises(SchemaMismatchError, match=r"guide .*other does not fit the data"):
        started(data_folder, tmp_path, config=DEGRE, guide=other)
