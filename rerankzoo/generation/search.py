"""What all decoding routines share: the running score of a prefix and the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankzoo.generation.scorer import PADDING, Scorer, ScorerState


@dataclass
class Decoded:
    """Slates found for each request, best first where they are ranked.

    Attributes:
        slates: (B, S, M), -100 where a request has fewer than M candidates or fewer than S slates exist.
        scores: (B, S), a slate's score by its scorer; -inf where fewer than S slates exist.
        step_scores: (B, S, M), the score of each choice when it was made; 0 at padding.
    """

    slates: Tensor
    scores: Tensor
    step_scores: Tensor


@dataclass
class Rows:
    """The rows being decoded: a scorer's state, the running score of each prefix and the scores of its steps."""

    state: ScorerState
    total: Tensor  # (R,)
    steps: Tensor  # (R, t)

    @classmethod
    def start(cls, state: ScorerState) -> Rows:
        """One row per request with an empty prefix."""
        total = torch.zeros(state.request.shape, device=state.prefix.device)
        return cls(state, total, total.new_zeros(len(total), 0))

    def extend(self, scorer: Scorer, scores: Tensor, parent: Tensor, index: Tensor) -> Rows:
        """Continues row `parent[r]` with candidate `index[r]`, scored (R, N) by `scores`.

        A row whose request has run out of candidates gets padding and keeps its score.
        """
        exhausted = self.state.exhausted[parent]
        step = scores[parent, index].masked_fill(exhausted, 0.0)
        previous = self.total[parent]
        total = previous + step if scorer.kind == "log_prob" else torch.where(exhausted, previous, step)
        state = scorer.extend(self.state, parent, index.masked_fill(exhausted, PADDING))
        return Rows(state, total, torch.cat([self.steps[parent], step.unsqueeze(-1)], dim=-1))

    def decoded(self, num_requests: int) -> Decoded:
        """Folds the rows, which are grouped by request, into (B, S, ...)."""
        shape = (num_requests, -1)
        return Decoded(
            self.state.prefix.unflatten(0, shape), self.total.unflatten(0, shape), self.steps.unflatten(0, shape)
        )
