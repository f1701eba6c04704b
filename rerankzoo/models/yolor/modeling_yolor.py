"""YOLOR: an evaluator of all slates of a request, cheap because contexts are sets that many slates share.

You Only Evaluate Once: A Tree-based Rerank Method at Meituan (CIKM 2025, arXiv 2508.14420). A slate is halved again and
again; what stands in the same part as position t, at every scale k, is summarised without its order:

    p_t = head(MLP(e_t + A x_{l_t} + sum over k of B_k c_k(part of l that holds t at scale k)))

Since c_k belongs to a set of items, all slates of n candidates need the contexts of C(n, m) + C(n, m/2) + ... sets,
and what is left of a slate is a sum of looked-up vectors (`YOLOREvaluator.exhaustive_values`, which
`rerankzoo.generation.exhaustive_search` uses).

With `context: page` the context is PIER's (KDD 2023, arXiv 2302.03487, Meituan): self-attention among the items of the
whole slate, and a page vector of what comes out, in which each position has a code of its own:

    p_t = head(MLP(e_t + A x_{l_t} + B mean over s of code_s * state(l_s among the set of l)))

What a state is of an item depends on the set, and the order enters with the codes alone: C(n, m) sets are read.

B requests, N candidates, M positions, S slates, P listed slates, T targets, D hidden.

Where this differs from the paper, or fills in what our sources (a note) do not state:

- An item is its feature vector and the averaged history; no target attention over the history.
- The set attention of a scale is a pre-norm Transformer block without positions and the mean of its states.
- Slates need not have a power of two positions: parts are halved by rounding up and down, until they have two at most.
- The loss on pairs is `-log sigmoid(V(better) - V(worse))` over a request's slates; the noted formula is no number.
- Contexts are not masked at random in training.
- Of PIER, whose public code we know by a description: one attention over item vectors, not one per field and then
  among the fields; no target attention over past pages; the order enters the page vector in its selector's way (fixed
  codes there, learned ones here). There is no selector: all slates are valued, and the loss has no term for one.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch, gather_candidates, inputs, shown, widened
from rerankzoo.features.utility import position_discount, slate_utility
from rerankzoo.layers import FeedbackHead, TransformerBlock, key_mask
from rerankzoo.models.base import EvaluatorOutput, SlateEvaluator
from rerankzoo.models.registry import register_model
from rerankzoo.models.yolor.configuration_yolor import YOLORConfig
from rerankzoo.slates import all_slates


def halvings(slate_size: int) -> list[list[tuple[int, int]]]:
    """The parts, as first position and the one behind the last, that a slate has at every scale.

    Example:
        >>> halvings(5)
        [[(0, 5)], [(0, 3), (3, 5)], [(0, 2), (2, 3), (3, 5)]]
    """
    scales = [[(0, slate_size)]]
    while max(end - start for start, end in scales[-1]) > 2:
        scales.append([half for start, end in scales[-1] for half in _halves(start, end)])
    return scales


def _halves(start: int, end: int) -> list[tuple[int, int]]:
    middle = (start + end + 1) // 2
    return [(start, middle), (middle, end)] if end - start > 2 else [(start, end)]


@lru_cache(maxsize=16)
def subsets(num_candidates: int, slate_size: int, start: int, end: int) -> tuple[Tensor, Tensor]:
    """All sets (C, K) of items that a part of a slate can hold, and which (P) each slate of `all_slates` holds."""
    sets = list(combinations(range(num_candidates), end - start))
    number = {one: index for index, one in enumerate(sets)}
    parts = np.sort(all_slates(num_candidates, slate_size)[:, start:end], axis=1)
    return torch.tensor(sets), torch.tensor([number[tuple(part)] for part in parts.tolist()])


@register_model
class YOLOREvaluator(SlateEvaluator):
    """YOLOR's evaluator, or PIER's; has `exhaustive_values` beside `score_slates`."""

    config: YOLORConfig
    config_class = YOLORConfig
    paper = (
        "YOLOR",
        "You Only Evaluate Once: A Tree-based Rerank Method at Meituan, CIKM 2025, <https://arxiv.org/abs/2508.14420>.",
    )

    def __init__(self, config: YOLORConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.scales = halvings(config.slate_size)[: 1 if config.context == "page" else None]
        self.features = self.make_feature_embedding()
        self.network = nn.Linear(size, size)
        self.set_layers = self.make_blocks(len(self.scales))
        self.positions = nn.Embedding(config.slate_size, size)
        self.item = nn.Linear(size, size, bias=False)
        self.codes = nn.Embedding(config.slate_size, size) if config.context == "page" else None
        self.contexts = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in self.scales)
        self.hidden = nn.Linear(size, size)
        self.heads = FeedbackHead(size, self.schema, config.conditional_targets)
        self.post_init()

    def compute(self, batch: Batch) -> EvaluatorOutput:
        """See `SlateEvaluator.compute`."""
        slates, feedback = batch["slates"], batch.get("feedback")
        logits = self._read(gather_candidates(self.encode_items(batch), slates), shown(slates))
        utilities = self.heads.position_utility(logits, slates, batch["candidate_value"]).sum(-1)
        output = EvaluatorOutput(logits=logits, utilities=utilities, probabilities=self.heads.probabilities(logits))
        if feedback is None:
            return output
        logged = self.heads.log_likelihood(logits, feedback, slates)
        terms = {"feedback": self.heads.loss(logged, slates)}
        earned = slate_utility(feedback, slates, batch["candidate_value"], self.schema)
        terms["pairs"] = _pair_loss(widened(utilities), earned, shown(slates).any(-1)).mean()
        loss = terms["feedback"] + self.config.pair_weight * terms["pairs"]
        return EvaluatorOutput(loss=loss, loss_terms=terms, log_likelihoods=logged.sum(-1), **output)

    def encode_items(self, batch: Batch) -> Tensor:
        """Vectors (B, N, D) of the candidates."""
        return F.gelu(self.network(F.gelu(self.features(batch))))

    def _read(self, items: Tensor, real: Tensor) -> Tensor:
        """Logits (B, S, M, T) of slates of these items (B, S, M, D), which are real (B, S, M) or padding."""
        length = items.shape[2]
        hidden = self.item(items) + self.positions(torch.arange(length, device=items.device))
        if self.codes is not None:
            states, flat = self.states(0, items.flatten(0, 1), real.flatten(0, 1)), real.flatten(0, 1)
            page = _mean(states * self.codes.weight[:length], flat)
            return self._logits(hidden + self.contexts[0](page).view(*items.shape[:2], 1, -1))
        for scale, (parts, context) in enumerate(zip(self.scales, self.contexts, strict=True)):
            summed = []
            for start, end in parts:
                part = items[:, :, start:end]
                if part.shape[2]:
                    found = self.summary(scale, part.flatten(0, 1), real[:, :, start:end].flatten(0, 1))
                    summed.append(context(found).view(*items.shape[:2], 1, -1).expand_as(part))
            hidden = hidden + torch.cat(summed, dim=2)
        return self._logits(hidden)

    def _logits(self, hidden: Tensor) -> Tensor:
        """(..., T) of (..., D)."""
        return self.heads(F.gelu(self.hidden(F.gelu(hidden))))

    def states(self, scale: int, items: Tensor, real: Tensor) -> Tensor:
        """States (R, K, D) of the items (R, K, D) of sets, which are real (R, K) or padding."""
        layer: TransformerBlock = self.set_layers[scale]  # type: ignore[assignment]
        return layer(items, mask=key_mask(real), implementation=self.config._attn_implementation)

    def summary(self, scale: int, items: Tensor, real: Tensor) -> Tensor:
        """c_k (R, D) of sets of items (R, K, D), which are real (R, K) or padding."""
        return _mean(self.states(scale, items, real), real)

    @torch.no_grad()
    def exhaustive_values(self, candidates: Tensor, slate_size: int, /, **batch: Tensor) -> Tensor:
        """Predicted utility of every slate of some candidates: contexts are computed once for each set of items.

        Args:
            candidates: (B, n), real candidates.
            slate_size: M, at most the config's.
            **batch: The batch by its keys; labels in it are ignored.

        Returns:
            (B, P), in the order of `rerankzoo.slates.all_slates(n, M)`.

        Raises:
            ValueError: If slates are longer than the config's slate size.
        """
        known, number = inputs(batch), candidates.shape[1]
        every = torch.tensor(all_slates(number, slate_size), device=candidates.device)  # (P, M)
        self._check_length(every)
        items = gather_candidates(self.encode_items(known), candidates)  # (B, n, D)
        value = gather_candidates(known["candidate_value"], candidates)
        own = self.item(items)
        summed = self._parts(items, slate_size) if self.codes is None else self._page(items, every)
        utilities = items.new_zeros(len(items), len(every), dtype=torch.float32)
        for place in range(slate_size):
            hidden = own[:, every[:, place]] + self.positions.weight[place] + summed[place]
            logits = self._logits(hidden)
            earned = self.heads.candidate_utility(logits, value[:, every[:, place]])
            utilities += earned * position_discount(earned.new_tensor(float(place)), self.schema)
        return utilities

    def _parts(self, items: Tensor, slate_size: int) -> list[Tensor]:
        """What the parts of every slate add to each position, (B, P, D)."""
        summed = [items.new_zeros(()) for _ in range(slate_size)]
        for scale, parts in enumerate(self.scales):
            for start, end in parts:
                if start < slate_size:
                    part = self._looked_up(scale, items, slate_size, start, min(end, slate_size))
                    summed[start:end] = [known_so_far + part for known_so_far in summed[start:end]]
        return summed

    def _page(self, items: Tensor, every: Tensor) -> list[Tensor]:
        """What the page vector of every slate (P, M) adds to each position, (B, P, D)."""
        (sets, index), size = subsets(items.shape[1], every.shape[1], 0, every.shape[1]), every.shape[1]
        sets, index = sets.to(items.device), index.to(items.device)
        some = items[:, sets]  # (B, C, M, D)
        real = torch.ones(some.shape[0] * some.shape[1], size, dtype=torch.bool, device=items.device)
        states = self.states(0, some.flatten(0, 1), real).view(some.shape)
        place = (sets[index].unsqueeze(1) == every.unsqueeze(-1)).int().argmax(-1)  # (P, M), of each item in its set
        codes = cast(nn.Embedding, self.codes).weight
        page = sum(states[:, index, place[:, position]] * codes[position] for position in range(size))
        return [self.contexts[0](page / size)] * size

    def _looked_up(self, scale: int, items: Tensor, slate_size: int, start: int, end: int) -> Tensor:
        """What a part of every slate adds to its positions: (B, P, D)."""
        sets, index = subsets(items.shape[1], slate_size, start, end)
        some = items[:, sets.to(items.device)]  # (B, C, K, D)
        real = torch.ones(some.shape[0] * some.shape[1], some.shape[2], dtype=torch.bool, device=items.device)
        contexts = self.contexts[scale](self.summary(scale, some.flatten(0, 1), real)).view(*some.shape[:2], -1)
        return contexts[:, index.to(items.device)]


def _mean(states: Tensor, real: Tensor) -> Tensor:
    """The mean (R, D) of the states (R, K, D) that are real (R, K)."""
    counted = real.unsqueeze(-1).to(states.dtype)
    return (states * counted).sum(1) / counted.sum(1).clamp_min(1.0)


def _pair_loss(values: Tensor, earned: Tensor, real: Tensor) -> Tensor:
    """`-log sigmoid(V_a - V_b)` (B), the mean over pairs of slates (B, S) of which a earned more; 0 without any."""
    better = (earned.unsqueeze(-1) > earned.unsqueeze(-2)) & (real.unsqueeze(-1) & real.unsqueeze(-2))
    loss = F.softplus(values.unsqueeze(-2) - values.unsqueeze(-1)).masked_fill(~better, 0.0)
    return loss.sum((-1, -2)) / better.sum((-1, -2)).clamp_min(1)


__all__ = ["YOLOREvaluator"]
