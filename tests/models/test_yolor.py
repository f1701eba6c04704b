from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import exhaustive_search
from rerankzoo.models.yolor import YOLORConfig, YOLOREvaluator
from rerankzoo.models.yolor.modeling_yolor import halvings
from rerankzoo.slates import all_slates
from tests.models.common import EvaluatorTestSuite, VariantTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class TestYOLOREvaluator(EvaluatorTestSuite):
    model_class = YOLOREvaluator
    config_values: ClassVar[dict[str, Any]] = TINY


class TestPIEREvaluator(VariantTestSuite):
    model_class = YOLOREvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, "context": "page"}


def yolor(extractor: RerankingFeatureExtractor, **values: Any) -> YOLOREvaluator:
    torch.manual_seed(0)
    return YOLOREvaluator(YOLORConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})).eval()


@pytest.mark.parametrize("context", ["tree", "page"])
@pytest.mark.parametrize(("size", "slate_size"), [(4, 4), (5, 3), (5, 5)])
def test_all_values_are_those_of_single_slates(
    extractor: RerankingFeatureExtractor, make_rows: Any, size: int, slate_size: int, context: str
) -> None:
    model, batch = yolor(extractor, slate_size=slate_size, context=context), extractor(make_rows(seed=3, sizes=(7, 7)))
    candidates = torch.tensor([[6, 1, 3, 0, 4], [2, 5, 0, 3, 1]])[:, :size]
    slates = candidates[:, torch.tensor(all_slates(size, slate_size))]
    found = model.exhaustive_values(candidates, slate_size, **batch)
    torch.testing.assert_close(found, model.score_slates(slates, **batch), rtol=1e-5, atol=1e-5)
    if slate_size > 3:
        short = model.exhaustive_values(candidates, 3, **batch)
        slates = candidates[:, torch.tensor(all_slates(size, 3))]
        torch.testing.assert_close(short, model.score_slates(slates, **batch), rtol=1e-5, atol=1e-5)


def test_exhaustive_search_asks_for_sets(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    class Plain:
        def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
            return model.score_slates(slates, **batch)

    model = yolor(extractor)
    found, expected = exhaustive_search(model, batch, 4), exhaustive_search(Plain(), batch, 4)
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores, expected.scores)


def test_a_page_is_its_items_states_by_the_codes_of_their_positions(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    """Row 0, whose page is two items long; the order counts, also without the positions' own embeddings."""
    model, slate = yolor(extractor, context="page", initializer_range=1.0), torch.tensor([[[1, 0, -100, -100]]])
    row = {name: part[:1] for name, part in batch.items()}
    with torch.no_grad():
        model.positions.weight.zero_()
        logits = model(**{**inputs(row), "slates": slate}).logits[0, 0, :2]
        items = model.encode_items(row)[0, [1, 0]]
        states = model.set_layers[0](items.unsqueeze(0))[0]
        page = model.contexts[0]((states * model.codes.weight[:2]).mean(0))
        expected = model.heads(F.gelu(model.hidden(F.gelu(model.item(items) + page))))
        other = model(**{**inputs(row), "slates": slate[..., [1, 0, 2, 3]]}).logits[0, 0, [1, 0]]
    torch.testing.assert_close(logits, expected)
    assert (logits - other).abs().max() > 1e-4


def test_pairs_of_slates_of_which_one_earned_more_are_told_apart(
    extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]
) -> None:
    model = yolor(extractor)
    with torch.no_grad():
        output = model(**mined_batch)
    earned = slate_utility(
        mined_batch["feedback"], mined_batch["slates"], mined_batch["candidate_value"], model.config.schema
    )
    total = 0.0
    for row in range(8):
        real = [s for s in range(3) if mined_batch["slates"][row, s, 0] >= 0]
        pairs = [(a, b) for a in real for b in real if earned[row, a] > earned[row, b]]
        costs = [math.log1p(math.exp(float(output.utilities[row, b] - output.utilities[row, a]))) for a, b in pairs]
        total += sum(costs) / max(1, len(pairs))
    assert output.loss_terms["pairs"].item() == pytest.approx(total / 8, rel=1e-4)
    expected = output.loss_terms["feedback"] + 0.05 * output.loss_terms["pairs"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_parts_of_any_size() -> None:
    assert halvings(1) == [[(0, 1)]]
    assert halvings(2) == [[(0, 2)]]
    assert halvings(8)[2] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    for size in range(1, 12):
        for parts in halvings(size):
            assert [place for start, end in parts for place in range(start, end)] == list(range(size))
