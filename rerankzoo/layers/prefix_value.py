"""Heads that value the prefixes of a slate: what each position adds, from its state and what those above have left.

... any leading axes, M positions, S slates, T targets, D hidden; K numbers that a head predicts of a position, C that
it carries from one to the next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch, widened
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.utility import candidate_utility, position_discount, position_utility
from rerankzoo.layers.feedback import FeedbackHead
from rerankzoo.losses import cumulative_regression_loss, exit_log_likelihood, ordered_regression_loss, slate_mean


class PrefixHead(ABC):
    """What a linear layer over states (..., D) predicts (..., K) of positions, as values of prefixes.

    Attributes:
        num_carried: C.
    """

    schema: FeatureSchema
    num_carried: int = 0

    def carry(self, predicted: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """What is left to the position below, (..., C), from `before`, what was left to this one; zeros to the first.

        `position`, a floating scalar, counts from 0.
        """
        return before

    def carried(self, predicted: Tensor, positions: Tensor) -> Tensor:
        """What is left to each position (..., M, C) of whole slates, from predictions (..., M, K)."""
        before, found = predicted.new_zeros(*predicted.shape[:-2], self.num_carried), []
        for place in range(predicted.shape[-2]):
            found.append(before)
            before = self.carry(predicted[..., place, :], before, positions[place])
        return torch.stack(found, dim=-2)

    @abstractmethod
    def gains(self, predicted: Tensor, value: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """What items add (...) to the value of the prefixes above them.

        Args:
            predicted: (..., K).
            value: (..., T), of the items.
            before: (..., C).
            position: Floating, a scalar or for the last of the leading axes.
        """

    def probabilities_after(self, predicted: Tensor, before: Tensor) -> Tensor | None:
        """Probability (..., T) of each target, where the head knows it."""
        return None

    @abstractmethod
    def learn(self, predicted: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The loss, a scalar, and the log-probability (B, S) of each slate's feedback, where the head knows it.

        Args:
            predicted: (B, S, M, K).
            values: (B, S, M), of the prefixes.
            batch: With slates and feedback.
        """


class FeedbackValueHead(FeedbackHead, PrefixHead):
    """A prefix is worth the expected utility of its positions; see `FeedbackHead`."""

    def gains(self, predicted: Tensor, value: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """See `PrefixHead.gains`."""
        earned = candidate_utility(self.probabilities_after(predicted, before), value, self.schema)
        return earned * position_discount(position, self.schema)

    def probabilities_after(self, predicted: Tensor, before: Tensor) -> Tensor:
        """See `PrefixHead.probabilities_after`."""
        return self.probabilities(predicted)

    def learn(self, predicted: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `PrefixHead.learn`."""
        logged = self.log_likelihood(predicted, batch["feedback"], batch["slates"])
        return self.loss(logged, batch["slates"]), logged.sum(-1)


class ExitValueHead(FeedbackValueHead):
    """The user reads from the top and leaves: a prefix is worth what its positions earn if they are seen.

    Feedback of a position is learned from where it was seen, and the exits from the last position seen. She leaves
    after position t = 0, 1... with the probability

        h_t = g * sigmoid(-z_t) + (1 - g) * (1 - exp(-((t + 1)^c - t^c) / s^c))

    of which the first part follows the items (z is the logit of the target that tells which positions were seen) and
    the second, a discrete Weibull hazard, the position alone. The log-probability of having stayed is carried.

    Args:
        hidden_size: D.
        schema: See `FeedbackHead`.
        parents: See `FeedbackHead`. The one target without a parent tells which positions were seen.
        num_positions: M, where the Weibull's scale s starts.

    References:
        CAVE (arXiv 2508.02242): an interest and a stochastic part, the second Weibull; how they mix is ours.
    """

    num_carried = 1

    def __init__(self, hidden_size: int, schema: FeatureSchema, parents: Mapping[str, str], num_positions: int) -> None:
        super().__init__(hidden_size, schema, parents)
        self.seen = next(number for number, chain in enumerate(self.chains) if len(chain) == 1)
        self.num_positions = num_positions
        self.exits = nn.Parameter(torch.empty(3))  # gate, logarithms of scale and shape

    def leaving(self, predicted: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (...) of going on after positions that were seen, and of leaving there."""
        gate, scale, shape = widened(self.exits)
        interest, shape = widened(predicted[..., self.seen]), shape.exp()
        weary = ((position + 1) ** shape - position**shape) / (self.num_positions * scale.exp()) ** shape
        stays = torch.logaddexp(F.logsigmoid(gate) + F.logsigmoid(interest), F.logsigmoid(-gate) - weary)
        leaves = F.logsigmoid(-gate) + (-torch.expm1(-weary)).log()
        return stays, torch.logaddexp(F.logsigmoid(gate) + F.logsigmoid(-interest), leaves)

    def carry(self, predicted: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """See `PrefixHead.carry`."""
        return before + self.leaving(predicted, position)[0].unsqueeze(-1)

    def probabilities_after(self, predicted: Tensor, before: Tensor) -> Tensor:
        """See `PrefixHead.probabilities_after`."""
        place = torch.arange(predicted.shape[-1], device=predicted.device)
        return self.joint(torch.where(place == self.seen, before.exp(), predicted.sigmoid()))

    def log_likelihood(self, logits: Tensor, feedback: Tensor, slates: Tensor) -> Tensor:
        """See `FeedbackHead.log_likelihood`."""
        positions = torch.arange(slates.shape[-1], dtype=torch.float32, device=slates.device)
        exits = exit_log_likelihood(*self.leaving(logits, positions), feedback[..., self.seen] > 0, slates >= 0)
        return super().log_likelihood(logits, feedback, slates) + exits

    def _possible(self, feedback: Tensor) -> Tensor | None:
        place = torch.arange(feedback.shape[-1], device=feedback.device)
        return cast(Tensor, super()._possible(feedback)) & (place != self.seen)


class RegressionValueHead(nn.Linear, PrefixHead):
    """What positions add to a regression of the reward that a prefix has accumulated."""

    def __init__(self, hidden_size: int, schema: FeatureSchema) -> None:
        super().__init__(hidden_size, 1)
        self.schema = schema

    def gains(self, predicted: Tensor, value: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """See `PrefixHead.gains`."""
        return widened(predicted).squeeze(-1)

    def learn(self, predicted: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, None]:
        """See `PrefixHead.learn`."""
        slates = batch["slates"]
        rewards = position_utility(batch["feedback"], slates, batch["candidate_value"], self.schema)
        return slate_mean(cumulative_regression_loss(values, rewards, slates >= 0), slates).mean(), None


class OrderedValueHead(nn.Linear, PrefixHead):
    """Of every prefix and target, the probability of at least 1, 2... positive feedbacks: ordered regression.

    Their sum is the expected count, which is carried. A position adds what it adds to the counts, times the values of
    its item (ours: our sources count clicks and orders, which are worth the same wherever they happen).

    Args:
        hidden_size: D.
        schema: Names the targets.
        num_positions: M, the most that can be counted.

    References:
        SORT-Gen (arXiv 2505.07197), ordered regression.
    """

    def __init__(self, hidden_size: int, schema: FeatureSchema, num_positions: int) -> None:
        super().__init__(hidden_size, len(schema.targets) * num_positions)
        self.schema = schema
        self.num_carried = len(schema.targets)

    def _by_target(self, predicted: Tensor) -> Tensor:
        """(..., T, M) of (..., T * M)."""
        return predicted.unflatten(-1, (self.num_carried, -1))

    def counts(self, predicted: Tensor, position: Tensor) -> Tensor:
        """Expected counts (..., T) of the prefixes that end at positions."""
        chances = self._by_target(predicted).sigmoid()
        below = torch.arange(chances.shape[-1], device=chances.device)
        return (chances * (below <= position[..., None, None])).sum(-1)  # no more than the prefix has positions

    def carry(self, predicted: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """See `PrefixHead.carry`."""
        return self.counts(predicted, position)

    def gains(self, predicted: Tensor, value: Tensor, before: Tensor, position: Tensor) -> Tensor:
        """See `PrefixHead.gains`."""
        earned = candidate_utility(self.counts(predicted, position) - before, value, self.schema)
        return earned * position_discount(position, self.schema)

    def learn(self, predicted: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, None]:
        """See `PrefixHead.learn`."""
        slates = batch["slates"]
        loss = ordered_regression_loss(self._by_target(predicted), batch["feedback"], slates >= 0)
        return slate_mean(loss, slates).mean(), None
