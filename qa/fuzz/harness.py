"""Runs a target on many cases and counts."""

from __future__ import annotations

import contextlib
import io
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from hypothesis import HealthCheck, Phase, given, seed, settings

from qa.fuzz.strategies import RandomSource, drawn
from qa.fuzz.targets import TARGETS
from qa.fuzz.world import world

#: Seconds after which a case hangs.
PATIENCE = 120


class HangError(AssertionError):
    """A case took too long."""


@dataclass(frozen=True)
class Counts:
    """What came of a target.

    Attributes:
        cases: Number of cases.
        passed: Those that got past validation.
        seconds: Wall time.
    """

    cases: int
    passed: int
    seconds: float


def attack(name: str, seeds: range) -> Counts:
    """Attacks a target with cases of a random number generator.

    Args:
        name: Of `TARGETS`.
        seeds: One for each case.

    Returns:
        The counts.

    Raises:
        Exception: The first finding: what the code under attack raised beyond refusals, a wrong answer, or a hang; its
            note tells the seed.
    """
    target = TARGETS[name]
    world()
    passed, start = 0, time.perf_counter()
    with _quiet():
        for seed in seeds:
            try:
                with _patience():
                    passed += target.run(target.make(RandomSource(seed)))
            except Exception as error:
                error.add_note(f"found by: {name!r}, seed {seed}")
                raise
    return Counts(len(seeds), passed, time.perf_counter() - start)


def attack_with_hypothesis(name: str, cases: int, number: int) -> Counts:
    """Attacks a target with cases of hypothesis, which makes a finding small.

    Args:
        name: Of `TARGETS`.
        cases: How many.
        number: Seed.

    Returns:
        The counts.

    Raises:
        Exception: The finding, with the case in its notes.
    """
    target = TARGETS[name]
    world()
    ran = passed = 0

    @seed(number)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn(target.make))
    def run(case: object) -> None:
        nonlocal ran, passed
        ran += 1
        with _patience():
            passed += target.run(case)

    start = time.perf_counter()
    with _quiet():
        run()
    return Counts(ran, passed, time.perf_counter() - start)


def work(name: str, first: int, cases: int, drawn: bool) -> tuple[str, Counts | None, str]:
    """One process's piece of the work: counts, or the finding as text."""
    try:
        found = attack_with_hypothesis(name, cases, first) if drawn else attack(name, range(first, first + cases))
    except Exception:
        return name, None, traceback.format_exc(limit=-8)
    return name, found, ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):  # progress bars of loading
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    def give_up(signum: int, frame: FrameType | None) -> None:
        raise HangError(f"a case took more than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
