"""Random requests that an extractor takes, and their batches: to trace a graph with, and to check and measure it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FieldSpec

#: So many different ids of a field are drawn from.
_IDS = 100_000


def random_batch(
    extractor: RerankingFeatureExtractor,
    num_requests: int,
    num_candidates: int,
    history_length: int = 1,
    seed: int = 0,
    ragged: bool = True,
) -> dict[str, Tensor]:
    """The input tensors of `random_requests`, as the extractor makes them; keys as in `rerankzoo.batch.ENTRIES`."""
    return inputs(extractor(random_requests(extractor, num_requests, num_candidates, history_length, seed, ragged)))


def random_requests(
    extractor: RerankingFeatureExtractor,
    num_requests: int,
    num_candidates: int,
    history_length: int = 1,
    seed: int = 0,
    ragged: bool = False,
) -> list[dict[str, Any]]:
    """Raw requests that an extractor takes, filled at random.

    Ids come from the fitted vocabularies, or are made up where a field is hashed; numbers are uniform in [0, 1).

    Args:
        extractor: A fitted extractor.
        num_requests: B.
        num_candidates: N.
        history_length: L; used where the schema has history fields.
        seed: Of the random numbers.
        ragged: Whether requests after the first have any number of candidates from 1 to N, and of history items from
            0 to L.

    Returns:
        Dictionaries of Python's own types, as they come from JSON.
    """
    schema, rng = extractor.schema, np.random.default_rng(seed)
    ids = {field.name: extractor.example_values(field, _IDS) for field in schema.fields if field.kind == "categorical"}
    requests = []
    for number in range(num_requests):
        counts = {"request": 1, "candidate": num_candidates, "history": history_length}
        if ragged and number:
            counts["candidate"] = int(rng.integers(1, num_candidates, endpoint=True))
            counts["history"] = int(rng.integers(history_length, endpoint=True))
        size = counts["candidate"]
        request: dict[str, Any] = {schema.item_id: rng.permutation(10 * size)[:size].tolist()}
        for target in schema.targets:
            if target.value is not None:
                request[target.value] = rng.random(size).tolist()
        for field in schema.fields:
            values = _random_values(field, counts[field.group], ids.get(field.name, []), rng)
            request[field.name] = values[0] if field.group == "request" else values
        requests.append(request)
    return requests


def _random_values(field: FieldSpec, count: int, ids: list[Any], rng: np.random.Generator) -> list[Any]:
    """Values of a field, one per request, candidate or item of the history."""
    if field.kind == "dense":
        return rng.random((count, field.size)).tolist()
    return (
        rng.random(count).tolist()
        if field.kind == "numeric"
        else [ids[at] for at in rng.integers(len(ids), size=count)]
    )
