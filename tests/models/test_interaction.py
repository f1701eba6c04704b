from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import inputs, take
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.layers import BEHAVIOURS
from rerankzoo.models.interaction import InteractionEvaluator, InteractionEvaluatorConfig
from rerankzoo.slates import all_slates
from tests.models.common import EvaluatorTestSuite, GeneratorVariantTestSuite, ScorerTestSuite

Batch = dict[str, Tensor]

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 16,
    "embedding_size": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_interaction_heads": 3,
    "interaction_size": 4,
    "num_logged_positions": 100,
}


class TestInteractionEvaluator(ScorerTestSuite, EvaluatorTestSuite):
    model_class = InteractionEvaluator
    config_values: ClassVar[dict[str, Any]] = TINY


class TestChoice(GeneratorVariantTestSuite):
    model_class = InteractionEvaluator
    config_values: ClassVar[dict[str, Any]] = {**TINY, "behaviour": "choice", "num_hidden_layers": 1}


def evaluator(extractor: RerankingFeatureExtractor, **values: Any) -> InteractionEvaluator:
    torch.manual_seed(0)
    model = InteractionEvaluator(
        InteractionEvaluatorConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})
    )
    with torch.no_grad():  # what starts at 0 would hide what it does
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_pairs_start_as_attraction_and_as_repulsion(extractor: RerankingFeatureExtractor) -> None:
    """Rectified heads, too: none of them can turn its products round."""
    config = InteractionEvaluatorConfig(
        **{**TINY, "num_interaction_heads": 4, "feature_schema": extractor.schema.to_dict()}
    )
    pairs = InteractionEvaluator(config).pairs
    assert pairs.num_plain_heads == 2
    above, below = pairs.weight.unbind(2)  # (T, H, M - 1) each
    assert above.sign()[0].tolist() == [[1.0] * 3, [-1.0] * 3, [1.0] * 3, [-1.0] * 3]
    assert (below == 0).all()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("parts", [{}, {"num_hidden_layers": 2}, {"looks_ahead": False}, {"num_interaction_heads": 0}])
def test_prefix_values_are_those_of_shorter_slates(
    extractor: RerankingFeatureExtractor, batch: Batch, behaviour: str, parts: dict[str, Any]
) -> None:
    """By forward, by score_slates and by every step of the search, which revises what stands above."""
    model, known = evaluator(extractor, behaviour=behaviour, **parts), inputs(batch)
    known = take(known, known["candidate_mask"][:, :3].all(-1))
    slates = torch.tensor([[2, 0, 1, -100], [1, 2, -100, -100]]).expand(len(known["candidate_mask"]), -1, -1)
    with torch.no_grad():
        prefixes = model(slates=slates, **known).prefix_values
        for length in range(1, 5):
            torch.testing.assert_close(prefixes[..., length - 1], model.score_slates(slates[..., :length], **known))
        scorer = model.scorer()
        state = scorer.start(known)
        for position in range(3):
            scores, cache = scorer.step(state)
            chosen = slates[:, 0, position]
            found = scores.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
            torch.testing.assert_close(found, prefixes[:, 0, position], rtol=1e-5, atol=1e-5)
            state = scorer.extend(state, cache, None, chosen)


def test_a_later_item_revises_those_above(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    known, slates = inputs(batch), torch.tensor([[[0, 1], [0, 2]]]).expand(8, -1, -1)
    for looks_ahead in (True, False):
        model = evaluator(extractor, behaviour="independent", looks_ahead=looks_ahead)
        with torch.no_grad():
            first = model(slates=slates, **known).probabilities[:, :, 0]
        assert torch.isclose(first[:, 0], first[:, 1]).all() != looks_ahead
    model = evaluator(extractor, behaviour="choice", num_interaction_heads=0)
    with torch.no_grad():  # who takes one item leaves the other
        chosen = model(slates=slates, **known).probabilities[..., model.leading].sum(-1)
    assert (chosen <= 1 + model.behaviour.others.sigmoid()).all()


@pytest.mark.parametrize("parts", [{}, {"looks_ahead": False, "num_hidden_layers": 1}, {"behaviour": "satisfaction"}])
def test_many_slates_are_scored_as_few_are(
    extractor: RerankingFeatureExtractor, batch: Batch, parts: dict[str, Any]
) -> None:
    """By effects that are looked up, and by effects that are computed for each slate."""
    model, known = evaluator(extractor, **parts), inputs(batch)
    num_candidates = batch["candidate_mask"].shape[1]
    slates = torch.from_numpy(all_slates(num_candidates, 3).copy())[::3].expand(8, -1, -1)
    slates = torch.cat([slates, F.pad(slates[..., :2], (0, 1), value=-100)], dim=1)
    assert slates[0].numel() >= num_candidates**2
    together = model.score_slates(slates, **known)
    torch.testing.assert_close(
        together, torch.cat([model.score_slates(part, **known) for part in slates.split(4, 1)], 1)
    )


def test_upstream_scores_are_learned_apart(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = evaluator(extractor).train()
    output = model(**batch)
    assert {"feedback", "upstream"} == set(output.loss_terms)
    output.loss_terms["feedback"].backward()
    assert all(parameter.grad is None for parameter in model.upstream.parameters())
    output.loss_terms["upstream"].backward()
    assert all(parameter.grad is not None for parameter in model.upstream.parameters())
    assert set(model.eval()(**batch).loss_terms) == {"feedback"}


def test_the_pair_channel_reads_what_belongs_to_the_item(extractor: RerankingFeatureExtractor) -> None:
    schema = extractor.schema.to_dict()
    with pytest.raises(Exception, match=r"interaction_fields names \['nothing'\]"):
        InteractionEvaluatorConfig(feature_schema=schema, interaction_fields=["nothing"])
    names = [field.name for field in extractor.schema.fields if field.group == "candidate"]
    one = next(name for name in names if name not in (extractor.schema.item_id, extractor.schema.upstream_score))
    assert len(evaluator(extractor, interaction_fields=[one]).item_columns) < len(evaluator(extractor).item_columns)
