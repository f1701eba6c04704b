"""The verdict: what to do, in words, with its reasons, from the figures of a diagnosis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from rerankzoo.evaluation import MIN_POSITIVES
from rerankzoo.evaluation.counterfactual import requests_in_each_arm

Kind = Literal["worth an A/B test", "pointwise will do", "not enough feedback", "logs do not support this"]

#: A gain that is worth the trouble, as a share of what the chosen slates earn.
WORTH = 0.03
#: What the calibration itself may be off, as a share: not in any standard error.
BLIND = 0.01
#: So many standard errors a listwise reading has to be better to be more than noise (one-sided, 5 %).
CLEAR = 1.64
#: How probable a statement has to be to be made.
SURE = 0.8
_MUCH = 100  # times the log: more is not counted
_RANDOM_SHARE = 0.1  # of the traffic, where it has to be randomised


@dataclass(frozen=True)
class Figures:
    """What a verdict rests on; gains are shares of what the chosen slates earn."""

    requests: int  # of the train split that were used
    positives: int  # feedback in them
    gain: float = 0.0  # predicted, of listwise slates over the best pointwise ranker's
    error: float = math.inf  # its standard error
    rising: float = 0.0  # what all of the log would add to it: `gain` is that of half the log
    listwise: float = 0.0  # standard errors of held-out log-likelihood that listwise reading is above pointwise
    fixed: bool = False  # whether candidate sets repeat
    neighbours: float | None = None  # proposed ones that the log shows often enough; `None` where ids do not tell
    spread: float = math.inf  # standard deviation of one request's utility
    positions: int = 2  # of a slate


@dataclass(frozen=True)
class Verdict:
    """What to do."""

    kind: Kind  # in four words
    text: str  # in a sentence
    reasons: tuple[str, ...]  # each in a sentence
    requests: int | None = None  # so many (more) requests the text speaks of


def decide(figures: Figures, worth: float = WORTH) -> Verdict:
    """Reads the figures.

    Args:
        figures: See there.
        worth: A gain that is worth the trouble, as a share.
    """
    if figures.positives < MIN_POSITIVES:
        few = f"the log has {figures.positives} positives to learn from, and at least {MIN_POSITIVES} are needed"
        more = math.ceil(figures.requests * (2 * MIN_POSITIVES / max(1, figures.positives) - 1))
        text = f"not enough feedback: nothing can be told before there are about {_count(more)} more requests"
        return Verdict("not enough feedback", text, (few,), more)
    error = math.hypot(figures.error, BLIND)
    gain = figures.gain + min(figures.rising, figures.error)  # noise rises, too: no more than can be told
    pays, compared = NormalDist().cdf((gain - worth) / error), "better" if figures.listwise > 0 else "worse"
    reasons = [
        f"predicted gain over the best pointwise ranker: {figures.gain:+.1%} of what the slates earn, standard error "
        f"{error:.1%}, and rising by {gain - figures.gain:.1%} from half the log to all of it; a gain of {worth:.0%} "
        f"or more has a probability of {min(max(pays, 0.01), 0.99):.0%}",
        f"listwise reading is {abs(figures.listwise):.1f} standard errors {compared} at predicting whole slates than "
        "pointwise",
    ]
    if figures.fixed and figures.neighbours is not None and figures.neighbours < 0.5:
        return _randomise(figures, worth, reasons)
    if pays >= SURE and figures.listwise >= CLEAR:
        arm = requests_in_each_arm(figures.spread, gain)
        text = f"worth an A/B test, with about {_count(arm)} requests in each arm"
        return Verdict("worth an A/B test", text, tuple(reasons), arm)
    if pays <= 1 - SURE:
        return Verdict("pointwise will do", "pointwise will do: there is too little to win", tuple(reasons))
    distance = max(abs(gain - worth), worth / 2)
    wanted = (NormalDist().inv_cdf(SURE) * error / distance) ** 2
    more = math.ceil(figures.requests * min(max(wanted - 1, 1.0), _MUCH))
    text = f"not enough feedback: about {_count(more)} more requests would tell"
    return Verdict("not enough feedback", text, tuple(reasons), more)


def _randomise(figures: Figures, worth: float, reasons: list[str]) -> Verdict:
    reasons.append(
        f"candidate sets repeat, and of the neighbours that would be shown the log knows {figures.neighbours:.0%}: "
        "what they do to one another was hardly ever tried"
    )
    # Each pair of neighbouring positions is tried in its share of them.
    requests = requests_in_each_arm(figures.spread, worth) * 2 * max(1, figures.positions - 1)
    times = requests / _RANDOM_SHARE / max(1, figures.requests)
    text = (
        f"logs do not support this: exchange a random pair of neighbours in about {_count(requests)} requests "
        f"({_RANDOM_SHARE:.0%} of the traffic for {times:.{int(times < 10)}f} times as long as this log), and ask again"
    )
    return Verdict("logs do not support this", text, tuple(reasons), requests)


def _count(number: int) -> str:
    """A number with two significant digits."""
    digits = max(0, len(str(abs(number))) - 2)
    return f"{round(number, -digits):,}"
