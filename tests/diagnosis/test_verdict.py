from __future__ import annotations

import math

import pytest

from rerankzoo.diagnosis import Figures, decide


def figures(**changed: float | bool | None) -> Figures:
    known = {"requests": 10_000, "positives": 5_000, "gain": 0.1, "error": 0.01, "listwise": 9.0, "spread": 0.5}
    return Figures(**{**known, **changed})


def test_a_sure_gain_is_worth_a_test_of_the_size_that_finds_it() -> None:
    found = decide(figures())
    assert found.kind == "worth an A/B test"
    assert found.requests == math.ceil(2 * (2.801585 * 0.5 / 0.1) ** 2)
    assert found.text == "worth an A/B test, with about 390 requests in each arm"
    assert "+10.0% of what the slates earn, standard error 1.4%, and rising by 0.0%" in found.reasons[0]


def test_no_gain_is_none_however_large_the_log() -> None:
    assert decide(figures(gain=0.0, error=0.005)).kind == "pointwise will do"
    assert decide(figures(gain=-0.02)).kind == "pointwise will do"
    assert decide(figures(gain=0.028, error=0.001)).kind == "not enough feedback"  # too near to 3 % to tell


def test_what_cannot_be_told_asks_for_so_many_more_requests_that_it_can() -> None:
    found = decide(figures(gain=0.05, error=math.sqrt(0.05**2 - 0.01**2)))
    assert found.kind == "not enough feedback"
    # An error of 5 points has to become (5 - 3) / 0.84 points: (0.84 * 5 / 2)^2 = 4.43 times the log.
    assert found.requests == pytest.approx(10_000 * (4.4270 - 1), rel=1e-3)
    assert found.text == "not enough feedback: about 34,000 more requests would tell"


def test_a_log_that_still_teaches_is_not_called_hopeless() -> None:
    """-0.1 % with an error of 1.8 % is no gain; rising by 1.8 % it may become one, with a probability of 26 %."""
    assert decide(figures(gain=-0.001, error=0.018)).kind == "pointwise will do"
    found = decide(figures(gain=-0.001, error=0.018, rising=0.05))
    assert found.kind == "not enough feedback"
    assert (
        "rising by 1.8% from half the log to all of it; a gain of 3% or more has a probability of 26%"
        in found.reasons[0]
    )


def test_nothing_is_claimed_where_listwise_reading_is_noise() -> None:
    assert decide(figures(listwise=1.6)).kind == "not enough feedback"
    assert decide(figures(listwise=1.7)).kind == "worth an A/B test"


def test_another_gain_may_be_worth_it() -> None:
    assert decide(figures(gain=0.05), worth=0.2).kind == "pointwise will do"
    assert decide(figures(gain=0.05, error=0.001), worth=0.01).kind == "worth an A/B test"


def test_too_few_positives_give_words_and_no_figure() -> None:
    found = decide(Figures(6_992, 33))
    assert found.kind == "not enough feedback"
    assert found.reasons == ("the log has 33 positives to learn from, and at least 500 are needed",)
    assert found.requests == math.ceil(6_992 * (1_000 / 33 - 1))
    assert decide(figures(positives=499, gain=0.65)).reasons[0].startswith("the log has 499 positives")


def test_company_that_was_never_varied_has_to_be() -> None:
    fixed = figures(fixed=True, neighbours=0.1, positions=3)
    found = decide(fixed)
    assert found.kind == "logs do not support this"
    assert found.requests == math.ceil(2 * (2.801585 * 0.5 / 0.03) ** 2) * 2 * 2
    assert "10% of the traffic for 17 times as long as this log" in found.text
    assert decide(figures(fixed=True, neighbours=0.9)).kind == "worth an A/B test"
    assert decide(figures(fixed=False, neighbours=0.1)).kind == "worth an A/B test"
