"""What slates would earn, by evaluators that did not learn from the feedback that tests them.

An evaluator that is fitted to one half of a log chooses slates for other requests. What it predicts for them is too
much: it chose by its own errors, too (the winner's curse). The other half, of which it knows nothing, tells how much:
there the observed utility y of the shown slates is regressed on the prediction's two parts,

    y = c + b0 * (what the items are worth alone) + b1 * (what they add to or take from one another) + noise,

and b0, b1 scale what is predicted for the chosen slates. Of a well-founded prediction both are 1, of noise 0. Their
standard errors are those of the gain. Each half judges what the other chose, and both are averaged.

What this cannot see: errors that grow between what was shown and what is chosen, which is why the evaluator must be of
the form that the held-out likelihood of whole slates prefers.

B requests, S slates per request, M positions, P (request, slate) pairs that were shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.diagnosis.fitting import worth
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import SchemaBound
from rerankzoo.models.interaction import InteractionEvaluator


@dataclass(frozen=True)
class Prediction:
    """A mean over requests with its standard error, in units of utility; `own` is what the choosing evaluator says."""

    mean: float
    error: float
    own: float

    @classmethod
    def average(cls, both: Sequence[Prediction]) -> Prediction:
        """The mean of predictions that rest on different feedback."""
        count = len(both)
        error = sum(one.error**2 for one in both) ** 0.5 / count
        return cls(sum(one.mean for one in both) / count, error, sum(one.own for one in both) / count)


@dataclass(frozen=True)
class Judge:
    """An evaluator, and how far feedback that it did not learn from bears it out."""

    model: InteractionEvaluator
    scales: Tensor  # (3,), of the regression: c, b0, b1
    covariance: Tensor  # (3, 3), of the scales, HC3 (MacKinnon and White 1985)
    residual: float  # standard deviation of the residuals: what the utility of one slate is off
    observed: float  # what the shown slates earned, the mean

    @classmethod
    def of(cls, model: InteractionEvaluator, feedback: Batch) -> Judge:
        """Scales an evaluator by logged requests that it did not learn from."""
        slates = feedback["slates"]
        shown = (slates >= 0).any(-1)
        observed = slate_utility(feedback["feedback"], slates, feedback["candidate_value"], model.schema).double()[
            shown
        ]
        alone, pairs = (part[shown] for part in worth(model, feedback, slates))
        columns = torch.stack([torch.ones_like(alone), alone, pairs], dim=1)
        inverse = torch.linalg.pinv(columns.T @ columns, hermitian=True)  # without pairs, say, b1 is 0
        scales = inverse @ columns.T @ observed
        residuals = observed - columns @ scales
        # Each residual is divided by what its own row leaves of it: few rows that alone decide on a scale make it
        # uncertain.
        leverage = ((columns @ inverse) * columns).sum(1)
        outside = residuals / (1 - leverage).clamp_min(1e-3)
        inner = columns.T @ (columns * outside.square().unsqueeze(1))
        return cls(model, scales, inverse @ inner @ inverse, residuals.std().item(), observed.mean().item())

    def gain(self, batch: Batch, slates: Tensor, reference: Tensor | None = None) -> Prediction:
        """What slates (B, M) earn, or what they earn more than the reference's (B, M), the mean over requests."""
        compared = [slates] if reference is None else [slates, reference]
        parts = torch.stack(worth(self.model, batch, torch.stack(compared, dim=1)), dim=-1)
        terms = torch.cat([torch.ones_like(parts[..., :1]), parts], dim=-1)  # (B, 1 or 2, 3)
        terms = terms[:, 0] if reference is None else terms[:, 0] - terms[:, 1]
        mean = terms.mean(0)
        over_requests = (terms @ self.scales).var() / len(terms) if len(terms) > 1 else torch.zeros(())
        error = (mean @ self.covariance @ mean + over_requests).clamp_min(0).sqrt()
        return Prediction((mean @ self.scales).item(), error.item(), mean[1:].sum().item())


class CrossFittedJudge(SchemaBound):
    """Values slates as the judges of both halves do, on average: an `Evaluator` that chose and taught nothing.

    Args:
        judges: Of the halves of a log.
    """

    def __init__(self, judges: Sequence[Judge]) -> None:
        self.judges = list(judges)
        self.schema = judges[0].model.schema

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Any) -> Tensor:
        """Predicted utility (B, S) of slates (B, S, M); -100 pads."""
        on_cpu, found = {name: tensor.cpu() for name, tensor in batch.items()}, []
        for judge in self.judges:
            alone, pairs = worth(judge.model, on_cpu, slates.cpu())
            found.append(judge.scales[0] + judge.scales[1] * alone + judge.scales[2] * pairs)
        return torch.stack(found).mean(0).to(slates.device)
