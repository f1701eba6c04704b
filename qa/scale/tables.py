"""Tables of growing size: the memory that opening, fitting, training and mining hold, and what reading them costs.

Every stage runs in a process of its own, under a limit of its memory; training and mining are `rerankzoo fit` and
`rerankzoo mine`. The tables are random numbers, written in blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from qa.scale.usage import Usage, run
from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule, open_splits
from rerankzoo.data.folder import list_array, write_data_folder
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.mining import mine_folder
from rerankzoo.training import RerankingModule

# Imported here, before processes are made: mining, training and the data module above.
__all__ = ["Plan", "RerankingModule", "Tables", "mine_folder", "rows"]

HERE = Path(__file__).parent
STAGES = ("write", "open", "fit extractor", "train", "mine")
NUM_CANDIDATES, SLATE_SIZE, NUM_ITEMS, BLOCK = 8, 4, 1_000, 10_000
SCHEMA = FeatureSchema(
    name="large",
    item_id="item_id",
    fields=(
        FieldSpec(name="item_id", group="candidate", kind="categorical"),
        FieldSpec(name="category", group="candidate", kind="categorical"),
        FieldSpec(name="price", group="candidate", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="score", group="candidate", kind="numeric", transforms=("standardize",)),
    ),
    targets=(TargetSpec(name="click", value="price"),),
    upstream_score="score",
)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        sizes: Training requests of the tables.
        steps: Of a training.
        mined: Requests of a mining run.
        data_limit: RLIMIT_DATA of every process, in bytes.
    """

    sizes: tuple[int, ...] = (200_000, 2_000_000, 10_000_000)
    steps: int = 2_000
    mined: int = 2_000
    data_limit: int = 2 * 2**30


class Tables:
    """Makes the tables, one after the other, and measures.

    Args:
        plan: How much.
        work: Folder for tables, caches and checkpoints; the tables are removed as soon as they are measured.
    """

    def __init__(self, plan: Plan, work: Path) -> None:
        self.plan = plan
        self.work = work
        self.found: dict[str, Any] = {"plan": asdict(plan), "tables": {}}

    def measure(self) -> Iterator[dict[str, Any]]:
        """All figures so far, after each table."""
        for size in self.plan.sizes:
            self.found["tables"][size] = self._table(size)
            shutil.rmtree(self._folder(size))
            shutil.rmtree(self.work / f"cache-{size}")
            yield self.found

    def _folder(self, size: int) -> Path:
        return self.work / f"log-{size}"

    def _table(self, size: int) -> dict[str, Any]:
        """One table: opening it, fitting an extractor, and training and mining on it."""
        folder, plan = self._folder(size), self.plan
        found = {
            "write": self._run("write", size, lambda: write_folder(folder, size)),
            "open": self._run("open", size, lambda: open_splits(folder)),
            "fit extractor": self._run("fit extractor", size, lambda: RerankingDataModule(str(folder)).setup()),
        }
        if not (self.work / "evaluator").is_dir():
            self._run("evaluator", size, lambda: self._fit("evaluator", folder, plan.steps // 10))
        found["train"] = self._run("train", size, lambda: self._fit("generator", folder, plan.steps))
        found["mine"] = self._run("mine", size, lambda: self._mine(folder))
        sizes = {"parquet bytes": _bytes(folder), "arrow bytes": _bytes(self.work / f"cache-{size}")}
        return {**{name: asdict(usage) for name, usage in found.items()}, **sizes}

    def _fit(self, kind: str, folder: Path, steps: int) -> None:
        out = self.work / kind
        shutil.rmtree(out, ignore_errors=True)
        options = [f"--data.init_args.path={folder}", f"--trainer.max_steps={steps}"]
        options += [f"--trainer.val_check_interval={steps // 2}", f"--trainer.default_root_dir={out}"]
        _command("fit", "--config", HERE / f"{kind}.yaml", *options)

    def _mine(self, folder: Path) -> None:
        shutil.rmtree(self.work / "mined", ignore_errors=True)
        options = ["--evaluator", self.work / "evaluator" / "best", "--num-requests", self.plan.mined]
        options += ["--num-validation", 0, "--devices", 1, "--accelerator", "cpu"]
        _command("mine", *options, "--data", folder, "--out", self.work / "mined")

    def _run(self, stage: str, size: int, work: Callable[[], Any]) -> Usage:
        def in_own_cache() -> None:
            import datasets

            datasets.config.HF_DATASETS_CACHE = self.work / f"cache-{size}"
            work()

        usage = run(in_own_cache, self.work / "output", self.plan.data_limit)
        print(f"{stage}, {size:,}: {usage.cpu:.1f} s of CPU, {usage.peak / 2**20:.0f} MiB at most", flush=True)
        return usage


def write_folder(folder: Path, size: int) -> None:
    """Writes a log of random requests, and a validation split of 2,000."""
    counts = {"train": size, "validation": 2_000}
    blocks = ((split, block) for seed, (split, count) in enumerate(counts.items()) for block in _blocks(count, seed))
    write_data_folder(folder, blocks, SCHEMA, {"source": "random", "protocol": "independent requests"})


def rows(found: dict[str, Any]) -> Iterable[str]:
    """The figures as Markdown tables: memory and CPU time by table, bytes on disk."""
    tables = found["tables"]
    yield "| | " + " | ".join(f"{int(size):,} requests" for size in tables) + " |"
    yield "|---|" + "---:|" * len(tables)
    for stage in STAGES:
        yield (
            f"| {stage}, MiB | " + " | ".join(f"{entry[stage]['peak'] / 2**20:.0f}" for entry in tables.values()) + " |"
        )
    for stage in STAGES:
        yield f"| {stage}, CPU s | " + " | ".join(f"{entry[stage]['cpu']:.1f}" for entry in tables.values()) + " |"
    for name in ("parquet bytes", "arrow bytes"):
        values = [f"{entry[name] / int(size):.0f}" for size, entry in tables.items()]
        yield f"| {name} per request | " + " | ".join(values) + " |"


def _command(*arguments: Any) -> None:
    status = main([str(argument) for argument in arguments])
    if status:
        raise RuntimeError(f"rerankzoo {arguments[0]} ended with {status}")


def _blocks(count: int, seed: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(seed)
    for start in range(0, count, BLOCK):
        shape = (min(BLOCK, count - start), NUM_CANDIDATES)
        items = rng.integers(NUM_ITEMS, size=shape)
        first = rng.integers(NUM_CANDIDATES - SLATE_SIZE + 1, size=(shape[0], 1))
        slates = first + np.arange(SLATE_SIZE)
        yield pa.table(
            {
                "item_id": list_array(items),
                "category": list_array(items % 20),
                "price": list_array(rng.random(shape, dtype=np.float32)),
                "score": list_array(rng.random(shape, dtype=np.float32)),
                "slate": list_array(slates),
                "click": list_array(rng.integers(0, 2, slates.shape).astype(np.float32)),
            }
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
