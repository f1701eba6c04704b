"""The truth as an evaluator: what the simulator says, by what a batch shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.errors import RerankingDataError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.digest import weights_digest
from rerankzoo.slates import uniform_slates


def test_it_says_what_the_simulator_says() -> None:
    simulator = Simulator(SimulatorSettings.named("strong", num_users=50, num_items=60))
    table = simulator.requests("train", 20)
    extractor = RerankingFeatureExtractor(simulator.schema).fit(table)
    batch = extractor(table)
    evaluator = SimulatorEvaluator.from_metadata(
        {"source": "simulator", "settings": simulator.settings.to_dict()}, extractor.schema
    )
    slates = uniform_slates(batch["candidate_mask"], 4, 6, torch.Generator().manual_seed(0))
    users, items = np.array(table["user_id"]), np.array(table["item_id"].to_pylist())
    expected = simulator.expected_utility(users, items, slates.numpy())
    assert evaluator.score_slates(slates, **batch).numpy() == pytest.approx(expected, rel=1e-6)
    slates[::2, 1, 2:], slates[:, 3, 1:], slates[3, 4] = -100, -100, -100
    found = evaluator.score_slates(slates, **batch).numpy()
    assert found[0, 1] == pytest.approx(simulator.expected_utility(users, items, slates[:, 1:2, :2].numpy())[0, 0])
    assert found[1, 1] == pytest.approx(expected[1, 1])
    assert found[:, 3] == pytest.approx(simulator.expected_utility(users, items, slates[:, 3:4, :1].numpy())[:, 0])
    assert found[3, 4] == 0.0
    other = SimulatorEvaluator(Simulator(SimulatorSettings.named("weak")), extractor.schema)
    assert weights_digest(other) != weights_digest(evaluator)
    with pytest.raises(RerankingDataError, match=r"user_embedding.*expected vectors of the simulated world"):
        other.score_slates(slates, **batch)


@pytest.mark.parametrize("world", ["strong", "satiation", "contrast", "choice", "decoys"])
def test_soft_slates_of_one_candidate_per_position_are_worth_what_slates_are(world: str) -> None:
    simulator = Simulator(SimulatorSettings.named(world, num_users=50, num_items=60))
    table = simulator.requests("train", 5)
    extractor = RerankingFeatureExtractor(simulator.schema).fit(table)
    batch, evaluator = extractor(table), SimulatorEvaluator(simulator, extractor.schema)
    slates = uniform_slates(batch["candidate_mask"], 4, 6, torch.Generator().manual_seed(0))
    choices = (slates.unsqueeze(-1) == torch.arange(batch["candidate_mask"].shape[1])).float().requires_grad_()
    output = evaluator.score_choices(choices, **batch)
    torch.testing.assert_close(output.utilities, evaluator.score_slates(slates, **batch), rtol=1e-5, atol=1e-5)
    output.utilities.sum().backward()
    assert torch.isfinite(choices.grad).all()
    assert (choices.grad.abs().amax(-1) > 0).all()
