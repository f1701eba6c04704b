from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankzoo.metrics.slate_rank import (
    RankEstimate,
    count_better,
    estimate_rank,
    hit_rate_at_share,
    regret_ratio,
    sampled_hit_rate,
    utility_share,
)
from rerankzoo.slates import all_slates, real_slates, uniform_slates


@pytest.mark.parametrize(
    ("share", "rounding", "admitted"),
    [
        (0.01, "ceil", 2),  # 1 % of 120 slates is 1.2
        (0.01, "floor", 1),
        (0.10, "ceil", 12),
        (0.10, "floor", 12),
        (0.001, "ceil", 1),
        (0.001, "floor", 1),  # never fewer than one
    ],
)
def test_rounding(share, rounding, admitted):
    values = torch.arange(120.0).expand(120, 120)
    hits = hit_rate_at_share(values, torch.arange(120.0), share, rounding)
    assert hits.sum() == admitted
    assert hits[-admitted:].all()


@pytest.mark.parametrize(("share", "rounding", "admitted"), [(0.07, "ceil", 7), (0.29, "floor", 29)])
def test_rounding_is_not_fooled_by_float_products(share, rounding, admitted):
    values = torch.arange(100.0).expand(100, 100)
    assert hit_rate_at_share(values, torch.arange(100.0), share, rounding).sum() == admitted


def test_ties_count_for_the_chosen_slate():
    values = torch.tensor([[1.0] * 50 + [0.0] * 50])
    assert hit_rate_at_share(values, torch.tensor([1.0]), 0.01).item() == 1
    assert hit_rate_at_share(values, torch.tensor([0.0]), 0.5).item() == 0
    assert hit_rate_at_share(values, torch.tensor([0.0]), 0.51).item() == 1


def test_tolerance_is_relative():
    values = torch.tensor([[1000.0005, 999.0], [1.0005, 0.9], [-1000.0, -2000.0]])
    chosen = torch.tensor([1000.0, 1.0, -1000.0005])
    assert count_better(values, chosen).tolist() == [0, 1, 0]
    assert count_better(values, chosen, tolerance=0.0).tolist() == [1, 1, 1]
    assert count_better(values, chosen, tolerance=1e-2).tolist() == [0, 0, 0]


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3), st.sampled_from([0.01, 0.1, 0.3]))
@settings(max_examples=30, deadline=None)
def test_agrees_with_enumeration(seed, n, m, share):
    """A pairwise value of n items, many values tied, against a sorted Python list."""
    m = min(n, m)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 3, (n, m))
    values = [float(sum(weights[i, t] for t, i in enumerate(slate))) for slate in permutations(range(n), m)]
    chosen = torch.tensor(values)
    ranks = [sum(other > value for other in values) for value in values]
    table = torch.tensor(weights).double()
    listed = table[torch.tensor(all_slates(n, m)), torch.arange(m)].sum(-1).expand(len(values), -1)
    hits = hit_rate_at_share(listed, chosen, share)
    assert hits.tolist() == [rank < max(1, math.ceil(round(share * len(values), 9))) for rank in ranks]
    if max(values) > 0:
        expected = [1 - value / max(values) for value in values]
        assert regret_ratio(listed, chosen).tolist() == pytest.approx(expected)


def test_rows_with_fewer_candidates():
    candidate_mask = torch.tensor([[True, True, True, True], [True, True, False, True]])
    slates = torch.tensor(all_slates(4, 2))
    mask = real_slates(candidate_mask, slates)
    assert mask.sum(1).tolist() == [12, 6]
    item_values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 99.0, 4.0]])
    values = item_values[:, slates] @ torch.tensor([2.0, 1.0])
    short = torch.tensor(all_slates(3, 2))
    expected = torch.tensor([[1.0, 2.0, 4.0]])[:, short] @ torch.tensor([2.0, 1.0])
    for chosen in (10.0, 9.0, 8.0):
        both = torch.tensor([chosen, chosen])
        for share in (0.1, 0.2, 0.4):
            padded = hit_rate_at_share(values, both, share, mask=mask)[1]
            assert padded == hit_rate_at_share(expected, both[:1], share)[0]
        assert regret_ratio(values, both, mask)[1] == regret_ratio(expected, both[:1])[0]


def test_masked_values_may_hold_anything():
    values, mask = torch.tensor([[1.0, math.nan, math.inf]]), torch.tensor([[True, False, False]])
    assert regret_ratio(values, torch.tensor([1.0]), mask).item() == 0
    assert hit_rate_at_share(values, torch.tensor([1.0]), 0.1, mask=mask).item() == 1
    negative = torch.tensor([[-1.0, -2.0, 5.0]])
    assert count_better(negative, torch.tensor([-2.0]), torch.tensor([[True, True, False]])).item() == 1
    assert regret_ratio(negative, torch.tensor([-2.0]), torch.tensor([[True, True, False]])).item() == 1


def test_regret_signs_and_zeros():
    values = torch.tensor([[4.0, 1.0], [-1.0, -2.0], [0.0, -1.0], [0.0, -1.0], [4.0, 1.0]])
    chosen = torch.tensor([1.0, -2.0, 0.0, -1.0, 5.0])
    assert regret_ratio(values, chosen).tolist() == [0.75, 1.0, 0.0, 1.0, -0.25]
    assert utility_share(values, chosen).tolist() == [0.25, 0.0, 1.0, 0.0, 1.25]


def test_bad_values_are_named():
    good = torch.tensor([[1.0, 2.0]])
    with pytest.raises(ValueError, match=r"values, row 0, position 1: nan is not finite"):
        regret_ratio(torch.tensor([[1.0, math.nan]]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"chosen, row 0: inf is not finite"):
        regret_ratio(good, torch.tensor([math.inf]))
    with pytest.raises(ValueError, match=r"mask, row 0: 0 slates"):
        regret_ratio(good, torch.tensor([1.0]), torch.tensor([[False, False]]))
    with pytest.raises(ValueError, match="chosen has shape"):
        regret_ratio(good, torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="share must lie strictly between 0 and 1, got 1"):
        hit_rate_at_share(good, torch.tensor([1.0]), 1)
    with pytest.raises(ValueError, match="rounding must be one of 'ceil', 'floor', got 'round'"):
        hit_rate_at_share(good, torch.tensor([1.0]), 0.1, "round")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance must not be negative"):
        count_better(good, torch.tensor([1.0]), tolerance=-1.0)


def test_sampled_rank_and_hit_rate_cover_the_exact_ones():
    generator = torch.Generator().manual_seed(0)
    num_requests, n, m, share = 200, 7, 3, 0.1
    table = torch.rand(num_requests, m, n, generator=generator)

    def value(slates: torch.Tensor) -> torch.Tensor:
        """(B, S, M) slates to (B, S) values."""
        return sum(table[:, t].gather(1, slates[..., t]) for t in range(m))

    every = value(torch.tensor(all_slates(n, m)).expand(num_requests, -1, -1))
    # The second best, third best... of each request: ranks on both sides of the share.
    place = torch.arange(num_requests) % 40
    chosen = every.sort(1, descending=True).values.gather(1, place[:, None])[:, 0]
    exact_rank = count_better(every, chosen).double() / every.size(1)
    exact_hit = hit_rate_at_share(every, chosen, share)
    samples = uniform_slates(torch.ones(num_requests, n).bool(), m, 2000, generator)
    estimate = estimate_rank(value(samples), chosen)
    covered = ((estimate.low <= exact_rank) & (exact_rank <= estimate.high)).double().mean().item()
    assert 0.90 <= covered < 1
    assert (estimate.share - exact_rank).abs().max() < 0.05
    hit_rate = sampled_hit_rate(estimate, share)
    assert hit_rate.low <= exact_hit.mean().item() <= hit_rate.high
    assert hit_rate.mean == pytest.approx(exact_hit.mean().item(), abs=0.05)
    assert hit_rate.num_requests == num_requests


def test_too_few_samples_leave_the_hit_rate_open():
    few = estimate_rank(torch.zeros(400, 50), torch.ones(400))
    hit_rate = sampled_hit_rate(few, 0.01)
    assert (hit_rate.mean, hit_rate.low, hit_rate.high) == (1, 0, 1)
    many = sampled_hit_rate(estimate_rank(torch.zeros(400, 500), torch.ones(400)), 0.01)
    assert many.low > 0.98


def test_sampled_hit_rate_needs_requests():
    nothing = torch.zeros(0, dtype=torch.float64)
    with pytest.raises(ValueError, match="number of requests must be at least 1"):
        sampled_hit_rate(RankEstimate(nothing, nothing, nothing), 0.01)
