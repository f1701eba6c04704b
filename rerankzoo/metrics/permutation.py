"""Measures over the space of all slates of a request: HR@p%, regret, and the space itself.

HR@p% (NLGR, NSGR, DeGRe) asks whether the generator's slate is among the best p % of all A(n, m) = n! / (n - m)! slates
of its request by some value: that of an evaluator, or the truth where it is known. By an evaluator it measures
*consistency with that evaluator*, the more so if the evaluator taught the generator; report the truth beside it.

The papers leave two things open. *Rounding*: 1 % of A(5, 5) = 120 slates is 1.2; `"ceil"` admits 2 slates, `"floor"` 1
(at least one is always admitted). *Ties*: only slates that are better by more than a relative tolerance count, so a
slate is a hit even if many others tie with it; with few distinct values (binary labels) a random slate then hits often.

Where A(n, m) is too large to list, `sample_slates`, `estimate_rank` and `sampled_hit_rate` give an estimate with an
interval. In HR@p% of YOLOR and PIER something else is meant: whether a *set* of proposals holds the evaluator's best.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, permutations
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from rerankzoo.metrics._checks import (
    PADDING,
    as_float,
    check_fraction,
    check_option,
    check_positive,
    check_rows,
    check_shape,
)
from rerankzoo.metrics.intervals import Estimate, wilson_interval

Rounding = Literal["ceil", "floor"]

# A list of slates beyond this is a mistake more often than a wish: A(50, 6) is 1.1e10.
MAX_SLATES = 4_000_000


class RankEstimate(NamedTuple):
    """Estimated share of all slates that are strictly better than the chosen one, with an interval.

    Attributes:
        share: (B,) float64, the share among the sampled slates.
        low: (B,) float64, lower end of the Wilson interval.
        high: (B,) float64, upper end.
    """

    share: Tensor
    low: Tensor
    high: Tensor


@lru_cache(maxsize=8)
def all_slates(num_candidates: int, slate_size: int) -> np.ndarray:
    """Lists every slate of a request, in lexicographic order.

    Args:
        num_candidates: n, the number of candidates.
        slate_size: m, the number of positions; at most `num_candidates`.

    Returns:
        Read-only int64 array (P, M) with P = n! / (n - m)!.

    Raises:
        ValueError: If `slate_size` is below 1 or exceeds `num_candidates`, or if there are more than `MAX_SLATES`.

    Example:
        >>> all_slates(3, 2).tolist()
        [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    """
    check_positive("slate_size", slate_size)
    if slate_size > num_candidates:
        raise ValueError(f"slate_size {slate_size} exceeds num_candidates {num_candidates}")
    count = math.perm(num_candidates, slate_size)
    if count > MAX_SLATES:
        raise ValueError(
            f"{num_candidates} candidates have {count} slates of {slate_size}, above {MAX_SLATES}: use sample_slates"
        )
    entries = chain.from_iterable(permutations(range(num_candidates), slate_size))
    slates = np.fromiter(entries, dtype=np.int64, count=count * slate_size).reshape(count, slate_size)
    slates.setflags(write=False)
    return slates


def real_slates(candidate_mask: Tensor, slates: Tensor) -> Tensor:
    """Tells, for rows with different numbers of candidates, which slates of a common list hold real candidates only.

    Args:
        candidate_mask: (B, N) bool, True where a candidate is real.
        slates: (P, M) int64 without padding, usually `torch.tensor(all_slates(N, M))`.

    Returns:
        (B, P) bool, the `mask` of the measures below.

    Example:
        >>> real_slates(torch.tensor([[True, True, False]]), torch.tensor([[0, 1], [0, 2], [1, 0]]))
        tensor([[ True, False,  True]])
    """
    return candidate_mask.bool()[:, slates].all(-1)


def count_better(values: Tensor, chosen: Tensor, mask: Tensor | None = None, tolerance: float = 1e-6) -> Tensor:
    """Counts the slates that are strictly better than the chosen one.

    Args:
        values: (B, P) value of every slate.
        chosen: (B,) value of the chosen slate.
        mask: (B, P) bool, True where a slate counts.
        tolerance: A slate is better if it exceeds the chosen one by more than this share of the larger magnitude of the
            two; it absorbs float noise between two evaluations of one slate.

    Returns:
        (B,) int64.

    Raises:
        ValueError: On differing shapes, values that are not finite, a row without slates, or a negative tolerance.

    Example:
        >>> count_better(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([2.0]))
        tensor([1])
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    values, chosen, kept = _checked(values, chosen, mask)
    reference = chosen[:, None]
    margin = tolerance * torch.maximum(values.abs(), reference.abs())
    return (kept & (values - reference > margin)).sum(1)


def hit_rate_at_share(
    values: Tensor,
    chosen: Tensor,
    share: float,
    rounding: Rounding = "ceil",
    tolerance: float = 1e-6,
    mask: Tensor | None = None,
) -> Tensor:
    """HR@p%: 1 where the chosen slate is among the best `share` of all slates of its request, else 0.

    It is a hit if fewer than max(1, rounding(share * P)) slates are strictly better.

    Args:
        values: (B, P) value of every slate of the request.
        chosen: (B,) value of the generator's slate.
        share: 0.01 for HR@1%.
        rounding: How share * P becomes a number of slates: `"ceil"` or `"floor"`.
        tolerance: Relative margin within which values tie.
        mask: (B, P) bool, True where a slate counts; P is then the number of True entries of the row.

    Returns:
        (B,) zeros and ones, in the type of `values`.

    Raises:
        ValueError: If `share` is not strictly between 0 and 1, on an unknown rounding, and as `count_better`.

    Example:
        >>> values = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
        >>> hit_rate_at_share(values, torch.tensor([5.0]), share=0.2)
        tensor([1.])
        >>> hit_rate_at_share(values, torch.tensor([5.0]), share=0.2, rounding="floor")
        tensor([0.])
    """
    check_fraction("share", share)
    check_option("rounding", rounding, get_args(Rounding))
    better = count_better(values, chosen, mask, tolerance)
    sizes = torch.full_like(better, values.size(1)) if mask is None else mask.bool().sum(1)
    return (better < _num_admitted(share, sizes, rounding)).to(as_float(values).dtype)


def regret_ratio(values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - chosen / best: the share of the reachable value that was missed (1 - "V(l) / max V" of NSGR).

    Meant for values >= 0. Computed as (best - chosen) / |best|, so that it stays >= 0 where even the best value is
    negative. If the best value is 0, it is 0 for a chosen value of 0 and 1 for any lower one. A chosen value above all
    of `values`, possible where these are only a sample, gives a negative regret.

    Args:
        values: (B, P) value of every slate of the request.
        chosen: (B,) value of the generator's slate.
        mask: (B, P) bool, True where a slate counts.

    Returns:
        (B,) regret.

    Raises:
        ValueError: On differing shapes, values that are not finite, or a row without slates.

    Example:
        >>> regret_ratio(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([3.0]))
        tensor([0.2500])
    """
    values, chosen, kept = _checked(values, chosen, mask)
    best = values.masked_fill(~kept, -math.inf).amax(1)
    missed = best - chosen
    return torch.where(best == 0, missed.sign(), missed / best.abs().masked_fill(best == 0, 1))


def utility_share(values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """The chosen slate's value as a share of the best one: 1 - `regret_ratio`, which says how signs and zeros are met.

    Args:
        values: (B, P) value of every slate of the request.
        chosen: (B,) value of the generator's slate.
        mask: (B, P) bool, True where a slate counts.

    Returns:
        (B,) shares.

    Raises:
        ValueError: As `regret_ratio`.

    Example:
        >>> utility_share(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([3.0]))
        tensor([0.7500])
    """
    return 1 - regret_ratio(values, chosen, mask)


def sample_slates(
    candidate_mask: Tensor, slate_size: int, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws slates uniformly from all slates of each request.

    No candidate repeats within a slate; slates of a request are independent draws, so one may come twice.

    Args:
        candidate_mask: (B, N) bool, True where a candidate is real.
        slate_size: m, the number of positions; at most N.
        num_samples: S, slates per request.
        generator: Source of randomness, on the device of `candidate_mask`.

    Returns:
        (B, S, M) int64; in rows with fewer than m candidates a slate holds all of them and ends in -100.

    Raises:
        ValueError: If `slate_size` or `num_samples` is below 1, or `slate_size` exceeds N.

    Example:
        >>> slates = sample_slates(torch.tensor([[True, True, True]]), 2, 5, torch.Generator().manual_seed(0))
        >>> slates.shape, bool((slates[..., 0] != slates[..., 1]).all())
        (torch.Size([1, 5, 2]), True)
    """
    check_positive("slate_size", slate_size)
    check_positive("num_samples", num_samples)
    batch_size, num_candidates = candidate_mask.shape
    if slate_size > num_candidates:
        raise ValueError(f"slate_size {slate_size} exceeds num_candidates {num_candidates}")
    # The order of independent uniform keys is a uniform permutation; its first m entries are a uniform slate.
    keys = torch.rand(
        (batch_size, num_samples, num_candidates), generator=generator, device=candidate_mask.device
    ).masked_fill(~candidate_mask.bool()[:, None], -1)
    top = keys.topk(slate_size, dim=-1)
    return top.indices.masked_fill(top.values < 0, PADDING)


def estimate_rank(
    sampled_values: Tensor, chosen: Tensor, confidence: float = 0.95, tolerance: float = 1e-6
) -> RankEstimate:
    """Estimates the share of all slates that are strictly better than the chosen one.

    Args:
        sampled_values: (B, S) values of uniformly sampled slates of the request.
        chosen: (B,) value of the generator's slate.
        confidence: Coverage of each request's Wilson interval.
        tolerance: Relative margin within which values tie.

    Returns:
        Share, low and high, each (B,).

    Raises:
        ValueError: As `count_better`, and if `confidence` is not strictly between 0 and 1.

    Example:
        >>> estimate = estimate_rank(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([2.0]))
        >>> [round(ends.item(), 3) for ends in estimate]
        [0.25, 0.046, 0.699]
    """
    better = count_better(sampled_values, chosen, tolerance=tolerance)
    num_samples = sampled_values.size(1)
    low, high = wilson_interval(better, num_samples, confidence)
    return RankEstimate(better.double() / num_samples, low, high)


def sampled_hit_rate(rank: RankEstimate, share: float, confidence: float = 0.95) -> Estimate:
    """HR@p% from estimated ranks, with an interval for both sources of doubt: the sampled slates and the requests.

    A request is a hit where its estimated share of better slates is below `share`, which is the rule of
    `hit_rate_at_share` with `rounding="ceil"`. The interval runs from the lower Wilson end for the requests that are
    hits for certain (whole rank interval below `share`) to the upper Wilson end for those that may be. It is
    conservative, and wide if the samples are too few to tell: below about 4 / share samples no request is a hit for
    certain.

    Args:
        rank: The requests' ranks, from `estimate_rank`.
        share: 0.01 for HR@1%.
        confidence: Coverage of the Wilson intervals over requests.

    Returns:
        Mean hit rate and interval.

    Raises:
        ValueError: If there are no requests, or `share` or `confidence` is not strictly between 0 and 1.

    Example:
        >>> rank = estimate_rank(torch.arange(1000.0).expand(3, 1000), torch.tensor([999.0, 998.0, 500.0]))
        >>> hit_rate = sampled_hit_rate(rank, share=0.01)
        >>> round(hit_rate.mean, 3), round(hit_rate.low, 3), round(hit_rate.high, 3)
        (0.667, 0.208, 0.939)
    """
    check_fraction("share", share)
    num_requests = rank.share.numel()
    check_positive("the number of requests", num_requests)
    low, _ = wilson_interval((rank.high < share).sum(), num_requests, confidence)
    _, high = wilson_interval((rank.low < share).sum(), num_requests, confidence)
    return Estimate((rank.share < share).double().mean().item(), low.item(), high.item(), num_requests)


def _num_admitted(share: float, sizes: Tensor, rounding: Rounding) -> Tensor:
    """max(1, rounding(share * size)) of every row; a product such as 0.07 * 100 = 7.000000000000001 means 7."""
    # On the CPU in float64, as some accelerators have no float64: an error of one slate is an error in the metric.
    product = (share * sizes.cpu().double()).round(decimals=6)
    admitted = product.ceil() if rounding == "ceil" else product.floor()
    return admitted.clamp(min=1).long().to(sizes.device)


def _checked(values: Tensor, chosen: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values (B, P) with 0 outside the mask, chosen (B,) in the same type, and the mask (B, P)."""
    if values.dim() != 2:
        raise ValueError(f"values must be (B, P), got shape {tuple(values.shape)}")
    check_shape("chosen", chosen, (values.size(0),), "the rows of values")
    if mask is not None:
        check_shape("mask", mask, tuple(values.shape), "values")
    kept = torch.ones_like(values, dtype=torch.bool) if mask is None else mask.bool()
    num_slates = kept.sum(1)
    check_rows("mask", num_slates == 0, num_slates, "slates to compare with")
    values = as_float(values).masked_fill(~kept, 0)
    check_rows("values", ~values.isfinite(), values, "is not finite")
    check_rows("chosen", ~chosen.isfinite(), chosen, "is not finite")
    return values, chosen.to(values.dtype), kept
