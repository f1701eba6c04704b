"""Several generators or several samples? What pools find at equal numbers of proposals, by the truth.

The generators of a pool draw as many slates in all as those of every other; an evaluator chooses. "best drawn" is the
best of the proposals by the truth, which nobody knows at serving: what the evaluator's choice falls short of it is the
evaluator's loss. "comprehensiveness" is the mean order distance (POD) of two proposals of a request.

python -m qa.generator_pool EVALUATOR DATA GENERATOR GENERATOR,GENERATOR... [--proposals 16] [--requests 500]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch

from rerankzoo.batch import inputs
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.generation import GeneratorPool, exhaustive_search
from rerankzoo.generation.rollouts import distinct
from rerankzoo.metrics import order_distance
from rerankzoo.models.auto import load_checkpoint, load_evaluator


def main() -> None:
    """Draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluator")
    parser.add_argument("data", type=Path)
    parser.add_argument("pools", nargs="+", help="checkpoints, separated by commas")
    parser.add_argument("--proposals", type=int, default=16)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    evaluator, extractor = load_evaluator(arguments.evaluator)
    rows = pq.read_table(arguments.data / "test.parquet").slice(0, arguments.requests)
    metadata, batch = json.loads((arguments.data / "dataset.json").read_text(encoding="utf-8")), inputs(extractor(rows))
    truth, size = SimulatorEvaluator.from_metadata(metadata, extractor.schema), evaluator.config.slate_size
    optimum = exhaustive_search(truth, batch, size).scores[:, 0].mean()
    row = torch.arange(len(rows))
    print("| generators | draws of each | chosen | best drawn | distinct slates | comprehensiveness |")
    print("|---|---:|---:|---:|---:|---:|")
    for names in arguments.pools:
        pool = GeneratorPool([load_checkpoint(name).model for name in names.split(",")])
        each = arguments.proposals // len(pool.members)
        torch.manual_seed(0)
        drawn = pool.generate(**batch, do_sample=True, num_return_sequences=each, slate_size=size)  # (B, S, M)
        values, true = evaluator.score_slates(drawn, **batch), truth.score_slates(drawn, **batch)
        chosen, best = (found.mean() / optimum for found in (true[row, values.argmax(-1)], true.amax(-1)))
        number, apart = drawn.shape[1], order_distance(drawn, drawn, batch["candidate_mask"].shape[1])
        spread = apart.sum() / len(rows) / (number * (number - 1))
        shown = f"{chosen:.1%} | {best:.1%} | {distinct(drawn).sum(1).float().mean():.1f} | {spread:.3f}"
        print(f"| {names} | {each} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
