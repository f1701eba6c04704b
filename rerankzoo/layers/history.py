"""Reading a user's past items: one by one for each candidate, fading with time. No config, no model.

B requests, N candidates, L past items, D hidden, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.layers.transformer import key_mask, split_heads

#: Half-lives at the start: in mean gaps of the training rows where times are known, else in past items.
FIRST_TIME, FIRST_COUNT = 1.0, 8.0


def ages(mask: Tensor, times: Tensor | None) -> Tensor:
    """How long ago past items were (B, L).

    Args:
        mask: (B, L), True where an item is real; the newest comes last.
        times: (B, L), as a batch's `history_time`; `None`: where nobody knows, how many items were later.

    Returns:
        (B, L), float; any number at padding.
    """
    return (mask.sum(1, keepdim=True) - mask.cumsum(1)).float() if times is None else times


def recency(age: Tensor, half_life: Tensor, mask: Tensor) -> Tensor:
    """What is left of past items: `2^(-age / half_life)`, nothing at padding.

    Args:
        age: (B, L), see `ages`.
        half_life: (B, 1), or (H, 1, 1) for H of them, positive, in the unit of the ages.
        mask: (B, L), True where an item is real.

    Returns:
        (B, L) or (H, B, L), in [0, 1].
    """
    return torch.exp2(-age.float() / half_life.float()).masked_fill(~mask, 0.0)


class PageContext(nn.Module):
    """Past items know which others were on their page: `h_l + W mean_k h_k` over the others k of the page.

    W is 0 at the start, and an item that is alone on its page stays what it is. It is ours.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, hidden_size))

    def forward(self, history: Tensor, mask: Tensor, pages: Tensor | None) -> Tensor:
        """Tells past items (B, L, D), of which those of the mask (B, L) are real, of their page's others.

        Args:
            history: (B, L, D).
            mask: (B, L), True where a past item is real.
            pages: (B, L), as a batch's `history_page`; items of one number were on one page.

        Returns:
            (B, L, D).

        Raises:
            ValueError: If the pages are missing.
        """
        if pages is None:
            raise ValueError("this model reads the pages of past items: the batch needs history_page")
        shared = (pages.unsqueeze(2) == pages.unsqueeze(1)) & mask.unsqueeze(1) & mask.unsqueeze(2)  # (B, L, L)
        others = shared.to(history.dtype) @ history - history * mask.unsqueeze(-1)
        number = (shared.sum(-1, keepdim=True) - 1).clamp_min(1)
        return history + F.linear(others / number, self.weight)


class TargetAttention(nn.Module):
    """Every candidate reads the user's past items for itself.

    Of each head: `sum_l sigmoid(q_i . k_l / sqrt(d)) 2^(-age_l / T) v_l / (1 + sum_l 2^(-age_l / T))`. The weights are
    no softmax, which would not tell whether the candidate is like many past items or like none; and each head forgets
    with a half-life T of its own. Without past items, or when all of them are long ago, next to nothing is read.

    Weights that are not normalised over the history are DIN's; it computes them by a small network. The forgetting and
    what the sum is divided by are ours.

    Args:
        hidden_size: D.
        num_heads: H; divides D.
        timed: Whether it is told how long ago past items were; if not, the number of later ones stands for it.
        paged: Whether it is told which page they were on; they are then read in their `PageContext`.

    References:
        Zhou et al., Deep interest network for click-through rate prediction (2018), section 4.3.
    """

    def __init__(self, hidden_size: int, num_heads: int, timed: bool, paged: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.timed = timed
        self.page = PageContext(hidden_size) if paged else None
        self.query_norm, self.memory_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)
        self.log_half_life = nn.Parameter(torch.tensor(self.first_half_lives()).log())

    def first_half_lives(self) -> list[float]:
        """Where the heads' half-lives start: each at four times that of the one before."""
        first = FIRST_TIME if self.timed else FIRST_COUNT
        return [first * 4.0 ** (head - (self.num_heads - 1) / 2) for head in range(self.num_heads)]

    def forward(
        self,
        candidates: Tensor,
        history: Tensor,
        mask: Tensor,
        times: Tensor | None = None,
        pages: Tensor | None = None,
    ) -> Tensor:
        """Reads the history.

        Args:
            candidates: (B, N, D).
            history: (B, L, D), the newest last.
            mask: (B, L), True where a past item is real.
            times: (B, L), how long ago; required if the layer is timed.
            pages: (B, L), how many pages ago; required if the layer is paged.

        Returns:
            (B, N, D).

        Raises:
            ValueError: If the times or pages are missing.
        """
        if self.timed and times is None:
            raise ValueError("this model reads the times of past items: the batch needs history_time")
        age = ages(mask, times if self.timed else None)
        left = recency(age, self.log_half_life.exp().view(-1, 1, 1), mask).transpose(0, 1).unsqueeze(2)  # (B, H, 1, L)
        left = left.to(history.dtype)
        history = history if self.page is None else self.page(history, mask, pages)
        projected = split_heads(self.key_value(self.memory_norm(history)), 2 * self.num_heads)
        key, value = projected.chunk(2, dim=1)
        query = split_heads(self.query(self.query_norm(candidates)), self.num_heads)
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).sigmoid() * left  # (B, H, N, L)
        read = weights @ value / (1 + left.sum(-1, keepdim=True))
        return self.output(read.transpose(1, 2).flatten(2))


class HistoryEncoder(nn.Module):
    """Past items that know one another and how long ago they were: a Transformer over the history.

    Args:
        layers: Transformer blocks; with none, items only learn their age.
        hidden_size: D.
        paged: Whether it is told which page past items were on; see `PageContext`.
    """

    def __init__(self, layers: nn.ModuleList, hidden_size: int, paged: bool = False) -> None:
        super().__init__()
        self.page = PageContext(hidden_size) if paged else None
        self.age = nn.Parameter(torch.zeros(hidden_size))  # a large one at the start would drown the items
        self.layers = layers
        self.norm = nn.LayerNorm(hidden_size)

    def forward(
        self, history: Tensor, mask: Tensor, age: Tensor, pages: Tensor | None = None, implementation: str = "sdpa"
    ) -> Tensor:
        """Encodes past items (B, L, D) of these `ages` (B, L) to (B, L, D); `mask` (B, L) is True where one is real.

        Its `pages` (B, L) are required if the layer is paged, by a ValueError.
        """
        history = history if self.page is None else self.page(history, mask, pages)
        history = history + torch.log1p(age).unsqueeze(-1).to(history.dtype) * self.age
        attended = key_mask(mask)
        for layer in self.layers:
            history = layer(history, mask=attended, implementation=implementation)
        return self.norm(history)


class SetToListAttention(nn.Module):
    """A set and a list read each other by affinities of their items, as far as those of the list are not forgotten.

    Args:
        hidden_size: D.
        num_heads: H affinities of a pair, each of its own part of the items' vectors; divides D.
    """

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.affinity = nn.Linear(hidden_size, hidden_size, bias=False)
        self.of_set, self.of_list = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.set_weight, self.list_weight = (nn.Linear(hidden_size, 1, bias=False) for _ in range(2))

    def forward(
        self, candidates: Tensor, mask: Tensor, past: Tensor, past_mask: Tensor, left: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reads both.

        Args:
            candidates: (B, N, D).
            mask: (B, N), True where a candidate is real.
            past: (B, L, D).
            past_mask: (B, L), True where a past item is real.
            left: (B, L) in [0, 1], how much of a past item is not forgotten; 0 at padding.

        Returns:
            What each candidate has read of the list (B, N, D), and what is taken of the set and of the list (B, D).
        """
        own, query = (split_heads(part, self.num_heads) for part in (candidates, self.affinity(past)))
        affinity = query @ own.transpose(-1, -2) / math.sqrt(query.shape[-1]) * left[:, None, :, None]
        affinity = affinity.masked_fill(~mask[:, None, None], 0.0)  # (B, H, L, N)
        one, other = self.of_set(candidates), self.of_list(past)
        total, number = 1 + left.sum(1).view(-1, 1, 1), mask.sum(1).clamp_min(1).view(-1, 1, 1)
        read = affinity.transpose(-1, -2) @ split_heads(other, self.num_heads)
        known = affinity @ split_heads(one, self.num_heads)
        read = torch.tanh(one + read.transpose(1, 2).flatten(2) / total)
        known = torch.tanh(other + known.transpose(1, 2).flatten(2) / number)
        return (
            read,
            _weighted(candidates, self.set_weight(read).squeeze(-1), mask),
            _weighted(past, self.list_weight(known).squeeze(-1), past_mask),
        )


def _weighted(items: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """The mean (B, D) of items (B, K, D), weighted by a softmax; zeros where none is real."""
    weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~mask, 0.0)
    return (weights.unsqueeze(1) @ items).squeeze(1)
