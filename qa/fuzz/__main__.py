"""`make fuzz`: attacks everything that reads what others wrote, and says what share of it got past validation.

Most cases come from a random number generator, a twentieth from hypothesis, over the same choices. Exit status 1: there
was a finding (the seed that replays it is printed), or too little got past validation to mean anything.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed

from rich.progress import track

from qa.fuzz.harness import Counts, attack, work
from qa.fuzz.targets import TARGETS

LEAST_PASSED = 0.3
_CHUNK = 1_000


def pieces(total: int, seed: int) -> list[tuple[str, int, int, bool]]:
    """The work in pieces of at most `_CHUNK` cases, the slow targets first."""
    found = []
    for name, target in sorted(TARGETS.items(), key=lambda entry: entry[1].share):
        cases = round(total * target.share)
        by_hypothesis = -(-cases // 20)
        found.append((name, seed, by_hypothesis, True))
        for first in range(0, cases - by_hypothesis, _CHUNK):
            found.append((name, seed * 10_000_000 + first, min(_CHUNK, cases - by_hypothesis - first), False))
    return found


def main() -> int:
    """Runs the attack.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m qa.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "SEED"), help="run one case again, with its traceback")
    options = parser.parse_args()
    if options.replay:
        name, seed = options.replay[0], int(options.replay[1])
        print(attack(name, range(seed, seed + 1)))
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.perf_counter()
    counts: dict[str, list[Counts]] = defaultdict(list)
    findings = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        jobs = [pool.submit(work, *piece) for piece in pieces(options.cases, options.seed)]
        for done in track(as_completed(jobs), "attacking", total=len(jobs)):
            name, found, finding = done.result()
            if found is None:
                findings.append(name)
                print(f"FINDING in {name}:\n{finding}", flush=True)
            else:
                counts[name].append(found)
    cases, passed = report(counts)
    print(f"{cases:,} cases, {passed / max(cases, 1):.0%} past validation, {len(findings)} findings, "
          f"{time.perf_counter() - start:.0f} s, seed {options.seed}")  # fmt: skip
    return int(bool(findings) or passed < LEAST_PASSED * cases)


def report(counts: dict[str, list[Counts]]) -> tuple[int, int]:
    """Prints the table; returns the number of cases and of those that got past validation."""
    cases = passed = 0
    print(f"{'target':<16}{'cases':>9}{'past validation':>17}{'ms a case':>11}")
    for name, parts in counts.items():
        ran, got = sum(part.cases for part in parts), sum(part.passed for part in parts)
        seconds = sum(part.seconds for part in parts)
        print(f"{name:<16}{ran:>9,}{got / ran:>17.0%}{1000 * seconds / ran:>11.1f}")
        cases, passed = cases + ran, passed + got
    return cases, passed


if __name__ == "__main__":
    raise SystemExit(main())
