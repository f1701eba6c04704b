from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from rerankzoo.batch import take, trim
from rerankzoo.data import loader as loader_module
from rerankzoo.data.loader import RequestLoader, logged_utilities
from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.features import RerankingFeatureExtractor

SIZES = tuple(2 + number % 6 for number in range(50))


@pytest.fixture(scope="module")
def table(make_rows: Callable[..., Any]) -> Dataset:
    return Dataset(pa.Table.from_pylist(make_rows(5, SIZES)))


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several buffers even for a small table."""
    monkeypatch.setattr(loader_module, "BUFFER_BATCHES", 2)


def order(loader: RequestLoader) -> list[list[int]]:
    return [batch["request_index"].tolist() for batch in loader]


def test_batches_equal_direct_extraction(table: Dataset, extractor: RerankingFeatureExtractor) -> None:
    rows = table.to_list()
    for batch in RequestLoader(table, extractor, batch_size=8, shuffle=True):
        direct = extractor([rows[index] for index in batch["request_index"].tolist()])
        for key, value in direct.items():
            if key == "request_index":
                continue
            assert torch.equal(batch[key], value), key


def test_candidates_are_padded_to_the_batch_only(table: Dataset, extractor: RerankingFeatureExtractor) -> None:
    for batch in RequestLoader(table, extractor, batch_size=3, shuffle=True):
        longest = max(SIZES[index] for index in batch["request_index"].tolist())
        assert {batch[key].shape[1] for key in batch if key.startswith("candidate_")} == {longest}


@pytest.mark.parametrize("batch_size", [1, 7, 50, 64])
def test_every_row_once(table: Dataset, extractor: RerankingFeatureExtractor, batch_size: int) -> None:
    for shuffle in (False, True):
        loader = RequestLoader(table, extractor, batch_size, shuffle=shuffle)
        batches = order(loader)
        assert sorted(chain(*batches)) == list(range(50))
        assert len(batches) == len(loader)
    assert list(chain(*order(RequestLoader(table, extractor, batch_size)))) == list(range(50))


def test_order_follows_from_seed_and_epoch(table: Dataset, extractor: RerankingFeatureExtractor) -> None:
    loader = RequestLoader(table, extractor, 8, shuffle=True, seed=3)
    first = order(loader)
    assert order(loader) == first
    loader.set_epoch(1)
    second = order(loader)
    assert second != first
    again = RequestLoader(table, extractor, 8, shuffle=True, seed=3)
    again.set_epoch(1)
    assert order(again) == second
    assert order(RequestLoader(table, extractor, 8, shuffle=True, seed=4)) != first


def test_shuffling_mixes_blocks(table: Dataset, extractor: RerankingFeatureExtractor) -> None:
    first = order(RequestLoader(table, extractor, 10, shuffle=True))[0]
    assert max(first) - min(first) >= 10  # rows of more than one block of ten


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("batch_size", "world_size"), [(6, 2), (6, 3), (4, 3), (7, 7), (25, 2)])
def test_processes_share_the_batches_of_one(
    table: Dataset, extractor: RerankingFeatureExtractor, batch_size: int, world_size: int, shuffle: bool
) -> None:
    """Every row once, and equally many batches: a process that is left without a row has a blank request."""
    alone = order(RequestLoader(table, extractor, batch_size * world_size, shuffle=shuffle))
    loaders = [
        RequestLoader(table, extractor, batch_size, shuffle=shuffle, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [order(loader) for loader in loaders]
    assert {len(share) for share in shares} == {len(loader) for loader in loaders} == {len(alone)}
    for whole, parts in zip(alone, zip(*shares, strict=True), strict=True):
        assert [part == [-1] for part in parts] == [rank >= len(whole) for rank in range(world_size)]
        assert sorted(index for index in chain(*parts) if index >= 0) == sorted(whole)
        sizes = [len(part) for part in parts if part != [-1]]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_process_reads_its_own_rows_only(
    table: Dataset, extractor: RerankingFeatureExtractor, shuffle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And has of every batch what it would take of the one that a single process reads."""
    wholes = list(RequestLoader(table, extractor, 8, shuffle=shuffle))
    encoded: list[int] = []
    original = RerankingFeatureExtractor.__call__

    def counted(self: RerankingFeatureExtractor, rows: Any) -> Any:
        encoded.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(RerankingFeatureExtractor, "__call__", counted)
    for rank in range(4):
        encoded.clear()
        batches = list(RequestLoader(table, extractor, 2, shuffle=shuffle, rank=rank, world_size=4))
        assert sum(encoded) <= sum(len(batch["candidate_mask"]) for batch in batches)
        for whole, batch in zip(wholes, batches, strict=True):
            if batch["request_index"].tolist() != [-1]:
                expected = trim(take(whole, torch.arange(rank, len(whole["candidate_mask"]), 4)))
                assert batch.keys() == expected.keys()
                assert all(torch.equal(batch[name], value) for name, value in expected.items())


def test_blank_request_has_the_keys_and_types_of_any_other(
    extractor: RerankingFeatureExtractor, table: Dataset
) -> None:
    first, second = (
        list(RequestLoader(table, extractor, 7, shuffle=True, rank=rank, world_size=7))[-1] for rank in (0, 6)
    )
    assert {key: (value.dtype, value.dim()) for key, value in second.items()} == {
        key: (value.dtype, value.dim()) for key, value in first.items()
    }
    assert not second["candidate_mask"].any()
    assert not second["candidate_feedback_mask"].any()
    assert (second["slates"] == -100).all()
    assert second["request_index"].tolist() == [-1]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_a_pass_goes_on_where_it_was(
    table: Dataset, extractor: RerankingFeatureExtractor, shuffle: bool, world_size: int
) -> None:
    options = {"batch_size": 4, "shuffle": shuffle, "rank": world_size - 1, "world_size": world_size}
    loader = RequestLoader(table, extractor, **options)
    loader.set_epoch(3)
    whole = order(loader)
    for position in range(len(whole) + 1):
        stopped, again = RequestLoader(table, extractor, **options), RequestLoader(table, extractor, **options)
        stopped.set_epoch(3)
        for _ in zip(range(position), stopped, strict=False):
            pass
        again.load_state_dict(stopped.state_dict())
        again.set_epoch(3)
        assert order(again) == whole[position:]
        assert order(again) == whole  # the next time from the beginning
    again.load_state_dict({"epoch": 3, "batches": 2})
    again.set_epoch(4)
    assert len(order(again)) == len(whole)  # another pass


def test_batches_before_are_not_read(
    table: Dataset, extractor: RerankingFeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = RequestLoader(table, extractor, 2)
    loader.load_state_dict({"epoch": 0, "batches": 4})
    read: list[int] = []
    real = loader.extractor
    monkeypatch.setattr(loader, "extractor", lambda rows: (read.append(len(rows)), real(rows))[1])
    assert sum(map(len, order(loader))) == sum(read) == 50 - 4 * 2


def test_refuses_what_cannot_work(table: Dataset, extractor: RerankingFeatureExtractor) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        RequestLoader(table, extractor, 0)
    with pytest.raises(ValueError, match="50 rows cannot be shared by 51"):
        RequestLoader(table, extractor, 4, world_size=51)


@pytest.mark.parametrize("limit", [50, 20])
def test_utilities_of_a_long_log_are_those_of_evenly_spaced_blocks(
    table: Dataset, extractor: RerankingFeatureExtractor, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "MAX_UTILITY_ROWS", limit)
    expected = []
    for start in range(0, 50, 5) if limit == 50 else (0, 12, 25, 37):
        for row in table.to_list()[start : start + 5]:
            orders = zip(row["slate"], row["order"], strict=True)
            expected.append([sum(row["click"]) + 0.5 * sum(row["price"][index] * order for index, order in orders)])
    found = logged_utilities(table, extractor, batch_size=5)
    assert found.shape == (limit, 1)
    for one, other in zip(found.tolist(), expected, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_fields_that_belong_to_the_item() -> None:
    """What is the same wherever an item is a candidate, in numbers, ids and vectors."""
    simulator = Simulator(SimulatorSettings.named("strong", num_users=50))
    table = simulator.requests("train", 200)
    extractor = RerankingFeatureExtractor(simulator.schema)
    extractor.fit(table)
    loader = RequestLoader(Dataset(table), extractor, batch_size=64)
    assert loader.item_fields() == ["category", "item_embedding", "value"]  # not the affinity, nor the upstream score
    assert loader.num_positions() == 200 * 4
    once = RequestLoader(Dataset(table.slice(0, 1)), extractor, batch_size=64)  # no item twice: nobody knows
    assert once.item_fields() == ["category", "item_embedding", "affinity", "value"]
