"""`make scale`: what large logs and long service take; the figures of docs/scaling.md.

python -m qa.scale [tables] [log] [costs] [embeddings] [service] [--out outputs/scale] [--sizes 200000 2000000 10000000]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qa.scale import tables
from qa.scale.plot import plot_tables
from rerankzoo.atomic_writing import write_json

PARTS = ("tables", "log", "costs", "embeddings", "service")


def main() -> None:
    """Measures the parts that are asked for; each writes a JSON file and prints Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m qa.scale", description="Measures large logs and long service.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("outputs/scale"), help="folder of the results")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(tables.Plan.sizes), help="requests of the tables")
    parser.add_argument("--impressions", type=int, default=5_000_000, help="rows of the log in long format")
    parser.add_argument("--ids", type=int, default=10_000_000, help="rows of the large embedding table")
    parser.add_argument("--requests", type=int, default=100_000, help="requests of the long service, of each backend")
    parser.add_argument("--work", type=Path, help="folder for tables and checkpoints, 12 GB; default: a temporary one")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; known: {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    wanted = options.parts or PARTS
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        if "tables" in wanted:
            _tables(options, Path(work))
        if "log" in wanted:
            _log(options, Path(work))
        if "costs" in wanted:
            _costs(options, Path(work))
        if "embeddings" in wanted:
            _embeddings(options, Path(work))
        if "service" in wanted:
            _service(options, Path(work))


def _tables(options: argparse.Namespace, work: Path) -> None:
    for found in tables.Tables(tables.Plan(sizes=tuple(options.sizes)), work).measure():
        _write(options.out / "tables.json", found, tables.rows(found))
        plot_tables(found, options.out / "growth.svg")


def _log(options: argparse.Namespace, work: Path) -> None:
    from qa.scale import long_log

    found = long_log.measure(options.impressions, work)
    _write(options.out / "log.json", found, long_log.rows(found))


def _costs(options: argparse.Namespace, work: Path) -> None:
    from qa.scale import costs

    found = costs.measure(work)
    _write(options.out / "costs.json", found, costs.rows(found))


def _embeddings(options: argparse.Namespace, work: Path) -> None:
    from qa.scale import embeddings

    found = embeddings.measure(options.ids, work)
    _write(options.out / "embeddings.json", found, embeddings.rows(found))


def _service(options: argparse.Namespace, work: Path) -> None:
    from qa.scale import service

    found = service.measure(options.requests, work)
    _write(options.out / "service.json", found, service.rows(found))


def _write(path: Path, found: dict[str, Any], lines: Iterable[str]) -> None:
    write_json(path, found)
    print("\n".join(["", *lines, "", f"written: {path}"]), flush=True)


if __name__ == "__main__":
    main()
