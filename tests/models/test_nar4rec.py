from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from tests.models.common import EvaluatorTestSuite, ScorerTestSuite, VariantTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "utility_threshold": 2.5,
    "position_contrastive_weight": 0.25,
}


class TestNAR4RecForReranking(ScorerTestSuite):
    model_class = NAR4RecForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


class TestNAR4RecEvaluator(EvaluatorTestSuite):
    model_class = NAR4RecEvaluator
    config_values: ClassVar[dict[str, Any]] = TINY


class TestBidirectionalEvaluator(VariantTestSuite):
    model_class = NAR4RecEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, "evaluator_is_causal": False}


# --- the generator --------------------------------------------------------------------------------------------------


def generator(extractor: RerankingFeatureExtractor, **values: Any) -> NAR4RecForReranking:
    torch.manual_seed(0)
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})
    return NAR4RecForReranking(config).eval()


def contrast(states: Tensor) -> float:
    """The mean hinge of all pairs of states, by hand."""
    pairs = [(i, k) for i in range(len(states)) for k in range(len(states)) if i != k]
    return sum(max(0.0, F.cosine_similarity(states[i], states[k], dim=0).item() - 0.5) for i, k in pairs) / len(pairs)


def test_loss_is_the_papers_sum(extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]) -> None:
    model = generator(extractor, likelihood_weight=2.0, unlikelihood_weight=0.5, contrastive_weight=3)
    with torch.no_grad():
        output = model(**mined_batch)
    utility = slate_utility(
        mined_batch["feedback"], mined_batch["slates"], mined_batch["candidate_value"], model.config.schema
    )
    totals = dict.fromkeys(("likelihood", "unlikelihood", "contrastive", "position_contrastive"), 0.0)
    mask = mined_batch["candidate_mask"]
    with torch.no_grad():
        positions = model.position_encoder(output.candidate_states, mask, "sdpa")
    for row, mask in enumerate(mined_batch["candidate_mask"]):
        slates = [slate[slate >= 0].tolist() for slate in mined_batch["slates"][row] if (slate >= 0).any()]
        for number, slate in enumerate(slates):
            p = [output.logits[row, j, mask].softmax(-1)[item].item() for j, item in enumerate(slate)]
            if utility[row, number] >= 2.5:
                totals["likelihood"] -= sum(math.log(x) for x in p) / len(slates)
            else:
                totals["unlikelihood"] -= sum(math.log(1 - x) for x in p) / len(slates)
        totals["contrastive"] += contrast(output.candidate_states[row, mask])
        totals["position_contrastive"] += contrast(positions[row, : max(map(len, slates))])
    for name, total in totals.items():
        assert output.loss_terms[name].item() == pytest.approx(total / 8, rel=1e-4), name
    expected = 2 * totals["likelihood"] + 0.5 * totals["unlikelihood"] + 3 * totals["contrastive"]
    expected += 0.25 * totals["position_contrastive"]
    assert output.loss.item() == pytest.approx(expected / 8, rel=1e-4)


def test_a_slate_that_just_reaches_the_threshold_is_liked(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    batch["feedback"] = torch.zeros_like(batch["feedback"])  # utility 0 everywhere
    assert generator(extractor, utility_threshold=0)(**batch).loss_terms["unlikelihood"] == 0
    assert generator(extractor, utility_threshold=1e-6)(**batch).loss_terms["likelihood"] == 0


def test_loss_needs_a_threshold(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = generator(extractor, utility_threshold=None)
    with pytest.raises(ValueError, match="field 'utility_threshold': it is not set"):
        model(**batch)
    assert model(**inputs(batch)).loss is None


def test_threshold_comes_from_the_log_unless_given() -> None:
    config = NAR4RecConfig(utility_quantile=0.75)
    config.adapt_to_log(SimpleNamespace(utility_quantile=lambda quantile: 10 * quantile))
    assert config.utility_threshold == 7.5
    config.adapt_to_log(SimpleNamespace(utility_quantile=lambda quantile: 0.0))
    assert config.utility_threshold == 7.5


def test_scores_are_renormalised_over_what_is_left(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model = generator(extractor)
    found = model.generate(**batch, do_sample=True, return_dict_in_generate=True)
    logits = model(**inputs(batch)).logits
    for row, slate in enumerate(found.slates.tolist()):
        left = batch["candidate_mask"][row].nonzero()[:, 0].tolist()
        expected = [0.0] * 4
        for position, item in enumerate(index for index in slate if index >= 0):
            expected[position] = logits[row, position, left].log_softmax(-1)[left.index(item)].item()
            left.remove(item)
        assert found.step_scores[row].tolist() == pytest.approx(expected, abs=1e-5)
        assert found.scores[row].item() == pytest.approx(sum(expected), abs=1e-5)


def test_refuses_more_positions_than_it_has(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="slate_size must be at most 4"):
        generator(extractor).generate(**batch, slate_size=5)


def test_history_is_required_where_the_schema_has_it(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    del batch["history_mask"]
    with pytest.raises(ValueError, match="history_mask"):
        generator(extractor)(**batch)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_position_layers", 0),
        ("utility_quantile", 1.5),
        ("unlikelihood_weight", -1),
        ("contrastive_margin", -0.5),
        ("slate_size", 0),
        ("hidden_size", 33),
        ("hidden_dropout_prob", 1.0),
        ("attention_probs_dropout_prob", -0.1),
        ("feature_schema", {"name": "x"}),
    ],
)
def test_config_refuses_values_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(StrictDataclassError, match="schema" if key == "feature_schema" else key):
        NAR4RecConfig(**{**TINY, key: value})


# --- the evaluator --------------------------------------------------------------------------------------------------


def evaluator(extractor: RerankingFeatureExtractor, **values: Any) -> NAR4RecEvaluator:
    torch.manual_seed(0)
    config = NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})
    return NAR4RecEvaluator(config).eval()


def test_evaluator_loss_and_utility(extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]) -> None:
    with torch.no_grad():
        output = evaluator(extractor)(**mined_batch)
    loss = 0.0
    for row, slates in enumerate(mined_batch["slates"].tolist()):
        real = [[item for item in slate if item >= 0] for slate in slates if max(slate) >= 0]
        for number, slate in enumerate(real):
            p, seen = output.logits[row, number].sigmoid(), mined_batch["feedback"][row, number]
            entropy = [F.binary_cross_entropy(p[j], seen[j]).item() for j in range(len(slate))]  # mean over targets
            loss += sum(entropy) / len(slate) / len(real)
            price = mined_batch["candidate_value"][row, slate, 1]
            utility = p[: len(slate), 0].sum() + 0.5 * (price * p[: len(slate), 1]).sum()
            assert output.utilities[row, number].item() == pytest.approx(utility.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(loss / 8, rel=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_evaluator_reads_a_slate_from_the_top(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], causal: bool
) -> None:
    model, slates = evaluator(extractor, evaluator_is_causal=causal), torch.tensor([[[0, 1, 2]], [[0, 1, 3]]])
    rows = {key: value[[0, 0]] for key, value in batch.items()}
    with torch.no_grad():
        first, second = model(**{**rows, "slates": slates, "feedback": None}).logits
    assert torch.isclose(first[0, :2], second[0, :2]).all() == causal
    assert not torch.isclose(first[0, 2], second[0, 2]).any()


def test_evaluator_refuses_feedback_outside_zero_and_one(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    batch["feedback"][0, 0, 0, 0] = 2.0
    with pytest.raises(ValueError, match=r"'feedback'.*\[0\.0, 2\.0\]"):
        evaluator(extractor)(**batch)
