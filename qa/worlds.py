"""What there is to gain in every simulated world, by the truth: the tables of docs/simulator.md.

python -m qa.worlds                                    # all worlds of ten candidates, seeds 0 to 2
python -m qa.worlds --settings choice --seeds 1 --logs 10000
python -m qa.worlds --settings strong satiation needs contrast --seeds 1 --click-rate 0.02
"""

from __future__ import annotations

import argparse

import numpy as np

from rerankzoo.data.simulator import SETTINGS, Simulator, SimulatorSettings
from rerankzoo.data.simulator.ceiling import fit_ceiling


def ladder(
    setting: str, seed: int, num_requests: int, logs: list[int], click_rate: float | None
) -> dict[str, tuple[float, float]]:
    """Utility of each rung in % of the optimum, and the share in % of requests whose slate is among the best 1 %."""
    settings = SimulatorSettings.named(setting, seed=seed, click_rate=click_rate)
    simulator, size = Simulator(settings), settings.slate_size
    table = simulator.requests("test", num_requests)
    users, items = (np.array(table.column(name).to_pylist()) for name in ("user_id", "item_id"))
    every = simulator.all_utilities(users, items, size)
    random = np.random.default_rng(seed).permuted(np.tile(np.arange(items.shape[1]), (num_requests, 1)), axis=1)
    upstream = np.argsort(-np.array(table.column("upstream_score").to_pylist()), axis=1, kind="stable")
    rungs = {
        "random": random[:, :size],
        "logged": np.array(table.column("slate").to_pylist()),
        "upstream": upstream[:, :size],
        "pointwise oracle": simulator.pointwise_oracle(users, items, size),
        "true greedy": simulator.greedy(users, items, size),
        "true beam 8": simulator.beam(users, items, size, num_beams=8),
    }
    for count in logs:
        rungs[f"{count:,} logs"] = fit_ceiling(simulator.requests("train", count), settings).best_slates(table, size)
    found = {}
    for name, slates in rungs.items():
        earned = simulator.expected_utility(users, items, slates.reshape(num_requests, 1, size))[:, 0]
        better = (every > earned[:, None] + 1e-9).mean(1)
        found[name] = (100 * (earned / every.max(1)).mean(), 100 * (better < 0.01).mean())
    return found


def clicked(setting: str, seed: int, click_rate: float | None) -> float:
    """Clicks per logged position, in %."""
    log = Simulator(SimulatorSettings.named(setting, seed=seed, click_rate=click_rate)).requests("train", 4_000)
    return 100 * float(np.mean(log.column("click").to_pylist()))


def main() -> None:
    """Prints a row for each world, the mean over its seeds."""
    listed = [name for name, settings in SETTINGS.items() if settings.num_candidates <= 10]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=listed, choices=listed)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--logs", type=int, nargs="+", default=[10_000, 40_000])
    parser.add_argument("--click-rate", type=float, help="of the logged positions (default: the setting's own)")
    asked = parser.parse_args()
    for setting in asked.settings:
        of_logs = (asked.requests, asked.logs, asked.click_rate)
        seeds = [ladder(setting, seed, *of_logs) for seed in range(asked.seeds)]
        cells = []
        for name in seeds[0]:
            utility, hits = np.mean([one[name] for one in seeds], axis=0)
            cells.append(f"{name} {utility:.1f} ({hits:.0f})")
        clicks = np.mean([clicked(setting, seed, asked.click_rate) for seed in range(asked.seeds)])
        print(f"{setting}, clicks {clicks:.1f}: {', '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
