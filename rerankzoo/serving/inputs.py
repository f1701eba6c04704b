"""Random batches and requests that fit a schema: to trace a graph with, and to check and measure it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema, FieldSpec, Group


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
        The batch; keys and shapes as in `rerankzoo.batch.ENTRIES`.
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


def random_requests(
    extractor: RerankingFeatureExtractor,
    num_requests: int,
    num_candidates: int,
    history_length: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Raw requests that an extractor takes, filled at random.

    Ids come from the fitted vocabularies, or are made up where a field is hashed; numbers are uniform in [0, 1).

    Args:
        extractor: A fitted extractor.
        num_requests: B.
        num_candidates: N, of every request.
        history_length: L; used where the schema has history fields.
        seed: Of the random numbers.

    Returns:
        Dictionaries of Python's own types, as they come from JSON.
    """
    schema, rng = extractor.schema, np.random.default_rng(seed)
    counts = {"request": 1, "candidate": num_candidates, "history": history_length}
    requests = []
    for _ in range(num_requests):
        request: dict[str, Any] = {schema.item_id: rng.permutation(10 * num_candidates)[:num_candidates].tolist()}
        for target in schema.targets:
            if target.value is not None:
                request[target.value] = rng.random(num_candidates).tolist()
        for field in schema.fields:
            values = _random_values(extractor, field, counts[field.group], rng)
            request[field.name] = values[0] if field.group == "request" else values
        requests.append(request)
    return requests


def _random_values(
    extractor: RerankingFeatureExtractor, field: FieldSpec, count: int, rng: np.random.Generator
) -> list[Any]:
    """Values of a field, one per request, candidate or item of the history."""
    if field.kind == "dense":
        return rng.random((count, field.size)).tolist()
    if field.kind == "numeric":
        return rng.random(count).tolist()
    known = extractor.example_values(field)
    return [known[number] for number in rng.integers(len(known), size=count)]
