from __future__ import annotations

import math
from itertools import permutations
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs
from rerankzoo.errors import SchemaMismatchError
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import Scorer
from rerankzoo.layers import TokenBlock
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReEvaluatorEnsemble, DeGReGenerator
from rerankzoo.models.degre.guide import best_partners
from tests.generation.common import play
from tests.models.common import EvaluatorTestSuite, GeneratorVariantTestSuite, ScorerTestSuite

Batch = dict[str, Tensor]

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "field_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_decoder_layers": 2,
    "utility_threshold": 1.5,
}
HEADS: dict[str, dict[str, Any]] = {
    "feedback": {},
    "conditional": {"conditional_targets": {"order": "click"}},
    "cumulative_regression": {"value_head": "cumulative_regression"},
    "ordered_regression": {"value_head": "ordered_regression"},
    "exit": {"value_head": "exit", "conditional_targets": {"order": "click"}},
}


def soft_labels(batch: Batch) -> Tensor:
    """A random distribution (B, S, M, N) over the candidates left at every position."""
    slates, mask = batch["slates"], batch["candidate_mask"]
    chosen = slates.unsqueeze(-1) == torch.arange(mask.shape[1])
    left = mask[:, None, None] & ((chosen.cumsum(2) - chosen.long()) == 0)
    scores = torch.randn(left.shape, generator=torch.Generator().manual_seed(3))
    labels = scores.masked_fill(~left, -1e9).softmax(-1)
    return labels.masked_fill((slates < 0).unsqueeze(-1), 0.0)


def mined(batch: Batch) -> Batch:
    """The batch with what mining adds."""
    real = (batch["slates"] >= 0).any(-1)
    weights = torch.arange(1.0, real.shape[1] + 1) * real
    return {**batch, "slate_weights": weights / weights.sum(-1, keepdim=True), "soft_labels": soft_labels(batch)}


class TestDeGReGenerator(ScorerTestSuite):
    model_class = DeGReGenerator
    config_values: ClassVar[dict[str, Any]] = TINY


class TestDistilledGenerator(GeneratorVariantTestSuite):
    """Wherever the common tests compute a loss, it is that of distillation."""

    model_class = DeGReGenerator
    config_values: ClassVar[dict[str, Any]] = {**TINY, "soft_label_weight": 0.5}

    @pytest.fixture
    def batch(self, batch: Batch) -> Batch:
        # Sure of the slates themselves, so that they can be learned to the letter.
        labels = F.one_hot(batch["slates"].clamp_min(0), batch["candidate_mask"].shape[1]).float()
        return {**mined(batch), "soft_labels": labels.masked_fill((batch["slates"] < 0).unsqueeze(-1), 0.0)}

    @pytest.fixture
    def mined_batch(self, mined_batch: Batch) -> Batch:
        return mined(mined_batch)


GUIDE = {
    "architectures": ["DeGReEvaluator"],
    **{**TINY, "hidden_size": 24, "num_hidden_layers": 1},
    "initializer_range": 1.0,  # it tells items apart
}


class TestGuidedGenerator(ScorerTestSuite):
    model_class = DeGReGenerator
    config_values: ClassVar[dict[str, Any]] = {**TINY, "guide": GUIDE}


class TestGeneratorGuidedByPairs(GeneratorVariantTestSuite):
    model_class = DeGReGenerator
    config_values: ClassVar[dict[str, Any]] = {
        **TINY,
        "guide": {
            "architectures": ["InteractionEvaluator"],
            "slate_size": 4,
            "hidden_size": 8,
            "initializer_range": 1.0,
        },
    }


class TestDeGReEvaluator(ScorerTestSuite, EvaluatorTestSuite):
    model_class = DeGReEvaluator
    config_values: ClassVar[dict[str, Any]] = TINY


class TestConditionalEvaluator(GeneratorVariantTestSuite):
    model_class = DeGReEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, **HEADS["conditional"]}


class TestRegressionEvaluator(GeneratorVariantTestSuite):
    model_class = DeGReEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, **HEADS["cumulative_regression"]}


class TestOrderedEvaluator(GeneratorVariantTestSuite):
    model_class = DeGReEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, **HEADS["ordered_regression"]}


class TestExitEvaluator(GeneratorVariantTestSuite):
    model_class = DeGReEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, **HEADS["exit"]}


def config(extractor: RerankingFeatureExtractor, **values: Any) -> DeGReConfig:
    return DeGReConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})


def evaluator(extractor: RerankingFeatureExtractor, seed: int = 0, **values: Any) -> DeGReEvaluator:
    torch.manual_seed(seed)
    return DeGReEvaluator(config(extractor, **values)).eval()


def generator(extractor: RerankingFeatureExtractor, **values: Any) -> DeGReGenerator:
    torch.manual_seed(0)
    return DeGReGenerator(config(extractor, **values)).eval()


def each_slate(batch: Batch) -> list[tuple[int, int, list[int], int]]:
    """Row, number, items and number of slates of the row, of every real slate."""
    found = []
    for row, slates in enumerate(batch["slates"].tolist()):
        real = [[item for item in slate if item >= 0] for slate in slates if max(slate) >= 0]
        found += [(row, number, slate, len(real)) for number, slate in enumerate(real)]
    return found


def every_slate(size: int, length: int, requests: int) -> Tensor:
    return torch.tensor(list(permutations(range(size), length))).expand(requests, -1, -1)


# --- the evaluator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discount", ["none", "log2"])
@pytest.mark.parametrize("conditional", [True, False])
def test_values_are_accumulated_expected_utility(
    extractor: RerankingFeatureExtractor, mined_batch: Batch, conditional: bool, discount: Any
) -> None:
    model = evaluator(extractor, conditional_targets={"order": "click"} if conditional else None)
    object.__setattr__(model.schema, "position_discount", discount)
    with torch.no_grad():
        output = model(**inputs(mined_batch), slates=mined_batch["slates"])
    assert output.loss is None
    for row, number, slate, _ in each_slate(mined_batch):
        p = output.logits[row, number].sigmoid()
        total = 0.0
        for position, item in enumerate(slate):
            click = p[position, 0].item()
            order = p[position, 1].item() * (click if conditional else 1.0)
            price = mined_batch["candidate_value"][row, item, 1].item()
            total += (click + 0.5 * price * order) / (math.log2(position + 2) if discount == "log2" else 1.0)
            assert output.prefix_values[row, number, position].item() == pytest.approx(total, rel=1e-5)
        assert output.utilities[row, number].item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("conditional", [True, False])
def test_feedback_loss(extractor: RerankingFeatureExtractor, mined_batch: Batch, conditional: bool) -> None:
    model = evaluator(extractor, conditional_targets={"order": "click"} if conditional else None)
    with torch.no_grad():
        output = model(**mined_batch)
    loss = 0.0
    for row, number, slate, slates in each_slate(mined_batch):
        p, seen = output.logits[row, number].sigmoid(), mined_batch["feedback"][row, number]
        for position in range(len(slate)):
            for target in (0, 1):
                if target == 1 and conditional and seen[position, 0] == 0:
                    continue  # nothing can be learned of orders where nobody clicked
                happened = p[position, target] if seen[position, target] else 1 - p[position, target]
                loss -= math.log(happened.item()) / 2 / len(slate) / slates
    assert output.loss.item() == pytest.approx(loss / 8, rel=1e-5)
    assert output.loss_terms.keys() == {"feedback"}


def test_conditional_chains_multiply() -> None:
    names = ("view", "click", "order", "like")
    schema = FeatureSchema(
        name="chain",
        item_id="item_id",
        fields=(FieldSpec(name="x", group="candidate", kind="numeric"),),
        targets=tuple(TargetSpec(name=name) for name in names),
    )
    parents = {"order": "click", "click": "view"}
    model = DeGReEvaluator(DeGReConfig(feature_schema=schema.to_dict(), conditional_targets=parents))
    logits = torch.tensor([0.5, -1.0, 2.0, 0.3])
    view, click, order, like = logits.sigmoid().tolist()
    expected = [view, view * click, view * click * order, like]
    assert model.value_head.probabilities(logits).tolist() == pytest.approx(expected)
    feedback = torch.tensor([[[[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]]])
    assert model.value_head._possible(feedback)[0, 0].int().tolist() == [[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]]


def test_regression_loss_is_of_accumulated_rewards(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    model = evaluator(extractor, value_head="cumulative_regression")
    with torch.no_grad():
        output = model(**mined_batch)
    loss = 0.0
    for row, number, slate, slates in each_slate(mined_batch):
        reward, error = 0.0, 0.0
        for position, item in enumerate(slate):
            click, order = mined_batch["feedback"][row, number, position].tolist()
            reward += click + 0.5 * mined_batch["candidate_value"][row, item, 1].item() * order
            error += (output.prefix_values[row, number, position].item() - reward) ** 2
        loss += error / len(slate) / slates
        assert output.utilities[row, number] == output.prefix_values[row, number, len(slate) - 1]
    assert output.loss.item() == pytest.approx(loss / 8, rel=1e-4)
    assert output.logits is None


def test_counts_are_worth_what_they_grow_by(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    """Ordered regression: the expected count of a prefix is a sum of chances, of as many as it has positions."""
    model, slates = evaluator(extractor, **HEADS["ordered_regression"]), mined_batch["slates"]
    with torch.no_grad():
        output = model(**mined_batch)
        states = model._read(model._slate_items(mined_batch, slates))
        chances = model.value_head(states).sigmoid().unflatten(-1, (2, 4))
    loss = 0.0
    for row, number, slate, slates_of_row in each_slate(mined_batch):
        total, before, counted, questions = 0.0, [0.0, 0.0], [0.0, 0.0], 0.0
        for position, item in enumerate(slate):
            for target, weight in enumerate((1.0, 0.5 * mined_batch["candidate_value"][row, item, 1].item())):
                p = chances[row, number, position, target].tolist()[: position + 1]
                total += weight * (sum(p) - before[target])
                before[target] = sum(p)
                counted[target] += mined_batch["feedback"][row, number, position, target].item()
                questions -= sum(math.log(q if counted[target] > i else 1 - q) for i, q in enumerate(p))
            assert output.prefix_values[row, number, position].item() == pytest.approx(total, rel=1e-4, abs=1e-5)
        loss += questions / (len(slate) * (len(slate) + 1)) / slates_of_row
    assert output.loss.item() == pytest.approx(loss / 8, rel=1e-4)
    assert output.logits is None
    assert output.log_likelihoods is None


@pytest.mark.parametrize("shares", [(0.0, 0.0, 0.0), (2.0, -0.5, 0.7), (-30.0, 0.5, -0.5)])
def test_who_leaves_earns_no_more(
    extractor: RerankingFeatureExtractor, mined_batch: Batch, shares: tuple[float, ...]
) -> None:
    """The exit head: "click" tells what was seen, "order" happens there; with a gate of -30 only the Weibull leaves."""
    model = evaluator(extractor, **HEADS["exit"])
    with torch.no_grad():
        model.value_head.exits.copy_(torch.tensor(shares))
        output = model(**mined_batch)
    gate, scale, shape = 1 / (1 + math.exp(-shares[0])), 4 * math.exp(shares[1]), math.exp(shares[2])
    loss = 0.0
    for row, number, slate, slates in each_slate(mined_batch):
        stays, total, logged = 1.0, 0.0, 0.0
        seen = mined_batch["feedback"][row, number, :, 0].tolist()
        last = max((place for place, flag in enumerate(seen) if flag), default=-1)
        for position, item in enumerate(slate):
            p = output.logits[row, number, position].sigmoid().tolist()
            price = mined_batch["candidate_value"][row, item, 1].item()
            total += stays * (1 + 0.5 * price * p[1])
            assert output.prefix_values[row, number, position].item() == pytest.approx(total, rel=1e-4)
            found = output.probabilities[row, number, position].tolist()
            assert found == pytest.approx([stays, stays * p[1]], rel=1e-4)
            weary = 1 - math.exp(-(((position + 1) / scale) ** shape - (position / scale) ** shape))
            leaves = gate * (1 - p[0]) + (1 - gate) * weary
            stays *= 1 - leaves
            if position <= last and position + 1 < len(slate):
                logged += math.log(leaves if position == last else 1 - leaves)
            if seen[position]:
                logged += math.log(p[1] if mined_batch["feedback"][row, number, position, 1] else 1 - p[1])
        assert output.log_likelihoods[row, number].item() == pytest.approx(logged, rel=1e-4, abs=1e-5)
        loss -= logged / 2 / len(slate) / slates
    assert output.loss.item() == pytest.approx(loss / 8, rel=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_prefix_values_are_those_of_shorter_slates(
    extractor: RerankingFeatureExtractor, mined_batch: Batch, head: str
) -> None:
    model = evaluator(extractor, **HEADS[head])
    with torch.no_grad():
        values = model(**mined_batch).prefix_values
    for length in (1, 2, 3, 4):
        found = model.score_slates(mined_batch["slates"][..., :length], **mined_batch)
        torch.testing.assert_close(found, values[..., length - 1])


@pytest.mark.parametrize("discount", ["none", "log2"])
@pytest.mark.parametrize("head", HEADS)
def test_incremental_values_equal_full_rescoring(
    extractor: RerankingFeatureExtractor, make_rows: Any, head: str, discount: Any
) -> None:
    model, batch = evaluator(extractor, **HEADS[head]), extractor(make_rows(seed=6, sizes=(5, 5, 5)))
    object.__setattr__(model.schema, "position_discount", discount)
    every = every_slate(5, 4, 3)
    scores, steps = play(model.scorer(), batch, every)
    torch.testing.assert_close(scores, model.score_slates(every, **batch), rtol=1e-5, atol=1e-5)
    for length in (1, 2, 3):
        expected = model.score_slates(every[..., :length], **batch)
        torch.testing.assert_close(steps[..., length - 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_all_expansions_of_all_beams_equal_full_rescoring(
    extractor: RerankingFeatureExtractor, batch: Batch, head: str
) -> None:
    """Rows that branch, end and run out of candidates, as in beam search."""
    model = evaluator(extractor, **HEADS[head])
    scorer, beams = model.scorer(), 3
    with torch.no_grad():
        state = scorer.start(batch)
        for _ in range(3):
            scores, cache = scorer.step(state)
            expanded = torch.cat(
                [state.prefix[:, None].expand(-1, 7, -1), torch.arange(7).expand(len(scores), -1)[..., None]], -1
            )
            expected = model.score_slates(expanded.reshape(8, -1, expanded.shape[-1]), **batch).view(-1, 7)
            left = state.available
            torch.testing.assert_close(scores[left], expected[left], rtol=1e-5, atol=1e-5)
            assert (scores[~left] == -torch.inf).all()
            width = len(scores) // 8
            flat = scores.view(8, -1).topk(beams, -1).indices
            parent = (torch.arange(8)[:, None] * width + flat // 7).flatten()
            index = (flat % 7).flatten().masked_fill(~state.available.any(-1)[parent], -100)
            state = scorer.extend(state, cache, parent, index)


@pytest.mark.parametrize("kind", ["evaluator", "generator"])
def test_a_step_leaves_the_state_as_it_is(extractor: RerankingFeatureExtractor, batch: Batch, kind: str) -> None:
    model = evaluator(extractor) if kind == "evaluator" else generator(extractor)
    scorer, index = model.scorer(), torch.zeros(8, dtype=torch.int64)
    with torch.no_grad():
        start = scorer.start(batch)
        first, cache = scorer.step(start)
        again, _ = scorer.step(start)
        assert torch.equal(first, again)
        by_itself = scorer.step(scorer.extend(start, cache, None, index))[0]
        by_number = scorer.step(scorer.extend(start, cache, torch.arange(8), index))[0]
    assert torch.equal(by_itself, by_number)


def test_beam_search_as_wide_as_the_space_finds_the_best_slate(
    extractor: RerankingFeatureExtractor, make_rows: Any
) -> None:
    model, batch = evaluator(extractor), extractor(make_rows(seed=7, sizes=(6, 6)))
    every = every_slate(6, 3, 2)
    values = model.score_slates(every, **batch)
    found = model.generate(**batch, slate_size=3, num_beams=120, return_dict_in_generate=True)
    assert torch.equal(found.slates, every[torch.arange(2), values.argmax(-1)])
    torch.testing.assert_close(found.scores, values.amax(-1))


@pytest.mark.parametrize("head", ["feedback", "conditional"])
def test_refuses_feedback_outside_zero_and_one(extractor: RerankingFeatureExtractor, batch: Batch, head: str) -> None:
    batch["feedback"][0, 0, 0, 0] = 2.0
    with pytest.raises(ValueError, match=r"'feedback'.*\[0\.0, 2\.0\]"):
        evaluator(extractor, **HEADS[head])(**batch)
    assert evaluator(extractor, value_head="cumulative_regression")(**batch).loss.item() > 0


# --- ensembles ------------------------------------------------------------------------------------------------------


def ensemble(extractor: RerankingFeatureExtractor, penalty: float = 0.0) -> DeGReEvaluatorEnsemble:
    heads = [HEADS["feedback"], HEADS["feedback"], HEADS["cumulative_regression"]]
    members = [evaluator(extractor, seed, **head) for seed, head in enumerate(heads)]
    return DeGReEvaluatorEnsemble(members, penalty)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_ensemble_is_mean_less_spread(extractor: RerankingFeatureExtractor, batch: Batch, penalty: float) -> None:
    model, slates = ensemble(extractor, penalty), batch["slates"]
    values = torch.stack([member.score_slates(slates, **batch) for member in model.members])
    spread = (values - values.mean(0)).square().mean(0).sqrt()
    found = model.score_slates(slates, **batch)
    torch.testing.assert_close(found, values.mean(0) - penalty * spread)
    assert spread.min() > 0


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_ensemble_searches_by_its_own_values(
    extractor: RerankingFeatureExtractor, make_rows: Any, penalty: float
) -> None:
    model, batch = ensemble(extractor, penalty), extractor(make_rows(seed=8, sizes=(5, 3, 5)))
    every = every_slate(5, 3, 3)[:2]
    rows = {key: value[[0, 2]] for key, value in batch.items()}
    scores, _ = play(model.scorer(), rows, every)
    values = model.score_slates(every, **rows)
    torch.testing.assert_close(scores, values, rtol=1e-5, atol=1e-5)
    found = model.generate(**batch, slate_size=3, num_beams=60, return_dict_in_generate=True)
    torch.testing.assert_close(found.scores[[0, 2]], values.amax(-1))
    assert torch.isfinite(found.scores).all()


def test_ensemble_refuses_strangers(extractor: RerankingFeatureExtractor, make_rows: Any) -> None:
    other = RerankingFeatureExtractor(extractor.schema).fit(make_rows(seed=9))
    with pytest.raises(SchemaMismatchError):
        DeGReEvaluatorEnsemble([evaluator(extractor), evaluator(other)])
    with pytest.raises(ValueError, match="at least one"):
        DeGReEvaluatorEnsemble([])
    with pytest.raises(ValueError, match="spread_penalty"):
        DeGReEvaluatorEnsemble([evaluator(extractor)], -1.0)


# --- the generator --------------------------------------------------------------------------------------------------


def step_log_probs(model: DeGReGenerator, batch: Batch, output: Any) -> dict[tuple[int, int, int], Tensor]:
    """Log-probabilities over the candidates left, (N,) with zeros elsewhere, at every real position."""
    found = {}
    for row, number, slate, _ in each_slate(batch):
        for position in range(len(slate)):
            left = batch["candidate_mask"][row].clone()
            left[slate[:position]] = False
            log_probs = torch.zeros(len(left))
            log_probs[left] = output.logits[row, number, position, left].log_softmax(-1)
            found[row, number, position] = log_probs
    return found


def test_distillation_is_the_papers_sum(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    batch, model = mined(mined_batch), generator(extractor, hard_label_weight=2, soft_label_weight=0.5)
    with torch.no_grad():
        output = model(**batch)
    log_probs, totals = step_log_probs(model, batch, output), {"hard_label": 0.0, "soft_label": 0.0}
    for row, number, slate, _ in each_slate(batch):
        weight = batch["slate_weights"][row, number].item()
        for position, item in enumerate(slate):
            p, q = log_probs[row, number, position], batch["soft_labels"][row, number, position]
            totals["hard_label"] -= weight * p[item].item()
            totals["soft_label"] += weight * sum((x * (x.log() - y)).item() for x, y in zip(q, p, strict=True) if x > 0)
    for name, total in totals.items():
        assert output.loss_terms[name].item() == pytest.approx(total / 8, rel=1e-4), name
    assert output.loss.item() == pytest.approx((2 * totals["hard_label"] + 0.5 * totals["soft_label"]) / 8, rel=1e-4)


def test_mined_slates_without_soft_labels(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    whole = mined(mined_batch)
    batch = {key: value for key, value in whole.items() if key not in ("soft_labels", "feedback")}
    output = generator(extractor, hard_label_weight=2)(**batch)
    assert output.loss_terms.keys() == {"hard_label"}
    torch.testing.assert_close(output.loss, 2 * generator(extractor)(**whole).loss_terms["hard_label"])
    with pytest.raises(ValueError, match="no soft_labels"):
        generator(extractor, hard_label_weight=0)(**batch)


def test_plain_logs_are_learned_where_they_reach_the_threshold(
    extractor: RerankingFeatureExtractor, mined_batch: Batch
) -> None:
    model = generator(extractor)
    with torch.no_grad():
        output = model(**mined_batch)
    utility = slate_utility(
        mined_batch["feedback"], mined_batch["slates"], mined_batch["candidate_value"], model.schema
    )
    log_probs, total, liked = step_log_probs(model, mined_batch, output), 0.0, 0
    for row, number, slate, slates in each_slate(mined_batch):
        if utility[row, number] >= 1.5:
            liked += 1
            total -= sum(log_probs[row, number, position][item].item() for position, item in enumerate(slate)) / slates
    assert 0 < liked < len(each_slate(mined_batch))
    assert output.loss.item() == pytest.approx(total / 8, rel=1e-4)
    assert generator(extractor, utility_threshold=100)(**mined_batch).loss == 0
    with pytest.raises(ValueError, match="field 'utility_threshold': it is not set"):
        generator(extractor, utility_threshold=None)(**mined_batch)


@pytest.mark.parametrize("guide", [None, GUIDE, {**GUIDE, **HEADS["cumulative_regression"]}])
def test_teacher_forcing_is_what_decoding_computes(
    extractor: RerankingFeatureExtractor, make_rows: Any, guide: dict[str, Any] | None
) -> None:
    model, batch = generator(extractor, guide=guide), extractor(make_rows(seed=6, sizes=(5, 5, 5)))
    every = every_slate(5, 4, 3)
    scores, steps = play(model.scorer(), batch, every)
    with torch.no_grad():
        log_probs = model(**{**inputs(batch), "slates": every}).logits.log_softmax(-1)
    expected = log_probs.gather(-1, every.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(steps, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores, expected.sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(3))  # a distribution over slates


def test_without_slates_the_first_position_is_scored(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = generator(extractor)
    with torch.no_grad():
        alone, given = model(**inputs(batch)), model(**batch)
    assert alone.loss is None
    torch.testing.assert_close(alone.logits[:, 0, 0], given.logits[:, 0, 0])


def test_decoding_never_copies_the_candidates(
    extractor: RerankingFeatureExtractor, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beams are query rows: keys and values have one row per request, and are computed once."""
    model, seen = generator(extractor), []
    read = TokenBlock._attend_to_memory
    monkeypatch.setattr(
        TokenBlock,
        "_attend_to_memory",
        lambda block, query, memory: seen.append((query, memory["key"])) or read(block, query, memory),
    )
    projected = []
    model.decoder_layers[0].cross_attention.key_value.register_forward_hook(lambda *_: projected.append(1))
    model.generate(**batch, num_beams=3)
    own = seen[:: len(model.decoder_layers)]  # of the first layer
    assert [len(query) for query, _ in own] == [8, 24, 24, 24]
    assert all(key is own[0][1] for _, key in own)
    assert len(own[0][1]) == 8 * model.config.num_attention_heads
    assert len(projected) == 1


def test_a_sharp_guide_is_followed(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    """With nothing but what the evaluator thinks of the next item, greedy decoding is the evaluator's own."""
    model = generator(extractor, guide=GUIDE)
    with torch.no_grad():
        model.guide.sharpness.fill_(12.0)
        model.pointer.query.weight.zero_()
    assert torch.equal(model.generate(**batch), model.guide.evaluator.generate(**batch))


def test_best_partners_by_hand() -> None:
    """The third candidate is padding: two pairs exist, 1 above 2 is worth 3, and 2 above 1 is worth 1."""
    never = float("-inf")
    pairs = torch.tensor([[[1.0, never, 9.0], [never, 3.0, 9.0], [9.0, 9.0, never], [9.0, 9.0, never]]])
    found = best_partners(pairs, torch.tensor([[1, 0, 2, 3]]), torch.tensor([[True, True, False]]))
    expected = [[1.0, -10, -10, -1, -10, -10], [-1.0, -10, -10, 1, -10, -10], [-10.0] * 6]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_a_guide_stays_as_it_is(extractor: RerankingFeatureExtractor, mined_batch: Batch) -> None:
    model = generator(extractor, guide={**GUIDE, "hidden_dropout_prob": 0.5}).train()
    model(**mined(mined_batch)).loss.backward()
    assert not model.guide.evaluator.training
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {name for name in learned if name.startswith("guide.")} == {
        "guide.projection.weight",
        "guide.projection.bias",
        "guide.sharpness",
    }


def test_only_evaluators_that_search_guide(extractor: RerankingFeatureExtractor) -> None:
    with pytest.raises(ValueError, match="PointwiseForReranking does not tell what it reads"):
        generator(extractor, guide={"architectures": ["PointwiseForReranking"]})
    with pytest.raises(ValueError, match="architecture 'Nope' is not one of"):
        generator(extractor, guide={"architectures": ["Nope"]})


def test_item_encoders_are_interchangeable(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    teacher, student = evaluator(extractor, seed=1), generator(extractor)
    student.item_encoder.load_state_dict(teacher.item_encoder.state_dict())
    assert torch.equal(student.item_encoder(batch)[0], teacher.encode_items(batch))


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["evaluator", "generator"])
def test_refuses_more_positions_than_it_has(extractor: RerankingFeatureExtractor, batch: Batch, kind: str) -> None:
    model: Any = evaluator(extractor) if kind == "evaluator" else generator(extractor)
    scorer: Scorer = model.scorer()
    assert scorer.kind == ("value" if kind == "evaluator" else "log_prob")
    with pytest.raises(ValueError, match="slate_size must be at most 4"):
        model.generate(**batch, slate_size=5)


@pytest.mark.parametrize("kind", [DeGReEvaluator, DeGReGenerator])
def test_a_schema_without_request_fields(kind: Any, make_rows: Any) -> None:
    schema = FeatureSchema(
        name="bare",
        item_id="item_id",
        fields=(FieldSpec(name="price", group="candidate", kind="numeric"),),
        targets=(TargetSpec(name="click"),),
    )
    extractor = RerankingFeatureExtractor(schema).fit(make_rows())
    model = kind(config(extractor, utility_threshold=0)).train()
    output = model(**extractor(make_rows()))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    slates = model.eval().generate(**extractor(make_rows()), num_beams=2)
    assert slates.shape == (8, 4)


def test_history_is_required_where_the_schema_has_it(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    del batch["history_mask"]
    for model in (evaluator(extractor), generator(extractor)):
        with pytest.raises(ValueError, match="history_mask"):
            model(**batch)


def test_threshold_comes_from_the_log_unless_given() -> None:
    values = DeGReConfig(utility_quantile=0.75)
    values.adapt_to_log(SimpleNamespace(utility_quantile=lambda quantile: None))  # mined slates have no feedback
    assert values.utility_threshold is None
    values.adapt_to_log(SimpleNamespace(utility_quantile=lambda quantile: 10 * quantile))
    assert values.utility_threshold == 7.5
    values.adapt_to_log(SimpleNamespace(utility_quantile=lambda quantile: 0.0))
    assert values.utility_threshold == 7.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_decoder_layers", 0),
        ("field_size", 0),
        ("value_head", "regression"),
        ("utility_quantile", 1.5),
        ("hard_label_weight", -1),
        ("soft_label_weight", -0.5),
        ("conditional_targets", {"order": "click", "click": "order"}),
        ("conditional_targets", {"order": 1}),
        ("hidden_size", 33),
    ],
)
def test_config_refuses_values_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(StrictDataclassError, match=key):
        DeGReConfig(**{**TINY, key: value})


def test_config_refuses_targets_that_the_schema_lacks(extractor: RerankingFeatureExtractor) -> None:
    with pytest.raises(StrictDataclassError, match=r"\['buy'\].*\['click', 'order'\]"):
        config(extractor, conditional_targets={"buy": "click"})


@pytest.mark.parametrize("parents", [None, {}, {"order": "click", "click": "seen"}])
def test_an_exit_needs_a_target_that_was_seen(extractor: RerankingFeatureExtractor, parents: Any) -> None:
    wanted = r"conditional_targets names \['seen'\]" if parents else r"\['click', 'order'\] depend on none"
    with pytest.raises(StrictDataclassError, match=wanted):
        config(extractor, value_head="exit", conditional_targets=parents)


def test_config_refuses_to_learn_nothing() -> None:
    with pytest.raises(StrictDataclassError, match="both 0"):
        DeGReConfig(hard_label_weight=0, soft_label_weight=0)


def test_a_graphs_attention_decodes_the_same_beams(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    """Its keys and values lie the other way round, and beams change places."""
    model = generator(extractor)
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 4, "return_dict_in_generate": True}
    expected = model.generate(**batch, **options)
    model.config._attn_implementation = "onnx"
    found = model.generate(**batch, **options)
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-5)
