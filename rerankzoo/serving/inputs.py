"""Batches of random numbers that fit a schema: to trace a graph with, and to check and measure it."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.features.schema import FeatureSchema, Group


def random_batch(
    schema: FeatureSchema, num_requests: int, num_candidates: int, history_length: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """The input tensors of a batch, filled at random.

    Ids lie anywhere in their vocabularies, numbers are normal, values uniform in [0, 1). Any of the candidates may be
    padding, but one of each request is real; the first request has all of them. A history may be empty.

    Args:
        schema: A fitted schema.
        num_requests: B.
        num_candidates: N.
        history_length: L; used where the schema has history fields.
        seed: Of the random numbers; torch's global random state is left alone.

    Returns:
        The batch; keys and shapes as in `rerankzoo.features.batch.INPUT_KEYS`.
    """
    random = torch.Generator().manual_seed(seed)
    size = (num_requests, num_candidates)
    batch = {}
    shapes: dict[Group, tuple[int, ...]] = {"request": size[:1], "candidate": size}
    for group, shape in shapes.items():
        batch[f"{group}_categorical"] = _random_ids(schema, group, shape, random)
        batch[f"{group}_numeric"] = torch.randn(*shape, schema.numeric_size(group), generator=random)
    batch["candidate_value"] = torch.rand(*size, len(schema.targets), generator=random)
    sure = torch.randint(num_candidates, (num_requests, 1), generator=random) == torch.arange(num_candidates)
    mask = (torch.rand(size, generator=random) < torch.rand(num_requests, 1, generator=random)) | sure
    mask[0] = True
    batch["candidate_mask"] = mask
    if schema.select("history", "categorical"):
        past = (num_requests, history_length)
        batch["history_categorical"] = _random_ids(schema, "history", past, random)
        batch["history_mask"] = torch.rand(past, generator=random) < 0.5
    return batch


def _random_ids(schema: FeatureSchema, group: Group, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Ids (..., F) of a group's categorical fields."""
    owners = [schema.owner(field) for field in schema.select(group, "categorical")]
    columns = [torch.randint(owner.num_embeddings or 1, shape, generator=random) for owner in owners]
    return torch.stack(columns, dim=-1) if columns else torch.empty(*shape, 0, dtype=torch.int64)
