"""The correctly specified model of a simulated log."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.data.simulator.ceiling import fit_ceiling
from rerankzoo.slates import all_slates

#: What a model of the log may see.
SEEN = ("user_embedding", "item_id", "item_embedding", "category", "value")


@pytest.mark.parametrize("setting", ["choice", "satiation", "decoys"])
def test_a_fitted_model_chooses_better_than_the_pointwise_oracle(setting: str) -> None:
    settings = SimulatorSettings.named(setting)
    simulator = Simulator(settings)
    fitted = fit_ceiling(simulator.requests("train", 5_000 if setting == "decoys" else 3_000), settings)
    test = simulator.requests("test", 100)
    users, items = test["user_id"].to_numpy(), np.array(test["item_id"].to_pylist())
    best = simulator.all_utilities(users, items, 4).max(1)

    def share(slates: np.ndarray) -> float:
        return float((simulator.expected_utility(users, items, slates[:, None])[:, 0] / best).mean())

    chosen = fitted.best_slates(test.select(SEEN), 4)
    assert share(chosen) > share(simulator.pointwise_oracle(users, items, 4)) + 0.05
    # By the model itself they are the best of all.
    utilities = fitted.audience(test).all_utilities(4)
    np.testing.assert_array_equal(all_slates(10, 4)[utilities.argmax(1)], chosen)
    assert type(fitted.user) is type(settings.user)
    if setting == "choice":
        assert fitted.user.attention_decay == pytest.approx(0.75, abs=0.05)  # type: ignore[attr-defined]


def test_the_fit_sees_the_log_and_no_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.data.simulator.ceiling._LEAST_STEPS", 5)
    settings = SimulatorSettings.named("contrast")
    log = Simulator(settings).requests("train", 300)
    first = fit_ceiling(log, settings)
    other = replace(settings, base_logit=5.0, relevance_scale=9.0, user=replace(settings.user, contrast=0.0), seed=7)
    again = fit_ceiling(log.select([*SEEN, "slate", "click"]), other)
    assert again.user == first.user
    for name, weight in first.world.state_dict().items():
        assert torch.equal(weight, again.world.state_dict()[name]), name
    clicks = pa.array(np.zeros((300, 4)).tolist())
    without = fit_ceiling(log.set_column(log.column_names.index("click"), "click", clicks), settings)
    assert without.world.base < first.world.base


def test_where_slates_cannot_be_listed_they_are_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.data.simulator.ceiling._LEAST_STEPS", 5)
    settings = SimulatorSettings(num_candidates=6, slate_size=3)
    simulator = Simulator(settings)
    fitted, test = fit_ceiling(simulator.requests("train", 100), settings), simulator.requests("test", 20)
    listed = fitted.best_slates(test, 3)
    monkeypatch.setattr("rerankzoo.data.simulator.audience._MAX_LISTED", 10)
    found = fitted.audience(test).expected_utility(fitted.best_slates(test, 3)[:, None])
    best = fitted.audience(test).expected_utility(listed[:, None])
    assert (found > 0.95 * best).all()
    assert (found <= best + 1e-12).all()


def test_an_empty_log_is_refused() -> None:
    settings = SimulatorSettings()
    with pytest.raises(ValueError, match="there are no requests to fit a model to"):
        fit_ceiling(Simulator(settings).requests("train", 0), settings)


def test_a_world_whose_interest_depends_on_histories_has_no_fitted_model() -> None:
    settings = SimulatorSettings.named("drift", num_users=10)
    with pytest.raises(ValueError, match=r"reads no histories.*interest_pull=2\.0"):
        fit_ceiling(Simulator(settings).requests("train", 5), settings)
