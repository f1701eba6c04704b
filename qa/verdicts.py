"""How often `rerankzoo diagnose` is right: 40 simulated logs whose truth is known, one line of JSON per log.

    python -m qa.verdicts --out outputs/verdicts            # goes on where it was stopped; about 40 CPU minutes
    python -m qa.verdicts --out outputs/verdicts --show     # the figures of what is there

For every log: the verdict; the predicted gain (of the slates that evaluators of half the log choose, over the best
pointwise ranker) beside the true gain of those very slates, both in points of the true optimum; and the true gain of an
evaluator that learned from the whole log, in the form that the diagnosis preferred. A verdict is right if it says

- *worth an A/B test*, and the whole log's evaluator truly gains 3 points of the optimum or more;
- *pointwise will do*, and it truly gains less;
- *not enough feedback* or *logs do not support this*, and it truly gains less though the best slates would gain more,
  or gains within two points of 3; or the log has fewer than 3,000 positives.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerankzoo.data.simulator import Simulator, SimulatorSettings, write_simulator_folder
from rerankzoo.diagnosis import Log, diagnose
from rerankzoo.diagnosis.fitting import Form, choose, fit, rank

WORTH = 0.03
_NEAR = 0.02
_FEW = 3_000
_CHOSEN = 400  # test requests
#: World, requests, further constants.
LOGS: list[tuple[str, int, dict[str, Any]]] = [
    *((world, 2_000, {}) for world in ("strong", "control", "choice", "needs", "weak", "medium")),
    *(
        (world, 5_000, {})
        for world in ("strong", "control", "choice", "satiation", "contrast", "needs", "weak", "medium")
    ),
    *(
        (world, 12_000, {})
        for world in ("strong", "control", "choice", "satiation", "contrast", "needs", "weak", "medium")
    ),
    *((world, 40_000, {}) for world in ("strong", "control", "choice", "contrast", "weak")),
    *((world, 12_000, {"logging_temperature": 0.2}) for world in ("strong", "control", "choice", "satiation")),
    *((world, 12_000, {"logging_temperature": 5.0}) for world in ("needs", "weak", "medium")),
    *((world, 12_000, {"click_rate": 0.03}) for world in ("strong", "control", "choice", "satiation")),
    *((world, 5_000, {"click_rate": 0.01}) for world in ("strong", "control")),
]


def main() -> None:
    """Diagnoses the logs that are not there yet, and shows the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/verdicts"))
    parser.add_argument("--seed", type=int, default=0, help="of the first world")
    parser.add_argument("--logs", type=int, nargs="*", help="numbers of logs (default: all)")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "verdicts.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {(row["log"], row["seed"]) for row in map(json.loads, lines)}
    wanted = range(len(LOGS)) if options.logs is None else options.logs
    for number in [] if options.show else wanted:
        if (number, options.seed + number) not in done:
            row = measure(number, options.seed + number)
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)
    show([json.loads(line) for line in file.read_text().splitlines()])


def measure(number: int, seed: int) -> dict[str, Any]:
    """One log: its diagnosis beside the truth."""
    world, requests, constants = LOGS[number]
    settings = SimulatorSettings.named(world, seed=seed, **constants)
    with tempfile.TemporaryDirectory() as folder:
        validation = max(200, min(2_000, requests // 5))
        write_simulator_folder(folder, settings, num_train=requests, num_validation=validation, num_test=_CHOSEN)
        started = time.process_time()
        log = Log.read(Path(folder), num_chosen=_CHOSEN)
        found = diagnose(log)
        seconds = time.process_time() - started
        truth = _Truth(settings, log)
        halves = [truth(slates) - truth(reference) for slates, reference in found.chosen]
        whole = _whole(log, found)
        row = {"log": number, "world": world, "requests": requests, "constants": constants, "seed": seed}
        row |= {"verdict": found.verdict.kind, "text": found.verdict.text, "seconds": round(seconds, 1)}
        row |= {"form": found.form.name if found.form else None, **vars(found.figures)}
        row["optimum"], row["best_gain"] = truth.best, 1 - truth(whole[1])
        row["whole"] = truth(whole[0]) - truth(whole[1])
        row["true"] = fmean(halves) if halves else None
        if found.gain is not None and found.other_form is not None and found.curve[0].gain is not None:
            row |= {"predicted": found.gain.mean / truth.best, "error": found.gain.error / truth.best}
            row |= {"own": found.gain.own / truth.best, "other": found.other_form[1].mean / truth.best}
            row["quarter"] = found.curve[0].gain.mean / truth.best
        return row


def _whole(log: Log, found: Any) -> tuple[Tensor, Tensor]:
    """Slates by an evaluator of the whole log, and by the best pointwise ranker of it."""
    learn = {name: torch.cat([half[name] for half in log.halves]) for name in log.halves[0]}
    form = found.form or Form("independent", pairs=True)
    alone = fit(form.alone(), log.extractor, learn, log.validation)
    ranker = alone
    if found.ranker is not None and found.ranker != form.alone():
        ranker = fit(found.ranker, log.extractor, learn, log.validation)
    evaluator = fit(form, log.extractor, learn, log.validation, alone)
    return choose(evaluator, log.test, log.slate_size), rank(ranker, log.test, log.slate_size)


class _Truth:
    """True expected utility of slates (B, M) of the test requests, as a share of the best ones'."""

    def __init__(self, settings: SimulatorSettings, log: Log) -> None:
        self.simulator, self.size = Simulator(settings), log.slate_size
        table = log.test_data.with_format("numpy")[:]
        self.ids = np.asarray(table["user_id"]), np.stack(table["item_id"])
        self.best = float(self.simulator.all_utilities(*self.ids, self.size).max(1).mean())

    def __call__(self, slates: Tensor) -> float:
        return float(self.simulator.expected_utility(*self.ids, slates.numpy()[:, None]).mean()) / self.best


def right(row: dict[str, Any]) -> bool:
    """Whether a verdict is right; see above."""
    if row["verdict"] == "worth an A/B test":
        return bool(row["whole"] >= WORTH)
    if row["verdict"] == "pointwise will do":
        return bool(row["whole"] < WORTH)
    could = row["whole"] < WORTH <= row["best_gain"] or abs(row["whole"] - WORTH) < _NEAR
    return bool(could or row["positives"] < _FEW)


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the figures."""
    for row in sorted(rows, key=lambda row: row["log"]):
        numbers = [row.get(name) for name in ("predicted", "error", "true", "whole", "own", "other", "quarter")]
        told = " ".join("     -" if one is None else f"{100 * one:6.1f}" for one in numbers)
        name = f"{row['world']} {row['requests']} {row['constants'] or ''}"
        mark = "" if right(row) else "WRONG"
        print(f"{name:50s} {told} z {row['listwise']:5.1f}  {row['form'] or '-':24s} {row['verdict']:24s} {mark}")
    known = [row for row in rows if row.get("predicted") is not None]
    errors = [abs(row["predicted"] - row["true"]) for row in known]
    claims = [row for row in known if abs(row["predicted"]) > 1.96 * row["error"]]
    wrong = [row for row in claims if row["predicted"] * row["true"] < 0]
    print(f"logs: {len(rows)}; verdicts right: {sum(map(right, rows)) / max(1, len(rows)):.1%}")
    print("verdicts:", dict(Counter(row["verdict"] for row in rows)))
    print(f"predicted - true gain, points of the optimum: mean absolute error {100 * fmean(errors):.2f}")
    print(f"signs wrong where one is claimed: {len(wrong)} of {len(claims)}")
    print(
        f"CPU seconds per diagnosis: {fmean(row['seconds'] for row in rows):.0f}, "
        f"most {max(row['seconds'] for row in rows)}"
    )


if __name__ == "__main__":
    main()
