"""Sampling slates from a model's policy."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Scorer, take_rows
from rerankzoo.generation.search import Decoded, Rows


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

    Args:
        scorer: Scores the continuations of a prefix.
        batch: The requests.
        slate_size: M.
        num_return_sequences: S, slates drawn independently for each request.
        temperature: Above 0; below 1 sharpens, above 1 flattens.
        top_k: Draw only among this many best candidates; `None` for all.
        rules: What constraints ask, as `rerankzoo.generation.bind` made it for this batch and slate size.

    Returns:
        S slates per request, in the order drawn; scores are the scorer's own, not the tempered ones.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    num_requests = rows.total.shape[0]
    parent: Tensor | None = rows.state.request.repeat_interleave(num_return_sequences)
    for _ in range(slate_size):
        scores, cache = scorer.step(rows.state)
        preferences = rows.preferences(scores)
        # In single precision: half of it draws from a few hundred values of noise only.
        kept = preferences if top_k is None else keep_top_k(preferences, top_k)
        tempered = take_rows(kept, parent).float() / temperature
        uniform = torch.rand_like(tempered).clamp_min(torch.finfo(tempered.dtype).tiny)
        rows, parent = rows.extend(scores, cache, parent, (tempered - (-uniform.log()).log()).argmax(-1)), None
    return rows.decoded(num_requests)


def keep_top_k(scores: Tensor, top_k: int) -> Tensor:
    """Sets all but the `top_k` best scores of each row (R, N) to -inf."""
    index = scores.topk(min(top_k, scores.shape[-1]), dim=-1).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True)
    return scores.masked_fill(~kept, float("-inf"))
