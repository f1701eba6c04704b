from __future__ import annotations

import math
import statistics

import pytest
import torch

from rerankzoo.metrics import intervals
from rerankzoo.metrics.intervals import (
    Estimate,
    Spread,
    bootstrap_mean,
    mean_and_spread,
    mean_interval,
    paired_bootstrap,
    resample,
    wilson_interval,
    within_one_error,
)


def test_an_interval_follows_the_skew():
    values = torch.tensor([0.0] * 9 + [10])  # mean 1, sd sqrt(10), third central moment 72
    skew, error = 72 / 10**1.5 / 10**0.5, 1.0
    found = mean_interval(values)
    assert found.low == pytest.approx(1 - error * 3 / skew * (math.cbrt(1 + skew * (1.959964 - skew / 6)) - 1))
    assert found.high == pytest.approx(1 - error * 3 / skew * (math.cbrt(1 - skew * (1.959964 + skew / 6)) - 1))
    assert found.high - 1 > 1 - found.low
    assert mean_interval(torch.tensor([-1.0, 1])).high == pytest.approx(1.959964)
    assert mean_interval(torch.ones(3)) == Estimate(1, 1, 1, 3)
    assert mean_interval(torch.ones(1)) == Estimate(1, 1, 1, 1)


def test_bootstrap_of_a_large_sample_is_the_normal_interval():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double() * 3 + 5
    estimate = bootstrap_mean(values, num_resamples=4000)
    error = values.std().item() / math.sqrt(2000)
    assert estimate.mean == pytest.approx(values.mean().item())
    assert estimate.low == pytest.approx(estimate.mean - 1.96 * error, abs=0.1 * error)
    assert estimate.high == pytest.approx(estimate.mean + 1.96 * error, abs=0.1 * error)
    narrow = bootstrap_mean(values, num_resamples=4000, confidence=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_bootstrap_of_two_requests_is_known_exactly():
    # Resamples of (0, 1) have mean 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    estimate = bootstrap_mean(torch.tensor([0.0, 1.0]), confidence=0.95)
    assert (estimate.mean, estimate.low, estimate.high, estimate.num_requests) == (0.5, 0.0, 1.0, 2)
    assert bootstrap_mean(torch.tensor([0.0, 1.0]), confidence=0.3).low == 0.5


def test_pairing_removes_the_spread_between_requests():
    difficulty = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 100
    noise = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 0.1
    difference = paired_bootstrap(difficulty + 0.05 + noise, difficulty, num_resamples=2000)
    assert 0.03 < difference.low < difference.mean < difference.high < 0.08
    swapped = paired_bootstrap(difficulty, difficulty + 0.05 + noise, num_resamples=2000)
    assert swapped.low == pytest.approx(-difference.high)


def test_what_is_compared_often_is_drawn_once() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 80, generator=generator, dtype=torch.float64)
    expected = paired_bootstrap(one, other, num_resamples=500)
    found = resample(one, 500).minus(resample(other, 500))
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high), abs=1e-12)
    assert found.num_requests == 80


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(3)
    covered = 0
    for _ in range(200):
        estimate = bootstrap_mean(torch.rand(60, generator=generator), num_resamples=500, confidence=0.8)
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.70 <= covered / 200 <= 0.88


def test_seed_and_chunks(monkeypatch):
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_mean(values, num_resamples=300, seed=4)
    assert bootstrap_mean(values, num_resamples=300, seed=4) == whole
    assert bootstrap_mean(values, num_resamples=300, seed=5) != whole
    monkeypatch.setattr(intervals, "_CHUNK_ENTRIES", 7 * 50)
    assert bootstrap_mean(values, num_resamples=300, seed=4) == whole


def test_wilson_interval_against_published_values():
    # Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29 at 95 %.
    low, high = wilson_interval(torch.tensor([81, 15, 0, 1]), torch.tensor([263, 148, 20, 29]))
    assert low.tolist() == pytest.approx([0.2553, 0.0624, 0.0, 0.0061], abs=5e-5)
    assert high.tolist() == pytest.approx([0.3662, 0.1605, 0.1611, 0.1718], abs=5e-5)
    assert wilson_interval(torch.tensor([20]), 20)[1].item() == 1


def test_the_first_within_one_standard_error_of_the_best():
    best = torch.tensor([3.0, 5.0, 4.0, 8.0])  # mean 5
    # Behind by 2, 0, 1, 1: a mean of 1, a standard error of sqrt(2 / 3 / 4) = 0.408.
    worse = torch.tensor([1.0, 5.0, 3.0, 7.0])
    # Behind by 4, -2, 0, 0: a mean of 0.5, a standard error of sqrt(19 / 3 / 4) = 1.258.
    unclear = torch.tensor([-1.0, 7.0, 4.0, 8.0])
    assert within_one_error({"worse": worse, "unclear": unclear, "best": best}) == "unclear"
    assert within_one_error({"best": best, "unclear": unclear}) == "best"
    assert within_one_error({"worse": worse, "best": best}) == "best"
    assert within_one_error({"first": best, "same": best.clone()}) == "first"
    assert within_one_error({1: torch.tensor([0.0]), 2: torch.tensor([0.1])}) == 2  # one request has no spread
    with pytest.raises(ValueError, match=r"worse, row 1: nan is not finite"):
        within_one_error({"best": best, "worse": torch.tensor([0.0, math.nan])})
    with pytest.raises(ValueError, match="a has 4 requests, b has 1: not paired"):
        within_one_error({"best": best, "worse": torch.tensor([0.0])})


def test_mean_and_spread():
    assert mean_and_spread([0.1, 0.4, 0.1]) == Spread(pytest.approx(0.2), pytest.approx(math.sqrt(0.03)), 3)
    assert mean_and_spread([0.3]) == Spread(0.3, None, 1)
    values = [0.13, 0.7, 0.24, 0.5]
    assert mean_and_spread(values).sd == statistics.stdev(values)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="a has 3 requests, b has 2"):
        paired_bootstrap(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"a - b, row 0: inf is not finite"):
        paired_bootstrap(*torch.tensor([[1.5e308], [-1.5e308]], dtype=torch.float64))
    with pytest.raises(ValueError, match=r"b, row 1: nan is not finite"):
        paired_bootstrap(torch.zeros(2), torch.tensor([0.0, math.nan]))
    with pytest.raises(ValueError, match="values must be a vector with at least one request"):
        bootstrap_mean(torch.zeros(0))
    with pytest.raises(ValueError, match="num_resamples must be at least 1"):
        bootstrap_mean(torch.zeros(2), num_resamples=0)
    with pytest.raises(ValueError, match="confidence must lie strictly between 0 and 1, got 95"):
        bootstrap_mean(torch.zeros(2), confidence=95)
    with pytest.raises(ValueError, match=r"successes, row 0: 5.0 is negative or exceeds"):
        wilson_interval(torch.tensor([5]), 4)
    with pytest.raises(ValueError, match=r"trials, row 0: 0.0 is not at least 1"):
        wilson_interval(torch.tensor([0]), 0)
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_spread([])
