"""Random exposure logs for any schema, so that recipes run without their data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import write_data_folder
from rerankzoo.features.schema import FeatureSchema, FieldSpec


def random_value(rng: np.random.Generator, field: FieldSpec) -> Any:
    """One value of a field: a small id or count, a number or a vector."""
    if field.kind in ("categorical", "page"):
        return int(rng.integers(30))
    return rng.random(field.size).tolist() if field.kind == "dense" else float(rng.random())


def random_row(rng: np.random.Generator, schema: FeatureSchema, num_candidates: int, slate_size: int) -> dict[str, Any]:
    """One logged request."""
    counts = {"candidate": num_candidates, "history": 3}
    row: dict[str, Any] = {schema.item_id: rng.permutation(30)[:num_candidates].tolist()}
    for field in schema.fields:
        if field.group == "request":
            row[field.name] = random_value(rng, field)
        elif field.name != schema.item_id:
            row[field.name] = [random_value(rng, field) for _ in range(counts[field.group])]
    row[schema.slate] = rng.permutation(num_candidates)[:slate_size].tolist()
    if schema.propensity:
        row[schema.propensity] = rng.uniform(0.1, 1.0, slate_size).tolist()
    for target in schema.targets:
        row[target.name] = rng.integers(0, 2, slate_size).astype(float).tolist()
        if target.candidate_feedback:
            row[target.candidate_feedback] = rng.integers(0, 2, num_candidates).astype(float).tolist()
        if target.value and target.value not in row:
            row[target.value] = rng.random(num_candidates).tolist()
    return row


def write_random_folder(
    folder: Path, schema: FeatureSchema, rows: int = 64, num_candidates: int = 6, slate_size: int = 4
) -> Path:
    """A data folder with this many rows in each split."""
    rng = np.random.default_rng(0)
    tables = {
        split: pa.Table.from_pylist([random_row(rng, schema, num_candidates, slate_size) for _ in range(rows)])
        for split in ("train", "validation", "test")
    }
    write_data_folder(folder, tables, schema, {"source": "generated", "protocol": "random"})
    return folder
