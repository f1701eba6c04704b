"""FINN.no slates (Eide et al. 2021, arXiv 2111.03340): a marketplace's pages in the order shown, with clicks."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import torch

from rerankzoo.data.long_format import HistorySpec, LogSpec, LogTables, SplitSpec
from rerankzoo.data.sources.public_log import PublicLog, RawFile, categorical, history, typed
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema, TargetSpec

NUM_USERS, NUM_ITEMS = 2_277_645, 1_311_775
"""Shapes that the data set's notebook prints; the second counts the three special items."""
ARRAYS = ("slate", "click_idx", "slate_lengths", "interaction_type")
TRAIN_INTERACTIONS, HISTORY_LENGTH = 5, 20
_USERS_AT_A_TIME = 20_000


def finn_slates() -> PublicLog:
    """FINN.no slates."""
    columns = f"{typed('INTEGER', 'user', 'step', 'place', 'item', 'click', 'interaction_type')}, split VARCHAR"
    return PublicLog(
        name="finn-slates",
        title="FINN.no slates, searches and recommendations of a marketplace",
        size="37.4 million slates",
        licence="Apache-2.0 (the authors' copy on the Hub)",
        url="https://github.com/finn-no/recsys_slates_dataset",
        files=(
            RawFile("data.npz", "shown", columns, read=_read_shown),
            RawFile("itemattr.npz", "categories", "item INTEGER, category INTEGER", read=_read_items),
        ),
        published={
            "users": ('SELECT max("user") + 1 FROM shown', NUM_USERS),
            "items": ("SELECT count(*) FROM categories", NUM_ITEMS),
        },
        protocol=(
            "one request per slate, without its 'no click' entry; candidates = the shown items; no time is logged, "
            "only the order of a user's up to 20 slates; split of Eide et al.: of 5 % of the users each, the slates "
            f"after the first {TRAIN_INTERACTIONS} are validation and test, all others train, so that train is not "
            "earlier than test"
        ),
        spec=LogSpec(
            schema=FeatureSchema(
                name="finn-slates",
                item_id="item",
                fields=(
                    *categorical("request", "interaction_type"),
                    *categorical("candidate", "item", min_count=5),
                    *categorical("candidate", "category"),
                    history("history_item", "item"),
                ),
                targets=(TargetSpec(name="click"),),
            ),
            request="request",
            time="step",
            user="user",
            position="place",
            surface="interaction_type",
            history=HistorySpec(feedback="click", length=HISTORY_LENGTH),
            split=SplitSpec(column="split"),
        ),
        tables=LogTables(
            impressions='SELECT *, "user"::BIGINT * 100 + step AS request FROM shown', items="FROM categories"
        ),
    )


def _read_shown(raw: Path) -> Iterator[pa.Table]:
    """One row per shown item. Item 0 pads; item 1 stands first and is clicked where no other is."""
    path = raw / "data.npz"
    with zipfile.ZipFile(path) as archive:
        streams = {name: _Stream(archive.open(f"{name}.npy"), path) for name in ARRAYS}
        num_users = len(streams["slate"])
        names = _split_users(num_users)
        for first in range(0, num_users, _USERS_AT_A_TIME):
            parts = {name: stream.read(_USERS_AT_A_TIME) for name, stream in streams.items()}
            slate = parts["slate"]
            user, step, place = np.nonzero(
                (slate > 1) & (np.arange(slate.shape[2]) < parts["slate_lengths"][..., None])
            )
            late = step >= TRAIN_INTERACTIONS
            yield pa.table(
                {
                    "user": (first + user).astype(np.int32),
                    "step": step.astype(np.int32),
                    "place": place.astype(np.int32),
                    "item": slate[user, step, place],
                    "click": (parts["click_idx"][user, step] == place).astype(np.int32),
                    "interaction_type": parts["interaction_type"][user, step],
                    "split": np.where(late, names[first + user], "train").astype(object),
                }
            )


def _split_users(num_users: int) -> np.ndarray:
    """The splits of the users' later slates, by the permutation that the data set's own loader draws."""
    held, names = int(0.05 * num_users), np.full(num_users, "train", dtype=object)
    order = torch.randperm(num_users, generator=torch.Generator().manual_seed(0)).numpy()
    names[order[:held]], names[order[held : 2 * held]] = "validation", "test"
    return names


def _read_items(raw: Path) -> Iterator[pa.Table]:
    with zipfile.ZipFile(raw / "itemattr.npz") as archive:
        stream = _Stream(archive.open("category.npy"), raw / "itemattr.npz")
        category = stream.read(len(stream)).astype(np.int32)
    yield pa.table({"item": np.arange(len(category), dtype=np.int32), "category": category})


class _Stream:
    """An array (R, ...) of an archive, read some rows at a time."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        self.shape, in_columns, self.dtype = read_header(file)
        if in_columns or self.dtype.kind not in "if":
            raise RerankingDataError(f"{path}: expected rows of numbers, got {self.dtype}", field=path.name)
        self.file, self.left = file, self.shape[0]

    def __len__(self) -> int:
        return int(self.shape[0])

    def read(self, count: int) -> np.ndarray:
        shape = (min(count, self.left), *self.shape[1:])
        self.left -= shape[0]
        return np.frombuffer(self.file.read(int(np.prod(shape)) * self.dtype.itemsize), dtype=self.dtype).reshape(shape)
