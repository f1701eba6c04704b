"""How users come to a position of a slate, and what feedback they then leave: likelihoods and marginal probabilities.

A model says what a position's feedback would be if the user looked there: the logit z_t of the *leading* target (the
first that depends on no other: a click, say) and the log-probability of all targets together. A behaviour says whether
she looks: e_t, the probability that position t is looked at given the slate, by which the probabilities of all targets
are multiplied, and the exact likelihood of a whole slate's feedback, over everything that is not seen.

... any leading axes, M positions. Positions that the mask leaves out stand at the end and change nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Behaviour(nn.Module):
    """How users come to a position.

    Attributes:
        extra_size: Numbers per item that the behaviour needs beside the logits.
        remembers: Whether a click moves the logits of positions further down. `extra` (..., M, at least M - 1) then
            holds what a click at the position of its last axis adds to the logit of the one before.
    """

    extra_size: ClassVar[int] = 0
    remembers: ClassVar[bool] = False

    def __init__(self, num_positions: int) -> None:
        super().__init__()
        self.num_positions = num_positions

    @abstractmethod
    def examination(self, logits: Tensor, extra: Tensor, mask: Tensor) -> Tensor:
        """Probabilities (..., M) that positions are looked at, before anything is known but the slate.

        Args:
            logits: (..., M), of the leading target.
            extra: (..., M, `extra_size`).
            mask: (..., M), True where a position was shown.
        """

    @abstractmethod
    def log_likelihood(
        self, logits: Tensor, extra: Tensor, mask: Tensor, examined: Tensor, leading: Tensor, seen: Tensor
    ) -> Tensor:
        """Log-probability (...) of the feedback of whole slates.

        Args:
            logits: (..., M), of the leading target.
            extra: (..., M, `extra_size`).
            mask: (..., M), True where a position was shown.
            examined: (..., M), log-probability of each position's feedback if it was looked at; 0 outside the mask.
            leading: (..., M), True where the leading target happened.
            seen: (..., M), True where any target happened.
        """


class IndependentBehaviour(Behaviour):
    """Every position by itself: what a logit says of a position includes whether it is looked at."""

    def examination(self, logits: Tensor, extra: Tensor, mask: Tensor) -> Tensor:
        """See `Behaviour.examination`: 1."""
        return torch.ones_like(logits)

    def log_likelihood(
        self, logits: Tensor, extra: Tensor, mask: Tensor, examined: Tensor, leading: Tensor, seen: Tensor
    ) -> Tensor:
        """See `Behaviour.log_likelihood`."""
        return examined.sum(-1)


class CascadeBehaviour(Behaviour):
    """The user reads from the top, and goes on with a probability that depends on the position and on a click there.

    Nobody sees how far she read: the likelihood is summed over it, by a forward recursion over two states.

    References:
        Guo et al., Efficient multiple-click models in web search (2009), the dependent click model, with a latent end.
    """

    def __init__(self, num_positions: int) -> None:
        super().__init__(num_positions)
        self.go_on = nn.Parameter(torch.empty(2, num_positions))  # logits, after no click and after one

    def going_on(self, extra: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (..., M) of looking further after no click and after a click."""
        without, after = self.go_on[:, : extra.shape[-2]].sigmoid()
        return without, after

    def examination(self, logits: Tensor, extra: Tensor, mask: Tensor) -> Tensor:
        """See `Behaviour.examination`: e_1 = 1, e_{t+1} = e_t (g0 + (g1 - g0) a_t)."""
        without, after = self.going_on(extra)
        further = without + (after - without) * logits.sigmoid()
        reached = [torch.ones_like(further[..., 0])]  # a product by hand: ONNX has no cumulative one
        for share in further[..., :-1].unbind(-1):
            reached.append(reached[-1] * share)
        return torch.stack(reached, dim=-1)

    def log_likelihood(
        self, logits: Tensor, extra: Tensor, mask: Tensor, examined: Tensor, leading: Tensor, seen: Tensor
    ) -> Tensor:
        """See `Behaviour.log_likelihood`."""
        without, after = self.going_on(extra)
        further = torch.where(leading, after, without)
        chances, absent = examined.exp(), (~seen).to(examined.dtype)
        looking, total = torch.ones_like(chances[..., 0]), torch.zeros_like(chances[..., 0])
        for t in range(chances.shape[-1]):  # looking: that position t is looked at, given the feedback above it
            here = looking * chances[..., t]
            evidence = here + (1 - looking) * absent[..., t]
            total = total + evidence.clamp_min(torch.finfo(evidence.dtype).tiny).log()
            looking = here * further[..., t] / evidence.clamp_min(torch.finfo(evidence.dtype).tiny)
        return total + 0.0 * looking  # what comes after the last position keeps its place in the graph


class SatisfactionBehaviour(CascadeBehaviour):
    """A cascade in which a click ends the reading the more probably, the more the item satisfies.

    References:
        Chapelle and Zhang, A dynamic Bayesian network click model for web search ranking (2009).
    """

    extra_size = 1

    def going_on(self, extra: Tensor) -> tuple[Tensor, Tensor]:
        """See `CascadeBehaviour.going_on`."""
        without, after = super().going_on(extra)
        return without.expand(extra.shape[:-1]), after * (-extra[..., 0]).sigmoid()


class MemoryBehaviour(CascadeBehaviour):
    """A cascade in which a click changes what the user wants of everything further down.

    The feedback of a slate tells which logits were moved, so that its likelihood is a cascade's. Marginal probabilities
    are sums over the ways to have clicked above: exact for slates of up to `EXACT + 1` positions; in longer ones, an
    older click counts by its probability given the newer ones. As all targets follow the leading one, e_t is the
    probability of its happening, in shares of that without clicks above: it may exceed 1.
    """

    remembers = True
    EXACT: ClassVar[int] = 6

    def examination(self, logits: Tensor, extra: Tensor, mask: Tensor) -> Tensor:
        """See `Behaviour.examination`."""
        without, after = self.going_on(logits.unsqueeze(-1))
        reading = torch.ones_like(logits[..., :1])  # (..., W), by the ways W to have clicked above: she reads on
        clicked = logits.new_zeros(*logits.shape[:-1], 1, 0)  # (..., W, t)
        happens = []
        for t in range(logits.shape[-1]):
            moved = logits[..., t, None] + (clicked * extra[..., t, None, :t]).sum(-1)
            click = reading * moved.sigmoid()
            happens.append(click.sum(-1))
            reading = torch.stack([(reading - click) * without[t], click * after[t]], dim=-2)  # the newest comes first
            clicked = torch.stack([F.pad(clicked, (0, 1)), F.pad(clicked, (0, 1), value=1.0)], dim=-3)
            reading, clicked = reading.flatten(-2), clicked.flatten(-3, -2)
            if t >= self.EXACT:  # two ways that differ in the oldest click become one
                share = reading.unflatten(-1, (-1, 2))
                reading = share.sum(-1)
                share = share / reading.unsqueeze(-1).clamp_min(torch.finfo(share.dtype).tiny)
                clicked = (clicked.unflatten(-2, (-1, 2)) * share.unsqueeze(-1)).sum(-2)
        return torch.stack(happens, dim=-1) / logits.sigmoid().clamp_min(torch.finfo(logits.dtype).tiny)


class ChoiceBehaviour(Behaviour):
    """The user looks at the whole slate and takes at most one item: a softmax with an outside option.

    `P(click at t) = exp(z_t) / (1 + sum_s exp(z_s))`, so that e_t = (1 + exp z_t) / (1 + sum_s exp z_s). A learned,
    small share of the visits is of users who behave independently: else two clicks on one slate would be impossible.

    References:
        McFadden, Conditional logit analysis of qualitative choice behavior (1974).
    """

    def __init__(self, num_positions: int) -> None:
        super().__init__(num_positions)
        self.others = nn.Parameter(torch.empty(()))  # logit of the share of the others

    def _choosing(self, logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities that nothing is chosen (...), and that positions are looked at (..., M)."""
        chosen = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        nothing = -F.pad(chosen, (0, 1)).logsumexp(-1)
        return nothing, F.softplus(logits) + nothing.unsqueeze(-1)

    def examination(self, logits: Tensor, extra: Tensor, mask: Tensor) -> Tensor:
        """See `Behaviour.examination`."""
        return torch.lerp(self._choosing(logits, mask)[1].exp(), torch.ones_like(logits), self.others.sigmoid())

    def log_likelihood(
        self, logits: Tensor, extra: Tensor, mask: Tensor, examined: Tensor, leading: Tensor, seen: Tensor
    ) -> Tensor:
        """See `Behaviour.log_likelihood`."""
        nothing, looked_at = self._choosing(logits, mask)
        one = ((looked_at + examined) * leading).sum(-1)
        chosen = torch.where(leading.any(-1), one, nothing)
        impossible = (leading.sum(-1) > 1) | (seen & ~leading).any(-1)
        chosen = chosen.masked_fill(impossible, float("-inf")) + F.logsigmoid(-self.others)
        return torch.logaddexp(chosen, examined.sum(-1) + F.logsigmoid(self.others))


#: By the name in a config.
BEHAVIOURS: dict[str, type[Behaviour]] = {
    "independent": IndependentBehaviour,
    "cascade": CascadeBehaviour,
    "satisfaction": SatisfactionBehaviour,
    "memory": MemoryBehaviour,
    "choice": ChoiceBehaviour,
}
