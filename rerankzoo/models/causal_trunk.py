"""A causal Transformer over slates: read whole ones, or value all extensions of prefixes from cached keys and values.

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, gather_candidates
from rerankzoo.generation import Cache, ScorerState
from rerankzoo.generation.scorer import take_rows
from rerankzoo.layers import TransformerBlock, causal_mask, split_heads


def _blocks(layers: nn.ModuleList) -> list[TransformerBlock]:
    return cast(list[TransformerBlock], list(layers))


def shown_alone(batch: Batch, slates: Tensor) -> Batch | None:
    """The batch with no candidates but the items of slates (B, S, M), one after the other.

    `None` where there are no fewer of them than candidates, as mostly of a search, and of soft slates.
    """
    items = slates.flatten(1)
    if slates.is_floating_point() or items.shape[1] >= batch["candidate_numeric"].shape[1]:
        return None
    names = ("candidate_categorical", "candidate_numeric")
    return {**batch, **{name: gather_candidates(batch[name], items) for name in names}}


def read_slates(layers: nn.ModuleList, positions: nn.Embedding, items: Tensor, implementation: str) -> Tensor:
    """States (B, S, M, D) of the positions of slates with these items (B, S, M, D), each from the items down to it."""
    length = items.shape[-2]
    hidden = (items + positions(torch.arange(length, device=items.device))).flatten(0, 1)  # (B * S, M, D)
    mask = causal_mask(length, items.device)  # padding stands at the end: no real position looks at it
    for layer in _blocks(layers):
        hidden = layer(hidden, mask=mask, implementation=implementation)
    return hidden.unflatten(0, items.shape[:2])


def step_candidates(
    layers: nn.ModuleList, positions: nn.Embedding, items: Tensor, state: ScorerState
) -> tuple[Tensor, Cache]:
    """States (R, N, D) of all candidates (B, N, D) as the next item of each row's prefix.

    The candidates are the queries; each attends to its row's prefix, which is not copied, and to itself. What the first
    layer needs of a candidate at a position does not depend on the prefix: it is there once per request, whatever the
    beams.

    Returns:
        The states, and for `keep_chosen` the keys and values of all candidates in each layer: (B, N, 2 * D) of the
        first, (R, N, 2 * D) of the others.
    """
    size, cache = items.shape[-1], {**state.cache, "request": state.request}
    hidden = items + positions.weight[state.prefix.shape[1]]
    for number, layer in enumerate(_blocks(layers)):
        projected = layer.project(hidden)
        cache[f"key_value_{number}"] = projected[..., size:]
        hidden = layer.step(hidden, projected, state.cache.get(f"past_{number}"))
    return hidden, cache


def keep_chosen(layers: nn.ModuleList, cache: Cache, parent: Tensor | None, rows: Tensor, chosen: Tensor) -> Cache:
    """The prefixes' keys and values, and of the candidates only the chosen one's, computed when it was scored.

    Args:
        layers: L.
        cache: What `step_candidates` has returned.
        parent: As of `Scorer.extend`.
        rows: (R',), `parent`, or all rows.
        chosen: (R',), candidates.
    """
    kept = {}
    for number, layer in enumerate(_blocks(layers)):
        name = f"past_{number}"
        of_row = rows if number else cache["request"][rows]
        fresh = cache[f"key_value_{number}"][of_row, chosen].unsqueeze(1)
        fresh = split_heads(fresh, 2 * layer.attention.num_attention_heads)
        kept[name] = torch.cat([take_rows(cache[name], parent), fresh], dim=2) if name in cache else fresh
    return kept
