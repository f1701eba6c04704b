from __future__ import annotations

import pytest
import torch

from rerankzoo.features import BATCH_KEYS, gather_candidates, slate_utility


def test_keys_are_distinct() -> None:
    assert len(set(BATCH_KEYS)) == len(BATCH_KEYS) == 16


def test_gather_is_zero_at_padding() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    slates = torch.tensor([[[1, 0]], [[0, -100]]])
    expected = torch.tensor([[[[3.0, 4.0], [1.0, 2.0]]], [[[5.0, 6.0], [0.0, 0.0]]]])
    assert torch.equal(gather_candidates(values, slates), expected)
    assert torch.equal(gather_candidates(values, slates[:, 0]), expected[:, 0])
    assert torch.equal(gather_candidates(values[..., 0], slates), expected[..., 0])


def test_gather_passes_gradients_to_the_chosen_candidates_only() -> None:
    values = torch.ones(1, 3, requires_grad=True)
    gather_candidates(values, torch.tensor([[[2, -100]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 1.0]]


def test_utility_by_hand() -> None:
    batch = {
        "candidate_value": torch.tensor([[[1.0, 10.0], [1.0, 20.0]]]),
        "slates": torch.tensor([[[1, 0], [0, -100]]]),
        "feedback": torch.tensor([[[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [float("nan"), 9.0]]]]),
    }
    # first slate: 1 + 3 * (20 * 0.5 + 10 * 1) = 61; second: 1
    assert slate_utility(batch, (1.0, 3.0)).tolist() == [[61.0, 1.0]]


def test_mismatches_name_both_sizes() -> None:
    with pytest.raises(ValueError, match="2, slates 1"):
        gather_candidates(torch.zeros(2, 3), torch.zeros(1, 1, dtype=torch.int64))
    batch = {"feedback": torch.zeros(1, 1, 1, 2), "slates": torch.zeros(1, 1, 1, dtype=torch.int64)}
    with pytest.raises(ValueError, match="1 target weights for 2"):
        slate_utility(batch, (1.0,))
