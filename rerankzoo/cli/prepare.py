"""`rerankzoo prepare`: make a data folder from the simulator or from a public data set's own files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        settings = SimulatorSettings.named(options.setting, seed=options.seed, **dict(options.constant))
        write_simulator_folder(
            options.out,
            settings,
            num_train=options.num_train,
            num_validation=options.num_validation,
            num_test=options.num_test,
        )
    elif options.source == "taobao-ad":
        # The only source that needs the extra "data".
        from rerankzoo.data.sources.taobao import convert_taobao

        convert_taobao(
            options.out,
            options.raw,
            options.protocol,
            slate_size=options.slate_size,
            history=options.history,
            memory_limit=options.memory_limit,
            seed=options.seed,
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
    simulator.add_argument(
        "--constant",
        type=_constant,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the world, where it differs from the setting's, such as num_candidates=50; may be repeated",
    )
    for variant, what in (("ml-100k", "MovieLens 100K"), ("ml-1m", "MovieLens 1M")):
        movielens = sources.add_parser(variant, help=f"{what}, from GroupLens' own files")
        movielens.add_argument("--raw", type=Path, help="folder with the files; default: download from GroupLens")
    taobao = sources.add_parser("taobao-ad", help="Taobao's ad log, from the files of Ali_Display_Ad_Click")
    taobao.add_argument("--raw", type=Path, required=True, help="folder with the files")
    taobao.add_argument("--protocol", choices=["last-day", "librerank"], default="last-day", help="lists and split")
    taobao.add_argument("--slate-size", type=int, default=4, help="ads of a logged slate; shorter lists are dropped")
    taobao.add_argument("--history", action="store_true", help="add histories from behavior_log.csv")
    taobao.add_argument("--memory-limit", default="2GB", help="of DuckDB; beyond it, work files beside --out are used")
    for source in sources.choices.values():
        source.add_argument("--out", type=Path, required=True, help="the data folder to make")
        source.add_argument("--seed", type=int, default=0, help="of everything drawn at random")
    return parser


def _constant(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE with a number as its value") from error
