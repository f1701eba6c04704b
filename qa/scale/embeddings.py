"""Embedding tables of millions of ids: what a training step and the process take, beside a table of 20,000."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from qa.scale.usage import Usage, run
from rerankzoo.cli.main import main
from rerankzoo.data.folder import list_array, write_data_folder
from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.training import RerankingModule

__all__ = ["RerankingModule", "measure", "rows"]  # training is imported here, before processes are made

HERE = Path(__file__).parent
FEW_IDS = 20_000
EMBEDDING_SIZE = 4
STEPS = (50, 250)
NUM_CANDIDATES, SLATE_SIZE = 8, 4
BLOCK = 10_000
SCHEMA = FeatureSchema(
    name="ids",
    item_id="item_id",
    fields=(
        FieldSpec(name="item_id", group="candidate", kind="categorical"),
        FieldSpec(name="score", group="candidate", kind="numeric"),
    ),
    targets=(TargetSpec(name="click"),),
)


def write_folder(folder: Path, num_ids: int) -> None:
    """Writes a log in which every one of `num_ids` ids is a candidate once."""
    sizes = {"train": num_ids, "validation": 8 * NUM_CANDIDATES}
    blocks = ((split, block) for seed, (split, size) in enumerate(sizes.items()) for block in _blocks(size, seed=seed))
    write_data_folder(folder, blocks, SCHEMA, {"source": "random ids", "protocol": "every id once"})


def measure(num_ids: int, work: Path) -> dict[str, Any]:
    """CPU milliseconds of a training step, and the memory of the process, for few ids and for `num_ids`."""
    found = {}
    for size in (FEW_IDS, num_ids):
        folder = work / f"ids-{size}"
        run(partial(write_folder, folder, size), work / "output")
        short, long = (_fit(folder, work, steps) for steps in STEPS)
        found[size] = {
            "milliseconds per step": (long.cpu - short.cpu) / (STEPS[1] - STEPS[0]) * 1e3,
            "start, seconds": short.cpu,
            "peak": long.peak,
            "table bytes": size * EMBEDDING_SIZE * 4,
        }
        shutil.rmtree(folder)
    return {"embedding_size": EMBEDDING_SIZE, "steps": STEPS, "ids": found}


def rows(found: Mapping[str, Any]) -> Iterable[str]:
    """The figures as a Markdown table."""
    yield "| ids | table, MiB | CPU ms per step | CPU s of a run of 50 steps | anonymous memory, MiB at most |"
    yield "|---:|---:|---:|---:|---:|"
    for ids, entry in found["ids"].items():
        table, peak = entry["table bytes"] / 2**20, entry["peak"] / 2**20
        step, start = entry["milliseconds per step"], entry["start, seconds"]
        yield f"| {int(ids):,} | {table:.1f} | {step:.1f} | {start:.0f} | {peak:.0f} |"


def _fit(folder: Path, work: Path, steps: int) -> Usage:
    out = work / "ids-run"
    shutil.rmtree(out, ignore_errors=True)
    options = [f"--data.init_args.path={folder}", f"--trainer.max_steps={steps}", f"--trainer.default_root_dir={out}"]
    options += [f"--trainer.val_check_interval={steps}", f"--model.init_args.config.embedding_size={EMBEDDING_SIZE}"]

    def fit() -> None:
        datasets.config.HF_DATASETS_CACHE = work / f"cache-{folder.name}"
        main(["fit", f"--config={HERE / 'evaluator.yaml'}", *options])

    usage = run(fit, work / "output")
    print(f"{steps} steps, {folder.name}: {usage.cpu:.1f} s of CPU, {usage.peak / 2**20:.0f} MiB at most", flush=True)
    return usage


def _blocks(num_ids: int, seed: int) -> Iterator[pa.Table]:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(num_ids).reshape(-1, NUM_CANDIDATES)
    for start in range(0, len(ids), BLOCK):
        items = ids[start : start + BLOCK]
        slates = rng.permuted(np.broadcast_to(np.arange(NUM_CANDIDATES), items.shape), axis=1)[:, :SLATE_SIZE]
        yield pa.table(
            {
                "item_id": list_array(items),
                "score": list_array(rng.random(items.shape, dtype=np.float32)),
                "slate": list_array(slates),
                "click": list_array(rng.integers(0, 2, slates.shape).astype(np.float32)),
            }
        )
