"""Columns to model inputs, ids and transformed numbers, and what is learned for that: vocabularies and statistics."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from rerankzoo.errors import SchemaMismatchError, in_one_line, shown
from rerankzoo.features.schema import FLOAT32_MAX, TOLD_ONCE, FeatureSchema, FieldSpec, Group
from rerankzoo.features.tables import BoolArray, Column, IntArray, Ragged, Table

FloatArray = npt.NDArray[np.float64]
IdType = Literal["int", "string"]

#: Of categorical values: padding or missing, unknown; then the vocabulary (or the hash buckets).
MISSING_ID = 0
UNKNOWN_ID = 1
FIRST_ID = 2

# A direct lookup table is about ten times faster than a binary search; it is used while it stays small.
_MAX_TABLE_SLOTS_PER_VALUE = 16
_MIN_TABLE_SLOTS = 1 << 20
_SLICE_ROWS = 16_384  # that are fitted at once
_MOST_RANKED = 20_000  # values of a column that its quantiles are taken from
LEVELS = np.linspace(0, 1, 257)  # of the quantiles that are kept


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
            ids = self._table[np.minimum(np.maximum(values, first), last) - first]
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
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    mixed -= mixed // np.uint64(size) * np.uint64(size)  # the remainder: of `//` numpy has a vectorised form
    mixed += np.uint64(FIRST_ID)
    return mixed.view(np.int64)


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

    hash_size: int
    vocabulary: Vocabulary | None  # None for a hashed field
    type: IdType | None  # None if no value was seen while fitting

    def __call__(self, column: Column) -> IntArray:
        """Returns the id of every leaf."""
        kind = id_type(column, self.type)
        if kind is None:
            return np.zeros(len(column.values), dtype=np.int64)
        values: Any = column.strings if kind == "string" else column.values.astype(np.int64, copy=False)
        if self.vocabulary is not None:  # an empty one, of whatever type, knows neither integers nor strings
            ids = self.vocabulary.encode(values)
        else:
            ids = (hash_strings if kind == "string" else hash_integers)(values, self.hash_size)
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
    quantiles: FloatArray | None = None  # (257, size) of "quantile"; None while fitting

    def __call__(self, column: Column) -> FloatArray:
        """Returns (n, size) transformed values, 0 where missing."""
        values, missing = self.transform(column)
        if missing is not None:
            values = np.where(missing, 0.0, values)
        if self.statistics is not None:  # no other transform makes a number larger
            self._refuse(column, values, np.abs(values) > FLOAT32_MAX, "{} after standardising is beyond float32")
        return values

    def transform(self, column: Column) -> tuple[FloatArray, BoolArray | None]:
        """Applies the transforms, up to one that is to be fitted yet.

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
            if name == "signed_log1p":
                values = np.sign(values) * np.log1p(np.abs(values))
            elif name == "log1p":
                values = values if missing is None else np.where(missing, 0, values)
                self._refuse(column, values, values <= -1, "log1p needs a value above -1, got {}")
                values = np.log1p(values)
            elif name == "quantile":
                if self.quantiles is None:
                    break
                values = normal_scores(values, self.quantiles)
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
            if self.spec.columns:
                message = f"{self.spec.columns[component]!r}: {message}"
            raise column.error(message.format(float(values[index, component])), index, level)


class TimeEncoder(NumberEncoder):
    """How long ago something was, in the mean of the rows that the extractor was fitted on."""

    def __call__(self, column: Column) -> FloatArray:
        """See `NumberEncoder.__call__`; (n, 1)."""
        return self.transform(column)[0] / time_unit(cast(FloatArray, self.statistics))

    def transform(self, column: Column) -> tuple[FloatArray, None]:
        """See `NumberEncoder.transform`."""
        what = "a time before the request is required, not negative"
        if column.nulls[-1] is not None:
            column.refuse(column.nulls[-1], f"{what}, got None")
        values = finite(column)[:, None]
        self._refuse(column, values, values < 0, f"{what}, got {{}}")
        return values, None


@dataclass(frozen=True)
class PageEncoder:
    """How many pages ago something was, as it is."""

    def __call__(self, column: Column) -> IntArray:
        """Returns (n,) numbers of pages."""
        what = "a whole number of pages before the request is required, not negative"
        if column.nulls[-1] is not None:
            column.refuse(column.nulls[-1], f"{what}, got None")
        if column.kind not in ("int", "bool", "null"):
            raise column.error(f"{what}, got {shown(column.value(0))}", 0)
        pages = column.values.astype(np.int64, copy=False)
        column.refuse(pages < 0, f"{what}, got {{}}", None, pages)
        return pages


def time_unit(statistics: FloatArray) -> float:
    """What a time is divided by: the mean, where it is not 0."""
    return float(statistics[0, 0]) or 1.0


def number_encoder(
    spec: FieldSpec, statistics: FloatArray | None, quantiles: FloatArray | None = None
) -> NumberEncoder:
    """The encoder of a field that is not categorical."""
    return (TimeEncoder if spec.kind == "time" else NumberEncoder)(spec, statistics, quantiles)


Encoder = IdEncoder | NumberEncoder | PageEncoder


def depth_of(spec: FieldSpec) -> int:
    """How many lists deep a field's column is, or each of its columns."""
    return (spec.group != "request") + (spec.kind == "dense" and not spec.columns)


def read_field(table: Table, spec: FieldSpec) -> Column:
    """The column of a field; of one with several, these side by side, as a column of vectors."""
    if not spec.columns:
        return table.column(spec.name, depth_of(spec))
    parts = [table.column(name, depth_of(spec)) for name in spec.columns]
    first, size = parts[0], len(parts)
    for part in parts:
        finite(part)  # an error names the column, and not the field
        part.refuse_nulls(None)
        if depth_of(spec):
            Ragged(first.offsets[0]).check_same(part, repr(first.name))
    missing = [part.nulls[-1] for part in parts]
    count = len(first.values)
    none = np.zeros(count, dtype=np.bool_)
    leaves = np.stack([none if mask is None else mask for mask in missing], 1).ravel()
    return Column(
        name=spec.name,
        kind="float",
        values=np.stack([part.values.astype(np.float64) for part in parts], 1).ravel(),
        offsets=(*first.offsets, np.arange(count + 1, dtype=np.int64) * size),
        nulls=(*first.nulls[:-1], None, leaves if any(mask is not None for mask in missing) else None),
        first_row=first.first_row,
    )


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


class Quantiles:
    """Quantiles of (n, size) values: of all, or of a sample that is drawn by the hash of a value's number."""

    def __init__(self, size: int) -> None:
        self.seen, self.limit = 0, 1 << 62
        self.keys, self.values = np.empty(0, np.int64), np.empty((0, size))

    def update(self, values: FloatArray, missing: BoolArray | None) -> None:
        """Adds values, except where `missing`."""
        keys = hash_integers(np.arange(self.seen, self.seen + len(values)), 1 << 62)
        self.seen += len(values)
        kept = keys < self.limit
        known = values[kept] if missing is None else np.where(missing[kept], np.nan, values[kept])
        self.keys, self.values = np.concatenate([self.keys, keys[kept]]), np.concatenate([self.values, known])
        while len(self.keys) > _MOST_RANKED:
            self.limit //= 2
            kept = self.keys < self.limit
            self.keys, self.values = self.keys[kept], self.values[kept]

    def quantiles(self) -> FloatArray:
        """(257, size); 0 for a column without values."""
        columns = [column[~np.isnan(column)] for column in self.values.T]
        return np.stack([np.quantile(one if len(one) else np.zeros(1), LEVELS) for one in columns], axis=1)


def normal_scores(values: FloatArray, quantiles: FloatArray) -> FloatArray:
    """Values (n, size) by their place among quantiles (257, size), as standard normal scores, at most 2.9 in size.

    Between two quantiles the place is interpolated; equal values get the middle of the places that they take.
    """
    places = np.empty_like(values, dtype=np.float64)
    for column, known in enumerate(quantiles.T):
        first = -np.interp(-values[:, column], -known[::-1], -LEVELS[::-1])
        places[:, column] = (first + np.interp(values[:, column], known, LEVELS)) / 2
    edge = LEVELS[1] / 2
    scores: FloatArray = torch.special.ndtri(torch.from_numpy(places.clip(edge, 1 - edge))).numpy()
    return scores


def pack(parts: list[npt.NDArray[Any]], layout: Ragged, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Joins (total,) and (total, size) parts along a last dimension and pads: (B, width, sum of sizes)."""
    sizes = [1 if part.ndim == 1 else part.shape[1] for part in parts]
    # Straight into the padded array: a packed copy in between costs more in fresh memory pages than it saves.
    packed = np.zeros((layout.rows, layout.width, sum(sizes)), dtype=dtype)
    first = 0
    for part, size in zip(parts, sizes, strict=True):
        if size == 1:
            layout.place(part.reshape(-1), packed[..., first])
        else:
            layout.place(part, packed[..., first : first + size])
        first += size
    return packed


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedState:
    """What fitting learned, by field name."""

    declared: FeatureSchema  # without what fitting sets
    #: Of the categorical fields that share no other's vocabulary; `None` if only missing values were seen.
    types: dict[str, IdType | None]
    vocabularies: dict[str, Vocabulary]  # of those of them that do not hash
    #: Of times and of the fields with "standardize", (2, size): mean and standard deviation.
    statistics: dict[str, FloatArray]
    quantiles: dict[str, FloatArray] = field(default_factory=dict)  # of the fields with "quantile", (257, size)

    @cached_property
    def schema(self) -> FeatureSchema:
        """The schema with all that fitting sets in it, and the fingerprint of everything that was learned."""
        sizes = {spec.name: spec.hash_size for spec in _vocabulary_owners(self.declared)}
        sizes |= {name: len(vocabulary.values) for name, vocabulary in self.vocabularies.items()}

        def fitted(spec: FieldSpec) -> FieldSpec:
            if spec.kind == "categorical":
                return replace(spec, num_embeddings=FIRST_ID + (sizes[spec.shares or spec.name] or 0))
            return replace(spec, time_unit=time_unit(self.statistics[spec.name])) if spec.kind == "time" else spec

        schema = replace(self.declared, fields=tuple(map(fitted, self.declared.fields)))
        content = json.dumps({"schema": schema.to_dict(), "state": self.to_dict()}, sort_keys=True)
        return replace(schema, fingerprint=hashlib.sha256(content.encode()).hexdigest())

    @cached_property
    def fields(self) -> dict[Group, list[tuple[FieldSpec, Encoder]]]:
        """The fields of a group and their encoders, the categorical ones first, times and pages last."""
        schema = self.schema
        return {
            group: [
                (spec, self._encoder(spec))
                for fields in (
                    schema.select(group, "categorical"),
                    schema.numeric_fields(group),
                    *(schema.select(group, kind) for kind in TOLD_ONCE),
                )
                for spec in fields
            ]
            for group in get_args(Group)
        }

    def _encoder(self, spec: FieldSpec) -> Encoder:
        if spec.kind == "page":
            return PageEncoder()
        if spec.kind != "categorical":
            return number_encoder(spec, self.statistics.get(spec.name), self.quantiles.get(spec.name))
        owner = self.declared.owner(spec)
        return IdEncoder(owner.hash_size or 0, self.vocabularies.get(owner.name), self.types[owner.name])

    def encode(self, group: Group, table: Table, item_ids: Column, layout: Ragged) -> dict[str, npt.NDArray[Any]]:
        """The arrays of a group, whose lists have this layout: ids, numbers, times and pages if any."""
        parts: dict[type, list[npt.NDArray[Any]]] = {IdEncoder: [], NumberEncoder: [], TimeEncoder: [], PageEncoder: []}
        fields = self.fields[group]
        for spec, encode in fields:
            column = item_ids if spec.name == item_ids.name else read_field(table, spec)
            if group == "candidate" and column.nulls[0] is not None:
                column.refuse_nulls(None)
            if group != "request" and column is not item_ids:
                layout.check_same(column, repr(item_ids.name if group == "candidate" else fields[0][0].name))
            parts[type(encode)].append(encode(column))
        arrays = {
            f"{group}_categorical": pack(parts[IdEncoder], layout, np.int64),
            f"{group}_numeric": pack(parts[NumberEncoder], layout, np.float32),
        }
        for kind, encoder, dtype in (("time", TimeEncoder, np.float32), ("page", PageEncoder, np.int64)):
            if parts[encoder]:
                arrays[f"{group}_{kind}"] = pack(parts[encoder], layout, dtype)[..., 0]
        return arrays

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able part of what was learned: all but the vocabularies, of which it has the digests."""
        statistics = {
            name: {"mean": mean.tolist(), "std": std.tolist()} for name, (mean, std) in self.statistics.items()
        }
        digests = {name: vocabulary_digest(vocabulary) for name, vocabulary in self.vocabularies.items()}
        found = {"types": self.types, "statistics": statistics, "vocabulary_digests": digests}
        ranked = {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in self.quantiles.items()}
        return found | ({"quantile_digests": ranked} if ranked else {})

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the vocabularies and quantiles as named arrays."""
        arrays = {
            f"{part}/{name}": array
            for name, vocabulary in self.vocabularies.items()
            for part, array in vocabulary.to_arrays().items()
        }
        return arrays | {f"quantiles/{name}": values for name, values in self.quantiles.items()}

    @classmethod
    def restore(
        cls, declared: FeatureSchema, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> FittedState:
        """Undoes `to_dict` and `to_arrays`; a `SchemaMismatchError` if anything is missing or not what was saved."""
        owners = _vocabulary_owners(declared)
        learned = [spec.name for spec in owners if spec.hash_size is None]
        try:
            scaled = {spec.name: data["statistics"][spec.name] for spec in _scaled_fields(declared)}
            digests = data["vocabulary_digests"]
            return cls(
                declared=declared,
                types={spec.name: data["types"][spec.name] for spec in owners},
                vocabularies={name: _saved_vocabulary(name, arrays, digests[name]) for name in learned},
                statistics={
                    name: np.array([entry["mean"], entry["std"]], np.float64) for name, entry in scaled.items()
                },
                quantiles={
                    spec.name: _saved_quantiles(spec, arrays, data["quantile_digests"][spec.name])
                    for spec in _ranked_fields(declared)
                },
            )
        except SchemaMismatchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            message = f"the saved state is not that of the schema: {type(error).__name__}: {in_one_line(error)}"
            raise SchemaMismatchError(message) from error


def _vocabulary_owners(schema: FeatureSchema) -> list[FieldSpec]:
    return [spec for spec in schema.fields if spec.kind == "categorical" and spec.shares is None]


def _scaled_fields(schema: FeatureSchema) -> list[FieldSpec]:
    return [spec for spec in schema.fields if "standardize" in spec.transforms or spec.kind == "time"]


def _ranked_fields(schema: FeatureSchema) -> list[FieldSpec]:
    return [spec for spec in schema.fields if "quantile" in spec.transforms]


def _saved_quantiles(spec: FieldSpec, arrays: Mapping[str, npt.NDArray[Any]], digest: Any) -> FloatArray:
    values = arrays[f"quantiles/{spec.name}"]
    shape, expected = (values.dtype, *values.shape), (np.float64, len(LEVELS), spec.size)
    if shape != expected or hashlib.sha256(values.tobytes()).hexdigest() != digest:
        raise SchemaMismatchError(f"the quantiles of field {spec.name!r} are not those this extractor was saved with")
    return values


def _saved_vocabulary(name: str, arrays: Mapping[str, npt.NDArray[Any]], digest: Any) -> Vocabulary:
    parts = {part: arrays[f"{part}/{name}"] for part in ("values", "bytes", "offsets") if f"{part}/{name}" in arrays}
    if set(parts) not in ({"values"}, {"bytes", "offsets"}):
        raise SchemaMismatchError(f"the vocabulary of field {name!r} is missing")
    try:
        vocabulary = vocabulary_from_arrays(parts)
    except ValueError as error:
        raise SchemaMismatchError(f"the vocabulary of field {name!r} is damaged: {error}") from error
    if (saved := vocabulary_digest(vocabulary)) != digest:
        raise SchemaMismatchError(
            f"the vocabulary of field {name!r} is not the one this extractor was saved with "
            f"(digest {saved[:12]}, expected {shown(digest)[1:13]})"
        )
    return vocabulary


def fit_state(
    declared: FeatureSchema, table: Table, known_types: Mapping[str, IdType | None] | None = None
) -> FittedState:
    """Reads all rows, in slices, and returns what was learned; categorical fields must have the known types."""
    owners, scaled = _vocabulary_owners(declared), _scaled_fields(declared)
    quantiles = _fit_quantiles(declared, table)
    types = {spec.name: (known_types or {}).get(spec.name) for spec in owners}
    counts = {spec.name: Counter[Any]() for spec in owners if spec.hash_size is None}
    moments = {spec.name: Moments(spec.size) for spec in scaled}
    for start in range(0, table.rows, _SLICE_ROWS):
        rows = table.slice(start, min(start + _SLICE_ROWS, table.rows))
        for spec in owners:
            column = rows.column(spec.name, depth_of(spec))
            types[spec.name] = id_type(column, types[spec.name]) or types[spec.name]
            if spec.name in counts:
                _count(column, counts[spec.name])
        for spec in scaled:
            column = read_field(rows, spec)
            moments[spec.name].update(*number_encoder(spec, None, quantiles.get(spec.name)).transform(column))
    vocabularies: dict[str, Vocabulary] = {}
    for name, numbers in counts.items():
        known = sorted(value for value, number in numbers.items() if number >= declared.field(name).min_count)
        vocabularies[name] = (StringVocabulary if types[name] == "string" else IntegerVocabulary)(known)
    statistics = {name: moment.statistics() for name, moment in moments.items()}
    return FittedState(
        declared=declared, types=types, vocabularies=vocabularies, statistics=statistics, quantiles=quantiles
    )


def _fit_quantiles(declared: FeatureSchema, table: Table) -> dict[str, FloatArray]:
    """Of the fields with "quantile", by a reading of their own: what comes after it is fitted to what it makes."""
    ranked = {spec.name: (spec, Quantiles(spec.size)) for spec in _ranked_fields(declared)}
    for start in range(0, table.rows if ranked else 0, _SLICE_ROWS):
        rows = table.slice(start, min(start + _SLICE_ROWS, table.rows))
        for spec, found in ranked.values():
            found.update(*NumberEncoder(spec, None).transform(read_field(rows, spec)))
    return {name: found.quantiles() for name, (_, found) in ranked.items()}


def _count(column: Column, counts: Counter[Any]) -> None:
    """Counts the leaves of a column that are not missing."""
    present = column.values if column.nulls[-1] is None else column.values[~column.nulls[-1]]
    codes, numbers = np.unique(present, return_counts=True)
    values = [column.strings[code] for code in codes] if column.kind == "string" else codes.astype(np.int64).tolist()
    for value, number in zip(values, numbers.tolist(), strict=True):
        counts[value] += number
