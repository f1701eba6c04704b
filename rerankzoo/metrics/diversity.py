"""Variety within slates (intra-list distance, distinct categories) and across requests (coverage, distinct pairs).

`slates` (B, M) int64 are positions into the row's candidates, -100 pads; `k` is the cut-off, in positions. A pair with
a padded position does not count. All functions but `order_distance`, which is asked in every training step, raise
ValueError on bad options, shapes, slates and displayed entries.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, gather_candidates
from rerankzoo.metrics._checks import as_float, check_number, check_option, check_rows, check_slates

Pool = Literal["all", "request"]

# Squares of larger or smaller entries leave single precision.
_LARGE, _SMALL = 1e15, 1e-10


def intra_list_distance(slates: Tensor, vectors: Tensor, *, k: int) -> Tensor:
    """ILD@k: mean cosine distance, 1 - cos, over all pairs of the top k items (Zhang and Hurley, 2008).

    `vectors` (B, N, D) are the candidates'; a zero vector has distance 1 from every other. Returns (B,) values in
    [0, 2]; 0 for a slate without a pair.
    """
    top, shown = _top(slates, vectors, k, dim=3)
    shown = as_float(shown)
    check_rows("vectors", ~shown.isfinite(), shown, "is not finite")
    if shown.size(2):
        largest = shown.abs().amax(2, keepdim=True)
        extreme = (largest > _LARGE) | ((largest < _SMALL) & (largest > 0))
        shown = shown / torch.where(extreme, largest, 1)
    unit = F.normalize(shown, dim=-1)
    return _mean_over_pairs(1 - unit @ unit.transpose(1, 2), top != PADDING)


def ilad(slates: Tensor, categories: Tensor, *, k: int) -> Tensor:
    """ILAD@k: share of the pairs of the top k items that differ in category (as in the code of CMR).

    `categories` (B, N) int64 are the candidates'. Returns (B,) values in [0, 1]; 0 for a slate without a pair.
    """
    top, shown = _top(slates, categories, k, dim=2)
    return _mean_over_pairs((shown[:, :, None] != shown[:, None, :]).float(), top != PADDING)


def item_coverage(slates: Tensor, items: Tensor, num_items: int, *, k: int) -> Tensor:
    """Share of the catalogue that is displayed to anybody: |union of the top k| / num_items (RecBole), a scalar.

    `items` (B, N) int64 are the candidates' catalogue indexes 0 .. num_items - 1 (anything where they are padding).
    """
    check_number("num_items", num_items, num_items >= 1, "be at least 1")
    top, shown = _top(slates, items, k, dim=2)
    real = top != PADDING
    check_rows("items", real & ((shown < 0) | (shown >= num_items)), shown, f"is outside a catalogue of {num_items}")
    displayed = torch.zeros(num_items, dtype=torch.uint8, device=items.device).index_fill_(0, shown[real], 1)
    return displayed.sum() / num_items


def distinct_2(slates: Tensor, items: Tensor, *, k: int, pool: Pool = "all") -> Tensor:
    """Distinct-2: number of different ordered pairs of neighbours / number of pairs of neighbours (Li et al., 2016).

    CONGRATS does not say over what it pools: `pool` is `"all"`: the pairs of all requests are one collection; or
    `"request"`: the mean over requests of each one's own share, which is 1 for ids, as no item repeats within a slate.
    `items` (B, N) int64 are the candidates' ids or categories. Returns a scalar in [0, 1]; 0 if there is no pair.
    """
    check_option("pool", pool, Pool)
    top, shown = _top(slates, items, k, dim=2)
    both = (top[:, :-1] != PADDING) & (top[:, 1:] != PADDING)
    pairs = torch.stack([shown[:, :-1][both], shown[:, 1:][both]], dim=1)
    owner = both.nonzero()[:, 0] if pool == "request" else torch.zeros_like(pairs[:, 0])
    distinct = torch.unique(torch.cat([owner[:, None], pairs], dim=1), dim=0)[:, 0]
    totals = torch.bincount(owner)
    shares = torch.bincount(distinct, minlength=totals.numel())[totals > 0] / totals[totals > 0]
    return shares.sum() / max(1, shares.numel())


def order_distance(slates: Tensor, others: Tensor, num_candidates: int) -> Tensor:
    """POD: the share of the pairs of items that two slates order the other way round, between 0 and 1 (MG-E).

    Pairs are of all items that one of the two shows; what a slate does not show stands below all that it shows, and of
    two such items it says nothing (our reading, for slates of different items). `slates` (B, S, M) and `others`
    (B, A, M) hold positions into `num_candidates` candidates. Returns (B, S, A); 0 without a pair.
    """
    number = torch.arange(num_candidates, device=slates.device)
    shown, orders = [], []
    for lists in (slates, others):
        placed = lists.unsqueeze(-1) == number  # (B, S, M, N)
        shown.append(placed.any(2))
        rank = torch.where(shown[-1], placed.int().argmax(2), lists.shape[2])
        orders.append((rank.unsqueeze(-1) - rank.unsqueeze(-2)).sign())  # (B, S, N, N)
    opposite = (orders[0].unsqueeze(2) * orders[1].unsqueeze(1) < 0).sum((-1, -2))  # both halves: every pair twice
    items = (shown[0].unsqueeze(2) | shown[1].unsqueeze(1)).sum(-1)
    return opposite / (items * (items - 1)).clamp(min=1)


def _top(slates: Tensor, features: Tensor, k: int, dim: int) -> tuple[Tensor, Tensor]:
    """Checks the inputs; returns the first k positions (B, min(k, M)) and their features (B, min(k, M), ...)."""
    check_number("k", k, k >= 1, "be at least 1")
    if features.dim() != dim or features.size(0) != slates.size(0):
        raise ValueError(
            f"candidate tensor has shape {tuple(features.shape)}, expected {dim} dimensions and {slates.size(0)} rows"
        )
    check_slates(slates, features.size(1))
    top = slates[:, :k]
    if features.size(1):
        return top, gather_candidates(features, top)
    return top, features.new_zeros(*top.shape, *features.shape[2:])  # nothing to look up


def _mean_over_pairs(distances: Tensor, real: Tensor) -> Tensor:
    """Mean of (B, K, K) distances over i < j with both positions real; 0 where there is no such pair."""
    pairs = (real[:, :, None] & real[:, None, :]).triu(1)
    return (distances * pairs).sum((1, 2)) / pairs.sum((1, 2)).clamp(min=1)
