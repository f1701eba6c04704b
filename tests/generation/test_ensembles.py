from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo import EvaluatorEnsemble, GeneratorPool, RerankingPipeline
from rerankzoo.errors import HubError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.auto import load_checkpoint, load_evaluator
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking

Batch = dict[str, Tensor]
SIZES: dict[str, Any] = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}


def make(kind: Any, config: Any, extractor: RerankingFeatureExtractor, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(config(feature_schema=extractor.schema.to_dict(), **SIZES)).eval()


@pytest.fixture
def ensemble(extractor: RerankingFeatureExtractor) -> EvaluatorEnsemble:
    """Of two families."""
    members = [
        make(DeGReEvaluator, DeGReConfig, extractor),
        make(DeGReEvaluator, DeGReConfig, extractor, seed=1),
        make(NAR4RecEvaluator, NAR4RecConfig, extractor),
    ]
    return EvaluatorEnsemble(members, spread_penalty=0.5).eval()


@pytest.fixture
def pool(extractor: RerankingFeatureExtractor) -> GeneratorPool:
    first, second = (
        make(DeGReGenerator, DeGReConfig, extractor),
        make(PointwiseForReranking, PointwiseConfig, extractor),
    )
    second.generation_config = second.generation_config_class(num_beams=3, num_return_sequences=3)
    return GeneratorPool([first, second]).eval()


def test_values_are_the_mean_less_the_spread(ensemble: EvaluatorEnsemble, batch: Batch) -> None:
    each = torch.stack([member.score_slates(batch["slates"], **batch) for member in ensemble.members])
    expected = each.mean(0) - 0.5 * each.std(0, correction=0)
    torch.testing.assert_close(ensemble.score_slates(batch["slates"], **batch), expected)


def test_soft_slates_are_valued_as_slates_are(ensemble: EvaluatorEnsemble, batch: Batch) -> None:
    choices = (batch["slates"].unsqueeze(-1) == torch.arange(batch["candidate_mask"].shape[1])).float()
    output = ensemble.score_choices(choices.requires_grad_(), **batch)
    torch.testing.assert_close(output.utilities, ensemble.score_slates(batch["slates"], **batch))
    each = torch.stack([member.score_choices(choices, **batch).probabilities for member in ensemble.members])
    torch.testing.assert_close(output.probabilities, each.mean(0))
    output.utilities.sum().backward()
    assert torch.isfinite(choices.grad).all()


def test_an_ensemble_travels_as_one_folder(
    ensemble: EvaluatorEnsemble, extractor: RerankingFeatureExtractor, batch: Batch, tmp_path: Path
) -> None:
    expected = ensemble.score_slates(batch["slates"], **batch)
    pipeline = RerankingPipeline(make(DeGReGenerator, DeGReConfig, extractor), extractor, ensemble)
    pipeline.save_pretrained(tmp_path)  # the ensemble in the subfolder "evaluator"
    for loaded in (
        EvaluatorEnsemble.from_pretrained(tmp_path, subfolder="evaluator"),
        load_evaluator(tmp_path).model,
        load_evaluator(tmp_path / "evaluator").model,
        RerankingPipeline.from_pretrained(str(tmp_path), evaluator=True).evaluator,
    ):
        assert loaded.spread_penalty == 0.5
        assert torch.equal(loaded.score_slates(batch["slates"], **batch), expected)
    assert load_evaluator(tmp_path, dtype=torch.bfloat16).model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="holds a EvaluatorEnsemble, expected a GeneratorPool"):
        GeneratorPool.from_pretrained(tmp_path / "evaluator")


def test_a_pool_lets_an_evaluator_choose_among_all_its_slates(
    pool: GeneratorPool, ensemble: EvaluatorEnsemble, batch: Batch, extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    every = pool.generate(**batch)
    assert every.shape == (8, 4, 4)  # one by the first member, three by the second
    assert torch.equal(every[:, 0], pool.members[0].generate(**batch))
    assert torch.equal(every[:, 1:], pool.members[1].generate(**batch))
    best = pool.generate(**batch, evaluator=ensemble, return_dict_in_generate=True)
    values = ensemble.score_slates(every, **batch)
    values = values.masked_fill((every < 0).all(-1), -torch.inf)
    torch.testing.assert_close(best.utilities, values.amax(-1))
    pool.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    loaded = load_checkpoint(tmp_path).model
    assert torch.equal(loaded.generate(**batch), every)


def test_refuses_members_that_do_not_belong_together(
    extractor: RerankingFeatureExtractor, make_rows: Any, tmp_path: Path
) -> None:
    other = RerankingFeatureExtractor(extractor.schema).fit(make_rows(seed=7))
    members = [make(DeGReEvaluator, DeGReConfig, one) for one in (extractor, other)]
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        EvaluatorEnsemble(members)
    with pytest.raises(ValueError, match="at least one member"):
        GeneratorPool([])
    with pytest.raises(ValueError, match=r"spread_penalty must not be negative, got -0\.1"):
        EvaluatorEnsemble(members[:1], spread_penalty=-0.1)
    (tmp_path / "ensemble.json").write_text('{"class": "Choir", "members": 1}')
    with pytest.raises(HubError, match="'Choir' is no ensemble"):
        load_evaluator(tmp_path)
