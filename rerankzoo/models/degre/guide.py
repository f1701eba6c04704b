"""The evaluator that a generator carries with it: what it knows of items, and what it thinks of every next one.

Ours; not in the paper, whose generator learns all that it knows from mined slates. Distillation must then teach it two
things: what items are worth, which the evaluator has learned from feedback and can tell, and how to look ahead, which
is all that the search adds. With a guide only the second is left. The guide's weights stay as they are.

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, widened
from rerankzoo.generation import Cache, ScorerState
from rerankzoo.generation.scorer import take_rows
from rerankzoo.layers.embedding import bounded
from rerankzoo.models.registry import model_class

#: What the entries of the guide's memory and cache are called among the generator's.
_MEMORY, _CACHE = "guide_memory_", "guide_cache_"
_ROUNDING = 1e-4  # values closer than this share of the largest are the same


def make_evaluator(config: dict[str, Any], feature_schema: dict[str, Any] | None) -> Any:
    """An evaluator with initial weights, by its saved config.

    Args:
        config: The config, with its class in `architectures`.
        feature_schema: The generator's, which is the evaluator's.

    Raises:
        ValueError: If the config names no evaluator that a generator can read.
    """
    named = (config.get("architectures") or [None])[0]
    kind = model_class(str(named))
    if not hasattr(kind, "reading_size"):
        raise ValueError(f"guide: {named} does not tell what it reads of items, expected an evaluator that searches")
    return kind(kind.config_class.from_dict({**config, "feature_schema": feature_schema}))


class Guide(nn.Module):
    """A frozen evaluator, read by a generator.

    Args:
        evaluator: Its `scorer` values prefixes; `reading_size` is the width of what its memory holds of an item.
        slate_size: M.
        hidden_size: D.
    """

    def __init__(self, evaluator: Any, slate_size: int, hidden_size: int) -> None:
        super().__init__()
        self.evaluator = evaluator.requires_grad_(False)
        self.projection = nn.Linear(evaluator.reading_size + 1, hidden_size)
        self.sharpness = nn.Parameter(torch.empty(slate_size))

    def train(self, mode: bool = True) -> Guide:
        """See `nn.Module.train`; the evaluator never is in training mode."""
        super().train(mode)
        self.evaluator.eval()
        return self

    @torch.no_grad()
    def start(self, batch: Batch) -> ScorerState:
        """Lets the evaluator read a batch, with one empty prefix per request."""
        state: ScorerState = self.evaluator.scorer().start(batch)
        return state

    def items(self, state: ScorerState) -> Tensor:
        """Vectors (B, N, D) of the candidates: what the evaluator knows of them, and what they are worth alone."""
        known = [state.memory[name].flatten(2) for name in sorted(state.memory)]
        with torch.no_grad():
            alone = standardised(self.evaluator.scorer().step(state)[0], state.available)
        reading = torch.cat([*known, alone.unsqueeze(-1)], dim=-1)
        items: Tensor = self.projection(bounded(reading, self.sharpness.dtype))
        return items

    def preferences(self, values: Tensor, available: Tensor, position: int) -> Tensor:
        """What values (R, N) of prefixes extended to a position add to the logits, the sharper the more is certain."""
        return standardised(values, available) * self.sharpness[position].exp()

    def along(self, state: ScorerState, slates: Tensor) -> Tensor:
        """Preferences (B, S, M, N) at each position of slates (B, S, M), given the items further up."""
        scorer, preferences = self.evaluator.scorer(), []
        parent: Tensor | None = state.request.repeat_interleave(slates.shape[1])
        for position, index in enumerate(slates.flatten(0, 1).unbind(-1)):
            with torch.no_grad():
                values, cache = scorer.step(state)
            values, available = take_rows(values, parent), take_rows(state.available, parent)
            preferences.append(self.preferences(values, available, position))
            if position + 1 < slates.shape[-1]:
                with torch.no_grad():
                    state, parent = scorer.extend(state, cache, parent, index), None
        return torch.stack(preferences, dim=1).unflatten(0, slates.shape[:2])

    # --- among the entries of the generator's own state -------------------------------------------------------------

    @staticmethod
    def pack(state: ScorerState) -> dict[str, Tensor]:
        """Memory and cache of `start` as entries of the generator's memory."""
        memory = {f"{_MEMORY}{name}": part for name, part in state.memory.items()}
        return memory | {f"{_CACHE}{name}": part for name, part in state.cache.items()}

    @staticmethod
    def first_cache(memory: dict[str, Tensor]) -> Cache:
        """Of `pack`'s entries those that begin the cache."""
        return {name: part for name, part in memory.items() if name.startswith(_CACHE)}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """Preferences (R, N) of all candidates as the next item, and the evaluator's entries of the cache."""
        own = ScorerState(
            state.request,
            state.available,
            state.prefix,
            _unpack(state.memory, _MEMORY),
            _unpack(state.cache, _CACHE),
            state.single,
        )
        values, cache = self.evaluator.scorer().step(own)
        preferences = self.preferences(values, state.available, state.prefix.shape[1])
        return preferences, {f"{_CACHE}{name}": part for name, part in cache.items()}

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`: all entries of the cache that are the evaluator's."""
        kept = self.evaluator.scorer().select(_unpack(cache, _CACHE), parent, index)
        return {f"{_CACHE}{name}": part for name, part in kept.items()}


def is_guides(name: str) -> bool:
    """Whether an entry of the generator's cache is the evaluator's."""
    return name.startswith(_CACHE)


def standardised(values: Tensor, available: Tensor) -> Tensor:
    """Values (R, N) in deviations from the mean over the candidates available (R, N), elsewhere 0."""
    values = widened(values).masked_fill(~available, 0.0)
    values = values / values.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(values.dtype).tiny)
    count = available.sum(-1, keepdim=True).clamp_min(1)
    centred = (values - values.sum(-1, keepdim=True) / count).masked_fill(~available, 0.0)
    deviation = (centred.square().sum(-1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp_min(_ROUNDING)


def _unpack(entries: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): part for name, part in entries.items() if name.startswith(prefix)}
