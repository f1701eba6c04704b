"""The true utility of trained generators' slates, in % of the best possible, on test requests of a simulated world.

The same as `rerankzoo evaluate` says of greedy decoding, without all else that it measures.

python -m qa.true_utility DATA MODEL... [--requests 500]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pyarrow.parquet as pq
import torch

from rerankzoo.batch import inputs
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.generation import exhaustive_search
from rerankzoo.generation.rollouts import upstream_slates
from rerankzoo.models.auto import load_checkpoint


def main() -> None:
    """Decodes and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    rows = pq.read_table(arguments.data / "test.parquet").slice(0, arguments.requests)
    metadata, truth = json.loads((arguments.data / "dataset.json").read_text(encoding="utf-8")), None
    print("| model | true utility | distinct bigrams |\n|---|---:|---:|")
    for name in arguments.models:
        model, extractor = load_checkpoint(name)
        batch = inputs(extractor(rows))
        if truth is None:
            truth = SimulatorEvaluator.from_metadata(metadata, extractor.schema)
            size = model.config.slate_size
            optimum = exhaustive_search(truth, batch, size).scores[:, 0].mean()
            upstream = truth.score_slates(upstream_slates(batch, size, extractor.schema), **batch).mean()
            print(f"| upstream order | {100 * upstream / optimum:.1f} % | |")
        slates = model.generate(**batch)
        items = torch.tensor(rows["item_id"].to_pylist()).gather(1, slates)
        bigrams = torch.stack([items[:, :-1], items[:, 1:]], dim=-1).flatten(0, 1)
        share = len(bigrams.unique(dim=0)) / len(bigrams)
        value = truth.score_slates(slates.unsqueeze(1), **batch).mean()
        print(f"| {name} | {100 * value / optimum:.1f} % | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
