"""Groups of slates: where they come from, which count, and what their positions add."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation.rollouts import (
    distinct,
    marginal_gains,
    parse_proposals,
    perturbed_slates,
    prefix_gains,
    propose,
    upstream_slates,
)
from rerankzoo.models.pointwise import PointwiseForReranking

MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
SLATES = torch.tensor([[[0, 1, 2]], [[1, 0, -100]], [[0, -100, -100]]])


def value(slates: Tensor) -> Tensor:
    """Of (i, j, k): i + 10 j + 100 k + i j, counting from 1."""
    number = (slates + 1).masked_fill(slates < 0, 0).float()
    return (number * torch.tensor([1.0, 10.0, 100.0])).sum(-1) + number[..., 0] * number[..., 1]


def test_gains_by_hand() -> None:
    assert prefix_gains(value, SLATES).tolist() == [[[1.0, 22.0, 300.0]], [[2.0, 12.0, 0.0]], [[1.0, 0.0, 0.0]]]
    # 1 2 3 without one of them: 2 3 is worth 38, 1 3 is worth 34, 1 2 is worth 23; of 323.
    found = marginal_gains(value, SLATES)
    assert found[0, 0].tolist() == [285.0, 289.0, 300.0]
    assert found[1, 0].tolist() == [13.0, 12.0, 0.0]  # 2 1 is worth 14; alone 1 and 2
    assert found[2, 0].tolist() == [1.0, 0.0, 0.0]


def test_equal_slates_count_once() -> None:
    slates = torch.tensor([[[0, 1], [1, 0], [0, 1], [-100, -100], [-100, -100], [0, -100]]])
    assert distinct(slates).tolist() == [[True, True, False, False, False, True]]


def test_changed_slates_are_all_neighbours() -> None:
    torch.manual_seed(0)
    found = perturbed_slates(SLATES.expand(-1, 400, -1), MASK)
    seen = [{tuple(slate) for slate in row.tolist()} for row in found]
    every = set(permutations(range(4), 3))
    swapped = {(1, 0, 2), (2, 1, 0), (0, 2, 1)}
    replaced = {(3, 1, 2), (0, 3, 2), (0, 1, 3)}
    assert seen[0] == swapped | replaced < every
    assert seen[1] == {(0, 1, -100)}
    assert seen[2] == {(0, -100, -100)}  # there is no other


def test_sources_side_by_side(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    config = {"feature_schema": extractor.schema.to_dict(), "hidden_size": 16, "embedding_size": 4}
    model = PointwiseForReranking(PointwiseForReranking.config_class(**config)).train()
    sources, known = parse_proposals("own=3,upstream=1,uniform=2,perturbed=4,a/b=2"), inputs(batch)
    slates = propose(sources, known, 4, {"own": model, "a/b": model}, extractor.schema, batch["slates"])
    assert slates.shape == (8, 1 + 3 + 1 + 2 + 4 + 2, 4)
    assert model.training
    assert torch.equal(slates[:, :1], batch["slates"])
    assert torch.equal(slates[:, 11], model.eval().generate(**known))
    assert torch.equal(slates[:, 4:5], upstream_slates(known, 4, extractor.schema))
    sizes = batch["candidate_mask"].sum(-1)
    for row, size in zip(slates, sizes.tolist(), strict=True):
        for slate in row.tolist():
            real = [item for item in slate if item >= 0]
            assert slate == real + [-100] * (4 - len(real))
            assert len(set(real)) == len(real) == min(4, size)
            assert max(real) < size
    changed = slates[:, 7:11] != slates[:, :4]
    assert changed.any(-1)[sizes > 1].all()


def test_upstream_order(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    column = extractor.schema.position("upstream_score")
    found = upstream_slates(batch, 4, extractor.schema)[:, 0]
    numbers = batch["candidate_numeric"][..., column]
    for slate, scores, mask in zip(found.tolist(), numbers, batch["candidate_mask"], strict=True):
        order = sorted(range(int(mask.sum())), key=lambda item: -scores[item])[:4]
        assert slate == order + [-100] * (4 - len(order))


@pytest.mark.parametrize("text", ["own", "own=-1", "own=2,own=3", "=3", "upstream=2", "perturbed=1"])
def test_proposals_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match="proposals: "):
        parse_proposals(text)
