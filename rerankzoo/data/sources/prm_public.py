"""The public data of PRM (Pei et al. 2019, RecSys): lists of 30 items in the order shown, as LibRerank takes them.

LibRerank's script (`process_data_for_rerank`, github.com/lyingCS/Controllable-Multi-Objective-Reranking,
Data/preprocess_prm.py) drops lines with a null, keeps a tenth of the others, and shuffles and cuts them with the same
generator.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import SPLITS
from rerankzoo.data.long_format import LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, typed
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec

NUM_LISTS = 1_295_496
SEED, SHARE = 1234, 0.1
FILES = ("set1.train.txt.part1", "set1.train.txt.part2")
_PARTS = ("list", "profile", "sparse", "basic", "optional", "label")
_TYPES = tuple(zip(_PARTS[1:], ("VARCHAR[]", "VARCHAR[][]", "FLOAT[][]", "FLOAT[][]", "INTEGER[]"), strict=True))
_LINES_AT_A_TIME = 20_000
_PROFILE = tuple(f"profile_{number}" for number in range(3))
_SPARSE = ("item_id", *(f"sparse_{number}" for number in range(1, 5)))


def prm_public() -> PublicLog:
    """PRM's public data."""
    return PublicLog(
        name="prm-public",
        title="PRM's public data, lists of 30 items of a shop in the order shown",
        size="24 GB, of which a tenth is taken",
        licence="no licence given",
        url="https://github.com/rank2rec/rerank",
        files=(
            RawFile(FILES[0], "lists", f"line BIGINT, {typed('VARCHAR', *_PARTS)}", read=_read_lists),
            RawFile(FILES[1], "splits", "line BIGINT, split VARCHAR", read=_read_splits),
        ),
        published={"lists": ("SELECT count(*) FROM lists", NUM_LISTS)},
        protocol=(
            "LibRerank's: lines without null, a tenth of them by its random numbers, shuffled and cut 40 % first "
            "stage, 50 % reranker, 10 % test; here the first 40 % are left out, as they are for its rerankers, and "
            "the last tenth of the next 50 % is validation; candidates = the list of 30 in the order shown; no time "
            "is logged, and the first column is the request's, so that there are no histories"
        ),
        spec=LogSpec(
            schema=FeatureSchema(
                name="prm-public",
                item_id="item_id",
                fields=(
                    *categorical("request", *_PROFILE),
                    *categorical("candidate", *_SPARSE, min_count=5),
                    FieldSpec(name="basic", group="candidate", kind="dense", size=7, transforms=("standardize",)),
                    FieldSpec(name="optional", group="candidate", kind="dense", size=12, transforms=("standardize",)),
                ),
                targets=(TargetSpec(name="click"),),
            ),
            request="line",
            time="line",
            position="position",
            split=SplitSpec(column="split"),
        ),
        tables=LogTables(
            impressions=f"""
                WITH parsed AS (
                    SELECT line, split,
                        {", ".join(f"translate({name}, '()', '[]')::{kind} AS {name}" for name, kind in _TYPES)}
                    FROM lists JOIN splits USING (line)),
                shown AS (SELECT *, unnest(range(len(label))) AS position FROM parsed)
                SELECT line, split, position, basic[position + 1] AS basic, optional[position + 1] AS optional,
                    label[position + 1] AS click,
                    {", ".join(f"profile[{at + 1}] AS {name}" for at, name in enumerate(_PROFILE))},
                    {", ".join(f"sparse[position + 1][{at + 1}] AS {name}" for at, name in enumerate(_SPARSE))}
                FROM shown"""
        ),
    )


def _kept_lines(raw: Path, draw: random.Random) -> Iterator[tuple[int, str, Path]]:
    """The lines that the script keeps, numbered through both files, and where each stands."""
    number = -1
    for name in FILES:
        with (raw / name).open(encoding="utf-8") as file:
            for line in file:
                number += 1
                if "null" not in line and draw.random() < SHARE:
                    yield number, line, raw / name


def _read_lists(raw: Path) -> Iterator[pa.Table]:
    lines = _kept_lines(raw, random.Random(SEED))
    while rows := [_parts(*line) for line in islice(lines, _LINES_AT_A_TIME)]:
        yield pa.table(dict(zip(("line", *_PARTS), zip(*rows, strict=True), strict=True)))


def _parts(number: int, line: str, path: Path) -> list[int | str]:
    parts = line.rstrip("\n").split("|")
    if len(parts) != len(_PARTS):
        message = f"{path}: expected {len(_PARTS)} parts between '|', got {len(parts)} in {line[:80]!r}"
        raise RerankingDataError(message, field=path.name)
    return [number, *parts]


def _read_splits(raw: Path) -> Iterator[pa.Table]:
    """The part of each kept line, which the script draws after its last line."""
    draw = random.Random(SEED)
    lines = [number for number, *_ in _kept_lines(raw, draw)]
    draw.shuffle(lines)
    ends = [int(share * len(lines)) for share in (0.4, 0.85, 0.9)]
    part = np.searchsorted(ends, np.arange(len(lines)), side="right")
    yield pa.table({"line": lines, "split": np.array([None, *SPLITS], dtype=object)[part]})
