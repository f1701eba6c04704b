"""Random requests that an extractor takes, and their batches: to trace a graph with, and to check and measure it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import TOLD_ONCE, FieldSpec

_IDS = 100_000  # of a field, that are drawn from


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

    def values(field: FieldSpec, count: int) -> list[Any]:
        if field.kind == "categorical":
            known = ids[field.name]
            return [known[at] for at in rng.integers(len(known), size=count)]
        if field.kind == "page":
            return rng.integers(3, size=count).tolist()
        return rng.random((count, field.size) if field.kind == "dense" else count).tolist()

    requests = []
    for number in range(num_requests):
        size, length = num_candidates, history_length
        if ragged and number:
            size = int(rng.integers(1, num_candidates, endpoint=True))
            length = int(rng.integers(history_length, endpoint=True))
        request: dict[str, Any] = {schema.item_id: rng.permutation(10 * size)[:size].tolist()}
        request |= {target.value: rng.random(size).tolist() for target in schema.targets if target.value is not None}
        counts = {"request": 1, "candidate": size, "history": length}
        for field in schema.fields:
            drawn = values(field, counts[field.group])
            columns = zip(*drawn, strict=True) if field.columns else [drawn]
            for name, column in zip(field.sources, columns, strict=True):
                request[name] = column[0] if field.group == "request" else list(column)
        requests.append(request)
    return requests


def spoil_requests(
    extractor: RerankingFeatureExtractor, requests: list[dict[str, Any]], seed: int = 0
) -> list[dict[str, Any]]:
    """Requests with a fifth of their values missing, or ids that no vocabulary has, where a request may have these."""
    schema, rng = extractor.schema, np.random.default_rng(seed)
    required = {schema.item_id, *(target.value for target in schema.targets)}
    required |= {field.name for field in schema.fields if field.kind in TOLD_ONCE}

    def spoil(value: Any, instead: list[Any]) -> Any:
        return instead[rng.integers(len(instead))] if instead and rng.random() < 0.2 else value

    spoiled = []
    for request in requests:
        other = dict(request)
        for field in schema.fields:
            instead: list[Any] = []
            if field.kind == "categorical":
                text = isinstance(extractor.example_values(field, 1)[0], str)
                instead = ["неизвестно-\U0001f98a" if text else int(rng.integers(1 << 62))]
            for name in field.sources:
                choices, value = instead if name in required else [None, *instead], request[name]
                many = field.group != "request"
                other[name] = [spoil(one, choices) for one in value] if many else spoil(value, choices)
        spoiled.append(other)
    return spoiled
