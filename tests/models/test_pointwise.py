from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from tests.models.common import ScorerTestSuite

TINY: dict[str, Any] = {"slate_size": 4, "hidden_size": 32, "embedding_size": 8, "num_hidden_layers": 1}


class TestPointwiseForReranking(ScorerTestSuite):
    model_class = PointwiseForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


def ranker(extractor: RerankingFeatureExtractor, **values: Any) -> PointwiseForReranking:
    torch.manual_seed(0)
    config = PointwiseConfig(**{"feature_schema": extractor.schema.to_dict(), **TINY, **values})
    return PointwiseForReranking(config).eval()


def probabilities(model: PointwiseForReranking, batch: dict[str, Tensor]) -> Tensor:
    """(B, N, T), from the model's states."""
    with torch.no_grad():
        return model.heads(model(**inputs(batch)).candidate_states).sigmoid()


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


def test_score_is_expected_utility(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = ranker(extractor)
    p, price = probabilities(model, batch), batch["candidate_value"][..., 1]
    expected = 1.0 * p[..., 0] + 0.5 * price * p[..., 1]  # click counts 1, an order half its price
    with torch.no_grad():
        logits = model(**inputs(batch)).logits
    assert logits.shape == (8, 4, 7)
    mask = batch["candidate_mask"]
    for row in logits.unbind(1):
        torch.testing.assert_close(row[mask], expected[mask])


@pytest.mark.parametrize("slate_size", [2, 4, 6, 9])
def test_greedy_sorts_by_score_at_any_length(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], slate_size: int
) -> None:
    model = ranker(extractor)
    scores = model(**inputs(batch)).logits[:, 0]
    slates = model.generate(**batch, slate_size=slate_size)
    assert slates.shape == (8, slate_size)
    for row, mask in enumerate(batch["candidate_mask"]):
        order = scores[row, mask].argsort(descending=True)[:slate_size].tolist()
        assert slates[row].tolist() == order + [-100] * (slate_size - len(order))


def test_beam_search_finds_what_sorting_does(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = ranker(extractor)
    assert torch.equal(model.generate(**batch, num_beams=200), model.generate(**batch))


def test_score_of_a_candidate_does_not_depend_on_the_others(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, changed = ranker(extractor), dict(batch)
    changed["candidate_numeric"] = batch["candidate_numeric"].clone()
    changed["candidate_numeric"][:, 0] += 1.0
    with torch.no_grad():
        before, after = (model(**inputs(rows)).logits[:, 0] for rows in (batch, changed))
    assert not torch.isclose(before[:, 0], after[:, 0]).any()
    torch.testing.assert_close(before[:, 1:], after[:, 1:])


def test_refuses_feedback_outside_zero_and_one(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    batch["feedback"][0, 0, 0, 0] = 2.0
    with pytest.raises(ValueError, match=r"'feedback'.*\[0\.0, 2\.0\]"):
        ranker(extractor)(**batch)


def test_config_refuses_no_layers() -> None:
    with pytest.raises(StrictDataclassError, match="num_hidden_layers"):
        PointwiseConfig(**{**TINY, "num_hidden_layers": 0})


@pytest.mark.parametrize("labels", [None, "candidates"])
def test_a_loss_of_lists_orders_by_utility(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], labels: str | None
) -> None:
    schema = extractor.schema.to_dict()
    schema["targets"][1]["weight"] = 0.5 if labels is None else 0.0  # an order has no labels of candidates
    model = ranker(extractor, feature_schema=schema, loss="softmax", labels=labels)
    with torch.no_grad():
        output = model(**batch)
    scores, losses = output.logits[:, 0], []
    for row, (slates, prices) in enumerate(zip(batch["slates"], batch["candidate_value"][..., 1], strict=True)):
        if labels is None:
            items = slates[0][slates[0] >= 0]
            click, order = batch["feedback"][row, 0, : len(items)].unbind(-1)
            utility = click + 0.5 * prices[items] * order
        else:
            items = batch["candidate_feedback_mask"][row].nonzero()[:, 0]
            utility = batch["candidate_feedback"][row, items, 0]
        log_probs = scores[row, items].log_softmax(-1)
        losses.append(-(utility / utility.sum().clamp_min(1e-9) * log_probs).sum())
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)
    assert output.loss_terms == {"softmax": output.loss}
