from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation import evaluator_quality


class Oracle:
    """Knows the truth of the simulated requests, times a factor."""

    def __init__(self, simulated: Any, factor: float) -> None:
        self.simulated = simulated
        self.factor = factor
        self.simulator = Simulator.from_metadata(simulated.metadata)

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        index = batch["request_index"].numpy() if "request_index" in batch else np.arange(len(slates))
        users, items = self.simulated.users[index], self.simulated.items[index]
        return self.factor * torch.from_numpy(self.simulator.expected_utility(users, items, slates.numpy()))


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
def test_the_truth_correlates_with_itself(simulated: Any, factor: float) -> None:
    """All 60 requests are one batch, so that their order tells who they are."""
    found = evaluator_quality(
        Oracle(simulated, factor), simulated.data, simulated.extractor, simulated.metadata, slate_size=3
    )
    assert found["spearman"] == pytest.approx(np.sign(factor))
    clicks = np.array([np.sum(np.array(row["value"])[row["slate"]] * row["click"]) for row in simulated.data])
    slates = np.array(simulated.data["slate"])[:, None]
    expected = Simulator.from_metadata(simulated.metadata).expected_utility(simulated.users, simulated.items, slates)
    assert found["calibration"] == pytest.approx(factor * expected.mean() / clicks.mean(), rel=1e-5)


def test_without_the_truth_only_calibration_is_known(simulated: Any) -> None:
    found = evaluator_quality(simulated.evaluator(), simulated.data, simulated.extractor, slate_size=3)
    assert set(found) == {"calibration"}
    assert found["calibration"] > 0
    unclicked = simulated.data.map(lambda row: {"click": [0.0] * len(row["click"])})
    assert evaluator_quality(simulated.evaluator(), unclicked, simulated.extractor, slate_size=3) == {}
    unlabelled = simulated.data.remove_columns("click")
    assert evaluator_quality(simulated.evaluator(), unlabelled, simulated.extractor, slate_size=3) == {}
