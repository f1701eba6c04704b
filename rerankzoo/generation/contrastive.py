"""Contrastive decoding: probability against similarity to what the slate already holds."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rerankzoo.generation.feasibility import SlateRules
from rerankzoo.generation.sampling import keep_top_k
from rerankzoo.generation.scorer import Batch, Scorer
from rerankzoo.generation.search import Decoded, Rows


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

    Args:
        scorer: Scores the continuations of a prefix and has candidate representations.
        batch: The requests.
        slate_size: M.
        penalty_alpha: alpha in [0, 1]; 0 is greedy decoding.
        top_k: Consider only this many most probable candidates; `None` for all.
        rules: What constraints ask, as `rerankzoo.generation.bind` made it for this batch and slate size.

    Returns:
        One slate per request; scores are the scorer's own.

    Raises:
        ValueError: If the scorer has no candidate representations.

    References:
        Su et al. (SimCTG, 2022), equation 5; NAR4Rec (arXiv 2402.06871), contrastive decoding.
    """
    rows = Rows.start(scorer.start(batch), rules)
    states = scorer.candidate_states(rows.state)
    if states is None:
        raise ValueError("contrastive decoding (penalty_alpha) needs a model with candidate representations")
    states = F.normalize(states, dim=-1)
    request = rows.state.request
    similarity: torch.Tensor | None = None  # (B, N): the closest item of the prefix
    for _ in range(slate_size):
        scores = scorer.score(rows.state)
        preferences = rows.preferences(scores)
        kept = preferences if top_k is None else keep_top_k(preferences, top_k)
        balance = _probabilities(preferences, rows.finished)
        if similarity is not None:  # unweighted before: with alpha 1 the first candidate of the row would win
            balance = (1.0 - penalty_alpha) * balance - penalty_alpha * similarity
        index = balance.masked_fill(kept == float("-inf"), float("-inf")).argmax(-1)
        rows = rows.extend(scorer, scores, request, index)
        chosen = states[request, index]  # (B, D)
        to_chosen = (states @ chosen.unsqueeze(-1)).squeeze(-1)
        similarity = to_chosen if similarity is None else torch.maximum(similarity, to_chosen)
    return rows.decoded(request.shape[0])


def _probabilities(scores: torch.Tensor, finished: torch.Tensor) -> torch.Tensor:
    """Softmax over the candidates left; zeros for a row that is finished."""
    return scores.masked_fill(finished.unsqueeze(-1), 0.0).softmax(-1)
