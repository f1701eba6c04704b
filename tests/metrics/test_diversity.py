from __future__ import annotations

import math

import pytest
import torch

from rerankzoo.metrics.diversity import distinct_2, ilad, intra_list_distance, item_coverage, order_distance

SLATES = torch.tensor([[0, 1, 2, -100], [2, -100, -100, -100], [3, 2, 1, 0]])
CATEGORIES = torch.tensor([[4, 4, 5, 9], [4, 4, 5, 9], [1, 2, 1, 2]])


def test_ild_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]).expand(3, 4, 2)
    half = 1 - 1 / math.sqrt(2)
    # Row 2 holds the zero vector too: distance 1 from each of the three others.
    expected = [(0 + half + half) / 3, 0, (3 + 2 * half) / 6]
    assert intra_list_distance(SLATES, vectors, k=4).tolist() == pytest.approx(expected, abs=1e-6)
    assert intra_list_distance(SLATES, vectors, k=2).tolist() == pytest.approx([0, 0, 1], abs=1e-6)


def test_ild_agrees_with_a_loop_and_ignores_lengths():
    vectors = torch.randn(5, 6, 3, generator=torch.Generator().manual_seed(0)).double()
    slates = torch.rand(5, 6, generator=torch.Generator().manual_seed(1)).argsort(1)[:, :4]
    expected = []
    for row in range(5):
        chosen = vectors[row, slates[row]]
        pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
        cosines = [torch.cosine_similarity(chosen[i], chosen[j], dim=0).item() for i, j in pairs]
        expected.append(sum(1 - cosine for cosine in cosines) / 6)
    assert intra_list_distance(slates, vectors * 10, k=4).tolist() == pytest.approx(expected)


def test_ilad_by_hand():
    assert ilad(SLATES, CATEGORIES, k=4).tolist() == pytest.approx([2 / 3, 0, 4 / 6])
    assert ilad(SLATES, CATEGORIES, k=2).tolist() == pytest.approx([0, 0, 1])


def test_item_coverage_by_hand():
    items = torch.tensor([[0, 1, 2, 7], [8, 1, 3, 7], [5, 4, 2, 1]])
    # k = 4: {0, 1, 2}, {3}, {1, 2, 4, 5}; k = 1: {0}, {3}, {1}.
    assert item_coverage(SLATES, items, 10, k=4).item() == pytest.approx(0.6)
    assert item_coverage(SLATES, items, 10, k=1).item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"items, row 2, position 3: 5 is outside a catalogue of 5"):
        item_coverage(SLATES, items, 5, k=4)


def test_item_coverage_ignores_ids_of_padding():
    assert item_coverage(torch.tensor([[1, -100]]), torch.tensor([[-1, 1]]), 2, k=2).item() == 0.5


def test_distinct_2_by_hand():
    # Pairs: (4,4) (4,5) | none | (2,1) (1,2) (2,1).
    assert distinct_2(SLATES, CATEGORIES, k=4).item() == pytest.approx(4 / 5)
    assert distinct_2(SLATES, CATEGORIES, k=4, pool="request").item() == pytest.approx((1 + 2 / 3) / 2)
    assert distinct_2(SLATES, CATEGORIES, k=1).item() == 0
    shared = torch.tensor([[0, 1], [0, 1], [1, 0]])
    assert distinct_2(shared, torch.tensor([[7, 8]] * 3), k=2).item() == pytest.approx(2 / 3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="pool must be one of"):
        distinct_2(SLATES, CATEGORIES, k=2, pool="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slates, row 0, position 1: 4 is neither"):
        ilad(torch.tensor([[0, 4]]), CATEGORIES[:1], k=2)
    with pytest.raises(ValueError, match="expected 3 dimensions and 3 rows"):
        intra_list_distance(SLATES, CATEGORIES.float(), k=2)


def test_order_distance_by_hand():
    """Items that are not shown stand below all that are, and beside one another."""
    slates = torch.tensor([[[0, 1, 2], [3, -100, -100]]])
    others = torch.tensor([[[0, 1, 2], [2, 1, 0], [0, 1, 3], [3, 4, 5], [-100, -100, -100]]])
    # Of 0, 1, 2 and 0, 1, 3 one pair of six is turned: 2 above 3. Of disjoint slates, the pairs of one item of each.
    expected = [[0, 1, 1 / 6, 9 / 15, 0], [3 / 6, 3 / 6, 2 / 3, 0, 0]]
    assert order_distance(slates, others, 6)[0].tolist() == [pytest.approx(row) for row in expected]
    assert order_distance(slates[:, 1:], slates[:, 1:], 6).tolist() == [[[0.0]]]
