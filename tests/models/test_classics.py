from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.dlcm import DLCMConfig, DLCMForReranking
from rerankzoo.models.gsf import GSFConfig, GSFForReranking
from rerankzoo.models.midnn import MiDNNForReranking
from rerankzoo.models.midnn.modeling_midnn import place_in_list
from rerankzoo.models.setrank import SetRankConfig, SetRankForReranking
from tests.models.common import GeneratorVariantTestSuite, ScorerTestSuite

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


class TestSetRankForReranking(ScorerTestSuite):
    model_class = SetRankForReranking
    config_values: ClassVar[dict[str, Any]] = {
        **TINY,
        "num_hidden_layers": 1,
        "num_inducing_points": 2,
        "max_position_embeddings": 3,
    }


class TestSetRankOfFullAttention(GeneratorVariantTestSuite):
    model_class = SetRankForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_hidden_layers": 1}


class TestDLCMForReranking(ScorerTestSuite):
    model_class = DLCMForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "list_size": 5}  # of up to seven candidates


class TestGSFForReranking(ScorerTestSuite):
    model_class = GSFForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_hidden_layers": 2}


class TestGroupsOfOne(GeneratorVariantTestSuite):
    model_class = GSFForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_hidden_layers": 2, "group_size": 1}


class TestMiDNNForReranking(ScorerTestSuite):
    model_class = MiDNNForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_hidden_layers": 1}


def make(model_class: Any, extractor: RerankingFeatureExtractor, **values: Any) -> Any:
    torch.manual_seed(0)
    config = model_class.config_class(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})
    return model_class(config).eval()


def encoded(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A model's input vectors (B, N, D) and its states (B, N, D)."""
    with torch.no_grad():
        return model.features(batch), model.encode_candidates(inputs(batch))


# --- parity with what the papers say, written plainly -----------------------------------------------------------------


def attention(block: Any, queries: Tensor, memory: Tensor) -> Tensor:
    """A reading block of one request, head by head, token by token."""
    attend, out = block.attention, []
    q = attend.query(block.query_norm(queries))
    k, v = attend.key_value(block.memory_norm(memory)).chunk(2, dim=-1)
    size = attend.head_size
    for row in range(len(queries)):
        heads = []
        for start in range(0, q.shape[-1], size):
            part = slice(start, start + size)
            weights = torch.stack([q[row, part] @ k[other, part] for other in range(len(memory))]) / size**0.5
            heads.append((weights.softmax(0).unsqueeze(-1) * v[:, part]).sum(0))
        out.append(queries[row] + attend.output(torch.cat(heads)))
    hidden = torch.stack(out)
    return hidden + block.feed_forward(block.feed_forward_norm(hidden))


def test_setrank_s_induced_block(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = make(SetRankForReranking, extractor, num_hidden_layers=2, num_inducing_points=3)
    vectors, states = encoded(model, batch)
    for row, mask in enumerate(batch["candidate_mask"]):
        hidden = vectors[row, mask]
        with torch.no_grad():
            for layer in model.layers:
                hidden = attention(layer.spread, hidden, attention(layer.gather, layer.points, hidden))
            torch.testing.assert_close(states[row, mask], model.norm(hidden), rtol=1e-5, atol=1e-5)


def gru_cell(reader: Any, x: Tensor, h: Tensor) -> Tensor:
    xr, xz, xn = (reader.weight_ih @ x + reader.bias_ih).chunk(3)
    hr, hz, hn = (reader.weight_hh @ h + reader.bias_hh).chunk(3)
    update = torch.sigmoid(xz + hz)
    return (1 - update) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + update * h


@pytest.mark.parametrize("list_size", [3, 9])
def test_dlcm_s_recurrence(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], list_size: int) -> None:
    model = make(DLCMForReranking, extractor, list_size=list_size)
    vectors, states = encoded(model, batch)
    for row, mask in enumerate(batch["candidate_mask"].tolist()):
        scores = batch["candidate_numeric"][row, :, model.upstream_column].tolist()
        best = sorted((index for index, real in enumerate(mask) if real), key=lambda index: -scores[index])
        read, h = {}, torch.zeros(32)
        with torch.no_grad():
            for index in reversed(best[:list_size]):  # from the worst to the best
                h = read[index] = gru_cell(model.reader, vectors[row, index], h)
            for index in best:
                own = read.get(index, gru_cell(model.reader, vectors[row, index], torch.zeros(32)))
                expected = torch.tanh(model.of_candidate(own) + model.of_list(h))
                torch.testing.assert_close(states[row, index], expected, rtol=1e-5, atol=1e-5)


def test_gsf_s_sum_over_pairs(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = make(GSFForReranking, extractor, num_hidden_layers=2)
    vectors, states = encoded(model, batch)
    for row, mask in enumerate(batch["candidate_mask"]):
        items, (one, two) = vectors[row, mask], model.members
        for number, item in enumerate(items):
            total = torch.zeros(32)
            with torch.no_grad():
                for other in items:
                    total += model.outputs[0](model.read(one(item) + two(other)))
                    total += model.outputs[1](model.read(one(other) + two(item)))
            torch.testing.assert_close(states[row, mask][number], total / len(items), rtol=1e-5, atol=1e-5)


def test_place_between_the_least_and_the_largest() -> None:
    numeric = torch.tensor([[[1.0, 4.0], [5.0, 4.0], [2.0, 4.0], [99.0, -9.0]], [[7.0, 0.0]] * 4])
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    places = place_in_list(numeric, mask)
    assert places[0].tolist() == [[0.0, 0.5], [1.0, 0.5], [0.25, 0.5], [0.0, 0.0]]
    assert not places[1].any()


# --- what they read of a list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", [SetRankForReranking, DLCMForReranking, GSFForReranking, MiDNNForReranking])
def test_score_of_a_candidate_depends_on_the_others(
    model_class: Any, extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model, changed = make(model_class, extractor), dict(batch)
    price = batch["candidate_numeric"][..., :1].clone()
    price[:, 0] = 50.0  # the dearest, by far
    changed["candidate_numeric"] = torch.cat([price, batch["candidate_numeric"][..., 1:]], dim=-1)
    _, before = encoded(model, batch)
    _, after = encoded(model, changed)
    others = batch["candidate_mask"].clone()
    others[:, 0] = False
    changed_states = ((before - after).abs().amax(-1) > 1e-6) & others
    assert changed_states.any(1)[others.any(1)].all()  # the cheapest one stays the cheapest


def test_groups_of_one_are_pointwise(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    model = make(GSFForReranking, extractor, group_size=1)
    _, alone = encoded(model, {name: part[:, :1] if "candidate" in name else part for name, part in batch.items()})
    torch.testing.assert_close(encoded(model, batch)[1][:, :1], alone)


def test_only_those_that_read_the_upstream_order_need_it(extractor: RerankingFeatureExtractor) -> None:
    schema = replace(extractor.schema, upstream_score=None).to_dict()
    SetRankForReranking(SetRankConfig(feature_schema=schema, **TINY))
    for config in (
        SetRankConfig(feature_schema=schema, max_position_embeddings=9, **TINY),
        DLCMConfig(feature_schema=schema, **TINY),
    ):
        model_class = DLCMForReranking if isinstance(config, DLCMConfig) else SetRankForReranking
        with pytest.raises(ValueError, match=r"schema 'tiny' has no upstream_score"):
            model_class(config)


def test_groups_are_of_one_or_two() -> None:
    with pytest.raises(StrictDataclassError, match="group_size: expected 1 or 2, got 3"):
        GSFConfig(group_size=3)
