from __future__ import annotations

from itertools import permutations
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.losses import graph_log_likelihood
from rerankzoo.models.congrats import CongratsConfig, CongratsForReranking
from tests.conftest import SIZES
from tests.models.common import ScorerTestSuite, assert_valid_slates

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "vertices_per_position": 2,
    "utility_threshold": 0.5,
}


class TestCongratsForReranking(ScorerTestSuite):
    model_class = CongratsForReranking
    config_values: ClassVar[dict[str, Any]] = TINY


def congrats(extractor: RerankingFeatureExtractor, **values: Any) -> CongratsForReranking:
    torch.manual_seed(0)
    return CongratsForReranking(CongratsConfig(feature_schema=extractor.schema.to_dict(), **{**TINY, **values})).eval()


def test_marginal_chances_of_a_slate_add_up_to_its_likelihood(
    extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor]
) -> None:
    model, slates = congrats(extractor, path_decoding="marginal"), mined_batch["slates"]
    with torch.no_grad():
        graph, scorer = model.read_graph(mined_batch), model.scorer()
        whole = graph_log_likelihood(graph.emissions, graph.transitions, slates)
        for number in range(slates.shape[1]):
            state, total = scorer.start(mined_batch), torch.zeros(len(slates))
            for index in slates[:, number].unbind(-1):
                chances, prior = scorer.next_item(state)
                chosen = chances.gather(1, index.clamp_min(0).unsqueeze(-1)).squeeze(-1)
                total = total + chosen.masked_fill(index < 0, 0.0)
                state = scorer.extend(state, {"prior": prior}, None, index)
            length = mined_batch["candidate_mask"].sum(-1).clamp_max(4)
            tails = state.memory["tails"][torch.arange(len(slates)), length - 1]
            mass = (graph.transitions[:, 0, 1:-1] + tails).logsumexp(-1)  # of all paths of that length
            real = slates[:, number, 0] >= 0
            torch.testing.assert_close(total[real], (whole[:, number] - mass)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [{"path_decoding": "marginal"}, {"items_at_ends": True}], ids=str)
def test_other_paths_are_decoded_and_learned_too(
    extractor: RerankingFeatureExtractor, mined_batch: dict[str, Tensor], values: dict[str, Any]
) -> None:
    model = congrats(extractor, **values).train()
    model(**mined_batch).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    for call in ({}, {"num_beams": 3}, {"do_sample": True}):
        assert_valid_slates(model.generate(**mined_batch, **call), mined_batch["candidate_mask"])
    three = torch.tensor([number for number, size in enumerate(SIZES) if size == 3])
    request = {name: tensor[three] for name, tensor in mined_batch.items()}
    every = torch.tensor(list(permutations(range(3)))).unsqueeze(0)
    torch.testing.assert_close(model.log_likelihood(every, **request).sum(-1).exp().sum(), torch.ones(()))


def test_items_at_ends_are_drawn_by_the_first_and_the_last_vertex(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        chances = congrats(extractor, items_at_ends=True).read_graph(batch).transitions.exp()
    assert torch.allclose(chances[:, 0, 1], torch.ones(8))
    assert (chances[:, 2:8, 9] == 0).all()  # only from the last of the eight, or as a slate of one item
    assert (chances[:, (1, 8), 9] > 0).all()


def test_greedy_look_ahead_takes_the_best_pair_of_vertex_and_item(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model = congrats(extractor)
    with torch.no_grad():
        graph = model.read_graph(batch)
        path = model.greedy_path(graph, batch)
    slates = model.generate(**batch)
    for row, slate in enumerate(slates.tolist()):
        left, vertex = batch["candidate_mask"][row].nonzero()[:, 0].tolist(), -1
        for position, item in enumerate(index for index in slate if index >= 0):
            reachable, chances = range(vertex + 1, 8 - 4 + position + 1), graph.transitions[row, vertex + 1, 1:-1]
            pairs = {(v, i): float(chances[v] + graph.emissions[row, v, i]) for v in reachable for i in left}
            vertex, best = max(pairs, key=pairs.__getitem__)
            assert (vertex, best) == (path[row, position], item)
            left.remove(item)


def test_logits_are_chances_of_positions_and_those_along_the_path(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    model = congrats(extractor)
    with torch.no_grad():
        graph, output = model.read_graph(batch), model(**batch)
        path = model.greedy_path(graph, batch)
        whole = torch.tensor([size >= 4 for size in SIZES])
        every = torch.cartesian_prod(*[torch.arange(7)] * 4).expand(8, -1, -1)  # items may repeat here
        chances = graph_log_likelihood(graph.emissions, graph.transitions, every).softmax(-1)
    assert torch.equal(output.path_logits, torch.stack([graph.logits[row, path[row]] for row in range(8)]))
    for position in range(4):
        expected = torch.stack([chances[:, every[0, :, position] == item].sum(-1) for item in range(7)], dim=-1)
        torch.testing.assert_close(output.logits[whole, position].exp(), expected[whole], atol=1e-5, rtol=1e-4)
