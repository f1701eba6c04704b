"""A fine-tuned copy knows new ids, keeps what it knew, and trains what it is asked to."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from rerankzoo import RerankingPipeline
from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import write_data_folder
from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor
from rerankzoo.layers import PackedEmbedding
from rerankzoo.models.base import RerankingPreTrainedModel
from rerankzoo.models.degre import DeGReConfig, DeGReGenerator
from rerankzoo.training import PretrainedExport, RerankingModule
from rerankzoo.training.callbacks import save_checkpoint_folder
from rerankzoo.training.initial_weights import continued_weights, freeze_modules
from tests.families import HEADS
from tests.training.test_module import TINY, trainer
from tests.training.test_pretrained import DEGRE, assert_same

Rows = list[dict[str, Any]]

#: Two of the 20 items of the rows are replaced by ones before and after all others.
NEW_ITEMS = {3: -5, 7: 90}


def renewed(rows: Rows) -> Rows:
    """Rows with 10 % new item ids, and a new user in each second one."""
    return [
        {
            **row,
            "item_id": [NEW_ITEMS.get(item, item) for item in row["item_id"]],
            "past_items": [NEW_ITEMS.get(item, item) for item in row["past_items"]],
            "user_id": row["user_id"] + 50 * (number % 2),
        }
        for number, row in enumerate(rows)
    ]


def write(folder: Path, rows: Rows, schema: FeatureSchema) -> str:
    tables = dict.fromkeys(("train", "validation", "test"), pa.Table.from_pylist(rows))
    write_data_folder(folder, tables, schema, {"source": "test", "protocol": "random rows"})
    return str(folder)


@pytest.fixture(scope="module")
def new_rows(make_rows: Callable[..., Rows]) -> Rows:
    return renewed([row for seed in (0, 1) for row in make_rows(seed)])


@pytest.fixture(scope="module")
def new_folder(schema: FeatureSchema, new_rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("new-data"), new_rows, schema)


@pytest.fixture(scope="module")
def checkpoint(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained generator with its extractor."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("checkpoint") / "best"
    model = DeGReGenerator(DeGReConfig(**DEGRE, slate_size=4, feature_schema=extractor.schema.to_dict()))
    save_checkpoint_folder(folder, model, extractor)
    return str(folder)


def fine_tuned(folder: Path, data: str, checkpoint: str, *callbacks: Any, epochs: int = 1, **arguments: Any) -> Any:
    """The module after training."""
    module = RerankingModule("DeGReGenerator", pretrained=checkpoint, warmup_steps=0, **arguments)
    settings = {"max_epochs": epochs, "callbacks": list(callbacks), "enable_checkpointing": bool(callbacks)}
    run = trainer(folder, **settings)
    run.fit(module, datamodule=RerankingDataModule(data, 8, extractor=checkpoint, extend_extractor=True))
    return module


def embedding(model: RerankingPreTrainedModel) -> PackedEmbedding:
    (found,) = [part for part in model.modules() if isinstance(part, PackedEmbedding)]
    return found


# --- the embeddings -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS, ids=[head.__name__ for head in HEADS])
def test_every_model_says_the_same_of_known_ids(
    head: type[RerankingPreTrainedModel], extractor: RerankingFeatureExtractor, rows: Rows, new_rows: Rows
) -> None:
    longer, batch = extractor.extend(new_rows), extractor(rows)
    values: dict[str, Any] = {**TINY, "slate_size": 4}
    if "utility_threshold" in head.config_class.own_fields():
        values["utility_threshold"] = 1.0
    torch.manual_seed(0)
    old, new = (
        head(head.config_class(**values, feature_schema=part.schema.to_dict())).eval() for part in (extractor, longer)
    )
    new.load_state_dict(continued_weights(old, new))
    with torch.no_grad():
        before, after = old(**batch), new(**batch)
    for name in before.keys() - {"loss_terms"}:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, equal_nan=True)
    known, found = (part(rows)["candidate_categorical"] for part in (extractor, longer))
    assert torch.equal(found[known != 1], known[known != 1])


def test_rows_move_with_their_ids(checkpoint: str, extractor: RerankingFeatureExtractor, new_rows: Rows) -> None:
    longer = extractor.extend(new_rows)
    source = DeGReGenerator.from_pretrained(checkpoint)
    torch.manual_seed(2)
    target = DeGReGenerator(DeGReConfig(**DEGRE, slate_size=4, feature_schema=longer.schema.to_dict()))
    own = embedding(target).table.weight.clone()
    target.load_state_dict(continued_weights(source, target))
    old, new = embedding(source), embedding(target)
    users, items, brands = old.num_embeddings
    more_users, more_items = new.num_embeddings[0] - users, new.num_embeddings[1] - items
    assert (more_users, more_items) == (len({row["user_id"] for row in new_rows if row["user_id"] >= 50}), 2)
    user, rest = new.table.weight.split([users + more_users, items + more_items + brands])
    known_users, known_items, known_brands = old.table.weight.split([users, items, brands])
    assert torch.equal(user[:users], known_users)
    assert torch.equal(user[users:], own[users : users + more_users])
    assert torch.equal(rest[:items], known_items)
    assert torch.equal(rest[items : items + 2], own[len(user) + items : len(user) + items + 2])
    assert torch.equal(rest[items + 2 :], known_brands)


def test_copy_trains_new_ids_saves_and_loads(
    new_folder: str, new_rows: Rows, checkpoint: str, extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    keep = ModelCheckpoint(tmp_path / "checkpoints", "best", monitor="val/loss", enable_version_counter=False)
    still = fine_tuned(tmp_path / "still", new_folder, checkpoint, learning_rate=0.0).model
    module = fine_tuned(tmp_path, new_folder, checkpoint, keep, PretrainedExport(), learning_rate=0.01, epochs=2)
    items = slice(embedding(still).num_embeddings[0] + embedding(still).num_embeddings[1] - 2, None)
    assert not torch.isclose(
        embedding(still).table.weight[items][:2], embedding(module.model).table.weight[items][:2]
    ).any()
    pipeline = RerankingPipeline.from_pretrained(str(tmp_path / "best"))
    pipeline.extractor.check_extends(extractor)
    encoded = pipeline.extractor(new_rows)["candidate_categorical"][..., 0]
    assert (encoded != 1).all()
    assert (extractor(new_rows)["candidate_categorical"][..., 0] == 1).any()
    again = fine_tuned(tmp_path / "again", new_folder, str(tmp_path / "best"), learning_rate=0.0).model
    assert again.config.schema == pipeline.model.config.schema
    assert (tmp_path / "checkpoints/extractor/preprocessor_config.json").is_file()


def test_modules_are_taken_with_their_rows(new_folder: str, checkpoint: str, tmp_path: Path) -> None:
    given = {"pretrained_modules": ["item_encoder"], "config": DEGRE, "learning_rate": 0.0}
    model = fine_tuned(tmp_path, new_folder, checkpoint, **given).model
    source = DeGReGenerator.from_pretrained(checkpoint)
    users = embedding(source).num_embeddings[0]
    assert torch.equal(embedding(model).table.weight[:users], embedding(source).table.weight[:users])
    assert_same(model.item_encoder.candidate_projection, source.item_encoder.candidate_projection)


# --- what does not fit ----------------------------------------------------------------------------------------------


def test_other_schema_is_refused_with_its_fields(
    schema: FeatureSchema, new_rows: Rows, checkpoint: str, tmp_path: Path
) -> None:
    values = schema.to_dict()
    values["fields"][3]["hash_size"] = 7
    del values["fields"][4]["transforms"]
    values["targets"][1]["weight"] = 2.0
    other = FeatureSchema.from_dict(values)
    data = write(tmp_path / "data", new_rows, other)
    message = (
        r"hash_size of field 'brand' is 7, expected 5; transforms of field 'price' is \(\), expected \('log1p', "
        r"'standardize'\); weight of target 'order' is 2.0, expected 0.5"
    )
    with pytest.raises(SchemaMismatchError, match=f"data does not fit {checkpoint}: .*{message}"):
        fine_tuned(tmp_path, data, checkpoint)
    module = RerankingModule("DeGReGenerator", pretrained=checkpoint)  # the same without the option
    with pytest.raises(SchemaMismatchError, match=f"the data does not fit {checkpoint}: .*{message}"):
        trainer(tmp_path).fit(module, datamodule=RerankingDataModule(data))


def test_statistics_are_adapted_only_if_asked(
    schema: FeatureSchema, new_rows: Rows, checkpoint: str, extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    data = write(tmp_path / "data", [{**row, "hour": row["hour"] + 100} for row in new_rows], schema)
    for update, mean in ((False, None), (True, 0.0)):
        module = RerankingModule("DeGReGenerator", pretrained=checkpoint)
        source = RerankingDataModule(data, extractor=checkpoint, extend_extractor=True, update_statistics=update)
        trainer(tmp_path).validate(module, datamodule=source, verbose=False)
        found = source.extractor(new_rows)["request_numeric"].mean()
        assert (mean is None) == torch.equal(found, extractor(new_rows)["request_numeric"].mean())
    updated = source.extractor
    updated.save_pretrained(tmp_path / "updated")
    module = RerankingModule("DeGReGenerator", pretrained=checkpoint)
    with pytest.raises(SchemaMismatchError, match="field 'hour' is standardised otherwise"):
        trainer(tmp_path).fit(module, datamodule=RerankingDataModule(data, extractor=str(tmp_path / "updated")))


def test_options_need_one_another() -> None:
    with pytest.raises(ValueError, match="extend_extractor needs an extractor"):
        RerankingDataModule("data", extend_extractor=True)
    with pytest.raises(ValueError, match="update_statistics needs extend_extractor"):
        RerankingDataModule("data", extractor="best", update_statistics=True)


# --- freezing -------------------------------------------------------------------------------------------------------


def test_frozen_modules_stay(new_folder: str, checkpoint: str, tmp_path: Path) -> None:
    source = DeGReGenerator.from_pretrained(checkpoint)
    averaging = EMAWeightAveraging(decay=0.9)
    frozen = ["item_encoder.candidate_projection", "decoder_layers"]
    keep = ModelCheckpoint(tmp_path / "checkpoints", "best", enable_version_counter=False)
    module = fine_tuned(tmp_path, new_folder, checkpoint, averaging, keep, freeze=frozen, learning_rate=0.1)
    for name in frozen:
        part = module.model.get_submodule(name)
        for key, value in source.get_submodule(name).state_dict().items():  # averaging rounds
            torch.testing.assert_close(part.state_dict()[key], value)
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in part.parameters())
    assert not torch.equal(module.model.positions.weight, source.positions.weight)
    optimised = {id(parameter) for group in module.optimizers().param_groups for parameter in group["params"]}
    assert optimised == {id(parameter) for parameter in module.model.parameters() if parameter.requires_grad}
    path = tmp_path / "checkpoints" / "best.ckpt"
    loaded = RerankingModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    assert not any(parameter.requires_grad for parameter in loaded.model.get_submodule(frozen[0]).parameters())


def test_unknown_frozen_names_are_refused(new_folder: str, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(RerankingDataError, match=r"'freeze'.*no module 'item_enkoder'; it has .*'item_encoder'"):
        fine_tuned(tmp_path, new_folder, checkpoint, freeze=["item_encoder", "item_enkoder"])


def test_something_is_left_to_train() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.ReLU()})
    with pytest.raises(RerankingDataError, match=r"\['a'\] leaves nothing to train"):
        freeze_modules(model, ["a"])


def test_frozen_embeddings_of_new_ids_are_told(new_folder: str, checkpoint: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"new ids of \['user_id', 'item_id', 'past_items'\] stay"):
        fine_tuned(tmp_path, new_folder, checkpoint, freeze=["item_encoder"])


# --- on the command line --------------------------------------------------------------------------------------------


def test_command_line_keeps_and_extends_the_extractor(
    new_folder: str, data_folder: Path, checkpoint: str, extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    arguments = {"architecture": "DeGReGenerator", "freeze": ["positions"]}
    values = {
        "model": {"class_path": "rerankzoo.RerankingModule", "init_args": arguments},
        "data": {"class_path": "rerankzoo.RerankingDataModule", "init_args": {"path": new_folder, "batch_size": 8}},
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": str(tmp_path)},
    }
    values["trainer"].update(enable_progress_bar=False, enable_model_summary=False)
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    start = f"--model.init_args.pretrained={checkpoint}"
    assert main(["fit", f"--config={recipe}", start]) == 0
    found = RerankingFeatureExtractor.from_pretrained(tmp_path / "best")
    found.check_extends(extractor)
    assert found.schema.field("item_id").num_embeddings == extractor.schema.field("item_id").num_embeddings + 2  # type: ignore[operator]
    model = DeGReGenerator.from_pretrained(tmp_path / "best")
    model.check_schema(found.schema)
    assert_same(model.positions, DeGReGenerator.from_pretrained(checkpoint).positions)
    written = yaml.safe_load((tmp_path / "best/config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert (written["extractor"], written["extend_extractor"]) == (checkpoint, True)
    # Applied to older data, a Lightning checkpoint has the run's extractor, and not one fitted on that data.
    best = f"--ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"
    assert main(["predict", f"--config={recipe}", start, best, f"--data.init_args.path={data_folder}"]) == 0
    # With the extractor of other data it is refused.
    other = tmp_path / "other"
    RerankingFeatureExtractor(extractor.schema).fit(pa.Table.from_pylist([_row(data_folder)])).save_pretrained(other)
    assert main(["validate", f"--config={recipe}", best, f"--data.init_args.extractor={other}"]) == 2
    # Only applied, a checkpoint learns no ids.
    assert main(["validate", f"--config={recipe}", start]) == 0


class Record(L.Callback):
    """Writes what a process has at the end, and what its optimiser trained."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        digest = hashlib.sha256()
        for _, value in sorted(pl_module.model.state_dict().items()):
            digest.update(value.contiguous().numpy().tobytes())
        found = {
            "weights": digest.hexdigest(),
            "vocabularies": trainer.datamodule.extractor.schema.fingerprint,
            "frozen": sorted(name for name, value in pl_module.model.named_parameters() if not value.requires_grad),
        }
        path = Path(trainer.default_root_dir) / f"process-{trainer.global_rank}.json"
        path.write_text(json.dumps(found), encoding="utf-8")


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_does(new_folder: str, new_rows: Rows, checkpoint: str, tmp_path: Path) -> None:
    """Frozen parts get no gradient, which DDP must not wait for, and every process knows the same new ids."""
    common = {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False}
    frozen = ["positions", "item_encoder.candidate_projection"]
    for processes in (1, 2):
        root = tmp_path / str(processes)
        trainer_values = {**common, "devices": processes, "default_root_dir": str(root)}
        trainer_values["callbacks"] = [{"class_path": f"{__name__}.Record"}]
        arguments = {"architecture": "DeGReGenerator", "pretrained": checkpoint, "freeze": frozen, "warmup_steps": 0}
        data = {"path": new_folder, "batch_size": 8 // processes}
        values = {
            "model": {"class_path": "rerankzoo.RerankingModule", "init_args": arguments},
            "data": {"class_path": "rerankzoo.RerankingDataModule", "init_args": data},
            "trainer": trainer_values,
        }
        root.mkdir()
        (root / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["fit", f"--config={tmp_path / '1/recipe.yaml'}"]) == 0
    recipes = ["--config", str(tmp_path / "2/recipe.yaml"), "--config", "trainer/ddp.yaml"]
    further = ["--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.default_root_dir={tmp_path / '2'}"]
    command = [sys.executable, "-m", "rerankzoo.cli.main", "fit", *recipes, *further]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"2/process-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    alone = json.loads((tmp_path / "1/process-0.json").read_text())
    assert (first["vocabularies"], first["frozen"]) == (alone["vocabularies"], alone["frozen"])
    assert len(first["frozen"]) == 3
    folders = (checkpoint, tmp_path / "1/best", tmp_path / "2/best")
    source, one, two = (DeGReGenerator.from_pretrained(folder) for folder in folders)
    assert embedding(two).num_embeddings[1] == embedding(source).num_embeddings[1] + 2
    batch = RerankingFeatureExtractor.from_pretrained(folders[1])(new_rows)
    with torch.no_grad():  # weights that say nothing, such as the bias of attention's keys, follow the rounding
        torch.testing.assert_close(two(**batch).logits, one(**batch).logits, atol=1e-3, rtol=1e-3)
    assert_same(two.positions, source.positions)
    assert not torch.equal(two.decoder_norm.weight, source.decoder_norm.weight)


def _row(folder: Path) -> dict[str, Any]:
    data = RerankingDataModule(str(folder))
    data.setup()
    return dict(data.split("train")[0])
