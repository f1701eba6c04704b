"""Flat values with row lengths, and their padded form."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.features.columns import BoolArray, Column, IntArray


class Ragged:
    """Where each row's values lie in a flat array and in a padded one.

    Args:
        offsets: (B + 1,) row i owns the flat values `offsets[i]:offsets[i + 1]`.
        min_width: Width of the padded array if all rows are shorter.
    """

    def __init__(self, offsets: IntArray, min_width: int = 0) -> None:
        self.offsets = offsets
        self.lengths: IntArray = np.diff(offsets)
        self.rows = len(self.lengths)
        self.width = max(int(self.lengths.max(initial=0)), min_width)
        self.total = int(offsets[-1])

    @property
    def full(self) -> bool:
        """Whether no row needs padding."""
        return self.total == self.rows * self.width

    @cached_property
    def places(self) -> IntArray:
        """(total,) the place of every flat value in the flattened padded array."""
        shift = np.arange(self.rows, dtype=np.int64) * self.width - self.offsets[:-1]
        return np.arange(self.total, dtype=np.int64) + np.repeat(shift, self.lengths)

    def mask(self) -> BoolArray:
        """(B, width), True where a value is real."""
        return np.arange(self.width) < self.lengths[:, None]

    def pad(self, flat: npt.NDArray[Any], fill: float = 0) -> npt.NDArray[Any]:
        """Pads (total, ...) to (B, width, ...)."""
        shape = (self.rows, self.width, *flat.shape[1:])
        if self.full:
            return flat.reshape(shape)
        # np.zeros gets its pages zeroed by the system and is several times faster than np.full here.
        padded = np.zeros((self.rows * self.width, *flat.shape[1:]), dtype=flat.dtype)
        if fill != 0:
            padded.fill(fill)
        padded[self.places] = flat
        return padded.reshape(shape)

    def check_same(self, column: Column, level: int, what: str) -> None:
        """Raises if a level of `column` has other lengths; `what` says whose lengths are right."""
        offsets = column.offsets[level]
        if np.array_equal(offsets, self.offsets):
            return
        lengths = np.diff(offsets)
        index = int((lengths != self.lengths).argmax())
        raise column.error(f"{lengths[index]} entries, but {what} has {self.lengths[index]}", index, level)
