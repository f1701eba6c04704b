from __future__ import annotations

import json

import torch
from torch import Tensor

from rerankzoo.batch import ENTRIES, inputs
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.serving import random_batch, random_requests


def test_a_random_batch_is_one_of_the_extractor(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    state = torch.get_rng_state()
    made = random_batch(extractor, 50, 5, 3)
    assert list(made) == list(inputs(batch))
    for name, tensor in made.items():
        sizes = dict(zip(ENTRIES[name].axes, tensor.shape, strict=True))
        assert {"B": 50, "N": 5, "L": 3, **sizes} == {**sizes, "B": 50, "N": 5, "L": 3}, name
        assert tensor.dtype == ENTRIES[name].dtype, name
    assert set(made["candidate_mask"].sum(-1).tolist()) == {1, 2, 3, 4, 5}
    assert set(made["history_mask"].sum(-1).tolist()) == {0, 1, 2, 3}
    assert made["candidate_mask"][0].all()
    assert made["history_mask"][0].all()
    assert random_batch(extractor, 3, 5, ragged=False)["candidate_mask"].all()
    assert torch.equal(torch.get_rng_state(), state)  # the global one is left alone
    same, other = random_batch(extractor, 50, 5, 3), random_batch(extractor, 50, 5, 3, seed=1)
    assert all(torch.equal(made[name], same[name]) for name in made)
    assert not torch.equal(made["candidate_numeric"], other["candidate_numeric"])


def test_random_requests_are_read_from_json(extractor: RerankingFeatureExtractor) -> None:
    requests = json.loads(json.dumps(random_requests(extractor, 3, 5, history_length=2)))
    batch = extractor(requests)
    assert batch["candidate_mask"].shape == (3, 5)
    assert batch["history_mask"].shape == (3, 2)
    item = [field.name for field in extractor.schema.select("candidate", "categorical")].index("item_id")
    assert (batch["candidate_categorical"][..., item] >= 2).all()  # known to the vocabulary
    assert requests != random_requests(extractor, 3, 5, history_length=2, seed=1)


def test_groups_without_fields(extractor: RerankingFeatureExtractor) -> None:
    schema = FeatureSchema(
        name="bare",
        item_id="item_id",
        fields=(FieldSpec(name="item_id", group="candidate", kind="categorical"),),
        targets=(TargetSpec(name="click"),),
    )
    fitted = RerankingFeatureExtractor(schema).fit([{"item_id": [1, 2, 3], "slate": [0], "click": [1.0]}])
    assert random_batch(fitted, 1, 3)["request_categorical"].shape == (1, 0)
