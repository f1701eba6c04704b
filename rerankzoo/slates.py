"""The space of all slates of a request: listing it, drawing from it, and walking in it.

A slate holds positions into the candidates of its request, none twice, -100 pads. A request of n candidates has
A(n, m) = n! / (n - m)! slates of m. B requests, N candidates, M positions, S drawn and P listed slates. Functions raise
ValueError if `slate_size` is below 1 or exceeds the number of candidates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import chain, permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch

# A list of slates beyond this is a mistake more often than a wish: A(50, 6) is 1.1e10.
MAX_SLATES = 4_000_000


@lru_cache(maxsize=8)
def all_slates(num_candidates: int, slate_size: int) -> np.ndarray:
    """Lists every slate of a request in lexicographic order: read-only int64 (P, M), P = A(num_candidates, slate_size).

    Raises:
        ValueError: If there are more than `MAX_SLATES`.

    Example:
        >>> all_slates(3, 2).tolist()
        [[0, 1], [0, 2], [1, 0], [1, 2], [2, 0], [2, 1]]
    """
    _check_slate_size(slate_size, num_candidates)
    count = math.perm(num_candidates, slate_size)
    if count > MAX_SLATES:
        raise ValueError(
            f"{num_candidates} candidates have {count} slates of {slate_size}, above {MAX_SLATES}: use uniform_slates"
        )
    entries = chain.from_iterable(permutations(range(num_candidates), slate_size))
    slates = np.fromiter(entries, dtype=np.int64, count=count * slate_size).reshape(count, slate_size)
    slates.setflags(write=False)
    return slates


def with_slate_lengths(batch: Batch, longest: int, slate_size: int) -> dict[str, Tensor]:
    """A batch that says how many positions each request has, if its own log does: pages of several sizes in one log.

    Where it does not say so by itself, a request that was shown fewer items than it had candidates, and fewer than the
    longest slate of its table has, has as many positions; others have no limit, nor has a part of a page, of which it
    is not known what stood at some positions. Nothing is added where nobody has one below `slate_size`.
    """
    if "slate_length" in batch or "slates" not in batch:
        return dict(batch)
    shown, candidates = (batch["slates"] >= 0).sum(-1).amax(-1), batch["candidate_mask"].sum(-1)
    unlimited = (shown >= candidates.clamp_max(longest)) | (shown == 0) | are_parts(batch["slates"]).any(-1)
    lengths = shown.masked_fill(unlimited, slate_size)
    return {**batch, "slate_length": lengths} if bool((lengths < slate_size).any()) else dict(batch)


def are_parts(slates: Tensor) -> Tensor:
    """Whether slates (..., M) are parts of pages (...): an item stands behind a position of which nothing is known."""
    real = slates >= 0
    return (real.diff(dim=-1) & real[..., 1:]).any(-1)


def cut_slates(slates: Tensor, batch: Batch) -> Tensor:
    """Slates (B, ..., M) with padding beyond the positions that their requests have, where the batch tells."""
    if "slate_length" not in batch:
        return slates
    length = batch["slate_length"].to(slates.device).view(-1, *[1] * (slates.dim() - 1))
    return slates.masked_fill(torch.arange(slates.shape[-1], device=slates.device) >= length, PADDING)


def real_slates(candidate_mask: Tensor, slates: Tensor) -> Tensor:
    """Tells which slates (P, M) of a common list hold real candidates only: (B, P) bool, by `candidate_mask` (B, N).

    It is the `mask` of `rerankzoo.metrics.hit_rate_at_share` and its like, for `torch.tensor(all_slates(N, M))`.
    """
    return candidate_mask.bool()[:, slates].all(-1)


def uniform_slates(
    candidate_mask: Tensor, slate_size: int, num_samples: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draws slates uniformly from all slates of each request; independent draws, so one may come twice.

    `candidate_mask` (B, N) is True where a candidate is real; the generator is on its device.

    Returns:
        (B, S, M) int64; in rows with fewer than M candidates a slate holds all of them and ends in -100.
    """
    batch_size, num_candidates = candidate_mask.shape
    _check_slate_size(slate_size, num_candidates)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    # The order of independent uniform keys is a uniform permutation; its first m entries are a uniform slate.
    shape = (batch_size, num_samples, num_candidates)
    keys = torch.rand(shape, generator=generator, device=candidate_mask.device)
    top = keys.masked_fill(~candidate_mask.bool()[:, None], -1).topk(slate_size, dim=-1)
    return top.indices.masked_fill(top.values < 0, PADDING)


def sorted_slates(scores: Tensor, candidate_mask: Tensor, slate_size: int) -> Tensor:
    """The slates (B, M) of the highest scores (B, N), best first, equal ones as they stand; -100 pads."""
    order = scores.masked_fill(~candidate_mask, -math.inf).argsort(dim=1, descending=True, stable=True)
    order = order.masked_fill(~candidate_mask.gather(1, order), PADDING)
    return F.pad(order, (0, slate_size - order.shape[1]), value=PADDING)


def plackett_luce_slates(
    logits: np.ndarray, slate_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one slate per request without replacement by a Plackett-Luce policy (Gumbel top-k).

    `logits` (B, N) are scores over a temperature.

    Returns:
        Slates (B, M) int64, and the probability (B, M) of each choice among the items left at its position.
    """
    slates = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1, kind="stable")[:, :slate_size]
    return slates, plackett_luce_propensities(logits, slates)


def plackett_luce_propensities(logits: np.ndarray, slates: np.ndarray) -> np.ndarray:
    """The probability (B, M) with which a Plackett-Luce policy of logits (B, N) chooses each item of slates (B, M)."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    propensities = np.empty(slates.shape)
    requests = np.arange(len(slates))
    for position, chosen in enumerate(slates.T):
        propensities[:, position] = weights[requests, chosen] / weights.sum(axis=1)
        weights[requests, chosen] = 0.0
    return propensities


def neighbour_slates(slates: Tensor, candidate_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The steps of a local search: all slates that differ from a given one in one item, or in the order of two.

    Args:
        slates: (B, S, M), -100 pads.
        candidate_mask: (B, N), True where a candidate is real.

    Returns:
        (B, S, P, M), and (B, S, P), True where there is such a slate; the rest is padding.
    """
    stands = slates.unsqueeze(-1) == torch.arange(candidate_mask.shape[1], device=slates.device)  # (B, S, M, N)
    elsewhere = stands.any(2, keepdim=True)
    further = (stands.flip(2).cumsum(2).flip(2) - stands.long()) > 0  # below this position: both change places, once
    valid = candidate_mask[:, None, None] & (slates >= 0).unsqueeze(-1) & (further | ~elsewhere)
    changed, valid = edited_slates(slates, candidate_mask.shape[1]).flatten(2, 3), valid.flatten(2, 3)
    order = valid.byte().argsort(dim=-1, descending=True, stable=True)[..., : int(valid.sum(-1).max())]
    valid = valid.gather(-1, order)
    changed = changed.gather(2, order.unsqueeze(-1).expand(-1, -1, -1, slates.shape[-1]))
    return changed.masked_fill(~valid.unsqueeze(-1), PADDING), valid


def edited_slates(slates: Tensor, num_candidates: int) -> Tensor:
    """Every candidate put at every position of slates (B, S, M): (B, S, M, N, M); see `put`."""
    place = torch.arange(slates.shape[-1], device=slates.device).view(-1, 1, 1)
    candidate = torch.arange(num_candidates, device=slates.device).view(-1, 1)
    return put(slates[:, :, None, None].expand(-1, -1, len(place), num_candidates, -1), place, candidate)


def put(slates: Tensor, position: Tensor, candidate: Tensor) -> Tensor:
    """Slates (..., M) with a candidate (..., 1) at a position (..., 1); if it stands elsewhere, both change places."""
    position = position.expand(*slates.shape[:-1], 1)
    moved = torch.where(slates == candidate, slates.gather(-1, position), slates)
    return moved.scatter(-1, position, candidate.expand(position.shape))


def _check_slate_size(slate_size: int, num_candidates: int) -> None:
    if slate_size < 1:
        raise ValueError(f"slate_size must be at least 1, got {slate_size}")
    if slate_size > num_candidates:
        raise ValueError(f"slate_size {slate_size} exceeds num_candidates {num_candidates}")
