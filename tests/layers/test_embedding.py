from __future__ import annotations

import pytest
import torch
from torch import nn

from rerankzoo.layers import FeatureEmbedding, FieldEmbedding, PackedEmbedding

SIZES = (5, 7, 4)
OWNERS = {"request": (0,), "candidate": (1, 2), "history": (1,)}


def packed() -> PackedEmbedding:
    torch.manual_seed(0)
    return PackedEmbedding(SIZES, OWNERS, embedding_size=3)


def separate(embedding: PackedEmbedding) -> list[nn.Embedding]:
    """A table per field, with the weights of the packed one and zeros for id 0."""
    tables = []
    for weight in embedding.table.weight.detach().split(SIZES):
        table = nn.Embedding(len(weight), 3, padding_idx=0)
        table.weight = nn.Parameter(weight.clone())
        table.weight.data[0] = 0.0
        tables.append(table)
    return tables


def test_packed_embedding_is_one_table_per_field() -> None:
    embedding, ids = packed(), torch.cartesian_prod(torch.arange(7), torch.arange(4)).view(4, 7, 2)
    found, tables = embedding(ids, "candidate"), separate(embedding)
    assert found.shape == (4, 7, 2, 3)
    torch.testing.assert_close(found[..., 0, :], tables[1](ids[..., 0]))
    torch.testing.assert_close(found[..., 1, :], tables[2](ids[..., 1]))
    assert sum(len(table.weight) for table in tables) == len(embedding.table.weight)


def test_shared_fields_use_the_same_rows() -> None:
    embedding, ids = packed(), torch.arange(7).view(7, 1)
    candidates = embedding(torch.cat([ids, ids % 4], dim=-1), "candidate")[:, 0]
    assert torch.equal(embedding(ids, "history")[:, 0], candidates)


def test_padding_is_zero_and_learns_nothing() -> None:
    embedding = packed()
    found = embedding(torch.tensor([[0, 1], [2, 0]]), "candidate")
    assert (found[0, 0] == 0).all()
    assert (found[1, 1] == 0).all()
    assert (found[0, 1] != 0).all()
    found.sum().backward()
    touched = embedding.table.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist()
    assert touched == [5 + 2, 5 + 7 + 1]


def test_a_group_without_fields_embeds_to_nothing() -> None:
    embedding = PackedEmbedding((), {"request": ()}, embedding_size=3)
    assert embedding(torch.empty(2, 0, dtype=torch.int64), "request").shape == (2, 0, 3)


def features(history: bool = True, request: bool = True) -> FeatureEmbedding:
    torch.manual_seed(0)
    owners = {"request": (0,) if request else (), "candidate": (1, 2), "history": (1,) if history else ()}
    return FeatureEmbedding(SIZES, owners, {"request": 2 if request else 0, "candidate": 1}, 3, hidden_size=8)


def batch() -> dict[str, torch.Tensor]:
    noise = torch.Generator().manual_seed(1)
    return {
        "request_categorical": torch.tensor([[1], [4]]),
        "request_numeric": torch.randn(2, 2, generator=noise),
        "candidate_categorical": torch.tensor([[[1, 2], [6, 3], [0, 0]], [[2, 1], [3, 0], [5, 3]]]),
        "candidate_numeric": torch.randn(2, 3, 1, generator=noise),
        "history_categorical": torch.tensor([[[3], [6]], [[0], [0]]]),
        "history_mask": torch.tensor([[True, True], [False, False]]),
    }


def test_feature_embedding_is_one_linear_map_of_everything() -> None:
    layer, inputs = features(), batch()
    found = layer(inputs)
    weight = torch.cat(
        [layer.candidate_projection.weight, layer.request_projection.weight, layer.history_projection.weight], dim=-1
    )
    tables = separate(layer.embedding)
    for row in range(2):
        past = inputs["history_categorical"][row][inputs["history_mask"][row]]
        mean = tables[1](past[:, 0]).mean(0) if len(past) else torch.zeros(3)
        user = torch.cat([tables[0](inputs["request_categorical"][row, 0]), inputs["request_numeric"][row]])
        for item in range(3):
            first, second = inputs["candidate_categorical"][row, item]
            own = torch.cat([tables[1](first), tables[2](second), inputs["candidate_numeric"][row, item]])
            expected = weight @ torch.cat([own, user, mean]) + layer.candidate_projection.bias
            torch.testing.assert_close(found[row, item], expected)


@pytest.mark.parametrize("group", ["request", "candidate"])
@pytest.mark.parametrize(("number", "counts_as"), [(9_999.0, 9_999.0), (1e30, 1e4), (-torch.inf, -1e4), (1e-40, 1e-40)])
def test_numbers_are_bounded(group: str, number: float, counts_as: float) -> None:
    for module in (features(), fields()):
        given, meant = batch(), batch()
        given[f"{group}_numeric"][0], meant[f"{group}_numeric"][0] = number, counts_as
        for found, expected in zip(module(given), module(meant), strict=True):
            assert torch.isfinite(found).all()
            assert torch.equal(found, expected)


def test_missing_groups_have_no_parameters() -> None:
    # A parameter without a gradient stops distributed training.
    layer, inputs = features(history=False, request=False), batch()
    inputs.update(request_categorical=torch.empty(2, 0, dtype=torch.int64), request_numeric=torch.empty(2, 0))
    del inputs["history_categorical"], inputs["history_mask"]
    layer(inputs).sum().backward()
    assert {name for name, _ in layer.named_parameters()} == {
        "embedding.table.weight",
        "candidate_projection.weight",
        "candidate_projection.bias",
    }
    assert all(parameter.grad is not None for parameter in layer.parameters())


@pytest.mark.parametrize("key", ["history_categorical", "history_mask"])
def test_history_is_required_where_there_are_history_fields(key: str) -> None:
    inputs = batch()
    del inputs[key]
    with pytest.raises(ValueError, match="needs history_categorical and history_mask"):
        features()(inputs)


def fields(history: bool = True, request: bool = True) -> FieldEmbedding:
    torch.manual_seed(0)
    owners = {"request": (0,) if request else (), "candidate": (1, 2), "history": (1,) if history else ()}
    sizes = {"request": (2,) if request else (), "candidate": (1,)}
    return FieldEmbedding(SIZES, owners, sizes, embedding_size=3, field_size=4)


def test_field_embedding_has_one_linear_map_per_field() -> None:
    layer, inputs = fields(), batch()
    candidates, shared = layer(inputs)
    assert candidates.shape == (2, 3, layer.num_candidate_fields, 4)
    assert shared.shape == (2, layer.num_request_fields, 4)
    tables, maps = separate(layer.embedding), layer.projections
    for row in range(2):
        user = tables[0](inputs["request_categorical"][row, 0])
        past = inputs["history_categorical"][row][inputs["history_mask"][row]]
        mean = tables[1](past[:, 0]).mean(0) if len(past) else torch.zeros(3)
        parts = [maps["request"][0](user), maps["request"][1](inputs["request_numeric"][row]), maps["history"][0](mean)]
        torch.testing.assert_close(shared[row], torch.stack(parts))
        for item in range(3):
            first, second = inputs["candidate_categorical"][row, item]
            number = inputs["candidate_numeric"][row, item]
            own = [maps["candidate"][0](tables[1](first)), maps["candidate"][1](tables[2](second))]
            torch.testing.assert_close(candidates[row, item], torch.stack([*own, maps["candidate"][2](number)]))


def test_field_embedding_without_request_and_history() -> None:
    layer, inputs = fields(history=False, request=False), batch()
    inputs.update(request_categorical=torch.empty(2, 0, dtype=torch.int64), request_numeric=torch.empty(2, 0))
    del inputs["history_categorical"], inputs["history_mask"]
    candidates, shared = layer(inputs)
    assert shared.shape == (2, 0, 4)
    candidates.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_field_embedding_of_numbers_only() -> None:
    layer = FieldEmbedding((), {"request": (), "candidate": (), "history": ()}, {"candidate": (1, 3)}, 3, 4)
    ids, none = torch.empty(2, 5, 0, dtype=torch.int64), torch.empty(2, 0)
    request = {"request_categorical": ids[:, 0], "request_numeric": none}
    candidates, shared = layer({**request, "candidate_categorical": ids, "candidate_numeric": torch.randn(2, 5, 4)})
    assert candidates.shape == (2, 5, 2, 4)
    assert shared.shape == (2, 0, 4)
    candidates.sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())  # the empty table too


@pytest.mark.parametrize("key", ["history_categorical", "history_mask"])
def test_field_embedding_requires_history_where_there_are_history_fields(key: str) -> None:
    inputs = batch()
    del inputs[key]
    with pytest.raises(ValueError, match="needs history_categorical and history_mask"):
        fields()(inputs)
