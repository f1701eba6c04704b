"""What the items of a slate do to one another, as sums over pairs. No config, no model.

B requests, N candidates, M positions, S slates, T targets, H heads, r head width, K input width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import widened


class PairInteractions(nn.Module):
    """The effect of every item of a slate on every other one: low-rank, signed by distance.

    The effect of item k, at position s, on the logit of target c of item i, at position t, is

        sum_h w[c, h, s - t] phi_h(<Q_h x_i, K_h x_k> / sqrt(r))

    with phi the identity for the first half of the heads and max(0, .) for the second: similarity that counts only
    where it is positive is no low-rank product. Items above (s < t) and below (s > t) have weights of their own, for
    each distance.

    Args:
        input_size: K.
        num_heads: H.
        head_size: r.
        num_positions: M.
        num_targets: T, of effects of a pair.
        looks_ahead: Whether items below have an effect at all.

    References:
        Ours; the products of two items' features that a Transformer would have to find by itself.
    """

    def __init__(
        self,
        input_size: int,
        num_heads: int,
        head_size: int,
        num_positions: int,
        num_targets: int,
        looks_ahead: bool = True,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.looks_ahead = num_heads, head_size, looks_ahead
        self.num_plain_heads = num_heads - num_heads // 2
        self.query = nn.Linear(input_size, num_heads * head_size)
        self.key = nn.Linear(input_size, num_heads * head_size)
        #: By target, head, side (0: the other item stands above, 1: below) and distance - 1.
        self.weight = nn.Parameter(torch.empty(num_targets, num_heads, 1 + looks_ahead, max(1, num_positions - 1)))

    def heads(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys (..., H, r) of items (..., K)."""
        shape = (self.num_heads, self.head_size)
        return self.query(items).unflatten(-1, shape), self.key(items).unflatten(-1, shape)

    def affinities(self, query: Tensor, key: Tensor) -> Tensor:
        """phi (..., H, Q, K') of queries (..., Q, H, r) and keys (..., K', H, r)."""
        query, key = (
            widened(query).transpose(-3, -2),
            widened(key).transpose(-3, -2),
        )  # products overflow half precision
        products = query @ key.transpose(-2, -1) * self.head_size**-0.5
        plain, rectified = products.tensor_split([self.num_plain_heads], dim=-3)
        return torch.cat([plain, F.relu(rectified)], dim=-3)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        """The effects (..., M', M', T) of the second position on the first, by the items' `heads` (..., M', H, r)."""
        weight = widened(self.relative(query.shape[-3]))
        return torch.einsum("...hts,chts->...tsc", self.affinities(query, key), weight)

    def relative(self, length: int) -> Tensor:
        """Weights (T, H, M', M') of the second position's effect on the first one's; 0 on the diagonal."""
        position = torch.arange(length, device=self.weight.device)
        offset = position - position.unsqueeze(-1)  # [t, s]: s - t
        distance = (offset.abs() - 1).clamp_min(0)
        if self.looks_ahead:
            return self.weight[:, :, (offset > 0).long(), distance] * (offset != 0)
        return self.weight[:, :, 0, distance] * (offset < 0)

    def of_slates(self, query: Tensor, key: Tensor, slates: Tensor) -> Tensor:
        """What `forward` tells (B, S, M', M', T) of slates (B, S, M'); -100 pads, and has no effect.

        The effects of all pairs of candidates, by their `heads` (B, N, H, r), are computed once and looked up: for more
        slates than there are pairs.
        """
        num_candidates, length = query.shape[1], slates.shape[-1]
        weight = widened(self.weight)[..., : max(1, length - 1)]
        pairs = torch.einsum("bhij,chsd->bcsdij", self.affinities(query, key), weight)
        position = torch.arange(length, device=slates.device)
        offset = position - position.unsqueeze(-1)  # [t, s]: s - t
        counted = (offset < 0) | (offset > 0 if self.looks_ahead else torch.zeros_like(offset, dtype=torch.bool))
        side = (offset > 0).long() * self.looks_ahead
        place = side * weight.shape[-1] + (offset.abs() - 1).clamp_min(0)  # (M', M')
        item = slates.clamp_min(0)
        index = (place * num_candidates + item.unsqueeze(-1)) * num_candidates + item.unsqueeze(-2)  # (B, S, M', M')
        looked_up = pairs.flatten(2).gather(-1, index.flatten(1).unsqueeze(1).expand(-1, pairs.shape[1], -1))
        effects = looked_up.view(*pairs.shape[:2], *index.shape[1:])
        effects = effects.masked_fill(~(counted & (slates >= 0).unsqueeze(-2)).unsqueeze(1), 0.0)
        return effects.permute(0, 2, 3, 4, 1)
