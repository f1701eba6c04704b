from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rerankzoo.layers import InterFieldAttention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(layer: InterFieldAttention, candidates: Tensor, request: Tensor) -> Tensor:
    """One field of one candidate at a time."""
    result, heads = candidates.clone(), layer.num_attention_heads
    for b, n, f in torch.cartesian_prod(*(torch.arange(size) for size in candidates.shape[:3])).tolist():
        keys, values = layer.key_value(torch.cat([request[b], candidates[b, n]])).chunk(2, dim=-1)
        query, mixed = layer.query(candidates[b, n, f]), []
        for head in range(heads):
            own = slice(head * len(query) // heads, (head + 1) * len(query) // heads)
            weights = (keys[:, own] @ query[own] / (len(query) // heads) ** 0.5).softmax(-1)
            mixed.append(weights @ values[:, own])
        result[b, n, f] = candidates[b, n, f] + layer.output(torch.cat(mixed))
    return result


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_field_attends_to_its_item_and_the_request(implementation: str, shared: int, heads: int) -> None:
    torch.manual_seed(0)
    layer = InterFieldAttention(4, heads)
    candidates, request = random(2, 3, 5, 4), random(2, shared, 4, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(layer(candidates, request, implementation), by_hand(layer, candidates, request))


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


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="field_size 10 is not a multiple of num_attention_heads 4"):
        InterFieldAttention(10, 4)
