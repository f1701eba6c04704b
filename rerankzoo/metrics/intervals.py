"""Uncertainty of reported numbers: bootstrap over requests, Wilson intervals of shares, spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rerankzoo.metrics._checks import check_fraction, check_positive, check_rows

# Resampled entries held at once: 2^22 float64 values and their indexes are 64 MiB, whatever the number of requests.
_CHUNK_ENTRIES = 2**22


@dataclass(frozen=True)
class Estimate:
    """A mean over requests with its confidence interval.

    Attributes:
        mean: The mean over requests.
        low: Lower end of the interval.
        high: Upper end of the interval.
        num_requests: The number of requests it rests on.
    """

    mean: float
    low: float
    high: float
    num_requests: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired difference of two methods; claim it only where 0 lies outside [low, high]."""


@dataclass(frozen=True)
class Spread:
    """Mean over repeated runs (seeds) and their sample standard deviation.

    Attributes:
        mean: The mean over runs.
        sd: Sample standard deviation (divisor: runs - 1); None for a single run, which says nothing of the spread.
        num_runs: The number of runs.
    """

    mean: float
    sd: float | None
    num_runs: int


def bootstrap_mean(values: Tensor, num_resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Percentile bootstrap interval of a mean over requests (Efron and Tibshirani, 1993, chapter 13).

    Args:
        values: (B,) one value per request.
        num_resamples: How often the requests are drawn anew, with replacement.
        confidence: Coverage of the interval.
        seed: The same seed gives the same interval.

    Returns:
        The mean and its interval.

    Raises:
        ValueError: If `values` is not a non-empty vector of finite numbers, `num_resamples` < 1, or `confidence` is not
            strictly between 0 and 1.

    Example:
        >>> bootstrap_mean(torch.tensor([0.5, 0.5, 0.5]))
        Estimate(mean=0.5, low=0.5, high=0.5, num_requests=3)
    """
    return Estimate(*_bootstrap(_vector("values", values), num_resamples, confidence, seed))


def paired_bootstrap(
    a: Tensor, b: Tensor, num_resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Difference:
    """Percentile bootstrap interval of the mean of a - b, where both were measured on the same requests.

    Resampling requests, not the two methods separately, removes the spread between easy and hard requests.

    Args:
        a: (B,) one value per request, of the first method.
        b: (B,) values of the second method on the same requests in the same order.
        num_resamples: How often the requests are drawn anew, with replacement.
        confidence: Coverage of the interval.
        seed: The same seed gives the same interval.

    Returns:
        The mean difference and its interval.

    Raises:
        ValueError: If `a` and `b` differ in length, and as `bootstrap_mean`.

    Example:
        >>> paired_bootstrap(torch.tensor([0.75, 0.5, 1.0]), torch.tensor([0.5, 0.25, 0.75]))
        Difference(mean=0.25, low=0.25, high=0.25, num_requests=3)
    """
    first, second = _vector("a", a), _vector("b", b)
    if first.numel() != second.numel():
        raise ValueError(f"a has {first.numel()} requests, b has {second.numel()}: not paired")
    return Difference(*_bootstrap(first - second, num_resamples, confidence, seed))


def wilson_interval(successes: Tensor, trials: Tensor | int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Score interval of a binomial share (Wilson, 1927), which stays inside [0, 1] and has width at 0 successes.

    Args:
        successes: (...) counts.
        trials: (...) numbers of trials, or one number for all.
        confidence: Coverage of the two-sided interval.

    Returns:
        Lower and upper ends, each (...) float64.

    Raises:
        ValueError: If a number of trials is below 1, successes are negative or exceed the trials, or `confidence` is
            not strictly between 0 and 1.

    Example:
        >>> low, high = wilson_interval(torch.tensor([0, 2, 3]), 3)
        >>> low, high
        (tensor([0.0000, 0.2077, 0.4385], dtype=torch.float64), tensor([0.5615, 0.9385, 1.0000], dtype=torch.float64))
    """
    check_fraction("confidence", confidence)
    count = successes.double()
    total = torch.as_tensor(trials, device=successes.device).double().expand_as(count)
    check_rows("trials", total.reshape(-1) < 1, total.reshape(-1), "is not at least 1")
    outside = ((count < 0) | (count > total)).reshape(-1)
    check_rows("successes", outside, count.reshape(-1), "is negative or exceeds the trials")
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    share, shrink = count / total, 1 + z**2 / total
    centre = (share + z**2 / (2 * total)) / shrink
    half = z / shrink * (share * (1 - share) / total + z**2 / (4 * total**2)).sqrt()
    # At 0 and at all successes the ends are exactly 0 and 1; rounding must not move them.
    low = (centre - half).clamp(min=0).masked_fill(count == 0, 0)
    return low, (centre + half).clamp(max=1).masked_fill(count == total, 1)


def mean_and_spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation over repeated runs, one value per seed.

    Args:
        values: One number per run.

    Returns:
        The mean, the sample standard deviation (None for one run) and the number of runs.

    Raises:
        ValueError: If there is no run.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0])
        Spread(mean=2.0, sd=1.0, num_runs=3)
    """
    if not values:
        raise ValueError("mean_and_spread needs at least one value")
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=spread, num_runs=len(values))


def _vector(name: str, values: Tensor) -> Tensor:
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"{name} must be a vector with at least one request, got shape {tuple(values.shape)}")
    check_rows(name, ~values.isfinite(), values, "is not finite")
    return values.detach().cpu().double()


def _bootstrap(values: Tensor, num_resamples: int, confidence: float, seed: int) -> tuple[float, float, float, int]:
    """Returns mean, low, high and the number of requests of (B,) float64 values on the CPU."""
    check_positive("num_resamples", num_resamples)
    check_fraction("confidence", confidence)
    generator = torch.Generator().manual_seed(seed)
    size = values.numel()
    chunk = max(1, _CHUNK_ENTRIES // size)
    means = torch.empty(num_resamples, dtype=torch.float64)
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        means[start : start + rows] = values[torch.randint(size, (rows, size), generator=generator)].mean(1)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return values.mean().item(), low, high, size
