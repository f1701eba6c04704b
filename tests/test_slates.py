from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch

from rerankzoo.slates import all_slates, edited_slates, neighbour_slates, put, uniform_slates


@pytest.mark.parametrize(("n", "m"), [(1, 1), (4, 1), (4, 2), (5, 5), (10, 4)])
def test_all_slates_lists_every_slate_in_order(n, m):
    slates = all_slates(n, m)
    assert slates.shape == (math.perm(n, m), m)
    assert slates.dtype == np.int64
    assert slates.tolist() == [list(slate) for slate in permutations(range(n), m)]
    with pytest.raises(ValueError, match="read-only"):
        slates[0, 0] = 1


def test_all_slates_refuses_impossible_and_endless_lists():
    with pytest.raises(ValueError, match="slate_size 4 exceeds num_candidates 3"):
        all_slates(3, 4)
    with pytest.raises(ValueError, match="slate_size must be at least 1"):
        all_slates(3, 0)
    with pytest.raises(ValueError, match="11441304000 slates of 6, above"):
        all_slates(50, 6)


def test_sampled_slates_are_uniform_over_all_slates():
    mask = torch.tensor([[True, True, True, True, False], [True, False, True, False, True]])
    slates = uniform_slates(mask, 2, 12_000, torch.Generator().manual_seed(0))
    assert slates.shape == (2, 12_000, 2)
    for row, size in ((0, 12), (1, 6)):
        unique, counts = torch.unique(slates[row], dim=0, return_counts=True)
        expected = [list(slate) for slate in permutations(mask[row].nonzero().flatten().tolist(), 2)]
        assert unique.tolist() == expected
        # Five standard deviations of a count.
        assert (counts - 12_000 / size).abs().max() < 5 * math.sqrt(12_000 / size)


def test_sampled_slates_of_short_rows_end_in_padding():
    slates = uniform_slates(torch.tensor([[False, True, True, False]]), 3, 50, torch.Generator().manual_seed(0))
    assert {tuple(slate) for slate in slates[0].tolist()} == {(1, 2, -100), (2, 1, -100)}


def test_sampling_is_reproducible_and_refuses_too_large_slates():
    mask = torch.ones(2, 6).bool()
    first, second = (uniform_slates(mask, 3, 20, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(ValueError, match="slate_size 7 exceeds num_candidates 6"):
        uniform_slates(mask, 7, 1)


def test_neighbours_differ_in_one_item_or_in_the_order_of_two():
    slates = torch.tensor([[[0, 1], [1, 3]], [[2, -100], [-100, -100]]])
    mask = torch.tensor([[True] * 4, [True, False, True, False]])
    found, valid = neighbour_slates(slates, mask)
    listed = [
        [sorted(steps[real].tolist()) for steps, real in zip(*pair, strict=True)]
        for pair in zip(found, valid, strict=True)
    ]
    assert listed == [
        [[[0, 2], [0, 3], [1, 0], [2, 1], [3, 1]], [[0, 3], [1, 0], [1, 2], [2, 3], [3, 1]]],
        [[[0, -100]], []],
    ]
    assert (found[~valid] == -100).all()
    assert neighbour_slates(torch.zeros(1, 1, 1, dtype=torch.int64), mask[:1, :1])[0].shape == (1, 1, 0, 1)


def test_a_candidate_is_put_somewhere_and_changes_places_where_it_stands_already():
    edited = edited_slates(torch.tensor([[[0, 2]]]), 4)[0, 0]
    assert edited.tolist() == [[[0, 2], [1, 2], [2, 0], [3, 2]], [[2, 0], [0, 1], [0, 2], [0, 3]]]
    one = put(torch.tensor([[3, 1, 2], [3, 1, -100]]), torch.tensor([[2], [0]]), torch.tensor([[3], [5]]))
    assert one.tolist() == [[2, 1, 3], [5, 1, -100]]
