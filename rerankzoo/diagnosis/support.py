"""Which slates a log can say something about: how it chose, and how near the proposed slates are to what it shows.

B requests, N candidates, S slates per request, M positions.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch, gather_candidates
from rerankzoo.diagnosis.log import Log, base_rates, positives, shown_positions
from rerankzoo.evaluation.counterfactual import Estimate, cascade_doubly_robust, reward_interaction_ips, snips
from rerankzoo.evaluation.logged import LoggedTable
from rerankzoo.slates import sorted_slates

_SEEN = 5  # so often something has to be shown to count as known
_REPEATED = 0.05  # with fewer different candidate sets per request they count as fixed
_UNKNOWN = 1  # the id of values that the train split does not have
_POOL = 10.0  # requests that the prior of an item's rate at a position weighs


@dataclass(frozen=True)
class Support:
    """What the log shows, and how much of the proposed slates; shares of the requests, or of what is proposed."""

    fixed: bool  # whether candidate sets repeat: only then must the policy itself vary the company of an item
    distinct_sets: float  # different candidate sets
    distinct_slates: float  # different logged slates
    upstream: float | None  # logged slates that are the head of the upstream order; `None` without a score
    positions: float | None  # proposed positions whose item the log shows there at least five times
    neighbours: float | None  # proposed pairs of neighbours that the log shows as such at least five times
    matches: float  # logged positions of the test requests that hold the proposed item
    equal: int  # logged slates of the test requests that equal the proposed one


def item_codes(log: Log, batch: Batch) -> Tensor | None:
    """(B, N), numbers of the candidates' items; `None` where no categorical field names the item."""
    names = [field.name for field in log.schema.select("candidate", "categorical")]
    if log.schema.item_id not in names:
        return None
    return batch["candidate_categorical"][..., names.index(log.schema.item_id)]


def find_support(log: Log, proposed: Tensor) -> Support:
    """Compares slates (B, M) that are proposed for the test requests with what the log shows."""
    halves = [(half, item_codes(log, half)) for half in log.halves]
    logged = [half["slates"].flatten(0, 1) for half in log.halves]
    sets = Counter[bytes]()
    for half, codes in halves:
        listed = half["candidate_numeric"] if codes is None else codes.masked_fill(~half["candidate_mask"], -1)
        ordered = listed.sort(dim=1).values
        sets.update(row.tobytes() for row in ordered.numpy())
    distinct_sets = len(sets) / log.used
    known = log.test["slates"][:, 0] if "slates" in log.test else torch.full_like(proposed, -1)
    length = min(known.shape[1], proposed.shape[1])
    known, proposed = known[:, :length], proposed[:, :length]
    same = (known == proposed) & (proposed >= 0)
    equal = (same | (proposed < 0)).all(1) & (known >= 0).any(1)
    positions, neighbours = _shown_before(log, proposed)
    return Support(
        fixed=distinct_sets < _REPEATED,
        distinct_sets=distinct_sets,
        distinct_slates=len({row.tobytes() for part in logged for row in part.numpy()}) / log.used,
        upstream=_follows_upstream(log),
        positions=positions,
        neighbours=neighbours,
        matches=same.sum().item() / max(1, (proposed >= 0).sum().item()),
        equal=int(equal.sum()),
    )


def estimate_counterfactually(log: Log, batch: Batch, slates: Tensor) -> tuple[Estimate, ...]:
    """What logged requests say of slates (B, M) that an evaluator chose for them without having learned from them.

    By logged propensities, else by those of a Plackett-Luce policy that is fitted to the log; nothing where the schema
    names no upstream score either. Of several logged slates per request the first counts.
    """
    known = LoggedTable(log.schema)
    first = {name: batch[name][:, :1] for name in ("slates", "feedback", "propensity") if name in batch}
    known.add({**batch, **first})
    scores = _upstream_scores(log, batch)
    logged = known.slates(None if scores is None else scores.double().numpy())
    if logged is None:
        return ()
    judged = F.pad(slates, (0, logged.slates.shape[1] - slates.shape[1]), value=PADDING).numpy()
    return tuple(estimate(logged, judged) for estimate in (snips, reward_interaction_ips, cascade_doubly_robust))


def _upstream_scores(log: Log, batch: Batch) -> Tensor | None:
    """(B, N), -inf at padding; `None` where the schema names none."""
    if log.schema.upstream_score is None:
        return None
    column = log.schema.position(log.schema.upstream_score)
    return batch["candidate_numeric"][..., column].masked_fill(~batch["candidate_mask"], -math.inf)


def _follows_upstream(log: Log) -> float | None:
    followed = 0
    for half in log.halves:
        slates, scores = half["slates"][:, 0], _upstream_scores(log, half)
        if scores is None:
            return None
        order = sorted_slates(scores, half["candidate_mask"], slates.shape[1])
        followed += int(((slates == order) | (slates < 0)).all(1).sum())
    return followed / log.used


def _shown_before(log: Log, proposed: Tensor) -> tuple[float | None, float | None]:
    """Shares of the positions and neighbouring pairs of proposed slates that the log shows often enough."""
    wanted = _shown_items(log, log.test, proposed.unsqueeze(1))
    if wanted is None:
        return None, None
    at, beside = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for logged in (_shown_items(log, half, half["slates"]) for half in log.halves):
        for slate in logged.flatten(0, 1).tolist() if logged is not None else ():
            at.update((position, item) for position, item in enumerate(slate) if item >= 0)
            beside.update((a, b) for a, b in pairwise(slate) if b >= 0)
    slates = wanted[:, 0].tolist()
    places = [(position, item) for slate in slates for position, item in enumerate(slate) if item >= 0]
    pairs = [(a, b) for slate in slates for a, b in pairwise(slate) if b >= 0]
    return _share(places, at), _share(pairs, beside) if pairs else None


def _shown_items(log: Log, batch: Batch, slates: Tensor) -> Tensor | None:
    """(B, S, M), numbers of the items in slates, -1 at padding; `None` where no field names them."""
    codes = item_codes(log, batch)
    if codes is None:
        return None
    return gather_candidates(codes.unsqueeze(-1), slates).squeeze(-1).masked_fill(slates < 0, -1)


def _share(wanted: list[tuple[int, int]], shown: Counter[tuple[int, int]]) -> float:
    return sum(shown[one] >= _SEEN for one in wanted) / max(1, len(wanted))


def constant_log_likelihoods(told: Batch, asked: Batch) -> Tensor:
    """(B,), log-probability of the feedback of `asked` by the base rates of `told`, whatever the position."""
    rates = positives(told).double() / max(1, shown_positions(told))
    return _bernoulli(asked, rates)


def position_log_likelihoods(log: Log, told: Batch, asked: Batch) -> Tensor:
    """(B,), the same by the rates of positions; of items at positions, shrunk to those, where ids are known."""
    rates = base_rates(told)[: asked["slates"].shape[-1]]
    items, asked_items = (_shown_items(log, batch, batch["slates"]) for batch in (told, asked))
    if items is None or asked_items is None:
        return _bernoulli(asked, rates)
    size, length, mask = int(max(items.max(), asked_items.max())) + 1, items.shape[-1], items >= 0
    cells, asked_cells = ((part * length + torch.arange(part.shape[-1])).clamp_min(0) for part in (items, asked_items))
    shown = torch.bincount(cells[mask], minlength=size * length)
    happened = (told["feedback"][mask] > 0).double()
    positive = torch.stack([torch.bincount(cells[mask], one, size * length) for one in happened.T], dim=1)
    prior = base_rates(told).repeat(size, 1)
    table = (positive + _POOL * prior) / (shown.unsqueeze(-1) + _POOL)
    return _bernoulli(asked, table[asked_cells])


def _bernoulli(batch: Batch, rates: Tensor) -> Tensor:
    """Log-probability (B,) of feedback under independent rates (..., T)."""
    rates = rates.clamp(1e-6, 1 - 1e-6)
    happened = batch["feedback"].double()
    logged = happened * rates.log() + (1 - happened) * (1 - rates).log()
    return logged.masked_fill((batch["slates"] < 0).unsqueeze(-1), 0).sum((1, 2, 3))


def unknown_share(log: Log) -> float:
    """Share of the categorical values of the test requests' candidates that the train split does not have."""
    ids = log.test["candidate_categorical"][log.test["candidate_mask"]]
    return (ids == _UNKNOWN).double().mean().item() if ids.numel() else 0.0
