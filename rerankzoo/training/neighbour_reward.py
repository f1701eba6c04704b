"""Teaching a model that edits slates by what an evaluator says of each slate's neighbours.

B requests, N candidates, M positions, K edits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.losses import hard_label_loss
from rerankzoo.slates import edited_slates
from rerankzoo.training.slate_objectives import SlateObjective


class NeighbourReward(SlateObjective):
    """NLGR: a model edits the upstream order, and learns the best neighbour of all slates that it comes by.

    Each request is edited by `num_edits` edits that are drawn from the model. Of every slate on the way all neighbours
    are valued, M N of them, and the best of all (ours) is what the model is to put at every position of every slate on
    the way, by cross-entropy. It is better than the best that the model draws, so that what is learned is ahead of
    the model until no single edit improves on what the model does; and it may be several edits away, so that an edit
    need not gain by itself.

    Neither feedback nor logged slates are needed. Requests whose slates are all worth the same teach nothing. The
    metric `value` is the mean value of the last slates.

    Args:
        evaluator: See `SlateObjective`.
        num_edits: K.
        supervised_weight: Weight of the model's own loss, by which its scores of single candidates are learned.

    Raises:
        ValueError: If an argument is out of its range; in training, if the model edits no slates.

    References:
        NLGR (arXiv 2502.06097).
    """

    def __init__(self, evaluator: str, num_edits: int = 4, supervised_weight: float = 0.0) -> None:
        super().__init__(evaluator, supervised_weight)
        if num_edits < 1:
            raise ValueError(f"num_edits must be at least 1, got {num_edits}")
        self.num_edits = num_edits

    @torch.no_grad()
    def draw(self, model: Any, known: Batch) -> Tensor:
        """See `SlateObjective.draw`: the slates (B, K + 1, M) of a path of edits, without dropout."""
        if not hasattr(model, "edit_path"):
            raise ValueError(f"{type(model).__name__} edits no slates")
        training = model.training
        model.eval()
        start = model.start_slates(known, model.config.slate_size)
        slates: Tensor = model.edit_path(start, self.num_edits, True, **known).slates
        model.train(training)
        torch.clear_autocast_cache()
        return slates

    def reached(self, values: Tensor) -> Tensor:
        """See `SlateObjective.reached`: of the values (B, K + 1), the mean of the last ones."""
        return values[:, -1].mean()

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        what = model.edit_choices(slates, **known)[1]
        possible = what > float("-inf")  # (B, K + 1, M, N)
        neighbours = edited_slates(slates, what.shape[-1])
        neighbours = torch.where(possible.unsqueeze(-1), neighbours, slates[:, :, None, None]).flatten(1, 3)
        found = self.value(neighbours, known)  # (B, (K + 1) * M * N); a slate is among its own neighbours
        best = neighbours[torch.arange(len(found), device=found.device), found.argmax(1)].unsqueeze(1)  # (B, 1, M)
        told = found.amax(1, keepdim=True) > found.amin(1, keepdim=True)
        return hard_label_loss(what, best.expand_as(slates)) * told
