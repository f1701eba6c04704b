"""The scorer: "given the prefixes so far, a score for every candidate", all that decoding needs to know of a model.

B requests, N candidates, M positions, S slates, D hidden; R rows, each a prefix that is being continued (one per
request in greedy decoding, W per request with W beams).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import Batch, widened

Cache = dict[str, Any]


@dataclass
class ScorerState:
    """What a scorer knows between two steps.

    Attributes:
        request: (R,), the request that each row decodes. Rows of one request are neighbours, equally many for each
            request and in the requests' order, so that they can be told apart by a reshape.
        available: (R, N), True where a candidate is real and not chosen yet.
        prefix: (R, t), the candidates chosen so far; anything, or -100, once a slate is whole.
        memory: Tensors per request, computed once and never copied; indexed by `request`.
        cache: Tensors per row (keys and values of the prefix, say).
        single: Whether there is exactly one row per request, in the requests' order.
    """

    request: Tensor
    available: Tensor
    prefix: Tensor
    memory: dict[str, Tensor]
    cache: Cache = field(default_factory=dict)
    single: bool = False

    def of_requests(self, tensor: Tensor) -> Tensor:
        """For each row its request's entry of a tensor of B entries."""
        return tensor if self.single else tensor.index_select(0, self.request)


def take_rows(tensor: Tensor, parent: Tensor | None) -> Tensor:
    """The rows `parent` of a tensor; all of them, as they are, for `None`."""
    return tensor if parent is None else tensor.index_select(0, parent)


class Scorer(ABC):
    """Scores every candidate as the continuation of each row's prefix.

    Attributes:
        kind: `"log_prob"`: scores are log-probabilities over the candidates left, and a slate's score is their sum.
            `"value"`: a score is the value of the extended prefix, and a slate's score is the last one.
    """

    kind: Literal["log_prob", "value"]

    @abstractmethod
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Encodes the requests once: tensors with B rows, kept as `ScorerState.memory`."""

    @abstractmethod
    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """Scores (R, N) of all candidates as the next item, and what `extend` makes the new rows' cache of.

        The state stays as it is. A score is -inf where `state.available` is False, and only there.
        """

    def start(self, batch: Batch) -> ScorerState:
        """Encodes the requests and opens one empty prefix per request."""
        mask = batch["candidate_mask"]
        request = torch.arange(mask.shape[0], device=mask.device)
        prefix = torch.empty(mask.shape[0], 0, dtype=torch.int64, device=mask.device)
        return ScorerState(request, mask, prefix, self.encode(batch), single=True)

    def extend(
        self, state: ScorerState, cache: Cache, parent: Tensor | None, index: Tensor, last: bool = False
    ) -> ScorerState:
        """Row r of the new state continues row `parent[r]` with candidate `index[r]`.

        Args:
            state: The state with R rows; left as it was.
            cache: What `step` has returned for it.
            parent: (R',), rows of `state`, which may be continued several times or not at all; `None`: each by itself.
            index: (R',), candidates; -100 leaves the candidates left as they are.
            last: Whether no step follows: the new state then has no cache.
        """
        request, available, prefix = state.request, state.available, state.prefix
        if parent is not None:
            request, available, prefix = (rows.index_select(0, parent) for rows in (request, available, prefix))
        chosen = index.unsqueeze(-1)
        available = available & (chosen != torch.arange(available.shape[1], device=index.device))
        prefix, single = torch.cat([prefix, chosen], dim=-1), state.single and parent is None
        kept = {} if last else self.select(cache, parent, index)
        return ScorerState(request, available, prefix, state.memory, kept, single)

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """The new rows' cache from the one that `step` has returned; arguments as of `extend`."""
        return cache if parent is None else {name: tensor.index_select(0, parent) for name, tensor in cache.items()}

    def candidate_states(self, state: ScorerState) -> Tensor | None:
        """Representations (B, N, D) of the candidates for similarity penalties, or `None` if there are none."""
        return state.memory.get("candidate_states")

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor | None:
        """Logits (B, M, N) of all positions, where a prefix only takes candidates away; `None` where it does more.

        The scores of `step` are then `remaining_log_probs` of a position's row.
        """
        return None


class ModelScorer(Scorer):
    """A scorer that asks its model at every step; of log-probabilities, unless a subclass says otherwise."""

    kind: Literal["log_prob", "value"] = "log_prob"

    def __init__(self, model: Any) -> None:
        self.model = model


class MatrixScorer(Scorer):
    """The scorer of models that score all positions at once, whatever the prefix.

    Position t of a prefix takes row t of the matrix, renormalised over the candidates left.

    Args:
        encode: Maps a batch to logits (B, M, N) and candidate representations (B, N, D).
    """

    kind = "log_prob"

    def __init__(self, encode: Callable[[Batch], tuple[Tensor, Tensor]]) -> None:
        self._encode = encode

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        return dict(zip(("logits", "candidate_states"), self._encode(batch), strict=True))

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`."""
        position = state.prefix.shape[1]
        logits = state.of_requests(self.matrix(state, position + 1)[:, position])
        return remaining_log_probs(logits, state.available), {}

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor:
        """See `Scorer.matrix`."""
        logits = state.memory["logits"]
        check_positions(slate_size, logits.shape[1])
        return logits


class StaticScorer(MatrixScorer):
    """The scorer of models with one score per candidate, whatever the position and the prefix: pointwise, listwise.

    A Plackett-Luce policy of any number of positions. Greedy decoding sorts, and the sorted slate is the most probable
    one: beam search returns it too, and as further sequences less probable ones.

    Args:
        encode: Maps a batch to scores (B, N) and candidate representations (B, N, D).
    """

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor:
        """See `Scorer.matrix`."""
        return state.memory["logits"].unsqueeze(1).expand(-1, slate_size, -1)


class Evaluator(Protocol):
    """Anything that values whole slates; chooses the best of several in `generate(evaluator=...)`."""

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility (B, S) of slates (B, S, M); -100 pads."""


def check_positions(slate_size: int, positions: int) -> None:
    """Raises ValueError for slates with more positions than the model has."""
    if slate_size > positions:
        raise ValueError(f"slate_size must be at most {positions}, the number of positions of the model")


def remaining_log_probs(logits: Tensor, available: Tensor) -> Tensor:
    """Log-softmax (..., N) of logits (..., N) over the candidates available (..., N), in single precision at least.

    -inf where a candidate is not available, also throughout a row that has none left.
    """
    logits = widened(logits)
    floor = logits.new_full((), torch.finfo(logits.dtype).min)  # not -inf: a row of -inf only has no softmax
    log_probs = F.log_softmax(torch.where(available, logits, floor), dim=-1)
    return torch.where(available, log_probs, logits.new_full((), float("-inf")))


def chosen_above(slates: Tensor, num_candidates: int) -> Tensor:
    """(B, S, M, N), True where a candidate stands further up in the slate (B, S, M)."""
    chosen = slates.unsqueeze(-1) == torch.arange(num_candidates, device=slates.device)
    return (chosen.cumsum(2) - chosen.long()) > 0


def log_distributions(scorer: Scorer, batch: Batch, slates: Tensor) -> Tensor:
    """What each choice of given slates is drawn from; see `SlateGenerationMixin.log_distributions`."""
    state = scorer.start(batch)
    logits = scorer.matrix(state, slates.shape[-1])
    if logits is not None:
        available = state.available[:, None, None] & ~chosen_above(slates, state.available.shape[1])
        return remaining_log_probs(logits[:, None, : slates.shape[-1]].expand(available.shape), available)
    parent: Tensor | None = state.request.repeat_interleave(slates.shape[1])
    positions = []
    for index in slates.flatten(0, 1).unbind(-1):  # (B * S,)
        scores, cache = scorer.step(state)
        log_probs = scores if scorer.kind == "log_prob" else remaining_log_probs(scores, state.available)
        positions.append(take_rows(log_probs, parent))
        state, parent = scorer.extend(state, cache, parent, index), None
    return torch.stack(positions, dim=1).unflatten(0, slates.shape[:2])


def of_choices(log_probs: Tensor, choices: Tensor) -> Tensor:
    """The entries (...) of log-probabilities (..., N) that the choices (...) name; 0 at padding."""
    chosen = log_probs.gather(-1, choices.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(choices < 0, 0.0)
