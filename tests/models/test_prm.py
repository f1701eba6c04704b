from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.layers import upstream_rank
from rerankzoo.models.prm import PRMConfig, PRMForReranking
from tests.models.common import GeneratorVariantTestSuite, ScorerTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
}


class TestPRMForReranking(ScorerTestSuite):
    model_class = PRMForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


class TestFewerRanksThanCandidates(GeneratorVariantTestSuite):
    model_class = PRMForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "max_position_embeddings": 3}


def ranker(extractor: RerankingFeatureExtractor, **values: Any) -> PRMForReranking:
    torch.manual_seed(0)
    config = PRMConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})
    return PRMForReranking(config).eval()


def probabilities(model: PRMForReranking, batch: dict[str, Tensor]) -> Tensor:
    """(B, N, T), from the model's states."""
    with torch.no_grad():
        return model.heads(model(**inputs(batch)).candidate_states).sigmoid()


# --- the upstream rank ----------------------------------------------------------------------------------------------


def test_rank_counts_higher_scores() -> None:
    scores = torch.tensor([[0.2, 0.9, -1.0, 0.5], [3.0, 3.0, 7.0, 1.0]])
    ranks = upstream_rank(scores, torch.ones(2, 4, dtype=torch.bool))
    assert ranks.tolist() == [[2, 0, 3, 1], [1, 1, 0, 3]]  # equal scores share a rank, the next one is left out


def test_padding_has_no_part_in_the_rank() -> None:
    scores = torch.tensor([[0.2, 99.0, 0.5, torch.nan]])
    ranks = upstream_rank(scores, torch.tensor([[True, False, True, False]]))
    assert ranks[0, [0, 2]].tolist() == [1, 0]


def test_rank_is_the_upstream_score_s_and_not_the_row_s(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, seen = ranker(extractor), []
    model.positions.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**inputs(batch))
    column = extractor.schema.position("upstream_score")
    assert column == 4  # after price and the three of the picture
    for row, mask in enumerate(batch["candidate_mask"]):
        order = batch["candidate_numeric"][row, mask, column].argsort(descending=True)
        assert seen[0][row, mask][order].tolist() == list(range(int(mask.sum())))


def test_ranks_further_down_share_the_last_embedding(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, seen = ranker(extractor, max_position_embeddings=3), []
    model.positions.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(**inputs(batch))
    real = seen[0][2, batch["candidate_mask"][2]]
    assert sorted(real.tolist()) == [0, 1, 2, 2, 2, 2, 2]


def test_rank_matters(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = ranker(extractor)
    with torch.no_grad():
        before = model(**inputs(batch)).logits[:, 0]
        model.positions.weight.zero_()
        after = model(**inputs(batch)).logits[:, 0]
    assert not torch.isclose(before, after)[batch["candidate_mask"]].any()


def test_needs_an_upstream_score(extractor: RerankingFeatureExtractor) -> None:
    schema = replace(extractor.schema, upstream_score=None)
    with pytest.raises(ValueError, match=r"schema 'tiny' has no upstream_score; name the numeric candidate field"):
        PRMForReranking(PRMConfig(feature_schema=schema.to_dict(), **TINY))


# --- loss and scores ------------------------------------------------------------------------------------------------


def test_loss_is_cross_entropy_of_what_was_shown(
    extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]
) -> None:
    model = ranker(extractor)
    with torch.no_grad():
        output = model(**mined_batch)
    p, total = probabilities(model, mined_batch), 0.0
    for row, slates in enumerate(mined_batch["slates"].tolist()):
        real = [[item for item in slate if item >= 0] for slate in slates if max(slate) >= 0]
        for number, slate in enumerate(real):
            seen = mined_batch["feedback"][row, number, : len(slate)]
            total += F.binary_cross_entropy(p[row, slate], seen).item() / len(real)  # mean over positions and targets
    assert output.loss.item() == pytest.approx(total / 8, rel=1e-5)
    assert output.loss_terms == {"feedback": output.loss}


@pytest.mark.parametrize("slate_size", [2, 4, 6, 9])
def test_greedy_sorts_by_expected_utility_at_any_length(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], slate_size: int
) -> None:
    model = ranker(extractor)
    p, price = probabilities(model, batch), batch["candidate_value"][..., 1]
    scores = 1.0 * p[..., 0] + 0.5 * price * p[..., 1]  # click counts 1, an order half its price
    slates = model.generate(**batch, slate_size=slate_size)
    assert slates.shape == (8, slate_size)
    for row, mask in enumerate(batch["candidate_mask"]):
        order = scores[row, mask].argsort(descending=True)[:slate_size].tolist()
        assert slates[row].tolist() == order + [-100] * (slate_size - len(order))


def test_score_of_a_candidate_depends_on_the_others(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, changed = ranker(extractor), dict(batch)
    changed["candidate_numeric"] = batch["candidate_numeric"].clone()
    changed["candidate_numeric"][:, 0, 0] += 1.0  # a price, no upstream score: ranks stay
    with torch.no_grad():
        before, after = (model(**inputs(rows)).logits[:, 0] for rows in (batch, changed))
    assert not torch.isclose(before, after)[batch["candidate_mask"]].any()


@pytest.mark.parametrize("key", ["num_hidden_layers", "max_position_embeddings"])
def test_config_refuses_values_out_of_range(key: str) -> None:
    with pytest.raises(StrictDataclassError, match=key):
        PRMConfig(**{**TINY, key: 0})


def test_config_takes_numbers_of_numpy() -> None:
    config = PRMConfig(slate_size=np.int64(3), hidden_size=np.uint16(16), hidden_dropout_prob=np.float32(0.5))
    assert config.to_diff_dict() == PRMConfig(slate_size=3, hidden_size=16, hidden_dropout_prob=0.5).to_diff_dict()
    assert json.loads(config.to_json_string())["slate_size"] == 3
    with pytest.raises(StrictDataclassError, match="expected int, got float"):
        PRMConfig(slate_size=np.float64(3))
