from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.serving import random_batch


def test_has_the_keys_shapes_and_types_of_an_extracted_batch(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    expected = inputs(batch)
    length = expected["history_mask"].shape[1]
    found = random_batch(extractor.schema, *expected["candidate_mask"].shape, length)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].shape == value.shape, key
        assert found[key].dtype == value.dtype, key


def test_ids_and_masks_are_possible_ones(extractor: RerankingFeatureExtractor) -> None:
    schema, found = extractor.schema, random_batch(extractor.schema, 200, 5, 3)
    for group in ("request", "candidate", "history"):
        owners = [schema.owner(field) for field in schema.select(group, "categorical")]  # type: ignore[arg-type]
        for column, owner in enumerate(owners):
            ids = found[f"{group}_categorical"][..., column]
            assert owner.num_embeddings is not None
            assert ids.min() == 0
            assert ids.max() == owner.num_embeddings - 1
    mask = found["candidate_mask"]
    assert mask[0].all()
    assert mask.any(-1).all()
    assert set(mask.sum(-1).tolist()) == {1, 2, 3, 4, 5}
    assert not found["history_mask"].any(-1).all()


def test_is_repeatable_and_leaves_the_global_state_alone(extractor: RerankingFeatureExtractor) -> None:
    state = torch.get_rng_state()
    one, same, other = (random_batch(extractor.schema, 2, 3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["candidate_numeric"], other["candidate_numeric"])
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_without_fields(extractor: RerankingFeatureExtractor) -> None:
    schema = FeatureSchema(
        name="bare",
        item_id="item_id",
        fields=(FieldSpec(name="item_id", group="candidate", kind="categorical"),),
        targets=(TargetSpec(name="click"),),
    )
    rows = [{"item_id": [1, 2, 3], "slate": [0], "click": [1.0]}]
    fitted = RerankingFeatureExtractor(schema).fit(rows)
    found, expected = random_batch(fitted.schema, 1, 3), inputs(fitted(rows))
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
