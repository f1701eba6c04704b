"""Ours beside LightGBM's LambdaMART on a learning-to-rank data folder, over several random splits of its queries.

    rerankzoo prepare letor --train rank.train --test rank.test --out data/letor
    python -m qa.letor data/letor --out outputs/letor-splits       # goes on where it was stopped

All queries of the folder are pooled and split anew ten times, 60 % to learn from, 20 % to choose by, 20 % to test on.
Both learn from the same part and choose by the same part (when to stop; which checkpoint). NDCG@5, gain 2^y - 1, of the
queries with a relevant and an irrelevant document. The splits' test parts overlap: the interval of the difference is a
bootstrap over queries, each with its mean over the splits that tested it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pyarrow as pa
import torch

from rerankzoo.atomic_writing import write_json
from rerankzoo.cli.runs import train
from rerankzoo.data.folder import SCHEMA_FILE, SPLITS, read_parquet, write_data_folder
from rerankzoo.evaluation import Decoding
from rerankzoo.evaluation.results import LAMBDAMART
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.metrics.intervals import bootstrap_mean

_SHARES = (0.6, 0.8)
_OURS = ("ours", "greedy")


def main() -> None:
    """Measures the splits that are not there yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="seed of the first split: others to choose settings by")
    parser.add_argument("--recipe", default="letor/pointwise.yaml")
    parser.add_argument("--k", type=int, default=5)
    arguments, further = parser.parse_known_args()
    torch.set_num_threads(1)
    schema = FeatureSchema.from_yaml(arguments.data / SCHEMA_FILE)
    queries = pa.concat_tables([read_parquet(arguments.data / f"{split}.parquet") for split in SPLITS])
    seeds = range(arguments.first, arguments.first + arguments.splits)
    show({seed: measure(arguments, further, queries, schema, seed) for seed in seeds}, arguments.k)


def measure(
    arguments: argparse.Namespace, further: list[str], queries: pa.Table, schema: FeatureSchema, seed: int
) -> dict:
    """NDCG of every tested query of one split, by the query's number, of LambdaMART and ours."""
    root = arguments.out / f"split-{seed}"
    file = root / "ndcg.json"
    if not file.is_file():
        start = time.process_time()
        order = np.random.default_rng(seed).permutation(len(queries))
        parts = np.split(order, [int(share * len(order)) for share in _SHARES])
        tables = {split: queries.take(part) for split, part in zip(SPLITS, parts, strict=True)}
        write_data_folder(
            root / "data", tables, schema, {"source": "letor", "protocol": f"split {seed} of all queries"}
        )
        options = [f"--data.init_args.path={root / 'data'}", "--trainer.enable_progress_bar=false", *further]
        trained = train(arguments.recipe, root / "run", seed, options)
        run = trained.evaluation(None, lambdamart=True)
        decodings = [Decoding(_OURS[1], {"num_beams": 1})]
        extractor = trained.data.extractor
        evaluation = run.evaluate(_OURS[0], trained.load("cpu"), extractor, seed, decodings, cuts=(arguments.k,))
        column = schema.targets[0].candidate_feedback
        grades = tables["test"][column].to_pylist()
        tested = [int(query) for query, labels in zip(parts[2], grades, strict=True) if max(labels) > 0 >= min(labels)]
        rows = {key[0]: evaluation.per_request[key].tolist() for key in (LAMBDAMART, _OURS)}
        rows = {name: dict(zip(map(str, tested), values, strict=True)) for name, values in rows.items()}
        write_json(file, {**rows, "cpu_seconds": time.process_time() - start})
    return json.loads(file.read_text(encoding="utf-8"))


def show(measured: dict[int, dict], k: int) -> None:
    """Prints a line for each split, the means and the difference."""
    names, found = (LAMBDAMART[0], _OURS[0]), list(measured.values())
    means = {name: [100 * fmean(one[name].values()) for one in found] for name in names}
    for number, seed in enumerate(measured):
        print(f"split {seed}: " + ", ".join(f"{name} {means[name][number]:.1f}" for name in names))
    for name in names:
        spread = stdev(means[name]) if len(found) > 1 else 0.0
        print(f"{name}: NDCG@{k} {fmean(means[name]):.1f} ± {spread:.1f}")
    gains = defaultdict(list)
    for one in found:
        for query, value in one[_OURS[0]].items():
            gains[query].append(100 * (value - one[LAMBDAMART[0]][query]))
    gain = bootstrap_mean(torch.tensor([fmean(values) for values in gains.values()]))
    interval = f"95 % interval {gain.low:+.1f} to {gain.high:+.1f} over {len(gains)} queries"
    print(
        f"ours - LambdaMART: {gain.mean:+.1f} points, {interval}; {sum(one['cpu_seconds'] for one in found):.0f} CPU s"
    )


if __name__ == "__main__":
    main()
