"""`rerankzoo bench`: measures what a model costs to serve on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from rich.progress import Progress
from transformers.utils.logging import disable_progress_bar

import rerankzoo  # noqa: F401  (tells transformers' auto classes about our models)
from rerankzoo.backends import Backend
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.pipeline import RerankingPipeline
from rerankzoo.serving.bench import (
    Measured,
    bench_model,
    bench_pipeline,
    loads_of,
    print_measured,
    print_shares,
    write_bench,
)


def make_parser() -> argparse.ArgumentParser:
    """The command's options. Lists are separated by commas; every combination is measured."""
    parser = argparse.ArgumentParser(
        prog="rerankzoo bench",
        description="Measures latency, throughput and memory of a model on random requests of its schema, with as many "
        "threads as torch has (OMP_NUM_THREADS), and compares them with what the machine's GEMM could reach.",
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of a generator with its extractor")
    parser.add_argument("--n", type=_numbers, default=(50,), metavar="N,...", help="candidates (default: 50)")
    parser.add_argument("--m", type=_numbers, metavar="M,...", help="positions (default: the model's)")
    parser.add_argument("--batch", type=_numbers, default=(1, 32), metavar="B,...", help="requests (default: 1,32)")
    parser.add_argument("--num-beams", type=_numbers, default=(1,), metavar="W,...", help="beams (default: 1)")
    parser.add_argument(
        "--backend",
        type=_backends,
        default=("eager",),
        metavar="NAME,...",
        help=f"of {', '.join(get_args(Backend))} (default: eager); graphs are exported for the measurement, and aoti "
        "compiles each combination for a minute or more",
    )
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="for each measurement (default: 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for bench.json and bench.svg")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Its name and options.

    Raises:
        SystemExit: With status 2, if an option is wrong.
        HubError: If there is no model.
        ValueError: If it is an evaluator, which generates nothing.
        ExportError: If the model cannot be exported for a backend.
    """
    parser = make_parser()
    options = parser.parse_args(list(arguments[1:]))
    disable_progress_bar()
    model, extractor = _load(options.model)
    loads = loads_of(options.n, options.m or (model.config.slate_size,), options.batch, options.num_beams)
    measured: list[Measured] = []
    try:
        with Progress(transient=True) as progress:
            task = progress.add_task("measuring", total=len(loads) * len(options.backend))
            for entry in bench_model(model, extractor, loads, options.backend, options.seconds):
                measured.append(entry)
                progress.advance(task)
    except ValueError as error:  # more positions than the model has
        parser.error(str(error))
    shares = bench_pipeline(RerankingPipeline(model, extractor), loads, options.seconds)
    print_measured(measured)
    print_shares(shares)
    if options.out is not None:
        write_bench(options.out, measured, shares)
        print(f"wrote {options.out / 'bench.json'} and bench.svg")


def _load(path: str) -> tuple[Any, RerankingFeatureExtractor]:
    with one_line_errors(path):
        return AutoModelForReranking.from_pretrained(path), RerankingFeatureExtractor.from_pretrained(path)


def _numbers(text: str) -> tuple[int, ...]:
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{min(values)} is not positive")
    return values


def _backends(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in get_args(Backend)]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(get_args(Backend))}")
    return names
