"""Contrastive decoding: probability against similarity to what the slate already holds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rerankzoo.batch import Batch, widened
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Scorer
from rerankzoo.generation.search import Decoded, Rows, keep_top_k

INFINITE = float("inf")


def contrastive_search(
    scorer: Scorer,
    batch: Batch,
    slate_size: int,
    penalty_alpha: float,
    top_k: int | None,
    rules: SlateRules | None = None,
) -> Decoded:
    """Takes, at every position, the candidate with the best balance of probability and novelty.

    `y_t = argmax over v in the top-k candidates left of (1 - alpha) p(v | t) - alpha max_{j < t} cos(h_v, h_{y_j})`.
    p is the softmax over the candidates left (of the scores, where the scorer's kind is `"value"`); the first position
    has no penalty. With constraints, it is the softmax over what they allow, after boosts.

    Args (others as of `greedy_search`):
        penalty_alpha: alpha in [0, 1]; 0 is greedy decoding.
        top_k: Consider only this many most probable candidates; `None` for all.

    Returns:
        One slate per request; scores are the scorer's own. ValueError if it has no candidate representations.

    References:
        Su et al. (SimCTG, 2022), equation 5; NAR4Rec (arXiv 2402.06871), contrastive decoding.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    states = widened(scorer.candidate_states(rows.state))
    if states is None:
        raise ValueError("contrastive decoding (penalty_alpha) needs a model with candidate representations")
    # A product, where `F.normalize` divides: the same up to rounding, in a fraction of the time.
    states = states * torch.linalg.vector_norm(states, dim=-1, keepdim=True).clamp_min(1e-12).reciprocal()
    logits = scorer.matrix(rows.state, slate_size) if rules is None and top_k is None else None
    if logits is not None:
        return _select_from_matrix(logits, states, rows, penalty_alpha)
    similarity: Tensor | None = None  # (R, N): the closest item of the prefix
    for _ in range(slate_size):
        scores, cache = scorer.step(rows.state)
        preferences = rows.preferences(scores)
        finished = rows.finished  # of these anything will do, but no NaN
        balance = preferences if finished is None else preferences.masked_fill(finished.unsqueeze(-1), 0.0)
        balance = balance.softmax(-1)
        if similarity is not None:  # unweighted before: with alpha 1 the first candidate of the row would win
            balance.mul_(1.0 - penalty_alpha).sub_(similarity, alpha=penalty_alpha)
        index = balance.masked_fill_(keep_top_k(preferences, top_k) == -INFINITE, -INFINITE).argmax(-1)
        rows = rows.extend(scores, cache, None, index)
        closeness = _closeness(states, index.unsqueeze(-1))
        similarity = closeness if similarity is None else torch.maximum(similarity, closeness)
    return rows.decoded(states.shape[0])


def _select_from_matrix(logits: Tensor, states: Tensor, rows: Rows, penalty_alpha: float) -> Decoded:
    """What the general loop does, in half the calls, where a prefix only takes candidates away.

    Of logits (B, M', N), M' at least M, representations (B, N, D) of length 1 and the rows at their start.
    """
    available, slate_size = rows.state.available, rows.slate_size
    floor = torch.finfo(logits.dtype).min  # not -inf: a row of -inf only has no softmax
    logits = widened(logits)[:, :slate_size].masked_fill(~available.unsqueeze(1), floor)
    # How close each candidate is to the slate; infinitely, where it cannot be chosen.
    similarity = torch.where(available, -INFINITE, INFINITE).to(states.dtype)
    chosen, steps = [], []
    for position in range(slate_size):
        log_probs = logits[:, position].log_softmax(-1)
        plain = position == 0 or penalty_alpha == 0
        weighted = log_probs if plain else log_probs.exp().mul_(1.0 - penalty_alpha)
        balance = weighted if plain else weighted.sub_(similarity, alpha=penalty_alpha)
        index = balance.argmax(-1, keepdim=True)
        chosen.append(index)
        steps.append(log_probs.gather(1, index))
        if position + 1 < slate_size:
            logits.scatter_(2, index.unsqueeze(1).expand(-1, slate_size, -1), floor)
            similarity = torch.maximum(similarity, _closeness(states, index)).scatter_(1, index, INFINITE)
    state = replace(rows.state, prefix=torch.cat(chosen, dim=-1))
    return replace(rows, state=state, steps=torch.cat(steps, dim=-1)).decoded(states.shape[0])


def _closeness(states: Tensor, index: Tensor) -> Tensor:
    """Cosine similarity (B, N) of each candidate to the chosen one (B, 1) of its request."""
    chosen = states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))  # (B, 1, D)
    return torch.bmm(chosen, states.transpose(1, 2)).squeeze(1)
