"""Top-k ranking measures of slates against labels of the candidates, one value per request.

All functions share `slates` (B, M) int64, positions into the row's candidates in display order, padded with -100, and:

- `relevance` (B, N), the candidates' labels, graded >= 0 or binary, of any size; an item is *positive* above 0;
- `mask` (B, N), True where a candidate is real and its label is known (default: all). A padded position, and an item
  without a known label, counts as irrelevant and keeps its place;
- `k`, the cut-off in positions; beyond the slate's length is allowed;
- `empty`, what a request without positives is worth: `"zero"` (LibRerank, sentence-transformers), `"one"` (allRank's
  filler) or `"skip"` (ReChorus removes such lists: the result has one entry per request that is left, in order).

They return (B,) values in [0, 1], and raise ValueError on an unknown option, k < 1, wrong shapes, positions out of
range or repeated, and a known label that is negative or not finite. What papers disagree on is a named option.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING
from rerankzoo.metrics._checks import as_float, check_number, check_option, check_rows, check_slates, checked_mask

Gain = Literal["linear", "exponential"]
Ideal = Literal["candidates", "slate"]
Empty = Literal["zero", "one", "skip"]
PrecisionDenominator = Literal["truncated", "retrieved", "all"]
RecallDenominator = Literal["all", "truncated"]

# Gains up to 2^64 can be summed in single precision; larger ones are taken relative to the request's largest.
_LARGE_EXPONENT = 64


def ndcg_at_k(
    slates: Tensor,
    relevance: Tensor,
    mask: Tensor | None = None,
    *,
    k: int,
    gain: Gain = "linear",
    ideal: Ideal = "candidates",
    empty: Empty = "zero",
) -> Tensor:
    """Normalised discounted cumulative gain, with discount 1 / log2(1 + rank) (Järvelin and Kekäläinen, 2002).

    `gain` is `"linear"`: y (ReChorus, RecBole); or `"exponential"`: 2^y - 1 (LibRerank, CMR, MIR, allRank); equal for
    binary labels. The `ideal` order is taken over `"candidates"`: all labelled ones, cut at k (LibRerank, ReChorus;
    RecBole's min(#positives, k) ones are the same for binary labels); or over the `"slate"`: its own items only, so
    that choosing bad items costs nothing (allRank); a request is then `empty` if the slate has no positives.

    Example:
        >>> ndcg_at_k(torch.tensor([[2, 0]]), torch.tensor([[1.0, 2.0, 0.0]]), k=2)
        tensor([0.2398])
    """
    check_option("gain", gain, Gain)
    check_option("ideal", ideal, Ideal)
    displayed, labels = _displayed_and_labels(slates, relevance, mask, k, empty)
    reference = labels if ideal == "candidates" else displayed
    largest = reference.amax(1, keepdim=True)
    best = _gains(reference, largest, gain).sort(dim=1, descending=True).values
    reached, ideal_gain = (
        (gains / torch.log2(_ranks(gains) + 1)).sum(1)
        for gains in (_gains(displayed, largest, gain)[:, :k], best[:, :k])
    )
    return _settle_empty(reached / ideal_gain.masked_fill(ideal_gain == 0, 1), ideal_gain == 0, empty)


def average_precision_at_k(
    slates: Tensor,
    relevance: Tensor,
    mask: Tensor | None = None,
    *,
    k: int,
    denominator: PrecisionDenominator = "truncated",
    empty: Empty = "zero",
) -> Tensor:
    """Average precision: the sum of precision@i over the positives at ranks i <= k, divided by a denominator.

    A request with positives of which none is in the top k has value 0 under every `denominator`: `"truncated"`:
    min(#positives, k) (ReChorus, RecBole); `"retrieved"`: the positives in the top k (LibRerank, CMR, MIR), which is
    blind to missed positives and not comparable with the others; `"all"`: all positives (scikit-learn, as used in
    sentence-transformers), which cannot reach 1 with more than k positives.
    """
    check_option("denominator", denominator, PrecisionDenominator)
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    precision_sum = (hits * hits.cumsum(1) / _ranks(hits)).sum(1)
    divisors = {"truncated": positives.clamp(max=k), "retrieved": hits.sum(1), "all": positives}
    return _settle_empty(precision_sum / divisors[denominator].clamp(min=1), positives == 0, empty)


def recall_at_k(
    slates: Tensor,
    relevance: Tensor,
    mask: Tensor | None = None,
    *,
    k: int,
    denominator: RecallDenominator = "all",
    empty: Empty = "zero",
) -> Tensor:
    """Share of a request's positives that are in the top k.

    The Recall@6/@10 of NAR4Rec and CONGRATS on Kuaishou takes "was exposed in the logged slate" as the label: it
    measures imitation of the log. That is a matter of `relevance`, not of this function. The `denominator` is `"all"`:
    all positives (RecBole); or `"truncated"`: min(#positives, k), so that 1 is always reachable.
    """
    check_option("denominator", denominator, RecallDenominator)
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    divisor = positives if denominator == "all" else positives.clamp(max=k)
    return _settle_empty(hits.sum(1) / divisor.clamp(min=1), positives == 0, empty)


def precision_at_k(
    slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero"
) -> Tensor:
    """Share of the top k that is positive; always divided by k, also where the slate is shorter (RecBole).

    With k = M this is the overlap ratio that GoalRank and DNR seem to print as "H@6" or "Ratio@L" (their evaluator is
    not published).
    """
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    return _settle_empty(hits.sum(1) / k, positives == 0, empty)


def hit_at_k(slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero") -> Tensor:
    """1 where at least one positive is in the top k, else 0 (HR@k of ReChorus and RecBole).

    Not to be confused with HR@p%, the hit rate over all permutations, which is `hit_rate_at_share`.
    """
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    return _settle_empty(hits.any(1).to(hits.dtype), positives == 0, empty)


def reciprocal_rank_at_k(
    slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero"
) -> Tensor:
    """1 / rank of the first positive, 0 where none is in the top k."""
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    return _settle_empty((hits / _ranks(hits)).amax(1), positives == 0, empty)


def _displayed_and_labels(
    slates: Tensor, relevance: Tensor, mask: Tensor | None, k: int, empty: Empty
) -> tuple[Tensor, Tensor]:
    """Checks the inputs; returns the labels in display order (B, M + 1) and of the candidates (B, N + 1).

    Unknown ones are 0, and so is the last of each, which lets a request have no candidates and a slate no positions.
    """
    check_option("empty", empty, Empty)
    check_number("k", k, k >= 1, "be at least 1")
    if relevance.dim() != 2:
        raise ValueError(f"relevance must be (B, N), got shape {tuple(relevance.shape)}")
    num_candidates = relevance.size(1)
    check_slates(slates, num_candidates)
    if slates.size(0) != relevance.size(0):
        raise ValueError(f"slates have {slates.size(0)} rows, relevance has {relevance.size(0)}")
    labels = as_float(relevance).masked_fill(~checked_mask(mask, relevance, "relevance"), 0)
    check_rows("relevance", ~labels.isfinite() | (labels < 0), labels, "is negative or not finite")
    labels, slates = F.pad(labels, (0, 1)), F.pad(slates, (0, 1), value=PADDING)
    return labels.gather(1, slates.masked_fill(slates == PADDING, num_candidates).long()), labels


def _hits_and_positives(
    slates: Tensor, relevance: Tensor, mask: Tensor | None, k: int, empty: Empty
) -> tuple[Tensor, Tensor]:
    """Returns 1.0 where one of the top k is positive (B, min(k, M + 1)), and the number of positive candidates (B,)."""
    displayed, labels = _displayed_and_labels(slates, relevance, mask, k, empty)
    return (displayed[:, :k] > 0).to(labels.dtype), (labels > 0).sum(1)


def _gains(labels: Tensor, largest: Tensor, gain: Gain) -> Tensor:
    """Gains (B, K) of labels (B, K), up to a factor per request: NDCG is a ratio, and 2^240 is infinite in float32."""
    if gain == "exponential":
        shift = (largest - _LARGE_EXPONENT).clamp(min=0)
        return torch.exp2(labels - shift) - torch.exp2(-shift)
    return labels / largest.masked_fill(largest <= 2.0**_LARGE_EXPONENT, 1)


def _ranks(values: Tensor) -> Tensor:
    """1, 2... of the columns of (B, K)."""
    return torch.arange(1, values.size(1) + 1, device=values.device, dtype=values.dtype)


def _settle_empty(values: Tensor, is_empty: Tensor, empty: Empty) -> Tensor:
    if empty == "skip":
        return values[~is_empty]
    return values.masked_fill(is_empty, 1.0 if empty == "one" else 0.0)
