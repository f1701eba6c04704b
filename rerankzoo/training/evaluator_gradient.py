"""Teaching a generator through a frozen evaluator that gradients pass through.

B requests, N candidates, M positions, S slates, T targets.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rerankzoo.batch import Batch, inputs, shown, widened
from rerankzoo.layers import gumbel_choices
from rerankzoo.training.objectives import Companion, Objective, ObjectiveOutput


class EvaluatorGradient(Objective):
    """Consistency: soft slates are drawn from the model's position-wise logits, and a frozen evaluator's word on them
    is improved by its gradient.

    For a model whose logits are (B, M, N), such as NAR4Rec, or that has others to draw by (`path_logits`, CONGRATS).
    With Gumbel noise r and temperature T, `P' = softmax((z_t + r) / T)`. The loss of a soft slate is

        utility:   -V(P') / |sg V(P')|          (ours: a relative gain counts the same in every request)
        feedback:  -sum over positions and targets of log p(P')          (the paper's)

    where V is the expected utility and p the probability of each feedback. `supervised_weight` times the model's own
    loss is added. The loss says little; watch the metric `value`, the mean of V, in the evaluator's units.

    Args:
        evaluator: Folder or Hub id of an evaluator with `score_choices`, or of a generator with one beside it.
        reward: Which of the two losses.
        temperature: T.
        num_slates: S, soft slates drawn for each request.
        distinct: Whether no candidate may stand twice in a soft slate (ours; see `rerankzoo.layers.gumbel_choices`).
        supervised_weight: alpha, weight of the model's own loss; with 0 it takes no part.

    Raises:
        ValueError: If an argument is out of its range, or the model does not score all positions at once.

    References:
        CONGRATS (arXiv 2510.10127), consistent differentiable training; T = 0.3, alpha = 0.5.
    """

    generators_only = True

    def __init__(
        self,
        evaluator: str,
        reward: Literal["utility", "feedback"] = "utility",
        temperature: float = 0.3,
        num_slates: int = 1,
        distinct: bool = True,
        supervised_weight: float = 0.5,
    ) -> None:
        if not temperature > 0 or num_slates < 1 or not 0 <= supervised_weight < float("inf"):
            raise ValueError(
                "expected a temperature above 0, num_slates of 1 or more and a finite supervised_weight of 0 or more, "
                f"got {temperature}, {num_slates} and {supervised_weight}"
            )
        if reward not in ("utility", "feedback"):
            raise ValueError(f"reward: expected 'utility' or 'feedback', got {reward!r}")
        self.evaluator = evaluator
        self.reward = reward
        self.temperature = temperature
        self.num_slates = num_slates
        self.distinct = distinct
        self.supervised_weight = supervised_weight

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        return {"evaluator": Companion(self.evaluator, evaluator=True)}

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        known = inputs(batch)
        output = model(**(batch if self.supervised_weight else known))
        logits, mask = output.get("path_logits", output.logits), batch["candidate_mask"]
        if logits.dim() != 3:
            raise ValueError(f"{type(model).__name__} scores a position given those above it, not all at once")
        choices = gumbel_choices(logits, mask, self.temperature, self.num_slates, self.distinct)
        with torch.autocast(choices.device.type, enabled=False):
            valued = self.companions["evaluator"].score_choices(choices, **known)
        consistency = self._consistency(valued, shown(choices)).mean()
        values = widened(valued.utilities).masked_fill(~mask.any(-1, keepdim=True), 0.0)
        terms, metrics = {"consistency": consistency}, {"value": values.detach().mean()}
        if not self.supervised_weight:
            return ObjectiveOutput(loss=consistency, loss_terms=terms, metrics=metrics)
        supervised = output.loss
        loss = None if supervised is None else consistency + self.supervised_weight * supervised
        return ObjectiveOutput(loss=loss, loss_terms={**terms, "supervised": supervised}, metrics=metrics)

    def _consistency(self, valued: Any, real: Tensor) -> Tensor:
        """The loss (B, S) of soft slates whose positions (B, S, M) are real; 0 of empty ones."""
        if self.reward == "utility":
            values = widened(valued.utilities)
            scale = values.detach().abs().clamp_min(torch.finfo(values.dtype).tiny)
            return -(values / scale).masked_fill(~real.any(-1), 0.0)
        if valued.probabilities is None:
            raise ValueError("reward 'feedback' needs an evaluator that predicts feedback; use 'utility'")
        chances = widened(valued.probabilities).masked_fill(~real.unsqueeze(-1), 1.0)
        return -chances.clamp_min(torch.finfo(chances.dtype).tiny).log().sum((-1, -2))
