"""What all decoding routines share: the running score of a prefix and the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankzoo.generation.feasibility import Progress, SlateRules
from rerankzoo.generation.scorer import PADDING, Scorer, ScorerState


@dataclass
class Decoded:
    """Slates found for each request, best first where they are ranked.

    Attributes:
        slates: (B, S, M), -100 where a request has fewer than M candidates (left by exclusions) or fewer than S slates
            exist.
        scores: (B, S), a slate's score by its scorer; -inf where fewer than S slates exist.
        step_scores: (B, S, M), the score of each choice when it was made; 0 at padding.
    """

    slates: Tensor
    scores: Tensor
    step_scores: Tensor


@dataclass
class Rows:
    """The rows being decoded: a scorer's state, the running score of each prefix and the scores of its steps.

    With constraints also what they still allow.
    """

    state: ScorerState
    total: Tensor  # (R,)
    steps: Tensor  # (R, t)
    progress: Progress | None = None

    @classmethod
    def start(cls, state: ScorerState, rules: SlateRules | None = None) -> Rows:
        """One row per request with an empty prefix."""
        total = torch.zeros(state.request.shape, device=state.prefix.device)
        progress = None if rules is None else Progress.start(rules)
        return cls(state, total, total.new_zeros(total.shape[0], 0), progress)

    @property
    def finished(self) -> Tensor:
        """(R,), True where a slate is whole: no candidate is left, or none that is not excluded."""
        return self.state.exhausted if self.progress is None else self.progress.finished

    def preferences(self, scores: Tensor) -> Tensor:
        """What the choice goes by: the scores (R, N), with constraints boosted and -inf for what they do not allow."""
        return scores if self.progress is None else self.progress.adjust(scores, self.total > float("-inf"))

    def extend(self, scorer: Scorer, scores: Tensor, parent: Tensor, index: Tensor) -> Rows:
        """Continues row `parent[r]` with candidate `index[r]`, scored (R, N) by `scores`.

        A row that is finished gets padding and keeps its score.
        """
        rows = self.state.rows(parent)
        finished = self.finished[rows]
        step = scores[parent, index].masked_fill(finished, 0.0)
        previous = self.total[rows]
        total = previous + step if scorer.kind == "log_prob" else torch.where(finished, previous, step)
        index = index.masked_fill(finished, PADDING)
        state = scorer.extend(self.state, parent, index)
        progress = None if self.progress is None else self.progress.extend(parent, index)
        return Rows(state, total, torch.cat([self.steps[rows], step.unsqueeze(-1)], dim=-1), progress)

    def decoded(self, num_requests: int) -> Decoded:
        """Folds the rows, which are grouped by request, into (B, S, ...)."""
        shape = (num_requests, -1)
        return Decoded(
            self.state.prefix.unflatten(0, shape), self.total.unflatten(0, shape), self.steps.unflatten(0, shape)
        )
