from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.batch import Batch
from rerankzoo.diagnosis import CrossFittedJudge, Judge, Prediction
from rerankzoo.features import FeatureSchema, TargetSpec

SCHEMA = FeatureSchema(name="s", item_id="item", fields=(), targets=(TargetSpec(name="click"),))


def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model by which a slate's items are worth their first index alone, and add their second one to one another."""

    def worth(model: Any, batch: Batch, slates: Tensor) -> tuple[Tensor, Tensor]:
        return slates[..., 0].double(), slates[..., 1].double()

    monkeypatch.setattr("rerankzoo.diagnosis.crossfit.worth", worth)
    return SimpleNamespace(schema=SCHEMA)


def feedback(noise: float) -> Batch:
    """Slates of every pair of 0..9 whose utility is 2 + alone / 2 + 1.5 * pairs, and alternating noise."""
    slates = torch.cartesian_prod(torch.arange(10), torch.arange(10)).unsqueeze(1)
    utility = 2 + slates[..., 0] / 2 + 1.5 * slates[..., 1] + noise * (-1.0) ** torch.arange(100).unsqueeze(1)
    clicks = torch.stack([utility, torch.zeros_like(utility)], -1).unsqueeze(-1)
    return {"slates": slates, "feedback": clicks, "candidate_value": torch.ones(100, 10, 1)}


def test_feedback_that_was_not_learned_from_scales_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge.of(scripted(monkeypatch), feedback(0.0))
    assert judge.scales.tolist() == pytest.approx([2.0, 0.5, 1.5], abs=1e-4)
    assert judge.residual == pytest.approx(0.0, abs=1e-4)
    batch = {"candidate_mask": torch.ones(2, 10, dtype=torch.bool)}
    found = judge.gain(batch, torch.tensor([[4, 3], [4, 3]]), torch.tensor([[6, 1], [6, 1]]))
    assert found.own == pytest.approx(-2 + 2)  # what the model says
    assert found.mean == pytest.approx(0.5 * -2 + 1.5 * 2, abs=1e-4)
    assert found.error == pytest.approx(0.0, abs=1e-4)
    assert judge.gain(batch, torch.tensor([[4, 3], [2, 3]])).mean == pytest.approx(2 + 1.5 + 4.5, abs=1e-4)


def test_noise_makes_an_error_that_covers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 100 slates and noise of sd 1, a unit of `pairs` (variance 8.25) has the error 1 / sqrt(825)."""
    judge = Judge.of(scripted(monkeypatch), feedback(1.0))
    batch = {"candidate_mask": torch.ones(2, 10, dtype=torch.bool)}
    found = judge.gain(batch, torch.tensor([[0, 1], [0, 1]]), torch.tensor([[0, 0], [0, 0]]))
    assert found.error == pytest.approx(825**-0.5, rel=0.1)
    assert abs(found.mean - 1.5) < 2 * found.error


def test_requests_add_their_own_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge.of(scripted(monkeypatch), feedback(0.0))
    batch = {"candidate_mask": torch.ones(2, 10, dtype=torch.bool)}
    found = judge.gain(batch, torch.tensor([[0, 0], [0, 2]]), torch.tensor([[0, 0], [0, 0]]))
    assert found.error == pytest.approx(1.5, abs=1e-3)  # gains of 0 and 3: sd 2.12, over sqrt(2)


def test_a_model_without_pairs_is_scaled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted(monkeypatch)
    monkeypatch.setattr("rerankzoo.diagnosis.crossfit.worth", lambda m, b, s: (s[..., 0].double(), 0.0 * s[..., 0]))
    assert Judge.of(model, feedback(0.0)).scales[2] == 0.0


def test_both_halves_count_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Prediction.average([Prediction(1.0, 0.3, 2.0), Prediction(2.0, 0.4, 4.0)]) == Prediction(1.5, 0.25, 3.0)
    model = scripted(monkeypatch)
    nothing = torch.zeros(3, 3)
    judges = [
        Judge(model, torch.tensor(scales, dtype=torch.float64), nothing, 0.0, 1.0) for scales in ([1, 1, 0], [0, 1, 2])
    ]
    values = CrossFittedJudge(judges).score_slates(torch.tensor([[[3, 1], [0, 0]]]))
    assert values.tolist() == [[(1 + 3 + 3 + 2) / 2, 0.5]]
