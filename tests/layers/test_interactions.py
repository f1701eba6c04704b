from __future__ import annotations

import pytest
import torch

from rerankzoo.layers import PairInteractions, UpstreamModel


def pairs(looks_ahead: bool = True) -> PairInteractions:
    torch.manual_seed(0)
    layer = PairInteractions(3, num_heads=3, head_size=2, num_positions=4, num_targets=2, looks_ahead=looks_ahead)
    with torch.no_grad():
        layer.weight.normal_()
    return layer


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_is_a_sum_over_heads_by_distance(looks_ahead: bool) -> None:
    layer, items = pairs(looks_ahead), torch.randn(4, 3)
    query, key = layer.heads(items)
    found = layer(query, key)  # (M, M, T)
    for t in range(4):
        for s in range(4):
            expected = torch.zeros(2)
            for head in range(3 if s < t or (looks_ahead and s > t) else 0):
                product = query[t, head] @ key[s, head] * 2**-0.5
                product = product.clamp_min(0) if head == 2 else product  # of three heads, the last one is rectified
                expected += layer.weight[:, head, int(s > t), abs(s - t) - 1] * product
            torch.testing.assert_close(found[t, s], expected)


@pytest.mark.parametrize("looks_ahead", [True, False])
def test_effects_are_looked_up_as_they_are_computed(looks_ahead: bool) -> None:
    layer, candidates = pairs(looks_ahead), torch.randn(2, 5, 3)
    slates = torch.tensor([[[0, 3, 1], [4, 2, -100]], [[2, 1, 0], [1, -100, -100]]])
    query, key = layer.heads(candidates)
    found = layer.of_slates(query, key, slates)
    for b in range(2):
        for number, slate in enumerate(slates[b].tolist()):
            real = [item for item in slate if item >= 0]
            expected = layer(*layer.heads(candidates[b, real])).sum(-2)
            torch.testing.assert_close(found[b, number, : len(real)].sum(-2), expected)


def test_upstream_model_learns_what_belongs_to_an_item() -> None:
    torch.manual_seed(0)
    model = UpstreamModel(num_items=6, item_size=2, request_size=2)
    with torch.no_grad():
        model.items.table.weight.zero_()
    ids, items, request = torch.tensor([[2, 3, 4]]), torch.randn(1, 3, 2), torch.randn(1, 2)
    scores, residuals = model(ids, items, request)
    assert scores.shape == (1, 3)
    assert (residuals == 0).all()
    assert model.prior().item() == 0
    with torch.no_grad():
        model.items.table.weight[3] = torch.tensor([0.5, 0.1, -0.2])
    moved, residuals = model(ids, items, request)
    assert residuals[0, 1].tolist() == pytest.approx([0.1, -0.2])
    assert (moved != scores).tolist() == [[False, True, False]]
    numbers = UpstreamModel(num_items=6, item_size=2, request_size=2, residual_size=1)
    assert numbers(ids, items, request)[1].shape == (1, 3, 2)
    assert (numbers(ids, items, request)[1] == 0).all(-2).tolist() == [[True, False]]  # only the last is corrected
    expected = 0.5**2 / (2 * 1.0**2) + (0.1**2 + 0.2**2) / (2 * 0.2**2)
    assert model.prior().item() == pytest.approx(expected)
