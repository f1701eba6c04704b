"""Uncertainty of reported numbers: bootstrap over requests, Wilson intervals of shares, spread over seeds.

Bootstraps draw the requests `num_resamples` times anew, with replacement; the same `seed` gives the same interval, and
`confidence`, strictly between 0 and 1, is its coverage. Values are one finite number per request, at least one; all
functions raise ValueError on others, and on an option out of its range.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rerankzoo.metrics._checks import check_fraction, check_number, check_rows

# Resampled entries held at once: 2^22 float64 values and their indexes are 64 MiB, whatever the number of requests.
_CHUNK_ENTRIES = 2**22
# Sums of larger values may overflow.
_LARGE = 1e250
_Z = 1.959964  # of a two-sided 95 % interval
Name = TypeVar("Name")


@dataclass(frozen=True)
class Estimate:
    """A mean over requests with its interval; claim a paired difference only where 0 lies outside [low, high]."""

    mean: float
    low: float
    high: float
    num_requests: int  # that it rests on


@dataclass(frozen=True)
class Spread:
    """Mean over repeated runs (seeds) and their sample standard deviation."""

    mean: float
    sd: float | None  # divisor: runs - 1; None for a single run, which says nothing of the spread
    num_runs: int


def bootstrap_mean(values: Tensor, num_resamples: int = 10_000, confidence: float = 0.95, seed: int = 0) -> Estimate:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani, 1993, chapter 13) of values (B,)."""
    values = _vector("values", values)
    check_fraction("confidence", confidence)
    largest = values.abs().max().item()
    unit = largest if largest > _LARGE else 1.0
    drawn = resample(values / unit, num_resamples, seed)
    low, high = _percentiles(drawn.means, confidence)
    return Estimate(drawn.mean * unit, low * unit, high * unit, drawn.num_requests)


class Resampled(NamedTuple):
    """A mean over requests, and over requests drawn anew: what is compared with many others is drawn once."""

    mean: float
    means: Tensor  # (R,); the draws depend on the seed and the number of requests alone
    num_requests: int

    def minus(self, other: Resampled, confidence: float = 0.95) -> Estimate:
        """What `paired_bootstrap` says of the two, resampled as often and with the same seed."""
        low, high = _percentiles(self.means - other.means, confidence)
        return Estimate(self.mean - other.mean, low, high, self.num_requests)


def resample(values: Tensor, num_resamples: int = 10_000, seed: int = 0) -> Resampled:
    """The means of values (B,) over B requests drawn anew."""
    values = _vector("values", values)
    check_number("num_resamples", num_resamples, num_resamples >= 1, "be at least 1")
    generator, size = torch.Generator().manual_seed(seed), values.numel()
    means = torch.empty(num_resamples, dtype=torch.float64)
    for part in means.split(max(1, _CHUNK_ENTRIES // size)):
        part.copy_(values[torch.randint(size, (len(part), size), generator=generator)].mean(1))
    return Resampled(values.mean().item(), means, size)


def _percentiles(means: Tensor, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def paired_bootstrap(
    a: Tensor, b: Tensor, num_resamples: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Percentile bootstrap interval of the mean of a - b, where both were measured on the same requests.

    Resampling requests, not the two methods separately, removes the spread between easy and hard requests. a and b are
    (B,), in the same order.
    """
    return bootstrap_mean(_difference(a, b), num_resamples, confidence, seed)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    first, second = _vector("a", a), _vector("b", b)
    if first.numel() != second.numel():
        raise ValueError(f"a has {first.numel()} requests, b has {second.numel()}: not paired")
    return _vector("a - b", first - second)


def within_one_error(values: Mapping[Name, Tensor]) -> Name:
    """The first of several choices, named from the simplest to the richest, whose mean is as good as the best one's.

    As good is what lies no more than one standard error of the paired difference below the largest mean: between two
    that held-out requests cannot tell apart chance would decide, and what the richer one fits beyond may be noise.

    Args:
        values: Of each choice the values (B,) of the same requests; more is better.

    References:
        Breiman et al., Classification and regression trees (1984), section 3.4.3: the rule of one standard error.
    """
    means = {name: _vector(str(name), one).mean().item() for name, one in values.items()}
    best = max(means, key=lambda name: means[name])
    behind = {name: _difference(values[best], one) for name, one in values.items()}
    return next(name for name, one in behind.items() if one.mean().item() <= _spread(one) / len(one) ** 0.5)


def _spread(values: Tensor) -> float:
    return values.std().item() if len(values) > 1 else 0.0


def mean_interval(values: Tensor) -> Estimate:
    """The 95 % interval of a mean of skewed values (B,) (Hall 1992, "On the removal of skewness by transformation").

    Importance weights are skewed: the normal interval ends too low on the right, where the mean of rare heavy weights
    lies. A single value, and equal ones, have an interval without width.
    """
    values = _vector("values", values)
    mean, count = values.mean().item(), len(values)
    spread = _spread(values)
    if spread == 0:
        return Estimate(mean, mean, mean, count)
    skew = ((values - mean) ** 3).mean().item() / spread**3 / count**0.5
    low, high = (mean - spread / count**0.5 * _unskewed(z, skew) for z in (_Z, -_Z))
    return Estimate(mean, low, high, count)


def _unskewed(z: float, skew: float) -> float:
    """The quantile of a Student statistic, from that of its transform to a symmetric one."""
    if abs(skew) < 1e-6:
        return z
    cube = 1 + skew * (z - skew / 6)
    return 3 / skew * (math.copysign(abs(cube) ** (1 / 3), cube) - 1)


def wilson_interval(successes: Tensor, trials: Tensor | int, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Score interval of a binomial share (Wilson, 1927), which stays inside [0, 1] and has width at 0 successes.

    Returns:
        Lower and upper ends, each (...) float64, on the CPU, for successes (...) of at least one trial each.
    """
    check_fraction("confidence", confidence)
    count = successes.cpu().double()  # some accelerators have no float64
    total = torch.as_tensor(trials).cpu().double().expand_as(count)
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
    """Mean and sample standard deviation over repeated runs, one value per seed."""
    if not values:
        raise ValueError("mean_and_spread needs at least one value")
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Spread(mean=statistics.fmean(values), sd=spread, num_runs=len(values))


def _vector(name: str, values: Tensor) -> Tensor:
    if values.dim() != 1 or values.numel() == 0:
        raise ValueError(f"{name} must be a vector with at least one request, got shape {tuple(values.shape)}")
    check_rows(name, ~values.isfinite(), values, "is not finite")
    return values.detach().cpu().double()
