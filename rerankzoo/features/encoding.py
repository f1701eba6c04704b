"""Columns to model inputs: categorical values to ids, numbers through their transforms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.columns import BoolArray, Column, IntArray
from rerankzoo.features.ragged import Ragged
from rerankzoo.features.schema import FieldSpec
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
    found: IdType = "string" if column.kind == "string" else "int"
    if expected is not None and found != expected:
        index = column.first_present()
        raise column.error(f"fitted on {expected} values, got {shown(column.value(index))} ({found})", index)
    return found


def encode_ids(column: Column, spec: FieldSpec, vocabulary: Vocabulary | None, expected: IdType | None) -> IntArray:
    """Returns the id of every leaf: 0 missing, 1 unknown, then the vocabulary (or the hash bucket).

    Args:
        column: Any categorical column.
        spec: The field whose `hash_size` counts (for a sharing field, the one it shares).
        vocabulary: The fitted vocabulary; `None` for a hashed field.
        expected: The fitted type; `None` if no value was seen while fitting.

    Raises:
        RerankingDataError: If the type is wrong.
    """
    found = id_type(column, expected)
    if found is None:
        return np.zeros(len(column.values), dtype=np.int64)
    values: Any = column.strings if found == "string" else column.values.astype(np.int64, copy=False)
    if spec.hash_size is not None:
        ids = hash_strings(values, spec.hash_size) if found == "string" else hash_integers(values, spec.hash_size)
    elif vocabulary is None or expected is None:  # nothing was seen while fitting
        ids = np.full(len(values), UNKNOWN_ID, dtype=np.int64)
    else:
        ids = vocabulary.encode(values)
    if found == "string":
        ids = ids[column.values]
    if column.missing is not None:
        ids[column.missing] = MISSING_ID
    return ids


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

    def std(self) -> FloatArray:
        """Returns the population standard deviation; 1 where it is 0, so that dividing by it changes nothing."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.where(std > 0, std, 1.0)


@dataclass(frozen=True)
class Statistics:
    """What "standardize" subtracts and divides by, one entry per component."""

    mean: FloatArray
    std: FloatArray


def raw_numbers(column: Column, spec: FieldSpec) -> tuple[FloatArray, BoolArray | None]:
    """Returns a numeric column as (n, size) float64 and the mask of the missing entries, which hold 0.

    Raises:
        RerankingDataError: If a value is not a finite number, or a vector has the wrong length.
    """
    values = finite(column)
    missing = column.missing
    if spec.kind == "numeric":
        return values[:, None], None if missing is None else missing[:, None]
    return _vectors(column, values, spec.size)


def _vectors(column: Column, values: FloatArray, size: int) -> tuple[FloatArray, BoolArray | None]:
    level = len(column.offsets) - 1
    lengths = np.diff(column.offsets[level])
    absent = column.nulls[level]
    wrong = lengths != size if absent is None else (lengths != size) & ~absent
    if wrong.any():
        index = int(wrong.argmax())
        raise column.error(f"a vector of length {size} is required, got length {lengths[index]}", index, level)
    if absent is None:
        missing = None if column.missing is None else column.missing.reshape(-1, size)
        return values.reshape(-1, size), missing
    vectors = np.zeros((len(lengths), size))
    vectors[~absent] = values.reshape(-1, size)
    missing = np.repeat(absent[:, None], size, axis=1)
    if column.missing is not None:
        missing[~absent] |= column.missing.reshape(-1, size)
    return vectors, missing


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
    if column.missing is not None:
        good |= column.missing
    if not good.all():
        index = int(good.argmin())
        value = float(values[index])
        advice = "; use None for a missing value" if np.isnan(value) else ""
        raise column.error(f"a finite float32 number is required, got {value}{advice}", index)
    return values


def transform(column: Column, spec: FieldSpec, statistics: Statistics | None) -> tuple[FloatArray, BoolArray | None]:
    """Applies a numeric or dense field's clipping and transforms.

    Args:
        column: The raw column.
        spec: The field.
        statistics: For "standardize"; with `None` (while fitting) the transforms before it are all that is applied.

    Returns:
        (n, size) float64 and the mask of missing entries (their values are arbitrary).

    Raises:
        RerankingDataError: As `raw_numbers`, and if log1p meets a value of -1 or less.
    """
    values, missing = raw_numbers(column, spec)
    if spec.clip is not None:
        values = np.clip(values, *spec.clip)
    for name in spec.transforms:
        if name == "log1p":
            _check_log1p(column, spec, values, missing)
            values = np.log1p(values if missing is None else np.where(missing, 0, values))
        elif statistics is None:
            break
        else:
            values = (values - statistics.mean) / statistics.std
    return values, missing


def _check_log1p(column: Column, spec: FieldSpec, values: FloatArray, missing: BoolArray | None) -> None:
    bad = values <= -1
    if missing is not None:
        bad &= ~missing
    if bad.any():
        raise _entry_error(column, spec, bad, "log1p needs a value above -1, got {}", values)


def _check_overflow(column: Column, spec: FieldSpec, values: FloatArray) -> None:
    bad = np.abs(values) > _FLOAT32_MAX
    if bad.any():
        raise _entry_error(column, spec, bad, "{} after standardising is beyond float32", values)


def _entry_error(
    column: Column, spec: FieldSpec, bad: BoolArray, message: str, values: FloatArray
) -> RerankingDataError:
    """An error about the first bad one of (n, size) values, which it puts into the message."""
    index, component = divmod(int(bad.argmax()), values.shape[1])
    # The entries of a dense column are its vectors, one level above the leaves.
    level = len(column.offsets) - (spec.kind == "dense")
    return column.error(message.format(float(values[index, component])), index, level)


def encode_numbers(column: Column, spec: FieldSpec, statistics: Mapping[str, Statistics]) -> FloatArray:
    """Returns (n, size) transformed values, 0 where missing; `statistics` are by field name.

    Raises:
        RerankingDataError: As `transform`, and if a standardised value does not fit float32.
    """
    own = statistics[spec.name] if "standardize" in spec.transforms else None
    values, missing = transform(column, spec, own)
    values = values if missing is None else np.where(missing, 0.0, values)
    if own is not None:  # no other transform makes a number larger
        _check_overflow(column, spec, values)
    return values


def pack(parts: list[npt.NDArray[Any]], layout: Ragged, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Joins (total,) and (total, size) parts along a last dimension and pads: (B, width, sum of sizes)."""
    columns = [column for part in parts for column in (part.T if part.ndim > 1 else part[None])]
    # Straight into the padded array: a packed copy in between costs more in fresh memory pages than it saves.
    packed = np.zeros((layout.rows * layout.width, len(columns)), dtype=dtype)
    for index, column in enumerate(columns):
        if layout.full:
            packed[:, index] = column
        else:
            packed[:, index][layout.places] = column
    return packed.reshape(layout.rows, layout.width, len(columns))
