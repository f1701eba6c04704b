"""Trains every model in one process and in two on the same global batches, and records what a user sees of it.

    python -m tests.training.processes        # the table of docs/many-processes.md

The two processes are started by `torchrun`, which runs this file, too. One start serves all models.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table

from rerankzoo.cli.lightning import quiet
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import write_data_folder
from rerankzoo.errors import NonFiniteLossError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.mining import mine_folder
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator
from rerankzoo.models.digest import weights_digest
from rerankzoo.training import Companion, EvaluatorReward, ObjectiveOutput, RerankingModule, SlateWriter
from tests.conftest import TINY_SCHEMA, random_row

STEPS = 20
PROCESSES = 2
#: With global batches of 16 the last one has 11 rows, for two processes 6 and 5; with 14 it has one row, 1 and none.
SIZES = {"train": 43, "validation": 21, "test": 19}
EVAL_BATCH_SIZE = 5

WIDTHS = {"slate_size": 4, "hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LIST = {**WIDTHS, **NO_DROPOUT, "num_hidden_layers": 1}

#: Name -> (architecture, config, data, rows of a global batch).
MODELS: dict[str, tuple[str, dict[str, Any], str, int]] = {
    "PointwiseForReranking": (
        "PointwiseForReranking",
        {"slate_size": 4, "hidden_size": 16, "embedding_size": 4, "hidden_dropout_prob": 0.0},
        "log",
        16,
    ),
    "PRMForReranking": ("PRMForReranking", LIST, "log", 14),
    "NAR4RecForReranking": ("NAR4RecForReranking", {**LIST, "contrastive_weight": 0.3}, "log", 16),
    "NAR4RecEvaluator": ("NAR4RecEvaluator", LIST, "log", 14),
    "DeGReEvaluator": ("DeGReEvaluator", LIST, "log", 16),
    "InteractionEvaluator": ("InteractionEvaluator", {**LIST, "num_interaction_heads": 4}, "log", 16),
    "DeGReGenerator": ("DeGReGenerator", LIST, "log", 14),
    **{
        name: (name, LIST, "log", 16)
        for name in (
            "CongratsForReranking",
            "EGRerankForReranking",
            "GFN4RecForReranking",
            "GReFForReranking",
            "GSFForReranking",
            "GoalRankForReranking",
            "MIRForReranking",
            "MiDNNForReranking",
            "NLGRForReranking",
            "Seq2SlateForReranking",
            "SetRankForReranking",
            "UniRankForReranking",
        )
    },
    "DLCMForReranking": ("DLCMForReranking", {**WIDTHS, **NO_DROPOUT, "list_size": 5}, "log", 16),
    "YOLOREvaluator": ("YOLOREvaluator", {**WIDTHS, **NO_DROPOUT}, "log", 16),
    "DeGReGenerator, mined": ("DeGReGenerator", LIST, "mined", 16),
}


class Recorder(L.Callback):
    """The loss of every step, and what every validation found."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations.append(numbers(trainer.callback_metrics, "val/"))


class Poison(L.Callback):
    """One request of one process turns into NaN."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, number: int) -> None:
        if trainer.global_rank == trainer.world_size - 1 and trainer.global_step == 2:
            batch["candidate_numeric"][1] = torch.nan


def numbers(metrics: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if name.startswith(prefix)}


def write_folders(root: Path) -> None:
    """A log, and slates mined from it by an evaluator that knows nothing."""
    rng = np.random.default_rng(0)
    rows = {
        split: [random_row(rng, int(rng.integers(2, 8)), None) for _ in range(size)] for split, size in SIZES.items()
    }
    tables = {split: pa.Table.from_pylist(found) for split, found in rows.items()}
    write_data_folder(root / "log", tables, TINY_SCHEMA, {"source": "test", "protocol": "random rows"})
    extractor = RerankingFeatureExtractor(TINY_SCHEMA).fit(rows["train"])
    torch.manual_seed(0)
    evaluator = DeGReEvaluator(DeGReConfig(feature_schema=extractor.schema.to_dict(), **LIST))
    for part in (evaluator, extractor):
        part.save_pretrained(root / "evaluator")
    mine(root, "mined")


def mine(root: Path, name: str, world_size: int = 1) -> None:
    fabric = Fabric(accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto")
    fabric.launch()
    settings = {"num_beams": 4, "keep": 3, "shard_size": 10}
    mine_folder([str(root / "evaluator")], root / "log", root / name, fabric=fabric, **settings)


def make_trainer(root: Path, world_size: int, *callbacks: L.Callback) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_steps=STEPS,
        max_epochs=-1,
        gradient_clip_val=1.0,
        num_sanity_val_steps=-1,
        check_val_every_n_epoch=3,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
    )


def make_run(name: str, root: Path, world_size: int) -> tuple[RerankingModule, RerankingDataModule]:
    architecture, config, source, rows = MODELS[name]
    L.seed_everything(0, verbose=False)
    module = RerankingModule(architecture, config, learning_rate=3e-3, warmup_steps=5)
    extractor = str(root / "mined") if source == "mined" else None
    return module, RerankingDataModule(str(root / source), rows // world_size, EVAL_BATCH_SIZE, extractor=extractor)


def train(name: str, root: Path, world_size: int) -> dict[str, Any]:
    """Trains, tests and applies one model."""
    module, data = make_run(name, root, world_size)
    recorder, path = Recorder(), root / f"{name}-{world_size}.parquet"
    trainer = make_trainer(root, world_size, recorder, SlateWriter(str(path)))
    trainer.fit(module, datamodule=data)
    record: dict[str, Any] = {"losses": recorder.losses, "validations": recorder.validations}
    assert module.model is not None
    if MODELS[name][2] == "log" or module.model.can_generate():
        trainer.test(module, datamodule=data, verbose=False)
        record["test"] = numbers(trainer.callback_metrics, "test/")
    if module.model.can_generate():
        trainer.predict(module, datamodule=data, return_predictions=False)
        record["table"] = pq.read_table(path).to_pydict()
    return record


def poisoned(root: Path, world_size: int) -> str:
    """Trains with a request that turns into NaN; what the error says."""
    module, data = make_run("NAR4RecForReranking", root, world_size)
    try:
        make_trainer(root / "poisoned", world_size, Poison()).fit(module, datamodule=data)
    except NonFiniteLossError as error:
        return str(error)
    return "it was not noticed"


class Anchored(EvaluatorReward):
    """Stays near the start, too."""

    def declare(self) -> dict[str, Companion]:
        return {**super().declare(), "start": Companion("start")}

    def loss(self, model: Any, batch: Any) -> Any:
        output, start = super().loss(model, batch), self.companions["start"]
        pairs = zip(model.parameters(), start.parameters(), strict=True)
        return ObjectiveOutput(**{**output, "loss": output.loss + sum((a - b).square().sum() for a, b in pairs)})


def rewarded(root: Path, world_size: int) -> dict[str, Any]:
    """Trains with a companion; one of the processes is sometimes left without a request."""
    L.seed_everything(0, verbose=False)
    objective = Anchored(str(root / "evaluator"), num_slates=4)
    module = RerankingModule("DeGReGenerator", LIST, learning_rate=3e-3, objective=objective)
    trainer = make_trainer(root, world_size)
    trainer.fit(module, datamodule=RerankingDataModule(str(root / "log"), 14 // world_size, EVAL_BATCH_SIZE))
    companion = module.objective.companions["evaluator"]
    return {
        "kind": type(companion).__name__,
        "companion": weights_digest(companion),
        "start": weights_digest(module.objective.companions["start"]),
        "trained": weights_digest(module.model),  # type: ignore[arg-type]
        "metrics": numbers(trainer.callback_metrics, ""),
    }


def train_all(root: Path, world_size: int) -> dict[str, Any]:
    """Every model by name."""
    quiet()
    return {name: train(name, root, world_size) for name in MODELS}


def start(root: Path) -> subprocess.Popen[str]:
    """Starts the processes on the folders that `write_folders` made; each leaves `rank-R.json`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    return subprocess.Popen(
        [*command, "-m", "tests.training.processes", str(root)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read(root: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"rank-{rank}.json").read_text(encoding="utf-8"))
    return found


def largest_difference(one: Any, two: Any) -> float:
    """Of all numbers in two records of the same shape."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return max((largest_difference(value, two[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, list):
        return max((largest_difference(*pair) for pair in zip(one, two, strict=True)), default=0.0)
    return abs(one - two)


def compare(one: Mapping[str, Any], two: Mapping[str, Any]) -> Table:
    """The table of docs/many-processes.md."""
    table = Table("model", f"loss, {STEPS} steps", "validation, test", "slates that differ")
    for name in MODELS:
        alone, together = one[name], two[name]
        metrics = largest_difference(
            [alone["validations"], alone.get("test", {})], [together["validations"], together.get("test", {})]
        )
        pairs = zip(alone["table"]["slate"], together["table"]["slate"], strict=True) if "table" in alone else None
        table.add_row(
            name,
            f"{largest_difference(alone['losses'], together['losses']):.1e}",
            f"{metrics:.1e}",
            "-" if pairs is None else str(sum(a != b for a, b in pairs)),
        )
    return table


def main() -> None:
    if len(sys.argv) > 1:  # one of the processes
        torch.set_num_threads(1)
        root = Path(sys.argv[1])
        found = train_all(root, PROCESSES)
        found["poisoned"] = poisoned(root, PROCESSES)
        found["rewarded"] = rewarded(root, PROCESSES)
        mine(root, "mined-together", PROCESSES)
        rank = torch.distributed.get_rank()
        (root / f"rank-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
        torch.distributed.destroy_process_group()
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folders(root)
        processes = start(root)
        alone = train_all(root, 1)
        output, _ = processes.communicate()
        if processes.returncode:
            sys.exit(output)
        console = Console()
        console.print(compare(alone, read(root, 0)))
        console.print(read(root, 0)["poisoned"], read(root, 1)["poisoned"], sep="\n")


if __name__ == "__main__":
    main()
