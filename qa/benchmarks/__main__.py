"""`make bench`: the table of ratios, `results.json`, the growth and the shares of a request from JSON to JSON.

python -m qa.benchmarks [--out outputs/bench] [--seconds 4] [--only NAME ...] [--exports DIR]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from qa.benchmarks.comparisons import Comparisons
from qa.benchmarks.growth import measure_growth, plot_growth
from qa.benchmarks.harness import Ratio, print_ratios, write_results
from qa.benchmarks.setting import make_extractor, make_model, make_requests
from rerankzoo.atomic_writing import write_json
from rerankzoo.cli.main import keep_freed_memory
from rerankzoo.models.degre import DeGReGenerator
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.bench import end_to_end, print_shares


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(prog="python -m qa.benchmarks", description="Runs the comparisons with peers.")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"), help="folder of the results")
    parser.add_argument("--seconds", type=float, default=4.0, help="wall time of a comparison")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="comparisons to run; default: all, and the growth")
    parser.add_argument("--exports", type=Path, help="folder that keeps exported graphs for the next run")
    options = parser.parse_args()
    _quiet()
    keep_freed_memory()  # as every command of rerankzoo; peers have it, too
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        comparisons = Comparisons(options.seconds, options.exports or Path(temporary))
        ratios = _ratios(comparisons, options.only)
    options.out.mkdir(parents=True, exist_ok=True)
    write_results(options.out / "results.json", ratios)
    if options.only is None:
        growth = measure_growth(options.seconds)
        write_json(options.out / "growth.json", growth)
        plot_growth(growth, options.out / "growth.svg")
        pipeline = RerankingPipeline(make_model(DeGReGenerator), make_extractor())
        shares = {
            size: end_to_end(pipeline, make_requests(size, 50), options.seconds / 2, slate_size=6) for size in (1, 32)
        }
        print_shares(shares)
    print_ratios(ratios)


def _ratios(comparisons: Comparisons, only: list[str] | None) -> list[Ratio]:
    found = []
    for compare in comparisons.all():
        if only is None or compare.__name__ in only:
            start = time.monotonic()
            found += compare()
            print(f"{compare.__name__}: {time.monotonic() - start:.0f} s", flush=True)
    return found


def _quiet() -> None:
    logging.getLogger().setLevel(logging.ERROR)
    disable_progress_bar()
    set_verbosity_error()


if __name__ == "__main__":
    main()
