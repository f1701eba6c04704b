"""A small world to attack: a schema with every kind of field, valid rows, a pipeline, and the folder it is saved in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rerankzoo import NAR4RecConfig, NAR4RecForReranking, RerankingPipeline
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec

Row = dict[str, Any]

SLATE_SIZE = 3
SCHEMA = FeatureSchema(
    name="fuzz",
    item_id="item",
    fields=(
        FieldSpec(name="user", group="request", kind="categorical"),
        FieldSpec(name="hour", group="request", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="item", group="candidate", kind="categorical"),
        FieldSpec(name="brand", group="candidate", kind="categorical", hash_size=7),
        FieldSpec(name="price", group="candidate", kind="numeric", clip=(0, 1e6), transforms=("log1p", "standardize")),
        FieldSpec(name="picture", group="candidate", kind="dense", size=2, transforms=("standardize",)),
        FieldSpec(name="score", group="candidate", kind="numeric"),
        FieldSpec(name="past", group="history", kind="categorical", shares="item"),
    ),
    targets=(TargetSpec(name="click", candidate_feedback="liked"), TargetSpec(name="order", weight=2.0, value="price")),
    upstream_score="score",
    propensity="chance",
)
INPUTS = tuple(field.name for field in SCHEMA.fields)
LABELS = ("slate", "click", "order", "chance", "liked")


def valid_row(seed: int, labels: bool = False) -> Row:
    """A request that is right, if unusual: one candidate or many, unknown and repeated ids, missing values."""
    rng = np.random.default_rng(seed)
    size = int(rng.choice([1, 1, 2, 3, 4, 5, 8, 40]))
    row: Row = {
        "user": None if rng.random() < 0.1 else f"u{rng.integers(9)}",
        "hour": None if rng.random() < 0.1 else float(rng.integers(24)),
        "item": rng.integers(30, size=size).tolist(),
        "brand": [None if rng.random() < 0.1 else f"b{rng.integers(9)}" for _ in range(size)],
        "price": rng.uniform(0.0, 50.0, size).tolist(),
        "picture": rng.normal(size=(size, 2)).tolist(),
        "score": [None if rng.random() < 0.1 else float(value) for value in rng.normal(size=size)],
        "past": rng.integers(30, size=rng.integers(4)).tolist(),
    }
    if labels:
        slate = rng.permutation(size)[: min(size, SLATE_SIZE)].tolist()
        row |= {
            "slate": slate,
            "click": rng.integers(0, 2, len(slate)).astype(float).tolist(),
            "order": rng.integers(0, 2, len(slate)).astype(float).tolist(),
            "chance": rng.uniform(0.1, 1.0, len(slate)).tolist(),
            "liked": [None if rng.random() < 0.2 else float(rng.integers(2)) for _ in range(size)],
        }
    return row


@dataclass(frozen=True)
class World:
    """What is attacked."""

    extractor: RerankingFeatureExtractor
    pipeline: RerankingPipeline

    def save(self, folder: Path) -> Path:
        """Saves the pipeline, without its card."""
        (folder / "README.md").parent.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text("", encoding="utf-8")
        self.pipeline.save_pretrained(folder)
        (folder / "README.md").unlink()
        return folder


@cache
def world() -> World:
    """The world, made once in each process; always the same."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    extractor = RerankingFeatureExtractor(SCHEMA).fit([valid_row(seed) for seed in range(40)])
    config = NAR4RecConfig(
        feature_schema=extractor.schema.to_dict(),
        slate_size=SLATE_SIZE,
        hidden_size=8,
        embedding_size=2,
        num_attention_heads=2,
        intermediate_size=8,
        num_hidden_layers=1,
        utility_threshold=1.0,
    )
    return World(extractor, RerankingPipeline(NAR4RecForReranking(config), extractor))
