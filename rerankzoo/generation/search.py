"""Greedy decoding, and what all decoding routines share: the running score of a prefix and the result."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.generation.constraints.progress import Progress
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Cache, Scorer, ScorerState


@dataclass
class Decoded:
    """Slates decoded for each request, best first where they are ranked.

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

    scorer: Scorer
    state: ScorerState
    total: Tensor  # (R,)
    steps: Tensor  # (R, t)
    progress: Progress | None = None
    may_finish: bool = True  # whether any row can be whole before its last position

    @classmethod
    def start(cls, scorer: Scorer, batch: Batch, slate_size: int, rules: SlateRules | None = None) -> Rows:
        """One row per request with an empty prefix, for slates of `slate_size` positions."""
        state = scorer.start(batch)
        total = torch.zeros(state.request.shape, device=state.prefix.device)
        progress = None if rules is None else Progress.start(rules)
        may_finish = rules is not None or may_run_out(state.available, slate_size)
        return cls(scorer, state, total, total.new_zeros(total.shape[0], 0), progress, may_finish)

    @property
    def finished(self) -> Tensor | None:
        """(R,), True where a slate is whole: no candidate is left, or none that is not excluded.

        `None` where no row can be.
        """
        if not self.may_finish:
            return None
        return ~self.state.available.any(-1) if self.progress is None else self.progress.finished

    def preferences(self, scores: Tensor) -> Tensor:
        """What the choice goes by: the scores (R, N), with constraints boosted and -inf for what they do not allow."""
        return scores if self.progress is None else self.progress.adjust(scores, self.total > float("-inf"))

    def extend(self, scores: Tensor, cache: Cache, parent: Tensor | None, index: Tensor) -> Rows:
        """Continues row `parent[r]` (each by itself for `None`) with candidate `index[r]`.

        A row that is finished gets padding and keeps its score.

        Args:
            scores: (R, N), what the scorer's step has returned.
            cache: The same.
            parent: (R',) or `None`.
            index: (R',).
        """
        previous, steps, finished = self.total, self.steps, self.finished
        if parent is not None:
            scores, previous, steps = (tensor.index_select(0, parent) for tensor in (scores, previous, steps))
            finished = None if finished is None else finished[parent]
        step = scores.gather(1, index.unsqueeze(-1)).squeeze(-1)
        total = previous + step if self.scorer.kind == "log_prob" else step
        if finished is not None:
            step, index = step.masked_fill(finished, 0.0), index.masked_fill(finished, PADDING)
            total = torch.where(finished, previous, total)
        state = self.scorer.extend(self.state, cache, parent, index)
        progress = None if self.progress is None else self.progress.extend(parent, index)
        steps = torch.cat([steps, step.unsqueeze(-1)], dim=-1)
        return Rows(self.scorer, state, total, steps, progress, self.may_finish)

    def decoded(self, num_requests: int) -> Decoded:
        """Folds the rows, which are grouped by request, into (B, S, ...)."""
        shape = (num_requests, -1)
        return Decoded(
            self.state.prefix.unflatten(0, shape), self.total.unflatten(0, shape), self.steps.unflatten(0, shape)
        )


def may_run_out(available: Tensor, slate_size: int) -> bool:
    """Whether some request has fewer candidates (B, N) than its slate has positions.

    Where none has, as mostly, no step need care for rows that are whole already. A graph is not asked: it is made for
    any requests.
    """
    if torch.compiler.is_compiling() or slate_size > available.shape[1]:
        return True
    return bool((available.sum(-1) < slate_size).any())


def greedy_search(scorer: Scorer, batch: Batch, slate_size: int, rules: SlateRules | None = None) -> Decoded:
    """Takes the best-scored candidate at every position.

    Args:
        scorer: Scores the continuations of a prefix.
        batch: The requests; `candidate_mask` (B, N) and the features of the scorer's model.
        slate_size: M.
        rules: What constraints ask, as `rerankzoo.generation.bind` made it for this batch and slate size.

    Returns:
        One slate per request.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    for _ in range(slate_size):
        scores, cache = scorer.step(rows.state)
        rows = rows.extend(scores, cache, None, rows.preferences(scores).argmax(-1))
    return rows.decoded(rows.total.shape[0])
