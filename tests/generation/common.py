"""Scorers made by hand, and the slow and obvious versions of what decoding does."""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from rerankzoo.generation import (
    Batch,
    Cache,
    Decoded,
    RerankingGenerationConfig,
    Scorer,
    ScorerState,
    SlateGenerationMixin,
    SlateRules,
)
from rerankzoo.generation.scorer import remaining_log_probs


class TableScorer(Scorer):
    """Scores that depend on the whole prefix, so that greedy choices are often wrong.

    A candidate's logit is `base[t, v] + sum over the items u of the prefix of pair[u, v]`; the second part is kept per
    row in the cache, as an autoregressive model keeps its keys. As `"value"`, the logits are gains, and a score is the
    sum of all gains so far, also kept in the cache.

    Args:
        base: (B, M, N).
        pair: (B, N, N).
        mask: (B, N).
        kind: See `Scorer`.
        states: (B, N, D), for contrastive decoding.
    """

    def __init__(
        self,
        base: Tensor,
        pair: Tensor,
        mask: Tensor,
        kind: Literal["log_prob", "value"] = "log_prob",
        states: Tensor | None = None,
    ) -> None:
        self.kind = kind
        self.base, self.pair, self.states = base, pair, states
        self.batch = {"candidate_mask": mask}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        memory = {"base": self.base, "pair": self.pair}
        return memory if self.states is None else {**memory, "candidate_states": self.states}

    def start(self, batch: Batch) -> ScorerState:
        state = super().start(batch)
        state.cache = {"bias": torch.zeros_like(self.base[:, 0]), "value": torch.zeros_like(self.base[:, 0, 0])}
        return state

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        logits = self._logits(state)
        cache = {**state.cache, "gains": logits, "request": state.request}
        if self.kind == "log_prob":
            return remaining_log_probs(logits, state.available), cache
        return (state.cache["value"].unsqueeze(-1) + logits).masked_fill(~state.available, -torch.inf), cache

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        rows = torch.arange(len(index)) if parent is None else parent
        chosen, item = index >= 0, index.clamp_min(0)
        gain = cache["gains"][rows, item] * chosen
        bias = self.pair[cache["request"][rows], item] * chosen.unsqueeze(-1)
        return {"value": cache["value"][rows] + gain, "bias": cache["bias"][rows] + bias}

    def _logits(self, state: ScorerState) -> Tensor:
        return state.memory["base"][state.request, state.prefix.shape[1]] + state.cache["bias"]

    # --- the slow and obvious ---------------------------------------------------------------------------------------

    def logits(self, row: int, prefix: tuple[int, ...]) -> Tensor:
        """(N,), the logits after a prefix of one request."""
        return self.base[row, len(prefix)] + sum((self.pair[row, item] for item in prefix), torch.tensor(0.0))

    def left(self, row: int, prefix: tuple[int, ...]) -> list[int]:
        """The candidates that a prefix leaves."""
        mask = self.batch["candidate_mask"][row].tolist()
        return [item for item, real in enumerate(mask) if real and item not in prefix]

    def probabilities(self, row: int, prefix: tuple[int, ...]) -> dict[int, float]:
        """Of the candidates left."""
        left = self.left(row, prefix)
        return dict(zip(left, self.logits(row, prefix)[left].softmax(-1).tolist(), strict=True))

    def slate_score(self, row: int, slate: tuple[int, ...]) -> float:
        """Sum of log-probabilities, or of gains."""
        total = 0.0
        for position, item in enumerate(slate):
            prefix = slate[:position]
            logits = self.logits(row, prefix)
            norm = logits[self.left(row, prefix)].logsumexp(-1) if self.kind == "log_prob" else 0.0
            total += float(logits[item] - norm)
        return total

    def every_slate(self, row: int, slate_size: int) -> dict[tuple[int, ...], float]:
        """All slates of one request with their scores."""
        left = self.left(row, ())
        return {slate: self.slate_score(row, slate) for slate in permutations(left, min(slate_size, len(left)))}


def play(scorer: Scorer, batch: Batch, slates: Tensor) -> tuple[Tensor, Tensor]:
    """The scores (B, S) and step scores (B, S, M) that a scorer gives to finished slates (B, S, M)."""
    num_slates = slates.shape[1]
    state, parent = scorer.start(batch), torch.arange(len(slates)).repeat_interleave(num_slates)
    total, steps = torch.zeros(len(parent)), []
    for index in slates.flatten(0, 1).unbind(-1):
        chosen = index >= 0
        scores, cache = scorer.step(state)
        step = scores[parent, index.clamp_min(0)]
        step = torch.where(chosen, step, torch.zeros_like(step))
        total = total + step if scorer.kind == "log_prob" else torch.where(chosen, step, total)
        steps.append(step)
        state, parent = scorer.extend(state, cache, parent, index), torch.arange(len(index))
    return total.unflatten(0, (-1, num_slates)), torch.stack(steps, -1).unflatten(0, (-1, num_slates))


class ScorerModel(SlateGenerationMixin):
    """A model that is nothing but a scorer."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def scorer(self) -> Scorer:
        return self._scorer


def decode(
    scorer: Scorer, batch: Batch, config: RerankingGenerationConfig, slate_size: int, rules: SlateRules | None = None
) -> Decoded:
    """What a model decodes."""
    return ScorerModel(scorer).decode(batch, config.merged(slate_size=slate_size), rules)
