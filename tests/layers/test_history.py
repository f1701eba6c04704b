from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rerankzoo.layers import HistoryEncoder, PageContext, TargetAttention, ages, recency

MASK = torch.tensor([[True, True, True], [True, True, False], [False, False, False]])
TIMES = torch.tensor([[4.0, 1.0, 0.5], [2.0, 0.0, 9.0], [9.0, 9.0, 9.0]])


def test_ages_and_what_is_left() -> None:
    assert ages(MASK, None)[:2].tolist() == [[2, 1, 0], [1, 0, 0]]  # later items
    assert ages(MASK, TIMES) is TIMES
    left = recency(TIMES, torch.tensor([[1.0], [2.0], [1.0]]), MASK)
    torch.testing.assert_close(left, torch.tensor([[2.0**-4, 0.5, 2.0**-0.5], [0.5, 1, 0], [0, 0, 0]]))
    by_head = recency(TIMES, torch.tensor([1.0, 2.0]).view(-1, 1, 1), MASK)
    assert by_head[:, 0, 0].tolist() == [2.0**-4, 2.0**-2]


def test_page_context_by_hand() -> None:
    torch.manual_seed(0)
    history, pages = torch.randn(3, 4, 6), torch.tensor([[5, 5, 2, 5], [3, 1, 1, 1], [0, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, True], [True, True, True, False], [False, False, False, False]])
    layer = PageContext(6)
    assert torch.equal(layer(history, mask, pages), history)  # at the start
    torch.nn.init.normal_(layer.weight)
    found = layer(history, mask, pages)
    for row, item, others in ((0, 0, [1, 3]), (0, 1, [0, 3]), (0, 3, [0, 1]), (1, 1, [2]), (1, 2, [1])):
        expected = history[row, item] + layer.weight @ history[row, others].mean(0)
        torch.testing.assert_close(found[row, item], expected, rtol=1e-5, atol=1e-5)
    for row, item in ((0, 2), (1, 0)):  # alone
        assert torch.equal(found[row, item], history[row, item])
    with pytest.raises(ValueError, match="needs history_page"):
        layer(history, mask, None)


@pytest.mark.parametrize(("timed", "paged"), [(True, False), (False, False), (True, True)])
def test_target_attention_by_hand(timed: bool, paged: bool) -> None:
    torch.manual_seed(0)
    layer = TargetAttention(6, num_heads=2, timed=timed, paged=paged)
    candidates, history = torch.randn(3, 2, 6), torch.randn(3, 3, 6)
    pages = torch.tensor([[2, 1, 1]]).expand(3, -1)
    if layer.page is not None:
        torch.nn.init.normal_(layer.page.weight)
    found = layer(candidates, history, MASK, TIMES if timed else None, pages if paged else None)
    history = history if layer.page is None else layer.page(history, MASK, pages)
    half_lives = [half_life * (1.0 if timed else 8.0) for half_life in (0.5, 2.0)]

    def read(row: int, candidate: int) -> Tensor:
        query = layer.query(layer.query_norm(candidates[row, candidate]))
        parts = []
        for head, half_life in enumerate(half_lives):
            part, total, left = slice(3 * head, 3 * head + 3), torch.zeros(3), 0.0
            for item in range(int(MASK[row].sum())):
                key, value = layer.key_value(layer.memory_norm(history[row, item])).chunk(2)
                age = float(TIMES[row, item]) if timed else int(MASK[row].sum()) - 1 - item
                recent = 2 ** (-age / half_life)
                total = total + torch.sigmoid(query[part] @ key[part] / math.sqrt(3)) * recent * value[part]
                left += recent
            parts.append(total / (1 + left))
        return layer.output(torch.cat(parts))

    for row in range(3):
        for candidate in range(2):
            torch.testing.assert_close(found[row, candidate], read(row, candidate), rtol=1e-5, atol=1e-6)


def test_target_attention_needs_its_times() -> None:
    with pytest.raises(ValueError, match="needs history_time"):
        TargetAttention(4, 1, timed=True)(torch.zeros(3, 1, 4), torch.zeros(3, 3, 4), MASK)


def test_history_encoder_without_layers_tells_ages() -> None:
    torch.manual_seed(0)
    layer, history = HistoryEncoder(torch.nn.ModuleList(), 4), torch.randn(3, 3, 4)
    torch.nn.init.normal_(layer.age)
    found = layer(history, MASK, TIMES)
    expected = layer.norm(history + math.log(5.0) * layer.age)
    torch.testing.assert_close(found[0, 0], expected[0, 0])
