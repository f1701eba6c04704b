"""A log in long format of millions of rows becomes a data folder: memory, disk, and a run that is killed and continued.

Pages of 10 items of 20 candidates, which are logged apart: twice as many rows. The process is killed once half of its
part files are there, and a second one ends what it began.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qa.scale.usage import run
from rerankzoo.atomic_writing import work_folder
from rerankzoo.cli import prepare
from rerankzoo.cli.main import main
from rerankzoo.data.folder import SPLITS, read_metadata, split_files
from rerankzoo.data.long_format import write_long_log

__all__ = ["measure", "prepare", "rows", "write_long_log"]  # imported here, before processes are made

SHOWN, CANDIDATES, DAYS, FIRST_DAY = 10, 20, 10, 1_777_593_600  # 2026-05-01
USERS, ITEMS, PAGES = 50_000, 100_000, 3
SCHEMA = """
name: long-log
item_id: item_id
upstream_score: score
fields:
  - {name: page, group: request, kind: categorical}
  - {name: age, group: request, kind: categorical}
  - {name: item_id, group: candidate, kind: categorical}
  - {name: brand, group: candidate, kind: categorical}
  - {name: price, group: candidate, kind: numeric, transforms: [log1p, standardize]}
  - {name: score, group: candidate, kind: numeric, transforms: [standardize]}
  - {name: recent, group: history, kind: categorical, shares: item_id}
targets:
  - {name: click}
  - {name: order}
log:
  request: request_id
  time: time
  user: user_id
  position: position
  surface: page
  history: {feedback: click, length: 20, gap: 60}
  split: {validation: 2026-05-09, test: 2026-05-10}
"""


def write_log(folder: Path, impressions: int) -> None:
    """Writes a day's rows after another."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    requests = impressions // SHOWN // DAYS
    for day in range(DAYS):
        ids = np.char.add(f"day{day}-", np.arange(requests).astype(str))
        time = FIRST_DAY + 86_400 * day + np.sort(rng.integers(86_400, size=requests))
        users, items = (USERS * rng.random(requests) ** 2).astype(int), rng.integers(ITEMS, size=(requests, CANDIDATES))
        items = (items // CANDIDATES) * CANDIDATES + np.arange(CANDIDATES)  # distinct within a page
        score = rng.normal(size=items.shape).astype(np.float32)
        order = np.argsort(rng.gumbel(size=items.shape) - score, axis=1)[:, :SHOWN]
        shown, scores = (np.take_along_axis(of, order, axis=1).ravel() for of in (items, score))
        position = np.tile(np.arange(1, SHOWN + 1), requests)
        click = rng.random(len(shown)) < 0.1 / np.sqrt(position)
        each = {"request_id": np.repeat(ids, SHOWN), "time": np.repeat(time, SHOWN), "user_id": np.repeat(users, SHOWN)}
        each |= {"page": np.repeat(rng.integers(PAGES, size=requests), SHOWN), "item_id": shown, "position": position}
        each |= {"click": click, "order": click & (rng.random(len(click)) < 0.2), "shown_score": scores}
        pq.write_table(pa.table(each), folder / f"impressions-{day:02d}.parquet")
        candidates = {"request_id": np.repeat(ids, CANDIDATES), "item_id": items.ravel(), "score": score.ravel()}
        pq.write_table(pa.table(candidates), folder / f"candidates-{day:02d}.parquet")
    catalogue = {"item_id": np.arange(ITEMS), "brand": np.arange(ITEMS) % 997, "price": rng.uniform(1, 99, ITEMS)}
    pq.write_table(pa.table(catalogue), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": np.arange(USERS), "age": np.arange(USERS) % 80}), folder / "users.parquet")
    (folder / "schema.yaml").write_text(SCHEMA, encoding="utf-8")


def measure(impressions: int, work: Path) -> dict[str, Any]:
    """Kills a run in the middle, continues it, and looks whether all requests and clicks are there."""
    raw, out = work / "raw", work / "out"
    run(lambda: write_log(raw, impressions), work / "output")
    clicks = sum(map(_clicks, raw.glob("impressions-*")))
    expected = {"requests": impressions // SHOWN // DAYS * DAYS, "clicks": clicks}
    options = ["--impressions", f"{raw}/impressions-*.parquet", "--candidates", f"{raw}/candidates-*.parquet"]
    options += ["--items", f"{raw}/items.parquet", "--users", f"{raw}/users.parquet", "--schema", f"{raw}/schema.yaml"]
    disk: list[int] = []
    half = -(-impressions * CANDIDATES // SHOWN // 1_000_000) * len(SPLITS) // 2

    def middle() -> bool:
        disk.append(_bytes(work) - _bytes(raw))
        parts = work_folder(out) / "parts"
        return parts.is_dir() and len(list(parts.glob("*.parquet"))) >= half

    def prepare_log() -> None:
        if main(["prepare", "log", *options, "--out", str(out)]):
            raise RuntimeError("rerankzoo prepare log failed")

    found: dict[str, Any] = {"impressions": impressions, "raw": _bytes(raw)}
    found["killed"] = asdict(run(prepare_log, work / "output", kill_when=middle))
    found["continued"] = asdict(run(prepare_log, work / "output", kill_when=lambda: middle() and False))
    found |= {"result": _bytes(out), "work": max(disk) - _bytes(out)}
    files = [path for split in SPLITS for path in split_files(out, split)]
    clicks = sum(map(_clicks, files))
    if {"requests": sum(read_metadata(out)["rows"].values()), "clicks": clicks} != expected:
        raise RuntimeError(f"expected {expected}, got {read_metadata(out)['rows']} and {clicks} clicks")
    return found | expected


def _clicks(path: Path) -> int:
    column = pq.read_table(path, columns=["click"])["click"].combine_chunks()
    return int((column if pa.types.is_boolean(column.type) else column.flatten()).to_numpy(zero_copy_only=False).sum())


def rows(found: dict[str, Any]) -> Iterable[str]:
    """The figures as a Markdown table."""
    yield "| | until the kill | continued |"
    yield "|---|---:|---:|"
    killed, continued = found["killed"], found["continued"]
    yield f"| CPU s | {killed['cpu']:.0f} | {continued['cpu']:.0f} |"
    yield f"| anonymous memory, MiB at most | {killed['peak'] / 2**20:.0f} | {continued['peak'] / 2**20:.0f} |"
    sizes = ", ".join(f"{name} {found[name] / 1e6:,.0f} MB" for name in ("raw", "result", "work"))
    yield ""
    yield f"{found['impressions']:,} impressions, {found['requests']:,} requests, {found['clicks']:,} clicks; {sizes}"


def _bytes(folder: Path) -> int:
    """What the files below a folder take; of several links to one file, one counts."""
    sizes: dict[int, int] = {}
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                state = os.stat(Path(root) / name)
            except FileNotFoundError:  # just removed
                continue
            sizes[state.st_ino] = state.st_size
    return sum(sizes.values())
