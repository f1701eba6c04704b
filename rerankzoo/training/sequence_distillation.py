"""Teaching a generator what another one generates: an autoregressive teacher, a student of one pass.

B requests, N candidates, M positions, S slates.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import ModelOutput

from rerankzoo.batch import Batch, inputs
from rerankzoo.generation.rollouts import draw_slates
from rerankzoo.generation.scorer import remaining_log_probs
from rerankzoo.losses import soft_label_loss
from rerankzoo.training.objectives import Companion, Objective, ObjectiveOutput


class SequenceDistillation(Objective):
    """A frozen generator draws slates, and what it thinks of every candidate at every position is learned.

    With q the teacher and p the student, the loss is the mean over drawn slates of `sum_t KL(q_t || p_t)`, both given
    the items above. As the slates are drawn from q, that is KL(q || p) over whole slates in expectation. A student that
    scores all positions at once learns the teacher's mean over what may stand above: where the teacher has several
    modes, a mixture of them. Neither labels nor logged slates are needed.

    Args:
        generator: Folder or Hub id of the teacher.
        num_slates: S, drawn from it in every step.
        temperature: Of the teacher: below 1, q is sharper than what it was trained to be, near 0 its greedy slate.
        supervised_weight: Weight of the student's own loss, which is added.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Kim and Rush, 2016 (sequence-level distillation); Dual-Rerank (arXiv 2604.07420), KL(teacher || student) per
        position, where teacher and student share an encoder. What slates it is taken on is not known to us.
    """

    generators_only = True

    def __init__(
        self, generator: str, num_slates: int = 4, temperature: float = 1.0, supervised_weight: float = 0.0
    ) -> None:
        if num_slates < 1 or not 0 < temperature < float("inf") or not 0 <= supervised_weight < float("inf"):
            raise ValueError(
                "expected num_slates of 1 or more, a finite temperature above 0 and a finite supervised_weight of 0 or "
                f"more, got {num_slates}, {temperature} and {supervised_weight}"
            )
        self.generator = generator
        self.num_slates = num_slates
        self.temperature = temperature
        self.supervised_weight = supervised_weight

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        return {"generator": Companion(self.generator)}

    def learns_from_labels(self) -> bool:
        """See `Objective.learns_from_labels`."""
        return self.supervised_weight > 0

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        known, teacher = inputs(batch), self.companions["generator"]
        slates = draw_slates(teacher, known, self.num_slates, self.temperature)
        with torch.no_grad():
            told = teacher.log_distributions(slates, **known)
            labels = remaining_log_probs(told / self.temperature, told > float("-inf")).exp()
        distilled = soft_label_loss(model.log_distributions(slates, **known), labels, slates).mean()
        if not self.supervised_weight:
            return ObjectiveOutput(loss=distilled, loss_terms={"distillation": distilled})
        supervised = model(**batch).loss
        loss = None if supervised is None else distilled + self.supervised_weight * supervised
        return ObjectiveOutput(loss=loss, loss_terms={"distillation": distilled, "supervised": supervised})
