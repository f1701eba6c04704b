"""Greedy decoding and sampling, and what all decoding routines share: the running score of a prefix and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.constraints.search import Plan
from rerankzoo.generation.scorer import Cache, Scorer, ScorerState, take_rows


@dataclass
class Decoded:
    """Slates decoded for each request, best first where they are ranked.

    Where a request has fewer than M candidates left by exclusions, or fewer than S slates exist, the rest is padding.
    """

    slates: Tensor  # (B, S, M), -100 pads
    scores: Tensor  # (B, S), a slate's score by its scorer; -inf where it does not exist
    step_scores: Tensor  # (B, S, M), the score of each choice when it was made; 0 at padding


@dataclass
class Rows:
    """The rows being decoded."""

    scorer: Scorer
    state: ScorerState
    slate_size: int  # M
    steps: Tensor  # (R, t), the scores of its steps; anything where its slate is whole already
    rules: SlateRules | None = None
    plans: list[Plan | None] = field(default_factory=list)  # of rows whose constraints need a search
    length: Tensor | None = None  # (B,), positions of each request's slate; `None`: M of every request

    @classmethod
    def start(cls, scorer: Scorer, batch: Batch, slate_size: int, rules: SlateRules | None = None) -> Rows:
        """One row per request with an empty prefix, for slates of `slate_size` positions."""
        state = scorer.start(batch)
        steps = torch.zeros(state.prefix.shape, device=state.prefix.device)
        if rules is not None:
            return cls(scorer, state, slate_size, steps, rules, rules.plans, rules.length)
        return cls(scorer, state, slate_size, steps, length=filled_positions(state.available, slate_size, batch))

    @property
    def finished(self) -> Tensor | None:
        """(R,), True where a slate is whole: its last position is filled, no candidate is left, or all are excluded.

        `None` where no row can be.
        """
        if self.length is None:
            return None
        return self.state.of_requests(self.length) <= self.state.prefix.shape[1]

    def preferences(self, scores: Tensor) -> Tensor:
        """What the choice goes by: the scores (R, N), with constraints boosted and -inf for what they do not allow."""
        if self.rules is None:
            return scores
        return self.rules.adjust(scores, self.state.request, self.state.prefix, self.plans)

    def extend(self, scores: Tensor, cache: Cache, parent: Tensor | None, index: Tensor) -> Rows:
        """Continues row `parent[r]` (each by itself for `None`) with candidate `index[r]`.

        A row that is finished goes on with anything, which `decoded` leaves out; with padding where there are
        constraints, which look at the slate. Scores (R, N) and cache are what the step returned.
        """
        steps, plans = self.steps, self.plans
        if parent is not None:
            scores, steps = scores.index_select(0, parent), steps.index_select(0, parent)
            plans = [plans[row] for row in parent.tolist()] if plans else plans
        if plans:
            plans = [plan and plan.after(item) for plan, item in zip(plans, index.tolist(), strict=True)]
        steps = torch.cat([steps, scores.gather(1, index.unsqueeze(-1))], dim=-1)
        if self.rules is not None:
            index = index.masked_fill(take_rows(cast(Tensor, self.finished), parent), PADDING)
        last = self.state.prefix.shape[1] + 1 == self.slate_size
        state = self.scorer.extend(self.state, cache, parent, index, last)
        return Rows(self.scorer, state, self.slate_size, steps, self.rules, plans, self.length)

    def totals(self) -> Tensor:
        """The score (R,) of each prefix: the sum of its steps', or the last one's, as the scorer's kind says."""
        return self._total(self._cut(self.steps, 0.0))

    def decoded(self, num_requests: int, total: Tensor | None = None) -> Decoded:
        """Folds the rows, which are grouped by request, into (B, S, ...).

        Args:
            num_requests: B.
            total: (R,), their scores; default: `totals`.
        """
        slates, steps = self._cut(self.state.prefix, PADDING), self._cut(self.steps, 0.0)
        total, shape = self._total(steps) if total is None else total, (num_requests, -1)
        return Decoded(slates.unflatten(0, shape), total.unflatten(0, shape), steps.unflatten(0, shape))

    def _cut(self, rows: Tensor, fill: float) -> Tensor:
        """Rows (R, t), filled at the positions beyond their slates."""
        if self.length is None:
            return rows
        positions = torch.arange(rows.shape[1], device=rows.device)
        return rows.masked_fill(positions >= self.state.of_requests(self.length).unsqueeze(-1), fill)

    def _total(self, steps: Tensor) -> Tensor:
        if self.scorer.kind == "log_prob":
            return steps.sum(-1)
        if self.length is None:
            return steps[:, -1]
        last = self.state.of_requests(self.length).clamp(1, steps.shape[1]) - 1
        return steps.gather(1, last.unsqueeze(-1)).squeeze(-1)


def filled_positions(available: Tensor, slate_size: int, batch: Batch) -> Tensor | None:
    """The positions (B,) of each request's slate, as many as it has candidates (B, N) or the batch tells.

    `None` where all have M, as mostly, which spares steps; a graph is not asked: it is made for any requests.
    """
    length = available.sum(-1)
    if "slate_length" in batch:
        length = torch.minimum(length, batch["slate_length"])
    if torch.compiler.is_compiling() or slate_size > available.shape[1] or bool((length < slate_size).any()):
        return length
    return None


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
    return rows.decoded(batch["candidate_mask"].shape[0])


def sample_slates(
    scorer: Scorer,
    batch: Batch,
    slate_size: int,
    num_return_sequences: int,
    temperature: float,
    top_k: int | None,
    rules: SlateRules | None = None,
) -> Decoded:
    """Draws every position at random, with probability softmax(score / temperature).

    By the Gumbel-max rule (the maximum of score / temperature + Gumbel noise), so that a candidate with score -inf can
    never be drawn. Uses torch's global random state.

    Args (others as of `greedy_search`):
        num_return_sequences: S, slates drawn independently for each request.
        temperature: Above 0; below 1 sharpens, above 1 flattens.
        top_k: Draw only among this many best candidates; `None` for all.

    Returns:
        S slates per request, in the order drawn; scores are the scorer's own, not the tempered ones.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    parent: Tensor | None = rows.state.request.repeat_interleave(num_return_sequences)
    for _ in range(slate_size):
        scores, cache = scorer.step(rows.state)
        # In single precision: half of it draws from a few hundred values of noise only.
        tempered = take_rows(keep_top_k(rows.preferences(scores), top_k), parent).float() / temperature
        uniform = torch.rand_like(tempered).clamp_min(torch.finfo(tempered.dtype).tiny)
        rows, parent = rows.extend(scores, cache, parent, (tempered - (-uniform.log()).log()).argmax(-1)), None
    return rows.decoded(batch["candidate_mask"].shape[0])


def keep_top_k(scores: Tensor, top_k: int | None) -> Tensor:
    """Sets all but the `top_k` best scores of each row (R, N) to -inf; none for `None`."""
    if top_k is None:
        return scores
    index = scores.topk(min(top_k, scores.shape[-1]), dim=-1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True)
    return scores.masked_fill(~kept, float("-inf"))
