"""The models, requests and sizes of the comparisons: d = 64, 2 + 2 layers, 4 heads, 10 fields per candidate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.models.prm import PRMConfig, PRMForReranking
from rerankzoo.serving import random_batch

SIZES = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 256, "num_hidden_layers": 2}
NUM_ITEMS = 20_000
SLATE_SIZE = 10

CATEGORICAL = {"item": NUM_ITEMS, "category": 100, "brand": 1000, "shop": 2000, "color": 20}
NUMERIC = ("score", "price", "rating", "age", "stock")


def make_schema(num_items: int = NUM_ITEMS) -> FeatureSchema:
    """10 fields per candidate, 5 of them categorical, and 2 of the request."""
    buckets = {**CATEGORICAL, "item": num_items}
    return FeatureSchema(
        name="bench",
        fields=(
            FieldSpec(name="segment", group="request", kind="categorical", hash_size=50),
            FieldSpec(name="hour", group="request", kind="numeric"),
            *(FieldSpec(name=name, group="candidate", kind="categorical", hash_size=buckets[name]) for name in buckets),
            *(FieldSpec(name=name, group="candidate", kind="numeric") for name in NUMERIC),
        ),
        targets=(TargetSpec(name="click"),),
        item_id="item",
        slate="slate",
        upstream_score="score",
    )


def make_requests(count: int, num_candidates: int, seed: int = 0) -> list[dict[str, Any]]:
    """Raw requests, as they come from JSON."""
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        request: dict[str, Any] = {"segment": int(rng.integers(50)), "hour": float(rng.random())}
        for name, size in CATEGORICAL.items():
            request[name] = rng.integers(size, size=num_candidates).tolist()
        request["item"] = rng.choice(NUM_ITEMS, num_candidates, replace=False).tolist()
        for name in NUMERIC:
            request[name] = rng.random(num_candidates).tolist()
        requests.append(request)
    return requests


def make_extractor(num_items: int = NUM_ITEMS) -> RerankingFeatureExtractor:
    """A fitted extractor."""
    return RerankingFeatureExtractor(make_schema(num_items)).fit(make_requests(8, 20))


def make_model(kind: type, num_items: int = NUM_ITEMS, **values: Any) -> Any:
    """A model with random weights."""
    torch.manual_seed(0)
    schema = make_extractor(num_items).schema.to_dict()
    configs = {
        DeGReGenerator: DeGReConfig,
        DeGReEvaluator: DeGReConfig,
        NAR4RecForReranking: NAR4RecConfig,
        PRMForReranking: PRMConfig,
    }
    return kind(configs[kind](feature_schema=schema, slate_size=SLATE_SIZE, **{**SIZES, **values})).eval()


def full_batch(num_requests: int, num_candidates: int, num_items: int = NUM_ITEMS, seed: int = 0) -> dict[str, Tensor]:
    """Requests that have all of their candidates."""
    return random_batch(make_extractor(num_items), num_requests, num_candidates, seed=seed, ragged=False)
