"""Columns to model inputs: categorical values to ids, numbers through their transforms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import shown
from rerankzoo.features.schema import FieldSpec
from rerankzoo.features.tables import BoolArray, Column, IntArray, Ragged
from rerankzoo.features.vocabulary import MISSING_ID, UNKNOWN_ID, Vocabulary, hash_integers, hash_strings

FloatArray = npt.NDArray[np.float64]
IdType = Literal["int", "string"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def id_type(column: Column, expected: IdType | None = None) -> IdType | None:
    """Returns the type of a column of ids; `None` if all are missing. Booleans are the integers 0 and 1.

    Raises:
        RerankingDataError: If the values are neither integers nor strings, or not of the expected type.
    """
    if column.kind == "null" or not len(column.values):
        return None
    if column.kind == "float":
        # Among the floats of the column, the one that is no integer tells the caller most.
        odd = column.values != np.floor(column.values)
        index = int(odd.argmax()) if odd.any() else column.first_present()
        advice = "; use None for a missing value" if np.isnan(column.values[index]) else ""
        raise column.error(f"an int or a string is required, got {shown(column.value(index))}{advice}", index)
    kind: IdType = "string" if column.kind == "string" else "int"
    if expected is not None and kind != expected:
        index = column.first_present()
        raise column.error(f"fitted on {expected} values, got {shown(column.value(index))} ({kind})", index)
    return kind


@dataclass(frozen=True)
class IdEncoder:
    """Categorical values to ids: 0 missing, 1 unknown, then the vocabulary (or the hash bucket).

    Args:
        hash_size: Number of buckets; `None` for a vocabulary.
        vocabulary: The fitted vocabulary; `None` for a hashed field.
        type: The fitted type; `None` if no value was seen while fitting.
    """

    hash_size: int | None
    vocabulary: Vocabulary | None
    type: IdType | None

    def __call__(self, column: Column) -> IntArray:
        """Returns the id of every leaf.

        Raises:
            RerankingDataError: If the type is wrong.
        """
        kind = id_type(column, self.type)
        if kind is None:
            return np.zeros(len(column.values), dtype=np.int64)
        values: Any = column.strings if kind == "string" else column.values.astype(np.int64, copy=False)
        if self.hash_size is not None:
            ids = hash_strings(values, self.hash_size) if kind == "string" else hash_integers(values, self.hash_size)
        elif self.vocabulary is None or self.type is None:  # nothing was seen while fitting
            ids = np.full(len(values), UNKNOWN_ID, dtype=np.int64)
        else:
            ids = self.vocabulary.encode(values)
        if kind == "string":
            ids = ids[column.values]
        if column.nulls[-1] is not None:
            ids[column.nulls[-1]] = MISSING_ID
        return ids


@dataclass(frozen=True)
class Statistics:
    """What "standardize" subtracts and divides by, one entry per component."""

    mean: FloatArray
    std: FloatArray

    def equals(self, other: Statistics) -> bool:
        """Whether both standardise alike."""
        return np.array_equal(self.mean, other.mean) and np.array_equal(self.std, other.std)


@dataclass(frozen=True)
class NumberEncoder:
    """A numeric or dense field's clipping and transforms.

    Args:
        spec: The field.
        statistics: For "standardize".
    """

    spec: FieldSpec
    statistics: Statistics | None

    def __call__(self, column: Column) -> FloatArray:
        """Returns (n, size) transformed values, 0 where missing.

        Raises:
            RerankingDataError: As `transform`, and if a standardised value does not fit float32.
        """
        values, missing = self.transform(column)
        values = values if missing is None else np.where(missing, 0.0, values)
        if self.statistics is not None:  # no other transform makes a number larger
            self._refuse(column, values, np.abs(values) > _FLOAT32_MAX, "{} after standardising is beyond float32")
        return values

    def transform(self, column: Column) -> tuple[FloatArray, BoolArray | None]:
        """Applies the transforms; without statistics (while fitting) those before "standardize".

        Returns:
            (n, size) float64 and the mask of missing entries (their values are arbitrary).

        Raises:
            RerankingDataError: If a value is not a finite number, a vector has the wrong length, or log1p meets a value
                of -1 or less.
        """
        values, missing = finite(column)[:, None], column.nulls[-1]
        if self.spec.kind == "dense":
            values, missing = _vectors(column, values, self.spec.size)
        elif missing is not None:
            missing = missing[:, None]
        if self.spec.clip is not None:
            values = np.clip(values, *self.spec.clip)
        for name in self.spec.transforms:
            if name == "log1p":
                values = values if missing is None else np.where(missing, 0, values)
                self._refuse(column, values, values <= -1, "log1p needs a value above -1, got {}")
                values = np.log1p(values)
            elif self.statistics is None:
                break
            else:
                values = (values - self.statistics.mean) / self.statistics.std
        return values, missing

    def _refuse(self, column: Column, values: FloatArray, bad: BoolArray, message: str) -> None:
        if bad.any():
            index, component = divmod(int(bad.argmax()), values.shape[1])
            # The entries of a dense column are its vectors, one level above the leaves.
            level = len(column.offsets) - (self.spec.kind == "dense")
            raise column.error(message.format(float(values[index, component])), index, level)


def _vectors(column: Column, values: FloatArray, size: int) -> tuple[FloatArray, BoolArray | None]:
    """The leaves of a dense column as (n, size) vectors, and which entries are missing, as far as any is."""
    level = len(column.offsets) - 1
    lengths = np.diff(column.offsets[level])
    absent, missing = column.nulls[level:]
    wrong = lengths != size if absent is None else (lengths != size) & ~absent
    if wrong.any():
        index = int(wrong.argmax())
        raise column.error(f"a vector of length {size} is required, got length {lengths[index]}", index, level)
    values, missing = values.reshape(-1, size), None if missing is None else missing.reshape(-1, size)
    if absent is None:
        return values, missing
    vectors, no_vector = np.zeros((len(lengths), size)), np.repeat(absent[:, None], size, axis=1)
    vectors[~absent] = values
    if missing is not None:
        no_vector[~absent] |= missing
    return vectors, no_vector


def finite(column: Column) -> FloatArray:
    """Returns the leaves as float64.

    Raises:
        RerankingDataError: If a leaf is a string, NaN, infinite or beyond float32.
    """
    if column.kind == "string":
        index = column.first_present()
        raise column.error(f"a number is required, got {shown(column.value(index))}", index)
    values = column.values.astype(np.float64, copy=False)
    # One comparison also catches NaN, for which it is false.
    good = np.abs(values) <= _FLOAT32_MAX
    if column.nulls[-1] is not None:
        good |= column.nulls[-1]
    if not good.all():
        index = int(good.argmin())
        value = float(values[index])
        advice = "; use None for a missing value" if np.isnan(value) else ""
        raise column.error(f"a finite float32 number is required, got {value}{advice}", index)
    return values


@dataclass
class Moments:
    """Running mean and variance of vectors, in float64.

    Chunks are merged with Chan, Golub and LeVeque's pairwise update (Updating formulae and a pairwise algorithm for
    computing sample variances, 1979), so that the result does not lose digits on long data.

    Args:
        size: The vectors' length.
    """

    size: int
    count: FloatArray = field(init=False)
    mean: FloatArray = field(init=False)
    squares: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.count, self.mean, self.squares = (np.zeros(self.size) for _ in range(3))

    def update(self, values: FloatArray, missing: BoolArray | None) -> None:
        """Adds (n, size) values, except where `missing`."""
        seen = np.ones_like(values) if missing is None else (~missing).astype(np.float64)
        count = seen.sum(axis=0)
        mean = (values * seen).sum(axis=0) / np.maximum(count, 1)
        squares = ((values - mean) ** 2 * seen).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        delta = mean - self.mean
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count += count

    def statistics(self) -> Statistics:
        """Mean and population standard deviation; 1 where it is 0, so that dividing by it changes nothing."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return Statistics(mean=self.mean, std=np.where(std > 0, std, 1.0))


def pack(parts: list[npt.NDArray[Any]], layout: Ragged, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Joins (total,) and (total, size) parts along a last dimension and pads: (B, width, sum of sizes)."""
    sizes = [1 if part.ndim == 1 else part.shape[1] for part in parts]
    # Straight into the padded array: a packed copy in between costs more in fresh memory pages than it saves.
    packed = np.zeros((layout.rows * layout.width, sum(sizes)), dtype=dtype)
    first = 0
    for part, size in zip(parts, sizes, strict=True):
        target = packed[:, first : first + size]
        target[slice(None) if layout.full else layout.places] = part.reshape(-1, size)
        first += size
    return packed.reshape(layout.rows, layout.width, sum(sizes))
