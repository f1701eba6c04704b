"""Where a slate stands among all slates of its request: HR@p% and regret.

HR@p% (NLGR, NSGR, DeGRe) asks whether the generator's slate is among the best p % of all A(n, m) = n! / (n - m)! slates
of its request by some value: that of an evaluator, or the truth where it is known. By an evaluator it measures
*consistency with that evaluator*, the more so if the evaluator taught the generator; report the truth beside it.
(YOLOR and PIER mean something else: whether a *set* of proposals holds the evaluator's best.)

The papers leave two things open. *Rounding*: 1 % of A(5, 5) = 120 slates is 1.2; `"ceil"` admits 2 slates, `"floor"` 1
(at least one is always admitted). *Ties*: only slates that are better by more than a relative tolerance count, so a
slate is a hit even if many others tie with it; with few distinct values (binary labels) a random slate then hits often.

The functions share `values` (B, P), the value of every slate of a request, `chosen` (B,), that of the generator's
slate, and `mask` (B, P) bool, True where a slate counts (default: all). A slate is better if it exceeds the chosen one
by more than the share `tolerance` of the larger magnitude of the two, which absorbs float noise. They raise ValueError
on differing shapes, values that are not finite, a row without slates, and an option out of its range.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rerankzoo.metrics._checks import (
    as_float,
    check_fraction,
    check_number,
    check_option,
    check_rows,
    check_shape,
    checked_mask,
)
from rerankzoo.metrics.intervals import Estimate, wilson_interval

Rounding = Literal["ceil", "floor"]


class RankEstimate(NamedTuple):
    """Share of all slates that are strictly better than the chosen one, each (B,) float64."""

    share: Tensor  # among the sampled slates
    low: Tensor  # lower end of its Wilson interval
    high: Tensor


def count_better(values: Tensor, chosen: Tensor, mask: Tensor | None = None, tolerance: float = 1e-6) -> Tensor:
    """Counts the slates that are strictly better than the chosen one: (B,) int64."""
    check_number("tolerance", tolerance, tolerance >= 0, "not be negative")
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

    It is a hit if fewer than max(1, rounding(share * P)) slates are strictly better, P being the slates of the request
    that count. `share` is 0.01 for HR@1%. Returns (B,) zeros and ones, in the type of `values`.

    Example:
        >>> values = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]])
        >>> hit_rate_at_share(values, torch.tensor([5.0]), share=0.2)
        tensor([1.])
        >>> hit_rate_at_share(values, torch.tensor([5.0]), share=0.2, rounding="floor")
        tensor([0.])
    """
    check_fraction("share", share)
    check_option("rounding", rounding, Rounding)
    better = count_better(values, chosen, mask, tolerance)
    sizes = checked_mask(mask, values, "values").sum(1)
    # On the CPU in float64, as some accelerators have no float64: an error of one slate is an error in the metric. A
    # product such as 0.07 * 100 = 7.000000000000001 means 7.
    product = (share * sizes.cpu().double()).round(decimals=6)
    admitted = (product.ceil() if rounding == "ceil" else product.floor()).clamp(min=1)
    return (better < admitted.long().to(better.device)).to(as_float(values).dtype)


def regret_ratio(values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - chosen / best: the share of the reachable value that was missed (1 - "V(l) / max V" of NSGR).

    Computed as (best - chosen) / |best|: (B,), >= 0 even if the best value is negative, < 0 where the chosen value is
    above all of a sample, infinite beyond the type's range. If the best value is 0, any lower chosen one has regret 1.
    """
    values, chosen, kept = _checked(values, chosen, mask)
    best = values.masked_fill(~kept, -math.inf).amax(1)
    unit = best.abs().masked_fill(best == 0, 1)
    missed = best - chosen
    # The difference of two huge values of opposite sign is infinite, half of it is not.
    ratio = torch.where(missed.isinf(), (best / 2 - chosen / 2) / (unit / 2), missed / unit)
    return torch.where(best == 0, missed.sign(), ratio)


def utility_share(values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> Tensor:
    """The chosen slate's value as a share of the best one, (B,): 1 - `regret_ratio`."""
    return 1 - regret_ratio(values, chosen, mask)


def estimate_rank(
    sampled_values: Tensor, chosen: Tensor, confidence: float = 0.95, tolerance: float = 1e-6
) -> RankEstimate:
    """Estimates the share of all slates that are strictly better than the chosen one, on the CPU.

    `sampled_values` (B, S) are those of uniformly sampled slates; each request's Wilson interval has this `confidence`.
    """
    better = count_better(sampled_values, chosen, tolerance=tolerance).cpu()
    num_samples = sampled_values.size(1)
    return RankEstimate(better.double() / num_samples, *wilson_interval(better, num_samples, confidence))


def sampled_hit_rate(rank: RankEstimate, share: float, confidence: float = 0.95) -> Estimate:
    """HR@p% from estimated ranks, with an interval for both sources of doubt: the sampled slates and the requests.

    A request is a hit where its estimated share of better slates is below `share`, which is the rule of
    `hit_rate_at_share` with `rounding="ceil"`. The interval runs from the lower Wilson end for the requests that are
    hits for certain (whole rank interval below `share`) to the upper one for those that may be: conservative, and wide
    below about 4 / share samples. `confidence` is that of the intervals over requests, of which there must be some.
    """
    check_fraction("share", share)
    num_requests = rank.share.numel()
    check_number("the number of requests", num_requests, num_requests >= 1, "be at least 1")
    low, _ = wilson_interval((rank.high < share).sum(), num_requests, confidence)
    _, high = wilson_interval((rank.low < share).sum(), num_requests, confidence)
    return Estimate((rank.share < share).double().mean().item(), low.item(), high.item(), num_requests)


def _checked(values: Tensor, chosen: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns values (B, P) with 0 outside the mask, chosen (B,) in the same type, and the mask (B, P)."""
    if values.dim() != 2:
        raise ValueError(f"values must be (B, P), got shape {tuple(values.shape)}")
    check_shape("chosen", chosen, (values.size(0),), "the rows of values")
    kept = checked_mask(mask, values, "values")
    num_slates = kept.sum(1)
    check_rows("mask", num_slates == 0, num_slates, "slates to compare with")
    values = as_float(values).masked_fill(~kept, 0)
    check_rows("values", ~values.isfinite(), values, "is not finite")
    chosen = chosen.to(values.dtype)
    check_rows("chosen", ~chosen.isfinite(), chosen, "is not finite")
    return values, chosen, kept
