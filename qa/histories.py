"""What reading the history is worth in simulated worlds, and the half-lives learned.

Of the checkpoints that `rerankzoo benchmark zoo/history.yaml --out OUT` leaves: the true utility of greedy slates, in %
of the best possible (of worlds without effects of items on one another), its difference from the same family with the
mean history (of MIR: from PRM), over all requests and seed by seed, and the half-life that MIR has learned.

python -m qa.histories OUT WORLD [--requests 2000]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rerankzoo.batch import inputs
from rerankzoo.data.simulator import Simulator, SimulatorSettings
from rerankzoo.models.auto import load_checkpoint

BASES = {"pointwise-attention": "pointwise-mean", "prm-attention": "prm-mean", "mir": "prm-mean"}


def main() -> None:
    """Decodes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("world")
    parser.add_argument("--requests", type=int, default=2_000)
    arguments = parser.parse_args()
    shares: dict[str, list[np.ndarray]] = {}
    half_lives = []
    for seed, folder in enumerate(sorted((arguments.out / arguments.world).glob("seed-*"))):
        simulator = Simulator(SimulatorSettings.named(arguments.world, seed=seed))
        rows = simulator.requests("test", arguments.requests)
        users, items = rows["user_id"].to_numpy(), np.array(rows["item_id"].to_pylist())

        def utility(slates: np.ndarray, asked: tuple = (simulator, users, items)) -> np.ndarray:
            world, *requests = asked
            return world.expected_utility(*requests, slates[:, None])[:, 0]

        best = utility(simulator.pointwise_oracle(users, items, simulator.settings.slate_size))
        for place in sorted(folder.glob("*/best")):
            model, extractor = load_checkpoint(place)
            batch = inputs(extractor(rows))
            shares.setdefault(place.parent.name, []).append(100 * utility(model.generate(**batch).numpy()) / best)
            if hasattr(model, "half_lives"):
                half_lives.append(float(model.half_lives(**batch).median()))
    print("| model | true utility, % | beside its base | seed by seed |\n|---|---:|---:|---|")
    for name, found in shares.items():
        row = f"| {name} | {np.mean([part.mean() for part in found]):.2f} |"
        base = shares.get(BASES.get(name, ""), [])
        if not base:
            print(f"{row} | |")
            continue
        apart = [own - other for own, other in zip(found, base, strict=False)]
        every = np.concatenate(apart)
        error = 1.96 * every.std() / np.sqrt(len(every))
        print(f"{row} {every.mean():+.2f} ± {error:.2f} | {', '.join(f'{part.mean():+.2f}' for part in apart)} |")
    planted = SimulatorSettings.named(arguments.world).interest_half_life
    print(f"half-lives of MIR, median user, by seed: {[round(hours, 1) for hours in half_lives]} (planted: {planted})")


if __name__ == "__main__":
    main()
