from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rerankzoo.layers import InterFieldAttention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(layer: InterFieldAttention, candidates: Tensor, request: Tensor) -> Tensor:
    """One field of one candidate at a time."""
    result = candidates.clone()
    for b, n, f in torch.cartesian_prod(*(torch.arange(size) for size in candidates.shape[:3])).tolist():
        keys, values = layer.key_value(torch.cat([request[b], candidates[b, n]])).chunk(2, dim=-1)
        query = layer.query(candidates[b, n, f])
        weights = (keys @ query / len(query) ** 0.5).softmax(-1)
        result[b, n, f] = candidates[b, n, f] + layer.output(weights @ values)
    return result


@pytest.mark.parametrize("shared", [0, 2])
def test_every_field_attends_to_its_item_and_the_request(shared: int) -> None:
    torch.manual_seed(0)
    layer = InterFieldAttention(4)
    candidates, request = random(2, 3, 5, 4), random(2, shared, 4, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(layer(candidates, request), by_hand(layer, candidates, request))


def test_candidates_do_not_see_one_another() -> None:
    layer, candidates, request = InterFieldAttention(4), random(2, 3, 5, 4), random(2, 2, 4, seed=1)
    changed = candidates.clone()
    changed[:, 1] += 1.0
    found, expected = layer(changed, request), layer(candidates, request)
    torch.testing.assert_close(found[:, [0, 2]], expected[:, [0, 2]])
    assert not torch.isclose(found[:, 1], expected[:, 1]).all()


def test_drops_weights_while_training_only() -> None:
    layer, candidates, request = InterFieldAttention(4, dropout=0.5), random(2, 3, 5, 4), random(2, 2, 4, seed=1)
    layer.eval()
    assert torch.equal(layer(candidates, request), layer(candidates, request))
    layer.train()
    assert not torch.equal(layer(candidates, request), layer(candidates, request))
