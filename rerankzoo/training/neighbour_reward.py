"""Teaching a model that edits slates by what an evaluator says of each slate's neighbours.

B requests, N candidates, M positions, S slates, K edits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.losses import advantages, hard_label_loss, neighbour_loss, policy_gradient_loss, returns_to_go
from rerankzoo.slates import edited_slates
from rerankzoo.training.slate_objectives import SlateObjective


class NeighbourObjective(SlateObjective):
    """A model edits the upstream order, and learns from the value of all slates that are one edit away.

    Each request is edited `num_paths` times by `num_edits` edits that are drawn from the model; at slates on the way
    all M N neighbours are valued. Neither feedback nor logged slates are needed. The metric `value` is the mean value
    of the last slates.
    """

    def __init__(self, evaluator: str, num_edits: int, num_paths: int, supervised_weight: float) -> None:
        super().__init__(evaluator, supervised_weight)
        if min(num_edits, num_paths) < 1:
            raise ValueError(f"expected num_edits and num_paths of 1 or more, got {num_edits} and {num_paths}")
        self.num_edits = num_edits
        self.num_paths = num_paths

    @torch.no_grad()
    def draw(self, model: Any, known: Batch) -> Tensor:
        """See `SlateObjective.draw`: the slates (B, paths * (K + 1), M) of paths of edits, without dropout."""
        if not hasattr(model, "edit_path"):
            raise ValueError(f"{type(model).__name__} edits no slates")
        training = model.training
        model.eval()
        start = model.start_slates(known, model.config.slate_size).expand(-1, self.num_paths, -1)
        slates: Tensor = model.edit_path(start, self.num_edits, True, **known).slates
        model.train(training)
        torch.clear_autocast_cache()
        return slates

    def reached(self, values: Tensor) -> Tensor:
        """See `SlateObjective.reached`: of the values (B, paths * (K + 1)), the mean of the last ones."""
        return values.unflatten(1, (self.num_paths, -1))[..., -1].mean()

    def neighbours(self, slates: Tensor, possible: Tensor, known: Batch) -> tuple[Tensor, Tensor]:
        """The neighbours (B, S, M, N, M) of slates (B, S, M), and their values (B, S, M, N).

        Where an edit is not possible (B, S, M, N), the slate itself stands, which is among its own neighbours.
        """
        found = edited_slates(slates, possible.shape[-1])
        found = torch.where(possible.unsqueeze(-1), found, slates[:, :, None, None])
        return found, self.value(found.flatten(1, 3), known).view(possible.shape)


class BestNeighbour(NeighbourObjective):
    """Ours: a model that edits slates learns the best neighbour of all slates that it comes by.

    That slate is what the model is to put at every position of every slate on the way, by cross-entropy. It is better
    than the best that the model draws, so that what is learned is ahead of the model until no single edit improves on
    what the model does; and it may be several edits away, so that an edit need not gain by itself. Requests whose
    slates are all worth the same teach nothing; nor is it learned where to edit, which goes by the item choice.

    Args:
        evaluator: See `SlateObjective`.
        num_edits: K.
        supervised_weight: Weight of the model's own loss, by which its scores of single candidates are learned.

    Raises:
        ValueError: If an argument is out of its range; in training, if the model edits no slates.
    """

    def __init__(self, evaluator: str, num_edits: int = 4, supervised_weight: float = 0.0) -> None:
        super().__init__(evaluator, num_edits, 1, supervised_weight)

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        what = model.edit_choices(slates, **known)[1]
        near, worth = (some.flatten(1, 3) for some in self.neighbours(slates, what > float("-inf"), known))
        best = near[torch.arange(len(near), device=near.device), worth.argmax(1)].unsqueeze(1)  # (B, 1, M)
        told = worth.amax(1, keepdim=True) > worth.amin(1, keepdim=True)
        return hard_label_loss(what, best.expand_as(slates)) * told


class NeighbourReward(NeighbourObjective):
    """NLGR's: a model that edits slates learns what every edit would have gained by a frozen evaluator.

    At every slate on the way the model's choices move to those neighbours that are better than the slate
    (`rerankzoo.losses.neighbour_loss`); gains count in units of the root mean square of the request's.

    That is a hill climber, which ends where no single edit helps. With a `discount` above 0 an edit also answers for
    what later edits gain, by a policy gradient with the mean over the paths as baseline; with 1 the gradient is that of
    the expected value of the slates that the paths end in (ours).

    Args:
        evaluator: See `SlateObjective`.
        num_edits: K.
        num_paths: Paths per request.
        position_weight: Weight of the cross-entropy of the position choice, the paper's alpha.
        discount: How much each later edit's gain counts for the edits before it, at most 1; 0 is the paper's.
        supervised_weight: Weight of the model's own loss, by which its scores of single candidates are learned.

    Raises:
        ValueError: If an argument is out of its range; in training, if the model edits no slates.

    References:
        NLGR (arXiv 2502.06097).
    """

    def __init__(
        self,
        evaluator: str,
        num_edits: int = 4,
        num_paths: int = 2,
        position_weight: float = 0.2,
        discount: float = 0.0,
        supervised_weight: float = 0.0,
    ) -> None:
        super().__init__(evaluator, num_edits, num_paths, supervised_weight)
        if not 0 <= discount <= 1 or not 0 <= position_weight < float("inf"):
            raise ValueError(
                "expected a discount in [0, 1] and a finite position_weight of 0 or more, got "
                f"{discount} and {position_weight}"
            )
        self.position_weight = position_weight
        self.discount = discount

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        paths, worth = (each.unflatten(1, (self.num_paths, -1)) for each in (slates, values))
        before, after = (some.flatten(1, 2) for some in (paths[:, :, :-1], paths[:, :, 1:]))  # (B, paths * K, M)
        where, what = model.edit_choices(before, **known)
        possible = what > float("-inf")  # (B, S, M, N)
        neighbours, found = self.neighbours(before, possible, known)
        gains = found - worth[:, :, :-1].flatten(1).unsqueeze(-1).unsqueeze(-1)
        spread = _spread(gains, possible)
        losses = neighbour_loss(where, what, gains / spread[..., None, None], self.position_weight)
        if not self.discount:
            return losses
        # The chance of the slate that came next, whichever edits lead to it; what they gained themselves is above.
        led = possible & (neighbours == after[:, :, None, None]).all(-1)
        chance = (where.unsqueeze(-1) + what).masked_fill(~led, float("-inf")).flatten(2).logsumexp(-1, keepdim=True)
        gained = worth.diff(dim=-1)
        later = (returns_to_go(gained, self.discount) - gained) / spread.unsqueeze(-1)
        some = (before >= 0).any(-1, keepdim=True)
        credit = advantages(later, some.view(later.shape), normalise=False).flatten(1, 2).unsqueeze(-1)
        return losses + policy_gradient_loss(chance.masked_fill(~some, 0.0), credit)


def _spread(gains: Tensor, possible: Tensor) -> Tensor:
    """The root mean square (B, 1) of the gains (B, S, M, N) of a request's possible edits; infinite where all are 0."""
    squares = gains.square().masked_fill(~possible, 0.0).flatten(1).sum(1, keepdim=True)
    mean = squares / possible.flatten(1).sum(1, keepdim=True).clamp_min(1)
    return mean.masked_fill(mean == 0, torch.inf).sqrt()
