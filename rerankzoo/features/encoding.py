"""Columns to model inputs: categorical values to ids, numbers through their transforms."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import shown
from rerankzoo.features.schema import FLOAT32_MAX, FieldSpec
from rerankzoo.features.tables import BoolArray, Column, IntArray, Ragged

FloatArray = npt.NDArray[np.float64]
IdType = Literal["int", "string"]

#: Of categorical values: padding or missing, unknown; then the vocabulary (or the hash buckets).
MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_ID = 2

# A direct lookup table is about ten times faster than a binary search; it is used while it stays small.
_MAX_TABLE_SLOTS_PER_VALUE = 16
_MIN_TABLE_SLOTS = 1 << 20


class IntegerVocabulary:
    """Maps int64 values to ids: distinct ones in the order of their ids, sorted by fitting, then those added later."""

    def __init__(self, values: Sequence[int] | IntArray) -> None:
        self.values = values = np.asarray(values, dtype=np.int64)
        order = np.argsort(values, kind="stable")
        self._sorted, self._ids = values[order], order + FIRST_ID
        self._table: IntArray | None = None
        span = int(self._sorted[-1]) - int(self._sorted[0]) + 1 if len(values) else math.inf
        if span <= max(_MIN_TABLE_SLOTS, _MAX_TABLE_SLOTS_PER_VALUE * len(values)):
            self._table = np.full(int(span), UNKNOWN_ID, dtype=np.int64)
            self._table[self._sorted - self._sorted[0]] = self._ids

    def encode(self, values: IntArray) -> IntArray:
        """Returns one id per value."""
        if not len(self.values):
            return np.full(len(values), UNKNOWN_ID, dtype=np.int64)
        first, last = self._sorted[0], self._sorted[-1]
        if self._table is not None:
            # Clipping comes first, so that the subtraction cannot overflow.
            ids = self._table[np.clip(values, first, last) - first]
            ids[(values < first) | (values > last)] = UNKNOWN_ID
            return ids
        places = np.minimum(np.searchsorted(self._sorted, values), len(self._sorted) - 1)
        return np.where(self._sorted[places] == values, self._ids[places], UNKNOWN_ID)

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays to store."""
        return {"values": self.values}


class StringVocabulary:
    """Maps strings to ids; see `IntegerVocabulary`."""

    def __init__(self, values: Sequence[str]) -> None:
        self.values = list(values)
        self._ids = {value: index for index, value in enumerate(self.values, start=FIRST_ID)}

    def encode(self, values: Sequence[str]) -> IntArray:
        """Returns one id per value."""
        return np.fromiter(map(self._ids.get, values, itertools.repeat(UNKNOWN_ID)), np.int64, len(values))

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the arrays to store: UTF-8 bytes and where each value starts."""
        encoded = [_utf8(value) for value in self.values]
        offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        return {"bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8), "offsets": offsets}


Vocabulary = IntegerVocabulary | StringVocabulary


def extended_vocabulary(vocabulary: Vocabulary, other: Vocabulary) -> Vocabulary:
    """Returns a vocabulary with another's new values after its own, whose ids stay."""
    if not len(vocabulary.values):
        return other
    if type(vocabulary) is not type(other):
        raise TypeError(f"a {type(vocabulary).__name__} cannot be extended by a {type(other).__name__}")
    # As keys: each value once, in order. Integers stay numpy's, which are equal to Python's.
    return type(vocabulary)(list(dict.fromkeys([*vocabulary.values, *other.values])))


def begins_with(vocabulary: Vocabulary, other: Vocabulary) -> bool:
    """Tells whether all values of the other vocabulary have the same ids in the first."""
    same_type = type(vocabulary) is type(other)
    return not len(other.values) or (same_type and list(vocabulary.values[: len(other.values)]) == list(other.values))


def vocabulary_from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Vocabulary:
    """Rebuilds a vocabulary from `to_arrays`; a `ValueError` if that never made such arrays."""
    for name, array in arrays.items():
        expected = np.uint8 if name == "bytes" else np.int64
        if array.dtype != expected or array.ndim != 1:
            raise ValueError(f"{name} must be {np.dtype(expected)} of one axis, got {array.dtype} of {array.ndim}")
    if "values" in arrays:
        return IntegerVocabulary(arrays["values"])
    blob, offsets = arrays["bytes"].tobytes(), arrays["offsets"].tolist()
    if offsets[:1] != [0] or offsets[-1] != len(blob) or offsets != sorted(offsets):
        raise ValueError(f"offsets must grow from 0 to {len(blob)}, the number of bytes")
    return StringVocabulary(
        [blob[start:stop].decode("utf-8", "surrogatepass") for start, stop in itertools.pairwise(offsets)]
    )


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Returns a SHA-256 over a vocabulary's type and values."""
    digest = hashlib.sha256(type(vocabulary).__name__.encode())
    for name, array in sorted(vocabulary.to_arrays().items()):
        digest.update(f"/{name}:{array.dtype.str}:{len(array)}/".encode() + array.tobytes())
    return digest.hexdigest()


def hash_integers(values: IntArray, size: int) -> IntArray:
    """Hashes integers into ids 2 .. size + 1, the same on every machine.

    The mix is SplitMix64's (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
    """
    mixed = values.view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return (mixed % np.uint64(size)).astype(np.int64) + FIRST_ID


def hash_strings(values: Sequence[str], size: int) -> IntArray:
    """Hashes strings (BLAKE2b, 8 bytes, of their UTF-8) into ids 2 .. size + 1, the same on every machine."""
    digests = (hashlib.blake2b(_utf8(value), digest_size=8).digest() for value in values)
    return np.array([int.from_bytes(digest, "little") % size + FIRST_ID for digest in digests], dtype=np.int64)


def _utf8(value: str) -> bytes:
    # "surrogatepass": a lone surrogate is legal in a Python str and must not crash a serving request.
    return value.encode("utf-8", "surrogatepass")


def id_type(column: Column, expected: IdType | None = None) -> IdType | None:
    """Returns the type of a column of ids; `None` if all are missing. Booleans are the integers 0 and 1."""
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
    """Categorical values to ids: 0 missing, 1 unknown, then the vocabulary (or the hash bucket)."""

    hash_size: int | None
    vocabulary: Vocabulary | None  # None for a hashed field
    type: IdType | None  # None if no value was seen while fitting

    def __call__(self, column: Column) -> IntArray:
        """Returns the id of every leaf."""
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
class NumberEncoder:
    """A numeric or dense field's clipping and transforms."""

    spec: FieldSpec
    statistics: FloatArray | None  # (2, size), what "standardize" subtracts and divides by; None while fitting

    def __call__(self, column: Column) -> FloatArray:
        """Returns (n, size) transformed values, 0 where missing."""
        values, missing = self.transform(column)
        if missing is not None:
            values = np.where(missing, 0.0, values)
        if self.statistics is not None:  # no other transform makes a number larger
            self._refuse(column, values, np.abs(values) > FLOAT32_MAX, "{} after standardising is beyond float32")
        return values

    def transform(self, column: Column) -> tuple[FloatArray, BoolArray | None]:
        """Applies the transforms; without statistics (while fitting) those before "standardize".

        Returns (n, size) float64 and the mask of missing entries (their values are arbitrary).
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
                values = (values - self.statistics[0]) / self.statistics[1]
        return values, missing

    def _refuse(self, column: Column, values: FloatArray, wrong: BoolArray, message: str) -> None:
        if wrong.any():
            index, component = divmod(int(wrong.argmax()), values.shape[1])
            # The entries of a dense column are its vectors, one level above the leaves.
            level = len(column.offsets) - (self.spec.kind == "dense")
            raise column.error(message.format(float(values[index, component])), index, level)


def _vectors(column: Column, values: FloatArray, size: int) -> tuple[FloatArray, BoolArray | None]:
    """The leaves of a dense column as (n, size) vectors, and which entries are missing, as far as any is."""
    level = len(column.offsets) - 1
    lengths = np.diff(column.offsets[level])
    absent, missing = column.nulls[level:]
    present = np.ones(len(lengths), dtype=np.bool_) if absent is None else ~absent
    column.refuse(
        (lengths != size) & present, f"a vector of length {size} is required, got length {{}}", level, lengths
    )
    if absent is None:
        return values.reshape(-1, size), None if missing is None else missing.reshape(-1, size)
    vectors, no_vector = np.zeros((len(lengths), size)), np.repeat(absent[:, None], size, axis=1)
    vectors[present] = values.reshape(-1, size)
    if missing is not None:
        no_vector[present] = missing.reshape(-1, size)
    return vectors, no_vector


def finite(column: Column) -> FloatArray:
    """Returns the leaves as float64; a `RerankingDataError` for a string, NaN, infinity or a number beyond float32."""
    if column.kind == "string":
        index = column.first_present()
        raise column.error(f"a number is required, got {shown(column.value(index))}", index)
    values = column.values.astype(np.float64, copy=False)
    # One comparison also catches NaN, for which it is false.
    good = np.abs(values) <= FLOAT32_MAX
    if column.nulls[-1] is not None:
        good |= column.nulls[-1]
    if not good.all():
        index = int(good.argmin())
        value = float(values[index])
        advice = "; use None for a missing value" if np.isnan(value) else ""
        raise column.error(f"a finite float32 number is required, got {value}{advice}", index)
    return values


class Moments:
    """Running mean and variance of (n, size) values, in float64.

    Chunks are merged with Chan, Golub and LeVeque's pairwise update (Updating formulae and a pairwise algorithm for
    computing sample variances, 1979), so that the result does not lose digits on long data.
    """

    def __init__(self, size: int) -> None:
        self.count, self.mean, self.squares = np.zeros((3, size))

    def update(self, values: FloatArray, missing: BoolArray | None) -> None:
        """Adds values, except where `missing`."""
        seen = np.ones_like(values) if missing is None else (~missing).astype(np.float64)
        count = seen.sum(axis=0)
        mean = (values * seen).sum(axis=0) / np.maximum(count, 1)
        squares = ((values - mean) ** 2 * seen).sum(axis=0)
        total = np.maximum(self.count + count, 1)
        delta = mean - self.mean
        self.squares += squares + delta**2 * self.count * count / total
        self.mean += delta * count / total
        self.count += count

    def statistics(self) -> FloatArray:
        """(2, size) mean and population standard deviation; 1 where it is 0, so that dividing by it changes nothing."""
        std = np.sqrt(self.squares / np.maximum(self.count, 1))
        return np.stack([self.mean, np.where(std > 0, std, 1.0)])


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
