"""The scorer: "given the prefixes so far, a score for every candidate", all that decoding needs to know of a model.

B requests, N candidates, M positions, D hidden; R rows, each a prefix that is being continued (one per request in
greedy decoding, W per request with W beams).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import Batch


@dataclass
class ScorerState:
    """What a scorer knows between two steps.

    Attributes:
        request: (R,), the request that each row decodes. Rows of one request are neighbours, equally many for each
            request and in the requests' order, so that they can be told apart by a reshape.
        available: (R, N), True where a candidate is real and not chosen yet.
        prefix: (R, t), the candidates chosen so far; -100 once a request has run out of candidates.
        memory: Tensors per request, computed once and never copied; indexed by `request`.
        cache: Tensors per row (keys and values of the prefix, say), reordered by `Scorer.extend`.
        step: What `Scorer.score` worked out for this step and `Scorer.extend` goes on from, where a scorer keeps
            anything; the next state starts without it.
        single: Whether there is exactly one row per request, in the requests' order.
    """

    request: Tensor
    available: Tensor
    prefix: Tensor
    memory: dict[str, Tensor]
    cache: dict[str, Tensor] = field(default_factory=dict)
    step: dict[str, Tensor] = field(default_factory=dict)
    single: bool = False

    def rows(self, tensor: Tensor, parent: Tensor) -> Tensor:
        """The rows `parent` of a tensor of R rows: nothing is copied where those are all rows."""
        return tensor if self.continues(parent) else tensor.index_select(0, parent)

    def of_requests(self, tensor: Tensor) -> Tensor:
        """For each row its request's entry of a tensor of B entries."""
        return self.rows(tensor, self.request)

    def continues(self, parent: Tensor) -> bool:
        """Whether `parent` is known to be 0..R-1, which it is where rows continue their own request's only row."""
        return self.single and parent is self.request

    @cached_property
    def exhausted(self) -> Tensor:
        """(R,), True where no candidate is left."""
        return ~self.available.any(-1)


class Scorer(ABC):
    """Scores every candidate as the continuation of each row's prefix.

    Attributes:
        kind: `"log_prob"`: scores are log-probabilities over the candidates left, and a slate's score is their sum.
            `"value"`: a score is the value of the extended prefix, and a slate's score is the last one.
    """

    kind: Literal["log_prob", "value"]

    @abstractmethod
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Encodes the requests once.

        Args:
            batch: The batch; `candidate_mask` (B, N) and the features of the model's schema.

        Returns:
            Tensors with B rows, kept as `ScorerState.memory`.
        """

    @abstractmethod
    def score(self, state: ScorerState) -> Tensor:
        """Scores (R, N) of all candidates as the next item; -inf where `state.available` is False."""

    def start(self, batch: Batch) -> ScorerState:
        """Encodes the requests and opens one empty prefix per request."""
        mask = batch["candidate_mask"]
        request = torch.arange(mask.shape[0], device=mask.device)
        prefix = torch.empty(mask.shape[0], 0, dtype=torch.int64, device=mask.device)
        return ScorerState(request, mask, prefix, self.encode(batch), single=True)

    def extend(self, state: ScorerState, parent: Tensor, index: Tensor) -> ScorerState:
        """Row r of the new state continues row `parent[r]` with candidate `index[r]`.

        Args:
            state: The state with R rows; left as it was.
            parent: (R',), rows of `state`; a row may be continued several times or not at all.
            index: (R',), candidates; -100 leaves the candidates left as they are.

        Returns:
            The state with R' rows.
        """
        chosen = index.unsqueeze(-1)
        arange = torch.arange(state.available.shape[1], device=index.device)
        available = state.rows(state.available, parent) & (chosen != arange)
        prefix = torch.cat([state.rows(state.prefix, parent), chosen], dim=-1)
        cache = {name: state.rows(tensor, parent) for name, tensor in self.grown(state).items()}
        request = state.rows(state.request, parent)
        return ScorerState(request, available, prefix, state.memory, cache, single=state.continues(parent))

    def grown(self, state: ScorerState) -> dict[str, Tensor]:
        """What `extend` takes the new rows' cache from; default: the cache as it is."""
        return state.cache

    def candidate_states(self, state: ScorerState) -> Tensor | None:
        """Representations (B, N, D) of the candidates for similarity penalties, or `None` if there are none."""
        return state.memory.get("candidate_states")

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor | None:
        """Logits (B, M, N) of all positions, where a prefix only takes candidates away; `None` where it does more.

        `score` is then `remaining_log_probs` of a position's row.
        """
        return None


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
        logits, states = self._encode(batch)
        return {"logits": logits, "candidate_states": states}

    def score(self, state: ScorerState) -> Tensor:
        """See `Scorer.score`.

        Raises:
            ValueError: If there is no row for the position.
        """
        position = state.prefix.shape[1]
        logits = state.of_requests(self.matrix(state, position + 1)[:, position])
        return remaining_log_probs(logits, state.available)

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor:
        """See `Scorer.matrix`.

        Raises:
            ValueError: If there are fewer rows than positions.
        """
        logits = state.memory["logits"]
        if slate_size > logits.shape[1]:
            message = f"slate_size must be at most {logits.shape[1]}, the number of positions that the model scores"
            raise ValueError(message)
        return logits


class StaticScorer(Scorer):
    """The scorer of models with one score per candidate, whatever the position and the prefix: pointwise, listwise.

    The scores are renormalised over the candidates left at every position, however many there are: a Plackett-Luce
    policy. Greedy decoding sorts, and the sorted slate is also the most probable one: beam search returns it too, and
    as further sequences only less probable ones.

    Args:
        encode: Maps a batch to scores (B, N) and candidate representations (B, N, D).
    """

    kind = "log_prob"

    def __init__(self, encode: Callable[[Batch], tuple[Tensor, Tensor]]) -> None:
        self._encode = encode

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        scores, states = self._encode(batch)
        return {"scores": scores, "candidate_states": states}

    def score(self, state: ScorerState) -> Tensor:
        """See `Scorer.score`."""
        return remaining_log_probs(state.of_requests(state.memory["scores"]), state.available)

    def matrix(self, state: ScorerState, slate_size: int) -> Tensor:
        """See `Scorer.matrix`."""
        return state.memory["scores"].unsqueeze(1).expand(-1, slate_size, -1)


class SlateEvaluator(Protocol):
    """Anything that values whole slates; chooses the best of several in `generate(evaluator=...)`."""

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility (B, S) of slates (B, S, M); -100 pads."""
        ...


def remaining_log_probs(logits: Tensor, available: Tensor) -> Tensor:
    """Log-softmax over the candidates left.

    Args:
        logits: (R, N).
        available: (R, N), True where a candidate may still be chosen.

    Returns:
        (R, N); -inf where a candidate is not left, also throughout a row that has none left.
    """
    floor = torch.finfo(logits.dtype).min  # not -inf: a row of -inf only has no softmax
    taken = ~available
    log_probs = F.log_softmax(logits.masked_fill(taken, floor), dim=-1)
    return log_probs.masked_fill(taken, float("-inf"))
