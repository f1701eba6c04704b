"""Training from labels of candidates, without slates, and from slates that are parts of pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import write_data_folder
from rerankzoo.diagnosis import Log
from rerankzoo.errors import RerankingDataError, SchemaError
from rerankzoo.evaluation import Decoding, evaluate
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.metrics import ndcg_at_k
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.training import EvaluatorReward, RerankingModule
from tests.families import HEADS
from tests.training.common import TINY, make_trainer

NUM_ITEMS, NUM_KINDS, NUM_CANDIDATES = 240, 6, 100
PURCHASES = FeatureSchema(
    name="purchases",
    item_id="item",
    upstream_score="popularity",
    fields=(
        FieldSpec(name="kind", group="candidate", kind="categorical"),
        FieldSpec(name="popularity", group="candidate", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="past_kinds", group="history", kind="categorical", shares="kind"),
    ),
    targets=(TargetSpec(name="buy", candidate_feedback="bought"),),
)


def purchases(rng: np.random.Generator, count: int) -> pa.Table:
    """Leave-one-out requests: the one item bought, among others drawn at random, after what was bought before.

    A buyer likes one kind of items ten times as much as others, and everybody likes some items more.
    """
    appeal = np.random.default_rng(0).normal(size=NUM_ITEMS)
    rows = []
    for _ in range(count):
        liking = appeal + np.log(10) * (np.arange(NUM_ITEMS) % NUM_KINDS == rng.integers(NUM_KINDS))
        drawn = np.argsort(-(liking + rng.gumbel(size=NUM_ITEMS)))  # what a buyer buys, one after the other
        bought, past = drawn[0], drawn[1:6]
        others = rng.permutation(np.delete(np.arange(NUM_ITEMS), bought))[: NUM_CANDIDATES - 1]
        items = rng.permutation([bought, *others])
        rows.append({"item": items, "kind": items % NUM_KINDS, "popularity": appeal[items],
                     "past_kinds": past % NUM_KINDS, "bought": (items == bought).astype(float)})  # fmt: skip
    return pa.Table.from_pylist([{key: value.tolist() for key, value in row.items()} for row in rows])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("purchases") / "log", np.random.default_rng(1)
    tables = {split: purchases(rng, count) for split, count in {"train": 1200, "validation": 50, "test": 300}.items()}
    write_data_folder(folder, tables, PURCHASES, {"source": "generated", "protocol": "leave one out"})
    return folder


def fit(folder: Path, root: Path, architecture: str, config: dict[str, Any], **options: Any) -> Any:
    module = RerankingModule(architecture, {**TINY, **config}, learning_rate=0.01, warmup_steps=5)
    data = RerankingDataModule(str(folder), batch_size=32)
    trainer = make_trainer(root, **options)
    trainer.fit(module, datamodule=data)
    return module.model, data, trainer


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_purchases_alone_teach_more_than_popularity(log: Path, tmp_path: Path, loss: str) -> None:
    config = {"slate_size": 10, "loss": loss, "num_hidden_layers": 1, "hidden_size": 32}
    model, data, trainer = fit(log, tmp_path, "PointwiseForReranking", config, max_epochs=3)
    batch = next(iter(data.test_dataloader()))
    labels = batch["candidate_feedback"][..., 0]
    assert "slates" not in batch
    popular = batch["candidate_numeric"][..., 0].argsort(descending=True)[:, :10]
    learned = ndcg_at_k(model.generate(**batch), labels, k=10)
    gained = learned - ndcg_at_k(popular, labels, k=10)
    assert gained.mean() > 4 * gained.std() / len(gained) ** 0.5
    assert trainer.callback_metrics["val/ndcg@10"] > 0
    if loss == "bce":
        rate = model.heads(model(**batch).candidate_states).sigmoid().mean().item()
        assert rate == pytest.approx(1 / NUM_CANDIDATES, rel=0.3)  # and began there


@pytest.mark.parametrize("loss", ["listnet", "attention_rank", "listmle", "lambda"])
def test_prm_learns_from_candidates_by_every_loss(log: Path, tmp_path: Path, loss: str) -> None:
    _, _, trainer = fit(log, tmp_path, "PRMForReranking", {"slate_size": 3, "loss": loss}, limit_train_batches=2)
    assert set(trainer.callback_metrics) >= {"val/loss", f"val/{loss}_loss", "val/ndcg@3"}
    assert trainer.callback_metrics["train/loss"].isfinite()


NEED_SLATES = [head for head in HEADS if head.learns_from == {"slates"}]


@pytest.mark.parametrize("head", NEED_SLATES, ids=lambda head: head.__name__)
def test_who_needs_slates_says_so_before_training(head: Any, log: Path, pages: Path, tmp_path: Path) -> None:
    for folder, reason in ((log, "the log has only labels of candidates"), (pages, "in some of the log's it is not")):
        message = f"^field 'slate': {head.__name__} learns from whole slates: {reason}"
        with pytest.raises(RerankingDataError, match=message):
            fit(folder, tmp_path, head.__name__, {})


PARTS = FeatureSchema(
    name="parts", item_id="item", fields=(FieldSpec(name="size", group="candidate", kind="numeric"),),
    targets=(TargetSpec(name="click"),), upstream_score="size",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One item of three candidates at one position of three; the larger it is, the more it is clicked."""
    folder, rng = tmp_path_factory.mktemp("pages") / "log", np.random.default_rng(0)

    def row() -> dict[str, Any]:
        sizes, shown, place = rng.normal(size=3).tolist(), int(rng.integers(3)), int(rng.integers(3))
        slate, click = [None] * 3, [None] * 3
        slate[place], click[place] = shown, float(sizes[shown] > 0)
        return {"item": [1, 2, 3], "size": sizes, "slate": slate, "click": click}

    tables = {split: pa.Table.from_pylist([row() for _ in range(300)]) for split in ("train", "validation")}
    write_data_folder(folder, tables, PARTS, {"source": "generated", "protocol": "parts"})
    return folder


def test_single_positions_teach_a_scorer(pages: Path, tmp_path: Path) -> None:
    model, data, _ = fit(pages, tmp_path, "PointwiseForReranking", {"num_hidden_layers": 1}, max_epochs=4)
    batch = next(iter(data.val_dataloader()))
    first = model.generate(**batch)[:, 0]
    largest = batch["candidate_numeric"][..., 0].argmax(1)
    assert (first == largest).float().mean() > 0.8
    table, asked = data.split("validation"), [Decoding("greedy", {"num_beams": 1})]
    found = evaluate(model, table, data.extractor, name="m", decodings=asked, counterfactual=True)
    assert [row.model for row in found.rows] == ["upstream", "random", "m"]  # the log shows no whole slates
    assert found.counterfactual == {}
    with pytest.raises(RerankingDataError, match="expected whole slates, got parts of pages"):
        Log.read(pages)


def test_a_target_without_labels_of_candidates_is_no_teacher(log: Path) -> None:
    data = RerankingDataModule(str(log), eval_batch_size=4)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    values = data.extractor.schema.to_dict()
    values["targets"].append({"name": "click"})
    for name in ("candidate_value", "candidate_feedback"):
        batch[name] = torch.cat([batch[name]] * 2, dim=-1)
    with pytest.raises(SchemaError, match=r"'click'.* have no candidate_feedback"):
        PointwiseForReranking(PointwiseConfig(feature_schema=values, hidden_size=8))(**batch)
    values["targets"][0]["weight"] = -1.0
    with pytest.raises(SchemaError, match=r"'softmax' ranks by utility, which targets .'buy'. can make negative"):
        PointwiseForReranking(PointwiseConfig(feature_schema=values, hidden_size=8, loss="softmax"))


def test_what_needs_no_labels_trains_without() -> None:
    assert not EvaluatorReward("anywhere").learns_from_labels()
    assert EvaluatorReward("anywhere", supervised_weight=0.1).learns_from_labels()
