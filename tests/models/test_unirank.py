from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rerankzoo.batch import PADDING
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Exclude, beam_search
from rerankzoo.models.unirank import UniRankConfig, UniRankForReranking
from tests.generation.common import play
from tests.models.common import GeneratorTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_slot_layers": 1,
}


class TestUniRankForReranking(GeneratorTestSuite):
    model_class = UniRankForReranking
    config_values: ClassVar[dict[str, Any]] = TINY
    own_calls: ClassVar[dict[str, dict[str, Any]]] = {
        "confident": {"fill_per_step": 1},
        "confident in two steps": {"fill_per_step": 2},
        "confident at once": {"fill_per_step": 4},
    }


def unirank(extractor: RerankingFeatureExtractor) -> UniRankForReranking:
    torch.manual_seed(0)
    return UniRankForReranking(UniRankConfig(feature_schema=extractor.schema.to_dict(), **TINY)).eval()


def windows(size: int) -> list[tuple[int, ...]]:
    """All windows of slots that go round at the end, each once."""
    return sorted({tuple(sorted((s + k) % size for k in range(n))) for n in range(1, size + 1) for s in range(size)})


def test_loss_is_the_mean_of_all_windows(extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]) -> None:
    model, mask = unirank(extractor), mined_batch["candidate_mask"]
    clicked, total = (mined_batch["feedback"].nan_to_num() > 0).any(-1), 0.0
    with torch.no_grad():
        found, states = model(**mined_batch), model.encode(mined_batch)
        for row, slates in enumerate(mined_batch["slates"].tolist()):
            real = [[item for item in slate if item >= 0] for slate in slates if max(slate) >= 0]
            for number, slate in enumerate(real):
                ways, size, one = windows(len(slate)), torch.tensor([[len(slate)]]), slice(row, row + 1)
                for window in ways:
                    seen = [PADDING if place in window else item for place, item in enumerate(slate)]
                    padded = torch.tensor([[[*seen, *[PADDING] * (4 - len(slate))]]])
                    chances = model.slot_logits(states[one], padded, size, mask[one])[0, 0].log_softmax(-1)
                    costs = [-float(chances[j, slate[j]]) * float(clicked[row, number, j]) for j in window]
                    total += sum(costs) / len(window) / len(ways) / len(real)
    assert found.loss.item() == pytest.approx(total / 8, rel=1e-4)


def test_mined_slates_are_learned_by_their_weights(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, clicked = unirank(extractor), {**batch, "feedback": torch.ones_like(batch["feedback"])}
    mined = {name: tensor for name, tensor in batch.items() if name != "feedback"}
    with torch.no_grad():
        once, twice = (model(**mined, slate_weights=torch.full((8, 1), weight)).loss for weight in (1.0, 2.0))
        assert once.item() == pytest.approx(model(**clicked).loss.item(), rel=1e-5)
    assert twice.item() == pytest.approx(2 * once.item(), rel=1e-5)


def test_from_the_top_scores_are_those_of_the_slots(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model = unirank(extractor)
    found = model.generate(**batch, return_dict_in_generate=True)
    with torch.no_grad():
        scores, _ = play(model.scorer(), batch, found.slates.unsqueeze(1))
        beam = beam_search(model.scorer(), batch, slate_size=4, num_beams=1, num_return_sequences=1)
    torch.testing.assert_close(found.scores, scores[:, 0])
    assert torch.equal(beam.slates[:, 0], found.slates)
    likelihood = model.log_likelihood(found.slates.unsqueeze(1), **batch)
    torch.testing.assert_close(likelihood[:, 0], found.step_scores)
    every = torch.arange(7).view(1, 7, 1).expand(8, -1, -1)
    torch.testing.assert_close(model.log_likelihood(every, **batch).exp().sum((1, 2)), torch.ones(8))


def test_the_surest_pair_of_slot_and_candidate_is_filled_first(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model = unirank(extractor)
    found = model.generate(**batch, fill_per_step=1, return_dict_in_generate=True)
    for row in range(8):
        mask = batch["candidate_mask"][row : row + 1]
        one, size = {name: tensor[row : row + 1] for name, tensor in batch.items()}, min(4, int(mask.sum()))
        slate, left = [PADDING] * 4, mask[0].nonzero()[:, 0].tolist()
        with torch.no_grad():
            states = model.encode(one)
            for _ in range(size):
                logits = model.slot_logits(states, torch.tensor([[slate]]), torch.tensor([[size]]), mask)[0, 0]
                chances = {
                    (j, i): float(logits[j, left].log_softmax(-1)[left.index(i)])
                    for j in range(size)
                    if slate[j] < 0
                    for i in left
                }
                (slot, item), best = max(chances.items(), key=lambda pair: pair[1])
                assert best == pytest.approx(float(found.step_scores[row, slot]), abs=1e-5)
                slate[slot] = item
                left.remove(item)
        assert slate == found.slates[row].tolist()


def test_refuses_what_it_cannot_fill(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = unirank(extractor)
    with pytest.raises(ValueError, match="fill_per_step must be a positive integer, got 0"):
        model.generate(**batch, fill_per_step=0)
    with pytest.raises(ValueError, match="constraints are kept from the top"):
        model.generate(**batch, fill_per_step=1, constraints=Exclude(torch.zeros_like(batch["candidate_mask"])))
    with pytest.raises(ValueError, match="slate_size must be at most 4"):
        model.generate(**batch, fill_per_step=1, slate_size=5)
