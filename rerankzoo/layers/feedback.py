"""The head that predicts feedback: what it says, what that is worth, and what is learned from.

B requests, N candidates, M positions, S slates, T targets, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.utility import candidate_utility, position_utility
from rerankzoo.losses import feedback_log_likelihood, mean_feedback_loss, slate_mean


class FeedbackHead(nn.Linear):
    """One logit per feedback target.

    Args:
        hidden_size: D.
        schema: Names the targets, their weights and the position discount.
        parents: Maps a target to the target it depends on: its logit is then that of an order given a click, say, its
            probability the product of both, and it learns only from positions where the click happened.
    """

    def __init__(self, hidden_size: int, schema: FeatureSchema, parents: Mapping[str, str] | None = None) -> None:
        super().__init__(hidden_size, len(schema.targets))
        self.schema = schema
        names = [target.name for target in schema.targets]
        self.chains = [[names.index(name) for name in _chain(target, parents or {})] for target in names]
        self.is_conditional = bool(parents)

    @torch.no_grad()
    def start_at(self, rates: Sequence[float]) -> None:
        """Sets the biases such that an item about which nothing is known has the rates of the log.

        Args:
            rates: (T), in (0, 1), how often each target happens at a position. A conditional target starts at its share
                of its parent's, and at a half where it happens more often.
        """
        own = torch.tensor(rates, dtype=torch.double)
        given = torch.tensor([rates[chain[1]] if len(chain) > 1 else 1.0 for chain in self.chains], dtype=torch.double)
        share = own / given
        self.bias.copy_(torch.where(share < 1, share, 0.5).logit())

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (..., T) from logits (..., T); of a conditional target, that it and all before it happen."""
        return self.joint(logits.sigmoid())

    def joint(self, alone: Tensor) -> Tensor:
        """Probabilities (..., T) of targets from those that each has given the one that it depends on."""
        if not self.is_conditional:
            return alone
        return torch.stack([alone[..., chain].prod(-1) for chain in self.chains], dim=-1)

    def candidate_utility(self, logits: Tensor, value: Tensor) -> Tensor:
        """Expected utility (...) of items with logits (..., T) and values (..., T), wherever they stand."""
        return candidate_utility(self.probabilities(logits), value, self.schema)

    def position_utility(self, logits: Tensor, slates: Tensor, candidate_value: Tensor) -> Tensor:
        """Expected utility (B, S, M) of each position of slates (B, S, M) with logits (B, S, M, T); 0 at padding."""
        return position_utility(self.probabilities(logits), slates, candidate_value, self.schema)

    def log_likelihood(self, logits: Tensor, feedback: Tensor, slates: Tensor) -> Tensor:
        """Log-probability (B, S, M) of the feedback (B, S, M, T) of each position of slates (B, S, M); 0 at padding."""
        return feedback_log_likelihood(logits, feedback, slates >= 0, self._possible(feedback))

    def loss(self, log_likelihood: Tensor, slates: Tensor) -> Tensor:
        """Cross-entropy, a scalar, from the log-probabilities (B, S, M) of the feedback of slates (B, S, M).

        In nats per position and target; the mean over requests.
        """
        return slate_mean(mean_feedback_loss(log_likelihood, slates >= 0, self.out_features), slates).mean()

    def _possible(self, feedback: Tensor) -> Tensor | None:
        """Where a target could happen at all (B, S, M, T): where its parent did. `None`: everywhere."""
        if not self.is_conditional:
            return None
        happened = feedback > 0
        every = torch.ones_like(happened[..., 0])
        return torch.stack([happened[..., chain[1]] if len(chain) > 1 else every for chain in self.chains], dim=-1)


def _chain(target: str, parents: Mapping[str, str]) -> list[str]:
    """A target, its parent, its parent's parent..."""
    chain = [target]
    while chain[-1] in parents:
        chain.append(parents[chain[-1]])
    return chain
