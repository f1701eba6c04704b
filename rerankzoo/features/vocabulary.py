"""From raw categorical values to ids: 0 padding or missing, 1 unknown, then the vocabulary (or the hash buckets).

The encoders know nothing about rows or missing values: they map the distinct values of a column (or, for integers, all
of them) to ids.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]

MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_ID = 2

# A direct lookup table is about ten times faster than a binary search; it is used while it stays small.
_MAX_TABLE_SLOTS_PER_VALUE = 16
_MIN_TABLE_SLOTS = 1 << 20


class IntegerVocabulary:
    """Maps int64 values to ids.

    Args:
        values: The known values in the order of their ids, without repetition. Fitting sorts them; what
            `extended_vocabulary` adds comes after them.
    """

    def __init__(self, values: Sequence[int] | IntArray) -> None:
        self.values = values = np.asarray(values, dtype=np.int64)
        order = np.argsort(values, kind="stable")
        self._sorted, self._ids = values[order], order + FIRST_ID
        self._table: IntArray | None = None
        if len(values):
            first = self._sorted[0]
            span = int(self._sorted[-1]) - int(first) + 1
            if span <= max(_MIN_TABLE_SLOTS, _MAX_TABLE_SLOTS_PER_VALUE * len(values)):
                self._table = np.full(span, UNKNOWN_ID, dtype=np.int64)
                self._table[self._sorted - first] = self._ids

    def __len__(self) -> int:
        return len(self.values)

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

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns the arrays to store."""
        return {"values": self.values}


class StringVocabulary:
    """Maps strings to ids.

    Args:
        values: The known values in the order of their ids, without repetition. Fitting sorts them; what
            `extended_vocabulary` adds comes after them.
    """

    def __init__(self, values: Sequence[str]) -> None:
        self.values = list(values)
        self._ids = {value: index for index, value in enumerate(self.values, start=FIRST_ID)}

    def __len__(self) -> int:
        return len(self.values)

    def encode(self, values: Sequence[str]) -> IntArray:
        """Returns one id per value."""
        return np.fromiter(map(self._ids.get, values, itertools.repeat(UNKNOWN_ID)), np.int64, len(values))

    def to_arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """Returns the arrays to store: UTF-8 bytes and where each value starts."""
        encoded = [_utf8(value) for value in self.values]
        offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(value) for value in encoded], out=offsets[1:])
        return {"bytes": np.frombuffer(b"".join(encoded), dtype=np.uint8), "offsets": offsets}


Vocabulary = IntegerVocabulary | StringVocabulary


def extended_vocabulary(vocabulary: Vocabulary, other: Vocabulary) -> Vocabulary:
    """Returns a vocabulary with another's new values after its own, whose ids stay.

    Raises:
        TypeError: If one holds integers and the other strings.
    """
    if not len(vocabulary):
        return other
    if type(vocabulary) is not type(other):
        raise TypeError(f"a {type(vocabulary).__name__} cannot be extended by a {type(other).__name__}")
    known: set[Any] = set(vocabulary.values)
    return type(vocabulary)([*vocabulary.values, *(value for value in other.values if value not in known)])


def begins_with(vocabulary: Vocabulary, other: Vocabulary) -> bool:
    """Tells whether all values of the other vocabulary have the same ids in the first."""
    same_type = type(vocabulary) is type(other)
    return not len(other) or (same_type and list(vocabulary.values[: len(other)]) == list(other.values))


def vocabulary_from_arrays(arrays: dict[str, npt.NDArray[np.generic]]) -> Vocabulary:
    """Rebuilds a vocabulary from `to_arrays`.

    Raises:
        ValueError: If the arrays are not such as `to_arrays` makes.
    """
    for name, array in arrays.items():
        expected = np.uint8 if name == "bytes" else np.int64
        if array.dtype != expected or array.ndim != 1:
            raise ValueError(f"{name} must be {np.dtype(expected)} of one axis, got {array.dtype} of {array.ndim}")
    if "values" in arrays:
        return IntegerVocabulary(arrays["values"].astype(np.int64, copy=False))
    blob, offsets = arrays["bytes"].tobytes(), arrays["offsets"].tolist()
    if not offsets or offsets[0] != 0 or offsets[-1] != len(blob) or np.any(np.diff(arrays["offsets"]) < 0):
        raise ValueError(f"offsets must grow from 0 to {len(blob)}, the number of bytes")
    return StringVocabulary(
        [blob[start:stop].decode("utf-8", "surrogatepass") for start, stop in itertools.pairwise(offsets)]
    )


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """Returns a SHA-256 over a vocabulary's type and values."""
    digest = hashlib.sha256(type(vocabulary).__name__.encode())
    for name, array in sorted(vocabulary.to_arrays().items()):
        digest.update(f"/{name}:{array.dtype.str}:{len(array)}/".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
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
