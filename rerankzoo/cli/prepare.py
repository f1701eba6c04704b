"""`rerankzoo prepare`: make a data folder from the simulator or from a public data set's own files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rerankzoo.data.folder import read_metadata
from rerankzoo.data.simulator import SETTINGS, SimulatorSettings, write_simulator_folder
from rerankzoo.data.sources.movielens import convert_movielens


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["prepare", "ml-100k", "--raw", "ml-100k", "--out", "data/ml-100k"]`.
    """
    options = _parser().parse_args(list(arguments[1:]))
    if options.source == "simulator":
        settings = SimulatorSettings.named(options.setting, seed=options.seed)
        write_simulator_folder(
            options.out,
            settings,
            num_train=options.num_train,
            num_validation=options.num_validation,
            num_test=options.num_test,
        )
    else:
        convert_movielens(options.out, options.raw, options.source, seed=options.seed)
    metadata = read_metadata(options.out)
    rows = ", ".join(f"{count:,} {split}" for split, count in metadata["rows"].items())
    print(f"{options.out}: {rows} requests\n{metadata['protocol']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rerankzoo prepare", description="Make a data folder.")
    sources = parser.add_subparsers(dest="source", required=True)
    simulator = sources.add_parser("simulator", help="simulated logs whose truth is known")
    simulator.add_argument("--setting", choices=sorted(SETTINGS), default="strong", help="strength of listwise effects")
    simulator.add_argument("--num-train", type=int, default=40_000, help="requests of the training split")
    simulator.add_argument("--num-validation", type=int, default=2_000, help="requests of the validation split")
    simulator.add_argument("--num-test", type=int, default=500, help="requests of the test split")
    for variant, what in (("ml-100k", "MovieLens 100K"), ("ml-1m", "MovieLens 1M")):
        movielens = sources.add_parser(variant, help=f"{what}, from GroupLens' own files")
        movielens.add_argument("--raw", type=Path, help="folder with the files; default: download from GroupLens")
    for source in sources.choices.values():
        source.add_argument("--out", type=Path, required=True, help="the data folder to make")
        source.add_argument("--seed", type=int, default=0, help="of everything drawn at random")
    return parser
