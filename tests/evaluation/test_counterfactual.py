"""Counterfactual estimators: by hand, by exact expectations, and against the simulator's truth."""

from __future__ import annotations

import numpy as np
import pytest

from rerankzoo.evaluation import counterfactual as cf
from rerankzoo.slates import all_slates, plackett_luce_slates

JUDGED = np.array([[0, 1]] * 4)
LOG = cf.LoggedSlates(
    np.array([[0, 1], [0, 2], [1, 0], [0, 1]]),
    np.array([[0.5, 0.5], [0.5, 0.25], [0.25, 1.0], [0.5, 0.5]]),
    np.array([[1.0, 0], [1, 1], [0, 1], [0, 1]]),
)


@pytest.fixture
def no_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cf, "MIN_EFFECTIVE", 0)
    monkeypatch.setattr(cf, "MIN_REWARDED", 0)


@pytest.mark.usefixtures("no_bounds")
def test_estimates_by_hand() -> None:
    found = cf.ips(LOG, JUDGED)  # weights 4, 0, 0, 4 of utilities 1, 2, 1, 1
    assert (found.value, found.effective_sample_size, found.largest_weight, found.num_rewarded) == (2, 2, 4, 2)
    assert found.high == pytest.approx(2 + 1.959964 * np.sqrt(16 / 3) / 2)  # no skew
    assert cf.snips(LOG, JUDGED).value == 1
    assert cf.reward_interaction_ips(LOG, JUDGED).value == 2  # (2 + 2 + 0 + 4) / 4
    predictions = np.full((4, 2), 0.5)  # Q = 1, 0.5
    assert cf.cascade_doubly_robust(LOG, JUDGED, predictions).value == 1.25  # (0 + 2 + 1 + 2) / 4
    marginals = np.array([[0.5, 0.25]] * 4)
    assert cf.independent_ips(LOG, JUDGED, marginals).value == 2  # (2 + 2 + 0 + 4) / 4
    assert cf.pseudo_inverse(LOG, np.array([2.0, -1, 0, 1])).value == 0.25  # (2 - 2 + 0 + 1) / 4


@pytest.mark.usefixtures("no_bounds")
def test_clipping_is_shown() -> None:
    found = cf.ips(LOG, JUDGED, clip=3)
    assert (found.value, found.share_clipped, found.largest_weight) == (1.5, 0.25, 4)


@pytest.mark.usefixtures("no_bounds")
def test_expectations_are_exact_where_the_assumptions_hold() -> None:
    space = all_slates(4, 3)  # each slate once is the expectation under a uniform logger
    count, rng = len(space), np.random.default_rng(0)
    propensities = np.tile([1 / 4, 1 / 3, 1 / 2], (count, 1))
    judged = np.tile([2, 0, 3], (count, 1))
    logger, scores = cf.PlackettLuceLogger(1.0), np.zeros((count, 4))
    additive = rng.normal(size=(3, 4))[np.arange(3), space]
    log = cf.LoggedSlates(space, propensities, additive)
    truth = additive[(space == judged).all(1)].sum()
    marginals = logger.marginals(scores, judged)
    np.testing.assert_allclose(marginals, 1 / 4)
    found = [
        cf.ips(log, judged),
        cf.snips(log, judged),
        cf.reward_interaction_ips(log, judged),
        cf.cascade_doubly_robust(log, judged, rng.normal(size=space.shape)[:1].repeat(count, 0)),
        cf.independent_ips(log, judged, marginals),
        cf.pseudo_inverse(log, logger.pseudo_inverse_weights(scores, space, judged)),
    ]
    np.testing.assert_allclose([one.value for one in found], truth)
    # Of rewards that depend on the items before: those that assume less still agree.
    after = additive * np.where(np.arange(3) > 0, space[:, :1] + 1, 1)
    log, truth = cf.LoggedSlates(space, propensities, after), after[(space == judged).all(1)].sum()
    assert cf.reward_interaction_ips(log, judged).value == pytest.approx(truth)
    assert cf.independent_ips(log, judged, marginals).value != pytest.approx(truth, rel=0.01)


def test_too_little_support_gives_words_and_no_figure() -> None:
    found = cf.ips(LOG, JUDGED)
    assert found.value is None
    assert found.low is None
    assert found.refusal == "cannot be told from this log: 2 requests with a reward match, 30 are needed"
    many = cf.LoggedSlates(*(np.tile(one, (20, 1)) for one in (LOG.slates, LOG.propensities, LOG.rewards)))
    assert "effective sample size 40.0" in (cf.ips(many, np.tile(JUDGED, (20, 1))).refusal or "")


def test_a_logger_is_fitted() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4000, 6)) * 3
    slates, _ = plackett_luce_slates(scores / 1.5, 3, rng)
    uniform, _ = plackett_luce_slates(np.zeros_like(scores), 3, rng)
    shown = np.where(rng.random((4000, 1)) < 0.3, uniform, slates)
    fitted = cf.PlackettLuceLogger.fit(scores, shown)
    assert fitted.temperature == pytest.approx(1.5, rel=0.1)
    assert fitted.uniform_share == pytest.approx(0.3, abs=0.05)
    whole = np.broadcast_to(scores[0], (120, 6))
    assert fitted.propensities(whole, all_slates(6, 3)).prod(1).sum() == pytest.approx(1)


def test_padding_costs_nothing() -> None:
    scores = np.array([[1.0, 0.0, -np.inf]])
    found = cf.PlackettLuceLogger(1.0).propensities(scores, np.array([[1, 0, -100]]))
    np.testing.assert_allclose(found, [[1 / (1 + np.e), 1, 1]])


def test_requests_to_randomise() -> None:
    utilities = np.array([0.0, 1.0] * 50)  # mean 1/2, variance 25/99
    halves = 2 * (1.959964 + 0.841621) ** 2 * (25 / 99) / 0.05**2
    assert cf.requests_to_randomise(utilities, 4, 0.1) == int(np.ceil(2 * np.ceil(halves) * 3 / 0.1))


@pytest.mark.parametrize(("name", "value"), [("propensities", 0.0), ("propensities", 1.5), ("rewards", np.nan)])
def test_bad_numbers_are_named(name: str, value: float) -> None:
    parts = {"slates": LOG.slates, "propensities": LOG.propensities, "rewards": LOG.rewards}
    parts[name] = parts[name].copy()
    parts[name][2, 1] = value
    with pytest.raises(ValueError, match=f"{name}: row 2, position 1: expected .*, got {value}"):
        cf.LoggedSlates(**parts)


def test_a_logger_is_fitted_to_requests_of_any_size() -> None:
    """Padded candidates, and requests with fewer of them than positions."""
    rng = np.random.default_rng(0)
    scores, sizes = rng.normal(size=(2_000, 8)), rng.integers(2, 9, size=2_000)
    scores[np.arange(8) >= sizes[:, None]] = -np.inf
    shown = np.argsort(-(scores / 0.7 + rng.gumbel(size=scores.shape)), axis=1)[:, :3]
    shown[np.arange(3) >= sizes[:, None]] = -100
    fitted = cf.PlackettLuceLogger.fit(scores, shown)
    assert fitted.temperature == pytest.approx(0.7, abs=0.05)
    assert fitted.uniform_share < 0.02
    chances = fitted.propensities(scores, shown)
    assert ((chances > 0) & (chances <= 1))[shown >= 0].all()
