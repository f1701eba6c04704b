"""Learning a policy from what another one has shown, where the log tells with which probability it did.

B requests, S slates, M positions.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rerankzoo.batch import Batch, inputs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import position_utility
from rerankzoo.losses import policy_gradient_loss, returns_to_go, slate_mean
from rerankzoo.training.objectives import Objective, check_supervised_weight, logging_log_probs, with_supervised

Credit = Literal["slate", "cascade"]


class OffPolicyReinforce(Objective):
    """REINFORCE from logged slates: each counts by how much likelier the model shows it than the policy that did.

    With w = min(pi / pi_log, clip), r what a position of a slate has earned and b = sum w r / sum w over the batch, the
    loss is `-sum_t A_t log pi(l_t | above)`, w and A without gradients:

    - `"slate"`: w is that of the whole slate, the product over its positions, which assumes nothing of users;
      `A = sum_k w (r_k - b_k) / mean w` at every position;
    - `"cascade"`: w_k is that of the slate down to position k, which assumes that feedback depends on nothing below;
      `A_t = sum over k >= t of w_k (r_k - b_k) / mean w_k`.

    Where nothing is clipped, the gradient is that of -sum b, the self-normalised importance-weighted estimate of what
    the model's own slates would earn. A clipped slate goes on to teach, with the weight `clip`.

    A log says little of a policy that is far from its own. The metrics tell: `value` is sum b, in units of utility;
    `effective` the effective sample size, `(sum w)^2 / sum w^2`, as a share of the slates of the batch, a mean over
    positions; `clipped` the share of weights that are cut. Validation measures the same of the model without dropout.

    Args:
        clip: The largest weight, above 0.
        credit: Which.
        supervised_weight: Weight of the model's own loss, which keeps the policy near what the log shows.

    Raises:
        ValueError: If an argument is out of its range; in training, if a batch has no logged slates with feedback,
            values and propensities, or a propensity outside (0, 1].

    References:
        Williams, 1992 (REINFORCE); Ionides, 2008 (truncated weights); Swaminathan and Joachims, 2015 (self-normalised);
        McInerney et al., 2020 (cascade). Seq2Slate (arXiv 1810.02019), and ReAgent's public code for it, which clamps
        the ratio, too, and learns the baseline.
    """

    generators_only = True

    def __init__(self, clip: float = 10.0, credit: Credit = "slate", supervised_weight: float = 0.0) -> None:
        check_supervised_weight(supervised_weight)
        if not clip > 0 or credit not in get_args(Credit):
            raise ValueError(f"expected a clip above 0 and a credit of {get_args(Credit)}, got {clip} and {credit!r}")
        self.clip = clip
        self.credit = credit
        self.supervised_weight = supervised_weight

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        for name in ("slates", "feedback", "candidate_value"):
            if name not in batch:
                raise RerankingDataError("not found: expected logged slates with feedback and values", field=name)
        slates, logged = batch["slates"], logging_log_probs(batch)  # (B, S, M)
        log_probs = model.log_likelihood(slates, **inputs(batch))
        earned = position_utility(batch["feedback"], slates, batch["candidate_value"], model.schema).double()
        advantages, metrics = self.advantages(log_probs.detach().double() - logged, earned, slates >= 0)
        losses = policy_gradient_loss(log_probs, advantages.to(log_probs))
        return with_supervised(model, batch, slate_mean(losses, slates).mean(), self.supervised_weight, metrics)

    def advantages(self, log_ratios: Tensor, earned: Tensor, shown: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The advantages (B, S, M or 1), and the metrics.

        Args:
            log_ratios: (B, S, M), log of the policies' ratio for each choice; 0 at padding.
            earned: (B, S, M), what each position has earned.
            shown: (B, S, M), False at padding.
        """
        whole = self.credit == "slate"
        ratios = (log_ratios.sum(-1, keepdim=True) if whole else log_ratios.cumsum(-1)).exp().expand(shown.shape)
        weights = ratios.clamp_max(self.clip).masked_fill(~shown, 0.0).flatten(0, 1)  # (B S, M)
        total, squares, count = weights.sum(0), weights.square().sum(0), shown.flatten(0, 1).sum(0)  # (M)
        tiny = torch.finfo(total.dtype).tiny
        baseline = (weights * earned.flatten(0, 1)).sum(0) / total.clamp_min(tiny)
        gains = weights.view(shown.shape) * (earned - baseline) * (count / total.clamp_min(tiny))
        effective = total.square() / (squares * count).clamp_min(tiny)
        metrics = {
            "value": baseline.sum(),
            "effective": effective.sum() / (count > 0).sum().clamp_min(1),
            "clipped": ((ratios > self.clip) & shown).sum() / shown.sum().clamp_min(1),
        }
        advantages = gains.sum(-1, keepdim=True) if whole else returns_to_go(gains, discount=1.0)
        return advantages, {name: metric.float() for name, metric in metrics.items()}
