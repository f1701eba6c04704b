"""Top-k ranking measures of slates against labels of the candidates.

All functions share three inputs: `slates` (B, M) int64, positions into the row's candidates in display order, padded
with -100; `relevance` (B, N), graded >= 0 or binary; and `mask` (B, N), True where a candidate is real and its label is
known (default: all). A padded position, and an item without a known label, counts as irrelevant and keeps its place. An
item is *positive* if its relevance is above 0. A cut `k` beyond the slate length is allowed.

Published numbers differ in definitions more often than in models, so every choice that papers disagree on is a named
option. `empty` says what a request without positives is worth: `"zero"` (LibRerank, sentence-transformers), `"one"`
(allRank's filler) or `"skip"` (ReChorus removes such lists: the result then has one entry per request that is left, in
order).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rerankzoo.metrics._checks import (
    PADDING,
    as_float,
    check_option,
    check_positive,
    check_rows,
    check_shape,
    check_slates,
)

Gain = Literal["linear", "exponential"]
Ideal = Literal["candidates", "slate"]
Empty = Literal["zero", "one", "skip"]
PrecisionDenominator = Literal["truncated", "retrieved", "all"]
RecallDenominator = Literal["all", "truncated"]


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

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N) relevance of every candidate, >= 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        gain: `"linear"`: y (ReChorus, RecBole); `"exponential"`: 2^y - 1 (LibRerank, CMR, MIR, allRank). Equal for
            binary labels.
        ideal: The best order is taken over `"candidates"`: all labelled candidates, cut at k (LibRerank, ReChorus;
            RecBole's min(#positives, k) ones are the same for binary labels), or over the `"slate"`: its own items
            only, so that choosing bad items costs nothing (allRank, whose list is the slate).
        empty: Value of a request whose ideal gain is zero, that is, without positives among the candidates (or, with
            `ideal="slate"`, within the slate).

    Returns:
        (B,) values in [0, 1]; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: On an unknown option, k < 1, wrong shapes, positions out of range or repeated, or a known label that
            is negative or not finite.

    Example:
        >>> ndcg_at_k(torch.tensor([[2, 0]]), torch.tensor([[1.0, 2.0, 0.0]]), k=2)
        tensor([0.2398])
        >>> ndcg_at_k(torch.tensor([[2, 0]]), torch.tensor([[1.0, 2.0, 0.0]]), k=2, ideal="slate")
        tensor([0.6309])
    """
    check_option("gain", gain, get_args(Gain))
    check_option("ideal", ideal, get_args(Ideal))
    displayed, labels = _displayed_and_labels(slates, relevance, mask, k, empty)
    if gain == "exponential":
        displayed, labels = torch.exp2(displayed) - 1, torch.exp2(labels) - 1
    best = (labels if ideal == "candidates" else displayed).sort(dim=1, descending=True).values
    ideal_gain = _discounted_sum(best[:, :k])
    values = _discounted_sum(displayed[:, :k]) / _one_where_zero(ideal_gain)
    return _settle_empty(values, ideal_gain == 0, empty)


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

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N), positive where above 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        denominator: `"truncated"`: min(#positives, k) (ReChorus, RecBole); `"retrieved"`: the positives inside the top
            k (LibRerank, CMR, MIR), which is blind to missed positives and not comparable with the others; `"all"`: all
            positives (scikit-learn, as used in sentence-transformers), which cannot reach 1 with more than k positives.
        empty: Value of a request without positives among its candidates. A request with positives of which none is in
            the top k has value 0 under every denominator.

    Returns:
        (B,) values in [0, 1]; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: As `ndcg_at_k`.

    Example:
        >>> slates, relevance = torch.tensor([[2, 0]]), torch.tensor([[1, 1, 0]])
        >>> average_precision_at_k(slates, relevance, k=2)
        tensor([0.2500])
        >>> average_precision_at_k(slates, relevance, k=2, denominator="retrieved")
        tensor([0.5000])
    """
    check_option("denominator", denominator, get_args(PrecisionDenominator))
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    ranks = torch.arange(1, hits.size(1) + 1, device=hits.device)
    precision_sum = (hits * hits.cumsum(1) / ranks).sum(1)
    divisors = {"truncated": positives.clamp(max=k), "retrieved": hits.sum(1), "all": positives}
    return _settle_empty(precision_sum / _one_where_zero(divisors[denominator]), positives == 0, empty)


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
    measures imitation of the log. That is a matter of `relevance`, not of this function.

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N), positive where above 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        denominator: `"all"`: all positives (RecBole); `"truncated"`: min(#positives, k), so that 1 is always reachable.
        empty: Value of a request without positives among its candidates.

    Returns:
        (B,) values in [0, 1]; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: As `ndcg_at_k`.

    Example:
        >>> recall_at_k(torch.tensor([[2, 0]]), torch.tensor([[1, 1, 0]]), k=2)
        tensor([0.5000])
        >>> recall_at_k(torch.tensor([[0, 2]]), torch.tensor([[1, 1, 0]]), k=1, denominator="truncated")
        tensor([1.])
    """
    check_option("denominator", denominator, get_args(RecallDenominator))
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    divisor = positives if denominator == "all" else positives.clamp(max=k)
    return _settle_empty(hits.sum(1) / _one_where_zero(divisor), positives == 0, empty)


def precision_at_k(
    slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero"
) -> Tensor:
    """Share of the top k that is positive; always divided by k, also where the slate is shorter (RecBole).

    With k = M this is the overlap ratio that GoalRank and DNR seem to print as "H@6" or "Ratio@L" (their evaluator is
    not published).

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N), positive where above 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        empty: Value of a request without positives among its candidates.

    Returns:
        (B,) values in [0, 1]; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: As `ndcg_at_k`.

    Example:
        >>> precision_at_k(torch.tensor([[2, 0, 1]]), torch.tensor([[1, 1, 0]]), k=3)
        tensor([0.6667])
    """
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    return _settle_empty(hits.sum(1) / k, positives == 0, empty)


def hit_at_k(slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero") -> Tensor:
    """1 where at least one positive is in the top k, else 0 (HR@k of ReChorus and RecBole).

    Not to be confused with HR@p%, the hit rate over all permutations, which is `hit_rate_at_share`.

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N), positive where above 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        empty: Value of a request without positives among its candidates.

    Returns:
        (B,) zeros and ones; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: As `ndcg_at_k`.

    Example:
        >>> hit_at_k(torch.tensor([[2, 0], [2, 1]]), torch.tensor([[1, 0, 0], [1, 0, 0]]), k=2)
        tensor([1., 0.])
    """
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    return _settle_empty(hits.any(1).to(hits.dtype), positives == 0, empty)


def reciprocal_rank_at_k(
    slates: Tensor, relevance: Tensor, mask: Tensor | None = None, *, k: int, empty: Empty = "zero"
) -> Tensor:
    """1 / rank of the first positive, 0 where none is in the top k.

    Args:
        slates: (B, M) int64, -100 pads.
        relevance: (B, N), positive where above 0.
        mask: (B, N) bool, True where the label is known.
        k: Cut-off, in positions.
        empty: Value of a request without positives among its candidates.

    Returns:
        (B,) values in [0, 1]; with `empty="skip"` only those of requests that are not empty.

    Raises:
        ValueError: As `ndcg_at_k`.

    Example:
        >>> reciprocal_rank_at_k(torch.tensor([[2, 0], [2, 1]]), torch.tensor([[1, 0, 0], [1, 0, 0]]), k=2)
        tensor([0.5000, 0.0000])
    """
    hits, positives = _hits_and_positives(slates, relevance, mask, k, empty)
    ranks = torch.arange(1, hits.size(1) + 1, device=hits.device)
    return _settle_empty((hits / ranks).amax(1), positives == 0, empty)


def _displayed_and_labels(
    slates: Tensor, relevance: Tensor, mask: Tensor | None, k: int, empty: Empty
) -> tuple[Tensor, Tensor]:
    """Checks the inputs; returns the labels in display order (B, M) and of the candidates (B, N), unknown ones 0."""
    check_option("empty", empty, get_args(Empty))
    check_positive("k", k)
    if relevance.dim() != 2:
        raise ValueError(f"relevance must be (B, N), got shape {tuple(relevance.shape)}")
    check_slates(slates, relevance.size(1))
    if slates.size(0) != relevance.size(0):
        raise ValueError(f"slates have {slates.size(0)} rows, relevance has {relevance.size(0)}")
    labels = as_float(relevance)
    if mask is not None:
        check_shape("mask", mask, tuple(relevance.shape), "relevance")
        labels = labels.masked_fill(~mask.bool(), 0)
    check_rows("relevance", ~labels.isfinite() | (labels < 0), labels, "is negative or not finite")
    displayed = labels.gather(1, slates.clamp(min=0)).masked_fill(slates == PADDING, 0)
    return displayed, labels


def _hits_and_positives(
    slates: Tensor, relevance: Tensor, mask: Tensor | None, k: int, empty: Empty
) -> tuple[Tensor, Tensor]:
    """Returns 1.0 where one of the top k is positive (B, min(k, M)), and the number of positive candidates (B,)."""
    displayed, labels = _displayed_and_labels(slates, relevance, mask, k, empty)
    return (displayed[:, :k] > 0).to(labels.dtype), (labels > 0).sum(1)


def _discounted_sum(gains: Tensor) -> Tensor:
    ranks = torch.arange(1, gains.size(1) + 1, device=gains.device, dtype=gains.dtype)
    return (gains / torch.log2(ranks + 1)).sum(1)


def _one_where_zero(denominator: Tensor) -> Tensor:
    return denominator.masked_fill(denominator == 0, 1)


def _settle_empty(values: Tensor, is_empty: Tensor, empty: Empty) -> Tensor:
    if empty == "skip":
        return values[~is_empty]
    return values.masked_fill(is_empty, 1.0 if empty == "one" else 0.0)
