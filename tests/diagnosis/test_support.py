from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rerankzoo.diagnosis import Log
from rerankzoo.diagnosis.support import (
    constant_log_likelihoods,
    estimate_counterfactually,
    find_support,
    item_codes,
    position_log_likelihoods,
)

CLICKS = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 0.0]]]).unsqueeze(-1)  # (4, 1, 2, 1)


def test_a_constant_knows_the_base_rate() -> None:
    batch = {"slates": torch.tensor([[[0, 1]]] * 4), "feedback": CLICKS}
    found = constant_log_likelihoods(batch, batch)
    assert found.tolist() == pytest.approx([2 * math.log(0.5)] * 4)
    padded = {**batch, "slates": torch.tensor([[[0, -100]]] * 4)}
    assert constant_log_likelihoods(batch, padded).tolist() == pytest.approx([math.log(0.5)] * 4)


def test_positions_of_items_are_shrunk_to_those_of_all(log: Log) -> None:
    """Item 2 stands first four times and is clicked thrice, as everything there: its rate is that of the position."""
    categories = torch.full((4, 2, log.halves[0]["candidate_categorical"].shape[-1]), 3)
    categories[:, 0] = 2
    batch = {"slates": torch.tensor([[[0, 1]]] * 4), "feedback": CLICKS, "candidate_categorical": categories}
    found = position_log_likelihoods(log, batch, batch)
    right, wrong = math.log(0.75 * 0.75), math.log(0.25 * 0.25)
    assert found.tolist() == pytest.approx([right, right, wrong, right])
    other = {**batch, "slates": torch.tensor([[[1, 0]]] * 4)}  # never shown so: only the position speaks
    assert position_log_likelihoods(log, batch, other).tolist() == pytest.approx([right, right, wrong, right])


def test_what_is_logged_is_supported(log: Log) -> None:
    logged = log.test["slates"][:, 0]
    found = find_support(log, logged)
    assert (found.equal, found.matches) == (20, 1.0)
    assert not found.fixed
    assert found.distinct_sets > 0.9
    assert 0 < found.upstream < 1
    reverse = find_support(log, logged.flip(1))
    assert reverse.equal == 0
    assert reverse.matches == pytest.approx(1 / 3)  # the middle one


def test_fixed_candidate_sets_are_noticed(log: Log) -> None:
    halves = tuple({name: tensor[:1].expand(tensor.shape) for name, tensor in half.items()} for half in log.halves)
    repeated = replace(log, halves=halves)
    codes, slate = item_codes(log, halves[0]), halves[0]["slates"][0]
    assert codes is not None
    test = {**log.test, "candidate_categorical": halves[0]["candidate_categorical"][:20]}
    found = find_support(replace(repeated, test=test), slate.expand(20, -1))
    assert found.fixed
    assert (found.positions, found.neighbours) == (1.0, 1.0)
    assert find_support(replace(repeated, test=test), slate.flip(1).expand(20, -1)).neighbours == 0.0


def test_counterfactual_estimates_say_when_they_cannot_tell(log: Log) -> None:
    half = log.halves[0]
    found = estimate_counterfactually(log, half, half["slates"][:, 0])
    assert [one.name for one in found] == ["snips", "reward interaction", "cascade doubly robust"]
    assert not found[0].estimated
    assert all("cannot be told from this log" in (one.refusal or "") for one in found)
    fitted = estimate_counterfactually(log, {k: v for k, v in half.items() if k != "propensity"}, half["slates"][:, 0])
    assert fitted[0].estimated
