"""`rerankzoo prepare`: make a data folder from the simulator or from a public data set's own files."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from rerankzoo.cli.options import takes, workers_of
from rerankzoo.data.folder import read_metadata
from rerankzoo.data.simulator import SimulatorSettings, write_simulator_folder
from rerankzoo.data.sources.avito import avito
from rerankzoo.data.sources.finn import finn_slates
from rerankzoo.data.sources.kuairand import kuairand
from rerankzoo.data.sources.letor import convert_letor
from rerankzoo.data.sources.mind import mind
from rerankzoo.data.sources.movielens import Variant, convert_movielens
from rerankzoo.data.sources.movielens_protocols import movielens_1m
from rerankzoo.data.sources.open_bandit import open_bandit
from rerankzoo.data.sources.prm_public import prm_public
from rerankzoo.data.sources.public_log import PublicLog, convert_public_log
from rerankzoo.data.sources.rl4rs import rl4rs
from rerankzoo.engines import Workers
from rerankzoo.errors import RecipeError


def _constant(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError as error:
        raise RecipeError(f"--constant: expected NAME=VALUE with a number as its value, got {text!r}") from error


@takes(write_simulator_folder)
def simulator(
    *,
    out: Path,
    setting: str = "strong",
    constant: list[str] | None = None,
    seed: NonNegativeInt = 0,
    **sizes: Any,
) -> None:
    """Simulated logs whose truth is known: any size; made here.

    Args:
        out: The data folder to make.
        setting: Which named world, that is, how its users read a page; the error of another one lists all.
        constant: NAME=VALUE of the world, its users or its logger, where it differs from the setting's, such as
            click_rate=0.02 or exploration=0.05; may be repeated.
        seed: Of everything drawn at random.
        **sizes: Of the splits.
    """
    constants = dict(map(_constant, constant or ()))
    write_simulator_folder(out, SimulatorSettings.named(setting, seed=seed, **constants), **sizes)
    _tell(out)


def movielens(variant: Variant, *, out: Path, raw: Path | None = None, seed: NonNegativeInt = 0) -> None:
    """MovieLens by our own protocol: 0.1 (100K) or 1.0 million ratings; GroupLens: no redistribution.

    Args:
        variant: Which.
        out: The data folder to make.
        raw: Folder with the files (default: download from GroupLens).
        seed: Of everything drawn at random.
    """
    convert_movielens(out, raw, variant, seed=seed)
    _tell(out)


def taobao_ad(
    *,
    raw: Path,
    out: Path,
    protocol: Literal["last-day", "librerank", "nlgr"] = "last-day",
    slate_size: PositiveInt = 4,
    history: bool = False,
    memory_limit: str = "2GB",
    seed: NonNegativeInt = 0,
) -> None:
    """Taobao's ad log, Ali_Display_Ad_Click: 26.6 million rows; Alibaba's terms (log-in needed).

    Args:
        raw: Folder with the files.
        out: The data folder to make.
        protocol: Lists and split.
        slate_size: Ads of a logged slate, for nlgr of a page (5 in the papers); shorter lists are dropped.
        history: Add histories from behavior_log.csv.
        memory_limit: Of DuckDB; beyond it, work files beside --out are used.
        seed: Of everything drawn at random.
    """
    from rerankzoo.data.sources.taobao import convert_taobao  # the only source that needs the extra "data"

    sizes = {"slate_size": slate_size, "seed": seed}
    convert_taobao(out, raw, protocol, history=history, memory_limit=memory_limit, **sizes)
    _tell(out)


def letor(
    *,
    train: Path,
    test: Path,
    out: Path,
    validation: Path | None = None,
    collection: Literal["mslr-web10k", "mslr-web30k", "istella", "istella-s"] | None = None,
    seed: NonNegativeInt = 0,
) -> None:
    """Learning-to-rank files: MSLR, Istella (1.2 to 10.5 million documents; research only), any svmlight lines.

    Args:
        train: Lines to learn from.
        test: Lines to test on.
        out: The data folder to make.
        validation: Lines to choose by (default: a fifth of the training queries, drawn at random).
        collection: Whose published counts the files must have (default: any).
        seed: Of the queries that are drawn.
    """
    convert_letor(out, train, test, validation, collection=collection, seed=seed)
    _tell(out)


@takes(Workers)
def log(
    *,
    impressions: str,
    schema: Path,
    out: Path | None = None,
    infer: bool = False,
    candidates: str | None = None,
    items: str | None = None,
    users: str | None = None,
    events: str | None = None,
    memory_limit: str = "1GB",
    **options: Any,
) -> None:
    """Your own log in long format, one row per shown item: Parquet, CSV or JSON files, or queries of DuckDB.

    Args:
        impressions: The files, such as 'days/*.parquet'. Of a folder that was made before, new files are added.
        schema: The schema file, whose key `log` says which columns are which (docs/real-logs.md).
        out: The data folder to make, with report.md and report.html about the log.
        infer: Write a first --schema from the columns' names and values, for you to edit, and nothing else.
        candidates: Files of the candidates of each request, where they are logged.
        items: Files of the items' features.
        users: Files of the users' features.
        events: Files of what users did, of which histories are made; default: of the impressions.
        memory_limit: Of DuckDB; beyond it, work files beside --out are used.
        **options: For the engine ray, of `Workers`.
    """
    from rerankzoo.data.long_format import LogSpec, LogTables, infer_schema, write_long_log

    workers = workers_of(options)
    if infer == (out is not None):
        raise RecipeError("expected either --out or --infer")
    tables = LogTables(impressions=impressions, candidates=candidates, items=items, users=users, events=events)
    if out is None:
        doubts = infer_schema(tables, schema)
        print("\n".join([f"{schema}: edit it, then leave --infer out and give --out", *doubts]))
        return
    added = write_long_log(out, LogSpec.from_yaml(schema), tables, memory_limit=memory_limit, workers=workers)
    _tell(out)
    print(f"{sum(added.values()):,} of them now; {out / 'report.md'} says what was found")


def _public(make: Callable[..., PublicLog]) -> Callable[..., None]:
    """The command that converts a public data set; its further options are those of the data set's function."""

    @takes(make)
    def command(*, raw: Path, out: Path, memory_limit: str = "2GB", **options: Any) -> None:
        convert_public_log(make(**options), raw, out, memory_limit=memory_limit)
        _tell(out)

    log = make()
    command.__doc__ = f"""{log.title}: {log.size}; {log.licence}.

    Args:
        raw: Folder with the files of {log.url}.
        out: The data folder to make.
        memory_limit: Of DuckDB; beyond it, work files beside --out are used.
    """
    return command


def rows_of(folder: Path) -> str:
    """What a data folder holds, in one line."""
    counts = ", ".join(f"{count:,} {split}" for split, count in read_metadata(folder)["rows"].items())
    return f"{folder}: {counts} requests"


def _tell(out: Path) -> None:
    print(f"{rows_of(out)}\n{read_metadata(out)['protocol']}")


SOURCES = {
    "log": log,
    "simulator": simulator,
    "ml-100k": partial(movielens, "ml-100k"),
    "ml-1m": partial(movielens, "ml-1m"),
    "taobao-ad": taobao_ad,
    "open-bandit": _public(open_bandit),
    "kuairand": _public(kuairand),
    "ml-1m-protocols": _public(movielens_1m),
    "finn-slates": _public(finn_slates),
    "avito": _public(avito),
    "rl4rs": _public(rl4rs),
    "mind": _public(mind),
    "prm-public": _public(prm_public),
    "letor": letor,
}
