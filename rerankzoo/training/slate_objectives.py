"""Objectives of generators that learn from slates and what an evaluator says of them.

Where an evaluator is named, slates are drawn from the model, or proposed by others, in every step; without one they are
the mined slates of the batch, with their values. The losses are `rerankzoo.losses`, and any generator can be taught.

B requests, N candidates, M positions, S slates, T targets.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from rerankzoo.batch import Batch, gather_candidates, inputs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import position_utility
from rerankzoo.generation.rollouts import (
    OWN,
    PERTURBED,
    UNIFORM,
    UPSTREAM,
    distinct,
    draw_slates,
    marginal_gains,
    parse_proposals,
    prefix_gains,
    propose,
)
from rerankzoo.losses import (
    advantages,
    detailed_balance,
    dpo_loss,
    group_balance,
    group_loss,
    group_value_loss,
    policy_gradient_loss,
    resorted_slates,
    returns_to_go,
    standardised,
    trajectory_balance,
)
from rerankzoo.metrics import order_distance
from rerankzoo.training.objectives import START, Companion, Objective, check_supervised_weight, with_supervised

Advantage = Literal["slate", "position", "self_plus_difference", "decoupled"]
Balance = Literal["group", "trajectory", "detailed"]
Pairs = Literal["resorted", "evaluator", "logged"]


class SlateObjective(Objective):
    """A group of slates per request, their values, and a loss of both.

    Args:
        evaluator: Folder or Hub id of an evaluator, or of a generator with one beside it; `"truth"` of simulated data.
            `None`: the batch has mined slates and their values.
        supervised_weight: Weight of the model's own loss, which is added; with 0 it is not computed.

    Raises:
        ValueError: If the weight is negative.
    """

    generators_only = True

    def __init__(self, evaluator: str | None, supervised_weight: float) -> None:
        check_supervised_weight(supervised_weight)
        self.evaluator = evaluator
        self.supervised_weight = supervised_weight

    def learns_from_labels(self) -> bool:
        """See `Objective.learns_from_labels`."""
        return self.supervised_weight > 0

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        return {} if self.evaluator is None else {"evaluator": Companion(self.evaluator, evaluator=True)}

    @abstractmethod
    def draw(self, model: Any, known: Batch) -> Tensor:
        """The slates (B, S, M) of a step."""

    @abstractmethod
    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """The loss (B,), or (B, S), of slates (B, S, M) with values (B, S)."""

    def value(self, slates: Tensor, known: Batch) -> Tensor:
        """What the evaluator says (B, S) of slates (B, S, M); 0 of empty ones."""
        with torch.no_grad():
            values: Tensor = self.companions["evaluator"].score_slates(slates, **known).float()
        return values.masked_fill((slates < 0).all(-1), 0.0)

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`; the metric `value` is the mean of the slates' values, in units of utility."""
        known = inputs(batch)
        if self.evaluator is not None:
            slates = self.draw(model, known)
            values = self.value(slates, known)
        elif {"slates", "slate_values"} <= batch.keys():
            slates, values = batch["slates"], batch["slate_values"]
        else:
            raise RerankingDataError("expected mined slates with values, or an evaluator", field="slate_values")
        taught = self.teach(model, known, slates, values).mean()
        return with_supervised(model, batch, taught, self.supervised_weight, {"value": self.reached(values)})

    def reached(self, values: Tensor) -> Tensor:
        """What is watched of the values (B, S): their mean."""
        return values.mean()


class EvaluatorReward(SlateObjective):
    """Policy gradient: the generator learns to draw slates that a frozen evaluator values.

    For each request S slates l_s are drawn from the model itself, without dropout, and valued: V_s. The loss is
    `-1/S sum_s sum_t A_st log pi(l_st | above)`, A an advantage over the request's other slates:

    - `"slate"`: `V_s - mean V` at every position (REINFORCE, the group's mean as baseline; with `normalise`: GRPO);
    - `"position"`: of what each position earns from there on, `sum_k discount^k (V(l_<=t+k) - V(l_<t+k))`
      (EG-Rerank; exact for `discount` 1, where it has less variance);
    - `"self_plus_difference"`: of what each item is worth to itself and to the others, `V(l) - V(l without l_t)` (GRN);
    - `"decoupled"`: each feedback target's utility normalised by itself, their sum over the batch; positions count
      1/log2(t + 1) (Dual-Rerank; the weights and the order of the steps are our reading).

    Neither feedback nor logged slates are needed. Of mined slates, which the model has not drawn, it is the gradient of
    the expected advantage within the group (`group_value_loss`), for `"slate"` only. The loss itself says little; watch
    the metric `value`.

    Args:
        evaluator: See `SlateObjective`.
        num_slates: S.
        supervised_weight: Weight of the model's own loss, which keeps the policy near what the log shows.
        advantage: Which.
        normalise: Whether advantages are in standard deviations of the group, 0 where all is worth the same.
        discount: Of `"position"`: 0 asks each choice for its own gain only.
        clip: PPO's bound on the ratio to the policy that the slates were drawn from. One step is made with each draw,
            so that the ratio leaves 1 with dropout only.
        entropy_weight: What each nat of `-log pi` is worth, in units of value.

    Raises:
        ValueError: If an argument is out of its range, or mined slates are to have another advantage than `"slate"`.

    References:
        Williams, 1992 (REINFORCE); Kool et al., 2019; DeepSeekMath (2024), GRPO; EG-Rerank (arXiv 2003.11941); GRN
        (arXiv 2104.00860); Dual-Rerank (arXiv 2604.07420).
    """

    def __init__(
        self,
        evaluator: str | None,
        num_slates: int = 8,
        supervised_weight: float = 0.0,
        advantage: Advantage = "slate",
        normalise: bool = False,
        discount: float = 1.0,
        clip: float | None = None,
        entropy_weight: float = 0.0,
    ) -> None:
        super().__init__(evaluator, supervised_weight)
        if num_slates < 2 or not 0 <= discount <= 1 or not 0 <= entropy_weight < float("inf"):
            raise ValueError(
                "expected num_slates of 2 or more, a discount in [0, 1] and a finite entropy_weight of 0 or more, got "
                f"{num_slates}, {discount} and {entropy_weight}"
            )
        if advantage not in get_args(Advantage) or (evaluator is None and advantage != "slate"):
            raise ValueError(f"advantage {advantage!r}: expected one of {get_args(Advantage)}, of mined slates 'slate'")
        if clip is not None and not 0 < clip < 1:
            raise ValueError(f"clip must lie in (0, 1), got {clip}")
        self.num_slates = num_slates
        self.advantage = advantage
        self.normalise = normalise
        self.discount = discount
        self.clip = clip
        self.entropy_weight = entropy_weight

    def draw(self, model: Any, known: Batch) -> Tensor:
        """See `SlateObjective.draw`."""
        return draw_slates(model, known, self.num_slates)

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        log_probs = model.log_likelihood(slates, **known)
        if self.evaluator is None:
            mask = distinct(slates)
            return group_value_loss(log_probs.sum(-1), advantages(values, mask, self.normalise), mask)
        gained = self.advantages(known, slates, values, -self.entropy_weight * log_probs.detach())
        old = None if self.clip is None else self._when_drawn(model, known, slates)
        return policy_gradient_loss(log_probs, gained, old, self.clip)

    def advantages(self, known: Batch, slates: Tensor, values: Tensor, bonus: Tensor) -> Tensor:
        """The advantages (B, S, M or 1), with a bonus (B, S, M) that each choice earns besides."""
        shown, value = slates >= 0, partial(self.value, known=known)
        if self.advantage == "position":
            returns = returns_to_go(prefix_gains(value, slates) + bonus, self.discount)
            return advantages(returns, shown, self.normalise)
        if self.advantage == "self_plus_difference":
            return advantages(marginal_gains(value, slates) + bonus, shown, self.normalise)
        some = shown.any(-1, keepdim=True)
        if self.advantage == "slate":
            return advantages((values + bonus.sum(-1)).unsqueeze(-1), some, self.normalise)
        each = standardised(self._by_target(known, slates, values) + bonus.sum(-1, keepdim=True), some)
        summed = each.sum(-1, keepdim=True)
        place = torch.arange(slates.shape[-1], device=slates.device)
        weights = 1 / torch.log2(place + 2.0)
        return summed / summed.std(correction=0).clamp_min(1e-6) * (weights / weights.mean())

    def _by_target(self, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """Utilities (B, S, T) of slates by feedback target; the whole value (B, S, 1) if the evaluator has no more."""
        evaluator = self.companions["evaluator"]
        if not hasattr(evaluator, "compute"):
            return values.unsqueeze(-1)
        with torch.no_grad():
            chances = evaluator(slates=slates, **known).probabilities
        if chances is None:
            return values.unsqueeze(-1)
        return (chances.float() * gather_candidates(known["candidate_value"], slates)).sum(2)

    @staticmethod
    def _when_drawn(model: Any, known: Batch, slates: Tensor) -> Tensor:
        training = model.training
        with torch.no_grad():
            old: Tensor = model.eval().log_likelihood(slates, **known)
        model.train(training)
        torch.clear_autocast_cache()
        return old


class GroupObjective(SlateObjective):
    """Slates from several sources, of which each counts once.

    Args:
        evaluator: See `SlateObjective`.
        proposals: Where slates come from and how many, such as `"own=12,perturbed=4,upstream=1,uniform=2"`: draws of
            the model itself, changed copies of those, the upstream order, any slates; the greedy slate and draws of
            another generator by the name of its checkpoint.
        supervised_weight: See `SlateObjective`.

    Raises:
        ValueError: If the proposals cannot be read.
    """

    def __init__(self, evaluator: str | None, proposals: str = "own=6,perturbed=2", supervised_weight: float = 0.0):
        super().__init__(evaluator, supervised_weight)
        self.sources = parse_proposals(proposals)
        self.proposals = proposals

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        others = self.sources.keys() - {OWN, PERTURBED, UNIFORM, UPSTREAM}
        return super().declare() | (
            {} if self.evaluator is None else {name: Companion(name) for name in sorted(others)}
        )

    def draw(self, model: Any, known: Batch) -> Tensor:
        """See `SlateObjective.draw`."""
        return propose(self.sources, known, model.config.slate_size, {**self.companions, OWN: model}, model.schema)


class GroupRelative(GroupObjective):
    """GoalRank: cross-entropy with the policy that a group's values ask for, `softmax((V - mean V) / deviation)`.

    Args, errors: See `GroupObjective`.

    References:
        GoalRank (arXiv 2509.22046), equation 5.
    """

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        return group_loss(model.log_likelihood(slates, **known).sum(-1), values, distinct(slates))


class Comprehensive(GroupRelative):
    """CLIG: a generator that is to find what is good and what the generators beside it do not find.

    A slate's value is `V / deviation + w sum_a POD(l, l_a)`, l_a what the frozen generator a decodes greedily, POD the
    share of pairs in another order (`rerankzoo.metrics.order_distance`). It is learned as `GroupRelative` does.

    Args:
        evaluator: See `SlateObjective`.
        beside: Folders or Hub ids of the generators beside it, separated by commas.
        gain_weight: w.
        proposals: See `GroupObjective`.
        supervised_weight: See `SlateObjective`.

    Raises:
        ValueError: If no generator is named, or the weight is negative.

    References:
        CLIG (arXiv 2504.15625), list comprehensiveness; its loss is not known to us, and this one is ours.
    """

    def __init__(
        self,
        evaluator: str | None,
        beside: str,
        gain_weight: float = 0.3,
        proposals: str = "own=6,perturbed=2",
        supervised_weight: float = 0.0,
    ) -> None:
        super().__init__(evaluator, proposals, supervised_weight)
        if not all(beside.split(",")) or not 0 <= gain_weight < float("inf"):
            raise ValueError(
                f"expected generators and a finite gain_weight of 0 or more, got {beside!r}, {gain_weight}"
            )
        self.beside = beside
        self.gain_weight = gain_weight

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        return super().declare() | {name: Companion(name) for name in self.beside.split(",")}

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        beside, size = [self.companions[name] for name in self.beside.split(",")], slates.shape[-1]
        found = torch.stack([other.generate(**known, num_beams=1, slate_size=size) for other in beside], dim=1)
        gain = order_distance(slates, found, known["candidate_mask"].shape[1]).sum(-1)
        worth = standardised(values, distinct(slates)) + self.gain_weight * gain
        return super().teach(model, known, slates, worth)


class FlowBalance(GroupObjective):
    """GFN4Rec: slates become as probable as they are good, `pi(l)` proportional to a reward `R(l)`.

    Args:
        evaluator: See `SlateObjective`.
        proposals: See `GroupObjective`.
        supervised_weight: See `SlateObjective`.
        balance: `"group"`: the variance of log R - log pi in the group, `R = exp(sharpness (V - mean V) / deviation)`,
            with any generator. `"trajectory"` and `"detailed"` balance with the flow of a generator that has
            `flows`, `R = (V + offset)^sharpness`.
        sharpness: How much more probable better slates are.
        offset: Added to values, which must not be negative with it.

    Raises:
        ValueError: If the balance is unknown or a number not positive; in training, if the model has no flow.

    References:
        GFN4Rec (arXiv 2306.02239); group balance and sharpness are ours.
    """

    def __init__(
        self,
        evaluator: str | None,
        proposals: str = "own=6,perturbed=2",
        supervised_weight: float = 0.0,
        balance: Balance = "group",
        sharpness: float = 1.0,
        offset: float = 1.0,
    ) -> None:
        super().__init__(evaluator, proposals, supervised_weight)
        if balance not in get_args(Balance) or not sharpness > 0 or not offset > 0:
            expected = f"expected a balance of {get_args(Balance)}, sharpness and offset above 0"
            raise ValueError(f"{expected}, got {balance!r}, {sharpness} and {offset}")
        self.balance = balance
        self.sharpness = sharpness
        self.offset = offset

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        mask = distinct(slates)
        if self.balance == "group":
            rewards = self.sharpness * standardised(values, mask)
            return group_balance(model.log_likelihood(slates, **known).sum(-1), rewards, mask)
        if not hasattr(model, "flows"):
            raise ValueError(f"balance {self.balance!r} needs a model with a flow, got {type(model).__name__}")
        log_probs, log_flows = model.flows(slates, **known)
        rewards = self.sharpness * (values + self.offset).clamp_min(torch.finfo(values.dtype).tiny).log()
        balanced = trajectory_balance if self.balance == "trajectory" else detailed_balance
        errors = balanced(log_probs, log_flows, rewards, slates)
        return errors.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)


class Preference(GroupObjective):
    """Direct preference optimisation: of two slates of a request, the better one gains on the worse one.

    The reference is the model as training starts. Requests without a pair teach nothing.

    Args:
        evaluator: See `SlateObjective`; for the pairs of `"evaluator"` only.
        proposals: See `GroupObjective`.
        supervised_weight: See `SlateObjective`.
        pairs: `"resorted"`: what was shown, re-sorted by `1 / position + utility`, against what was shown (GReF's).
            `"evaluator"`: the best against the worst slate of the group. `"logged"`: the one of a request's logged
            slates that earned most against the one that earned least.
        beta: How closely the policy stays to the reference.

    Raises:
        ValueError: If the pairs are unknown or beta is not positive; in training, if the batch lacks feedback.

    References:
        Rafailov et al., 2023 (DPO); GReF (arXiv 2510.25220).
    """

    def __init__(
        self,
        evaluator: str | None = None,
        proposals: str = "own=6,perturbed=2",
        supervised_weight: float = 0.0,
        pairs: Pairs = "resorted",
        beta: float = 0.1,
    ) -> None:
        super().__init__(evaluator, proposals, supervised_weight)
        if pairs not in get_args(Pairs) or not beta > 0 or (evaluator is not None and pairs != "evaluator"):
            expected = f"expected pairs of {get_args(Pairs)}, an evaluator with 'evaluator' only, and beta above 0"
            raise ValueError(f"{expected}, got {pairs!r}, {evaluator!r} and {beta}")
        self.pairs = pairs
        self.beta = beta

    def learns_from_labels(self) -> bool:
        """See `Objective.learns_from_labels`."""
        return self.pairs != "evaluator" or super().learns_from_labels()

    def declare(self) -> dict[str, Companion]:
        """See `Objective.declare`."""
        return {**super().declare(), "start": Companion(START)}

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        if self.pairs == "evaluator":
            return super().loss(model, batch)
        if not {"slates", "feedback", "candidate_value"} <= batch.keys():
            raise RerankingDataError(f"pairs {self.pairs!r} are made of it", field="feedback")
        known, slates = inputs(batch), batch["slates"]
        utility = position_utility(batch["feedback"], slates, batch["candidate_value"], model.schema)  # (B, S, M)
        if self.pairs == "logged":
            taught = self.teach(model, known, slates, utility.sum(-1))
        else:
            resorted = resorted_slates(slates, utility)
            taught = self._prefer(model, known, resorted, slates, (resorted != slates).any(-1))
        return with_supervised(model, batch, taught.mean(), self.supervised_weight, {})

    def teach(self, model: Any, known: Batch, slates: Tensor, values: Tensor) -> Tensor:
        """See `SlateObjective.teach`."""
        mask = distinct(slates)
        ranked = standardised(values, mask)
        request = torch.arange(len(slates), device=slates.device)
        best, worst = (slates[request, place].unsqueeze(1) for place in (ranked.argmax(1), ranked.argmin(1)))
        return self._prefer(model, known, best, worst, (ranked.amax(1) > ranked.amin(1)).unsqueeze(1))

    def _prefer(self, model: Any, known: Batch, better: Tensor, worse: Tensor, mask: Tensor) -> Tensor:
        """The loss (B, S) of pairs of slates (B, S, M), mask (B, S)."""
        both, size = torch.cat([better, worse], dim=1), better.shape[1]
        with torch.no_grad():
            reference = self.companions["start"].log_likelihood(both, **known).sum(-1)
        current = model.log_likelihood(both, **known).sum(-1)
        margin, before = (rows[:, :size] - rows[:, size:] for rows in (current, reference))
        return dpo_loss(margin, before, mask, self.beta)
