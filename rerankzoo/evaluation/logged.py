"""The log's own word about the slates of a table: counterfactual estimates of each row, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.evaluation import counterfactual as cf
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.utility import position_utility
from rerankzoo.slates import are_parts

#: What is read of a batch.
LOGGED_ENTRIES = ("slates", "feedback", "candidate_value", "propensity")
_RANDOMISED = 0.1  # share of requests in the plan of what to log


Key = tuple[str, str]
"""Model and decoding: what a row of a table is about."""


@dataclass
class LoggedTable:
    """Gathers slates with feedback, batch by batch, of a table with one logged slate per request."""

    schema: FeatureSchema
    _parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = field(default_factory=list)

    def add(self, batch: Batch) -> None:
        """Keeps what a batch has; nothing without feedback, of several slates per request or of parts of pages."""
        if "feedback" not in batch or batch["slates"].shape[1] != 1 or are_parts(batch["slates"]).any():
            return
        slates = batch["slates"]
        rewards = position_utility(batch["feedback"], slates, batch["candidate_value"], self.schema)
        known = batch["propensity"][:, 0].double().cpu().numpy() if "propensity" in batch else None
        self._parts.append((slates[:, 0].cpu().numpy(), rewards[:, 0].double().cpu().numpy(), known))

    def slates(self, scores: np.ndarray | None) -> cf.LoggedSlates | None:
        """All logged slates, by their own propensities or else by those of a policy that is fitted to upstream scores.

        Args:
            scores: (R, N), -inf at padding, if they are known.

        Returns:
            `None` where nothing tells how the slates were chosen.
        """
        shown = _joined([part[0] for part in self._parts], PADDING)
        rewards = _joined([part[1] for part in self._parts], 0.0)
        propensities = [part[2] for part in self._parts if part[2] is not None]
        if propensities:
            return cf.LoggedSlates(shown, np.where(shown == PADDING, 1.0, _joined(propensities, 1.0)), rewards)
        if scores is None:
            return None
        chances = cf.PlackettLuceLogger.fit(scores, shown).propensities(scores, shown)
        return cf.LoggedSlates(shown, chances, rewards, estimated=True)

    def rows(self, data: Dataset, slates: Mapping[Key, Tensor]) -> tuple[dict[Key, list[cf.Estimate]], str]:
        """Estimates for slates (R, M) by model and decoding, and what there is to say of all of them.

        Args:
            data: The requests (R), whose upstream scores a logging policy is fitted to.
            slates: To be judged; of the size of the logged ones, else there is only a word.
        """
        if sum(len(part[0]) for part in self._parts) != len(data):
            return {}, "no logged slates with feedback, one per request"
        size, logged = next(iter(slates.values())).shape[1], max(part[0].shape[1] for part in self._parts)
        if logged != size:
            return {}, f"the logged slates have {logged} positions, these {size}"
        scores = _scores(data, self.schema)
        log = self.slates(scores)
        if log is None:
            return {}, "neither propensities nor upstream scores tell how the slates were chosen"
        judged = np.stack([one.numpy() for one in slates.values()], axis=1)
        return dict(zip(slates, _estimates(log, judged, scores), strict=True)), _plan(log)


def _estimates(log: cf.LoggedSlates, judged: np.ndarray, scores: np.ndarray | None) -> list[list[cf.Estimate]]:
    """Of slates (R, K, M): those by propensities, and by a fitted logging policy where all its slates can be listed."""
    columns = list(judged.swapaxes(0, 1))
    by_prefix = (cf.ips, cf.snips, cf.reward_interaction_ips, cf.cascade_doubly_robust)
    found = [[estimate(log, one) for estimate in by_prefix] for one in columns]
    if scores is None or not cf.can_list(scores, judged):
        return found
    fitted, by_policy = cf.PlackettLuceLogger.fit(scores, log.slates), replace(log, estimated=True)
    marginals = fitted.marginals(scores, judged)
    weights = fitted.pseudo_inverse_weights(scores, log.slates, judged)
    for number, (estimates, one) in enumerate(zip(found, columns, strict=True)):
        estimates.append(cf.independent_ips(by_policy, one, marginals[:, number]))
        estimates.append(cf.pseudo_inverse(by_policy, weights[:, number]))
    return found


def _plan(log: cf.LoggedSlates) -> str:
    """What to log where nothing can be told."""
    size, rewarded = log.slates.shape[1], int((log.utility > 0).sum())
    if size < 2 or rewarded < cf.MIN_REWARDED:
        return f"{rewarded} of {len(log.utility)} logged requests earned something: too few to plan from"
    count = cf.requests_to_randomise(log.utility, size, _RANDOMISED)
    return (
        f"to see what an exchange of neighbours is worth, 10 % of the utility or more: exchange one pair of "
        f"neighbouring positions at random in {_RANDOMISED:.0%} of {count:,} requests"
    )


def _scores(data: Dataset, schema: FeatureSchema) -> np.ndarray | None:
    """(R, N) upstream scores, -inf at padding; `None` where the table has none, or not of every candidate."""
    if schema.upstream_score is None or schema.upstream_score not in data.column_names:
        return None
    lists = data.with_format(None)[schema.upstream_score]
    parts = [np.asarray(one, dtype=np.float64).reshape(1, -1) for one in lists]
    if any(np.isnan(part).any() for part in parts):
        return None
    return _joined(parts, -math.inf)


def _joined(parts: Sequence[np.ndarray], fill: float) -> np.ndarray:
    """Arrays (R', K') one below the other, filled up to the widest."""
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])
