"""The evaluator that a generator carries with it: what it knows of items, and what it thinks of every next one.

Ours; not in the paper, whose generator learns all that it knows from mined slates. Distillation must then teach it two
things: what items are worth, which the evaluator has learned from feedback and can tell, and how to look ahead, which
is all that the search adds. With a guide only the second is left. The guide's weights stay as they are.

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch, widened
from rerankzoo.generation import Cache, ScorerState
from rerankzoo.generation.scorer import take_rows
from rerankzoo.layers.embedding import bounded
from rerankzoo.models.registry import model_class

#: What the entries of the guide's memory and cache are called among the generator's.
_MEMORY, _CACHE, _FIRST = "guide_memory_", "guide_cache_", "guide_first"
_ROUNDING = 0.02  # of the largest value: smaller deviations are not blown up, nor is rounding with them
#: Candidates that are paired with all others: the best ones as first item.
_FIRST_ITEMS = 10
#: How many of an item's best partners are told, of those below it and of those above it.
_PARTNERS = 3
_NEVER = -10.0  # deviations: of a pair that cannot be


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


@dataclass
class Guided:
    """What a guide has read of a batch.

    Attributes:
        state: Of the evaluator's scorer, with one empty prefix per request.
        values: (B, N), of every candidate as the first item.
        cache: What the evaluator's scorer has returned with them.
        partners: (B, N, 6), of each candidate the values of the best pairs that it begins, and of those that it ends.
    """

    state: ScorerState
    values: Tensor
    cache: Cache
    partners: Tensor


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
        self.projection = nn.Linear(evaluator.reading_size + 1 + 2 * _PARTNERS, hidden_size)
        self.sharpness = nn.Parameter(torch.empty(slate_size))

    def train(self, mode: bool = True) -> Guide:
        """See `nn.Module.train`; the evaluator never is in training mode."""
        super().train(mode)
        self.evaluator.eval()
        return self

    @torch.no_grad()
    def read(self, batch: Batch) -> Guided:
        """Lets the evaluator read a batch, and value candidates, and pairs with the best of them, as slates."""
        scorer = self.evaluator.scorer()
        state = scorer.start(batch)
        values, cache = scorer.step(state)
        # A number that does not depend on the batch, for graphs; where there are fewer candidates, N stands for none.
        padded = F.pad(values, (0, _FIRST_ITEMS), value=float("-inf"))
        first = padded.topk(_FIRST_ITEMS).indices.clamp_max(values.shape[1])
        parent = state.request.unsqueeze(-1).expand(-1, _FIRST_ITEMS).flatten()
        extended = scorer.extend(state, cache, parent, first.clamp_max(values.shape[1] - 1).flatten())
        pairs = scorer.step(extended)[0].view(*first.shape, -1)
        return Guided(state, values, cache, best_partners(pairs, first, state.available))

    def items(self, guided: Guided) -> Tensor:
        """Vectors (B, N, D) of the candidates: what the evaluator knows of them, alone and with their best partners."""
        memory, available = guided.state.memory, guided.state.available
        known = [memory[name].flatten(2) for name in sorted(memory)]
        alone = standardised(guided.values, available).unsqueeze(-1)
        reading = torch.cat([*known, alone, guided.partners], dim=-1)
        return self.projection(bounded(reading, self.sharpness.dtype))

    def preferences(self, values: Tensor, available: Tensor, position: int) -> Tensor:
        """What values (R, N) of prefixes extended to a position add to the logits, the sharper the more is certain."""
        return standardised(values, available) * self.sharpness[position].exp()

    def along(self, guided: Guided, slates: Tensor) -> Tensor:
        """Preferences (B, S, M, N) at each position of slates (B, S, M), given the items further up."""
        scorer, state, values, cache = self.evaluator.scorer(), guided.state, guided.values, guided.cache
        first: Tensor | None = state.request.repeat_interleave(slates.shape[1])
        preferences = [self.preferences(take_rows(values, first), take_rows(state.available, first), 0)]
        for position, index in enumerate(slates[..., :-1].flatten(0, 1).unbind(-1), start=1):
            with torch.no_grad():
                state, first = scorer.extend(state, cache, first, index), None
                values, cache = scorer.step(state)
            preferences.append(self.preferences(values, state.available, position))
        return torch.stack(preferences, dim=1).unflatten(0, slates.shape[:2])

    # --- among the entries of the generator's own state -------------------------------------------------------------

    @staticmethod
    def pack(guided: Guided) -> dict[str, Tensor]:
        """What was read as entries of the generator's memory."""
        memory = {f"{_MEMORY}{name}": part for name, part in guided.state.memory.items()}
        cache = {f"{_CACHE}{name}": part for name, part in guided.cache.items()}
        return {**memory, **cache, _FIRST: guided.values}

    @staticmethod
    def first_cache(memory: dict[str, Tensor]) -> Cache:
        """Of `pack`'s entries those that begin the cache."""
        return {name: part for name, part in memory.items() if is_guides(name)}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """Preferences (R, N) of all candidates as the next item, and the evaluator's entries of the cache."""
        position = state.prefix.shape[1]
        if position == 0:  # valued when it was read
            values = state.of_requests(state.memory[_FIRST])
            return self.preferences(values, state.available, position), Guide.first_cache(state.cache)
        memory, cache = _unpack(state.memory, _MEMORY), _unpack(state.cache, _CACHE)
        own = ScorerState(state.request, state.available, state.prefix, memory, cache, state.single)
        values, fresh = self.evaluator.scorer().step(own)
        preferences = self.preferences(values, state.available, position)
        return preferences, {f"{_CACHE}{name}": part for name, part in fresh.items()}

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


def best_partners(pairs: Tensor, first: Tensor, available: Tensor) -> Tensor:
    """What the first choice has to look ahead to.

    Args:
        pairs: (B, F, N), value of the slate of two of a first item and each candidate; -inf where it cannot be.
        first: (B, F), the first items, none of them twice; N for none.
        available: (B, N).

    Returns:
        (B, N, 6), of each candidate the three best pairs that it begins and the three best that it ends, in standard
        deviations of all pairs of the request.
    """
    begun = torch.cat([available, torch.zeros_like(available[:, :1])], dim=1).gather(1, first)
    real = begun.unsqueeze(-1) & available.unsqueeze(1) & (pairs > float("-inf"))
    deviations = standardised(pairs.flatten(1), real.flatten(1)).view_as(pairs).masked_fill(~real, _NEVER)
    below = F.pad(deviations, (0, _PARTNERS), value=_NEVER).topk(_PARTNERS, dim=2).values  # (B, F, 3)
    ends = deviations.topk(_PARTNERS, dim=1).values.transpose(1, 2)
    begins = torch.full_like(F.pad(ends, (0, 0, 0, 1)), _NEVER).scatter(1, first.unsqueeze(-1).expand_as(below), below)
    return torch.cat([begins[:, :-1], ends], dim=-1)


def _unpack(entries: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): part for name, part in entries.items() if name.startswith(prefix)}
