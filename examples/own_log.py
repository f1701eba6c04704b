"""Your own log: dictionaries of what was shown and clicked, a schema that names their columns, a model, an answer.

More: docs/data-format.md. Run: python examples/own_log.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd

from rerankzoo import FeatureSchema, FieldSpec, RerankingDataModule, RerankingModule, RerankingPipeline, TargetSpec

SCHEMA = FeatureSchema(
    name="shop",
    item_id="sku",
    upstream_score="score",
    fields=(
        FieldSpec(name="user_id", group="request", kind="categorical", hash_size=1000),
        FieldSpec(name="hour", group="request", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="sku", group="candidate", kind="categorical"),
        FieldSpec(name="brand", group="candidate", kind="categorical"),
        FieldSpec(name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize")),
        FieldSpec(name="score", group="candidate", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="recent_skus", group="history", kind="categorical", shares="sku"),
    ),
    targets=(TargetSpec(name="click"), TargetSpec(name="order", weight=5.0, value="price")),
)


def page_view(rng: np.random.Generator) -> dict[str, Any]:
    """One row of a log: a request with its candidates, the positions of those that were shown, and what came of it."""
    size = int(rng.integers(8, 15))  # the number of candidates may differ from row to row
    skus, score = rng.choice(200, size, replace=False), rng.normal(size=size)
    slate = np.argsort(-(score + rng.gumbel(size=size)))[:4]
    click = rng.random(4) < np.where(skus[slate] % 5 == 0, 0.8, 0.1)  # people like every fifth article
    return {
        "user_id": f"u{rng.integers(500)}",
        "hour": int(rng.integers(24)),
        "sku": [f"sku-{number}" for number in skus],
        "brand": [f"brand-{number % 12}" for number in skus],
        "price": (1.0 + skus).tolist(),
        "score": score.tolist(),
        "recent_skus": [f"sku-{number}" for number in rng.integers(200, size=rng.integers(6))],
        "slate": slate.tolist(),
        "click": click.astype(float).tolist(),
        "order": (click & (rng.random(4) < 0.2)).astype(float).tolist(),
    }


def main(num_train: int = 4_000, max_epochs: int = 6, folder: str = "outputs/examples/shop") -> list[dict[str, Any]]:
    """Returns the items shown for a new request."""
    L.seed_everything(0)
    rng = np.random.default_rng(0)
    Path(folder).mkdir(parents=True, exist_ok=True)
    SCHEMA.to_yaml(f"{folder}/schema.yaml")
    for split, rows in {"train": num_train, "validation": 300, "test": 300}.items():  # of a real log: by time
        pd.DataFrame([page_view(rng) for _ in range(rows)]).to_parquet(f"{folder}/{split}.parquet")

    data = RerankingDataModule(folder, batch_size=128)  # fits vocabularies and statistics on the training split
    module = RerankingModule("NAR4RecForReranking", {"slate_size": 4, "initializer_range": 1.0}, learning_rate=0.003)
    trainer = L.Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)

    pipeline = RerankingPipeline(module.model, data.extractor)  # pipeline.save_pretrained(...) writes a folder
    request = {
        "user_id": "u7",
        "hour": 20,
        "sku": ["sku-3", "sku-9", "sku-20", "sku-new"],  # unknown ids and missing values are no error
        "brand": ["brand-3", None, "brand-8", "brand-4"],
        "price": [4.0, 10.0, 21.0, 40.0],
        "score": [0.3, -0.1, 0.2, None],
        "recent_skus": [],
    }
    items: list[dict[str, Any]] = pipeline(request, slate_size=3)
    print(items)
    return items


if __name__ == "__main__":
    main()
