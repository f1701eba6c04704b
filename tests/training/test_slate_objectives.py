"""Objectives of slates and values, by hand: what each teaches, where its slates come from."""

from __future__ import annotations

import copy
import math
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.errors import RerankingDataError
from rerankzoo.features import FeatureSchema, TargetSpec
from rerankzoo.losses import group_loss
from rerankzoo.training import (
    Comprehensive,
    EvaluatorReward,
    FlowBalance,
    GroupRelative,
    OffPolicyReinforce,
    Preference,
)
from rerankzoo.training.objectives import Companions
from tests.training.test_objectives import BATCH, Plackett, Table

EVERY = torch.tensor(list(permutations(range(3), 2))).unsqueeze(0)  # (1, 6, 2)
MASK = BATCH["candidate_mask"]


class Generator(Plackett):
    """One that knows its slate size and schema; of what it draws nothing is left to chance."""

    config = SimpleNamespace(slate_size=2)
    schema = FeatureSchema(name="tiny", item_id="id", fields=(), targets=(TargetSpec(name="click"),))

    def log_likelihood(self, slates: Tensor, candidate_mask: Tensor, **other: Tensor) -> Tensor:
        return super().log_likelihood(slates, candidate_mask)


def with_companions(objective: Any, **models: Any) -> Any:
    objective.companions = Companions(**models)
    return objective


def likelihoods(model: Plackett, slates: Tensor = EVERY) -> Tensor:
    return model.log_likelihood(slates, MASK).sum(-1)


def mined(slates: Tensor = EVERY) -> dict[str, Tensor]:
    return {**BATCH, "slates": slates, "slate_values": Table().score_slates(slates, MASK)}


# --- groups ---------------------------------------------------------------------------------------------------------


def test_group_is_drawn_or_given() -> None:
    slates = torch.tensor([[[0, 1], [1, 2], [0, 1]]])  # values 11 and 9; what comes twice counts once
    model = Generator([0.5, 0.0, -0.5], slates)
    drawn = with_companions(GroupRelative("somewhere", "own=3"), evaluator=Table()).loss(model, BATCH)
    high = math.e / (math.e + math.exp(-1))
    expected = -(high * likelihoods(model, slates)[0, 0] + (1 - high) * likelihoods(model, slates)[0, 1])
    torch.testing.assert_close(drawn.loss, expected)
    assert drawn.metrics["value"].item() == pytest.approx((11 + 9 + 11) / 3)
    given = with_companions(GroupRelative(None)).loss(model, mined(slates))
    torch.testing.assert_close(given.loss, expected)
    assert GroupRelative(None, "own=3,outputs/other=2").declare() == {}
    with pytest.raises(RerankingDataError, match=r"slate_values.*expected mined slates with values, or an evaluator"):
        with_companions(GroupRelative(None)).loss(model, BATCH)


def test_proposals_join_the_group() -> None:
    class Other:
        generation_config_class = Plackett.generation_config_class
        training = False

        def generate(self, num_beams: int, slate_size: int, **batch: Tensor) -> Tensor:
            assert (num_beams, slate_size) == (1, 2)
            return torch.tensor([[2, 1]])

    objective = GroupRelative("somewhere", "own=2,outputs/other=1")
    assert {name: companion.source for name, companion in objective.declare().items()} == {
        "evaluator": "somewhere",
        "outputs/other": "outputs/other",
    }
    model = Generator([0.5, 0.0, -0.5], torch.tensor([[[0, 1], [1, 2]]]))
    with_companions(objective, evaluator=Table(), **{"outputs/other": Other()})
    group = torch.tensor([[[0, 1], [1, 2], [2, 1]]])
    expected = group_loss(likelihoods(model, group), mined(group)["slate_values"], torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(objective.loss(model, BATCH).loss, expected.mean())


def test_what_others_do_not_find_is_worth_more() -> None:
    """Values 11 and 9 are +1 and -1 deviations. Both others find [1, 2]: [0, 1] turns two of the three pairs round."""

    class Other:
        def generate(self, num_beams: int, slate_size: int, **batch: Tensor) -> Tensor:
            assert (num_beams, slate_size) == (1, 2)
            return torch.tensor([[1, 2]])

    slates = torch.tensor([[[0, 1], [1, 2]]])
    model = Generator([0.5, 0.0, -0.5], slates)
    objective = Comprehensive("somewhere", "outputs/other,outputs/another", gain_weight=1.5, proposals="own=2")
    assert {"evaluator", "outputs/other", "outputs/another"} == objective.declare().keys()
    with_companions(objective, evaluator=Table(), **{"outputs/other": Other(), "outputs/another": Other()})
    worth = torch.tensor([[1.0 + 1.5 * 2 * 2 / 3, -1.0]])
    expected = group_loss(likelihoods(model, slates), worth, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(objective.loss(model, BATCH).loss, expected.mean())
    for wrong in ({"beside": ""}, {"beside": "a,,b"}, {"beside": "a", "gain_weight": -1.0}):
        with pytest.raises(ValueError, match="expected generators and a finite gain_weight"):
            Comprehensive("somewhere", **wrong)


# --- policy gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["slate", "position"])
def test_gradient_of_every_advantage_that_is_exact(advantage: Any) -> None:
    torch.manual_seed(0)
    model = Generator([0.3, -0.2, 0.5])
    objective = with_companions(EvaluatorReward("somewhere", 40_000, advantage=advantage), evaluator=Table())
    objective.loss(model, BATCH).loss.backward()
    exact = Generator([0.3, -0.2, 0.5])
    (-(likelihoods(exact).exp() * mined()["slate_values"]).sum()).backward()
    torch.testing.assert_close(model.scores.grad, exact.scores.grad, rtol=0.05, atol=0.05)


def test_advantages_by_hand() -> None:
    slates = torch.tensor([[[0, 1], [1, 2]]])  # gains 1 and 10; 5 and 4. Alone 1, 5; 5, 2
    values, bonus = mined(slates)["slate_values"], torch.zeros(1, 2, 2)

    def found(**options: Any) -> list[Any]:
        objective = with_companions(EvaluatorReward("somewhere", 2, **options), evaluator=Table())
        return objective.advantages({"candidate_mask": MASK}, slates, values, bonus)[0].tolist()

    assert found(advantage="slate") == [[1.0], [-1.0]]
    assert found(advantage="slate", normalise=True) == [[1.0], [-1.0]]
    assert found(advantage="position") == [[1.0, 3.0], [-1.0, -3.0]]
    assert found(advantage="position", discount=0.0) == [[-2.0, 3.0], [2.0, -3.0]]
    # Without the first item, the second is worth 5 and 2: 11 - 5, 9 - 2. Without the second: 11 - 1, 9 - 5.
    assert found(advantage="self_plus_difference") == [[-0.5, 3.0], [0.5, -3.0]]
    top, low = 1.0, 1 / math.log2(3)
    mean = (top + low) / 2
    expected = [[top / mean, low / mean], [-top / mean, -low / mean]]
    assert found(advantage="decoupled") == [pytest.approx(row) for row in expected]


def test_rare_slates_earn_a_bonus() -> None:
    slates = torch.tensor([[[0, 1], [1, 2]]])
    model = Generator([0.5, 0.0, -0.5], slates)
    objective = with_companions(EvaluatorReward("somewhere", 2, entropy_weight=3.0), evaluator=Table())
    likelihood = likelihoods(model, slates)[0]
    earned = torch.tensor([11.0, 9.0]) - 3 * likelihood.detach()
    expected = -((earned - earned.mean()) * likelihood).mean()
    torch.testing.assert_close(objective.loss(model, BATCH).loss, expected)


def test_clipping_is_the_plain_gradient_of_fresh_draws() -> None:
    gradients = []
    for clip in (None, 0.1):
        model = Generator([0.5, 0.0, -0.5], EVERY).train()
        objective = with_companions(EvaluatorReward("somewhere", 6, clip=clip), evaluator=Table())
        objective.loss(model, BATCH).loss.backward()
        assert model.training
        gradients.append(model.scores.grad)
    torch.testing.assert_close(*gradients)


def test_given_slates_are_weighed_by_the_policy() -> None:
    model = Generator([0.5, 0.0, -0.5])
    found = with_companions(EvaluatorReward(None)).loss(model, mined()).loss
    within = likelihoods(model).softmax(-1)  # all slates: their probabilities
    values = mined()["slate_values"]
    torch.testing.assert_close(found, -(within * (values - values.mean())).sum())


# --- flows and preferences ------------------------------------------------------------------------------------------


def test_flow_needs_one() -> None:
    model = Generator([0.5, 0.0, -0.5])
    rewards = 2.0 * (values := mined()["slate_values"]).sub(values.mean()) / values.std(correction=0)
    excess = rewards - likelihoods(model)
    found = with_companions(FlowBalance(None, sharpness=2.0)).loss(model, mined()).loss
    torch.testing.assert_close(found, excess.var(correction=0))
    with pytest.raises(ValueError, match="balance 'detailed' needs a model with a flow, got Generator"):
        with_companions(FlowBalance(None, balance="detailed")).loss(model, mined())


def test_preferences_by_hand() -> None:
    start, model = Generator([0.0, 0.0, 0.0]), Generator([0.5, 0.0, -0.5])
    objective = with_companions(Preference(pairs="evaluator", beta=0.5), start=start)
    best, worst = torch.tensor([[[0, 1]]]), torch.tensor([[[1, 0]]])  # values 11 and 7, of all 5 to 12
    pair = mined(torch.cat([worst, best], dim=1))
    margin = (likelihoods(model, best) - likelihoods(model, worst)).item()  # at the start 0
    assert objective.loss(model, pair).loss.item() == pytest.approx(math.log(1 + math.exp(-0.5 * margin)))
    assert objective.loss(model, mined(best)).loss.item() == 0  # no pair
    labels = {
        **BATCH,
        "candidate_value": torch.ones(1, 3, 1),
        "slates": torch.cat([worst, best], dim=1),
        "feedback": torch.tensor([[[[0.0], [0.0]], [[0.0], [1.0]]]]),
    }
    logged = with_companions(Preference(pairs="logged", beta=0.5), start=start).loss(model, labels)
    assert logged.loss.item() == pytest.approx(math.log(1 + math.exp(-0.5 * margin)))
    resorted = with_companions(Preference(beta=0.5), start=start).loss(model, labels)
    # Of the first slate nothing changes; of the second, 0 1, the click moves up: 1 0 is preferred.
    assert resorted.loss.item() == pytest.approx(math.log(1 + math.exp(0.5 * margin)) / 2)
    with pytest.raises(RerankingDataError, match=r"feedback.*pairs 'logged' are made of it"):
        with_companions(Preference(pairs="logged"), start=start).loss(model, mined())


def test_pairs_of_a_log_need_its_labels() -> None:
    assert Preference().learns_from_labels()
    assert not Preference(pairs="evaluator").learns_from_labels()
    assert not GroupRelative(None).learns_from_labels()


def test_the_reference_stays_where_training_started() -> None:
    model = Generator([0.5, 0.0, -0.5])
    objective = with_companions(Preference(pairs="evaluator"), start=copy.deepcopy(model))
    assert objective.start_name() == "start"
    assert objective.loss(model, mined()).loss.item() == pytest.approx(math.log(2))


# --- what another policy has shown ----------------------------------------------------------------------------------


def off_policy(batch: dict[str, Any], model: Generator, **options: Any) -> tuple[Any, Tensor]:
    """The output of a policy gradient, and the gradient of the scores."""
    output = OffPolicyReinforce(**options).loss(model, batch)
    output.loss.backward()
    return output, model.scores.grad


@pytest.mark.parametrize("credit", ["slate", "cascade"])
def test_off_policy_gradient_is_that_of_the_self_normalised_estimate(credit: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    slates = EVERY[0].repeat(5, 1).unsqueeze(1)  # thirty requests of one slate
    feedback = torch.rand(30, 1, 2, 1, generator=generator)
    propensity = 0.2 + 0.8 * torch.rand(30, 1, 2, generator=generator)
    mask = MASK.expand(30, -1)
    batch = {"slates": slates, "feedback": feedback, "propensity": propensity, "candidate_mask": mask}
    batch["candidate_value"] = torch.ones(30, 3, 1)
    model = Generator([0.5, 0.0, -0.5])
    output, gradient = off_policy(batch, model, clip=1e9, credit=credit)
    exact = Generator([0.5, 0.0, -0.5])
    ratios = (exact.log_likelihood(slates, mask) - propensity.log())[:, 0]
    weights = ratios.sum(-1, keepdim=True).exp().expand(-1, 2) if credit == "slate" else ratios.cumsum(-1).exp()
    earned = feedback[:, 0, :, 0]
    estimate = ((weights * earned).sum(0) / weights.sum(0)).sum()
    (-estimate).backward()
    assert output.metrics["value"].item() == pytest.approx(estimate.item(), rel=1e-5)
    torch.testing.assert_close(gradient, exact.scores.grad, rtol=1e-4, atol=1e-6)
    effective = (weights.sum(0) ** 2 / (weights**2).sum(0) / 30).mean().item()
    assert output.metrics["effective"].item() == pytest.approx(effective, rel=1e-5)
    assert output.metrics["clipped"].item() == 0


def test_clipped_weights_by_hand() -> None:
    log_ratios = torch.tensor([[[math.log(2.0), math.log(3.0)]], [[math.log(0.5), 0.0]]]).double()  # 6 and 0.5
    earned = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]]).double()
    shown = torch.tensor([[[True, True]], [[True, False]]])
    gained, metrics = OffPolicyReinforce(clip=4.0).advantages(log_ratios, earned * shown, shown)
    base = 4 * 1 / 4.5  # of the first position; nothing is earned at the second
    assert gained[:, 0, 0].tolist() == pytest.approx([4 * (1 - base) * 2 / 4.5, 0.5 * -base * 2 / 4.5])
    assert metrics["clipped"].item() == pytest.approx(2 / 3)
    assert metrics["effective"].item() == pytest.approx((4.5**2 / (16.25 * 2) + 1) / 2)
    assert metrics["value"].item() == pytest.approx(base)
    gained, metrics = OffPolicyReinforce(clip=4.0, credit="cascade").advantages(log_ratios, earned * shown, shown)
    base = 2 * 1 / 2.5
    assert gained[0, 0].tolist() == pytest.approx([2 * (1 - base) * 2 / 2.5, 0.0])
    assert metrics["clipped"].item() == pytest.approx(1 / 3)


def test_a_log_that_off_policy_learning_cannot_use() -> None:
    model, batch = Generator([0.5, 0.0, -0.5]), {**BATCH, "slates": EVERY}
    with pytest.raises(RerankingDataError, match="feedback"):
        OffPolicyReinforce().loss(model, batch)
    known = {**batch, "feedback": torch.ones(1, 6, 2, 1), "candidate_value": torch.ones(1, 3, 1)}
    with pytest.raises(RerankingDataError, match="no propensities"):
        OffPolicyReinforce().loss(model, known)
    for wrong in ({"clip": 0.0}, {"credit": "position"}, {"supervised_weight": -1.0}):
        with pytest.raises(ValueError, match="expected a"):
            OffPolicyReinforce(**wrong)
    empty = {**known, "slates": torch.full_like(EVERY, -100), "propensity": torch.zeros(1, 6, 2)}
    output, gradient = off_policy(empty, model)
    assert output.loss.item() == 0
    assert not gradient.any()
