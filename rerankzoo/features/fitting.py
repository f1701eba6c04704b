"""What an extractor learns: vocabularies, types and statistics, and how they are stored."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import SchemaMismatchError, shown
from rerankzoo.features.columns import Table
from rerankzoo.features.encoding import IdType, Moments, Statistics, id_type, transform
from rerankzoo.features.schema import FeatureSchema, FieldSpec
from rerankzoo.features.vocabulary import (
    FIRST_ID,
    IntegerCounter,
    StringCounter,
    Vocabulary,
    extended_vocabulary,
    vocabulary_digest,
    vocabulary_from_arrays,
)

_SLICE_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class FittedState:
    """What fitting learned, by field name.

    Args:
        types: The type of every categorical field that owns its vocabulary; `None` if only missing values were seen.
        vocabularies: Of the fields that have one of their own and do not hash.
        statistics: Of the fields with "standardize".
    """

    types: dict[str, IdType | None]
    vocabularies: dict[str, Vocabulary]
    statistics: dict[str, Statistics]

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able part: all but the vocabularies, of which it has the digests."""
        return {
            "types": self.types,
            "statistics": {
                name: {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()}
                for name, statistics in self.statistics.items()
            },
            "vocabulary_digests": {
                name: vocabulary_digest(vocabulary) for name, vocabulary in self.vocabularies.items()
            },
        }

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the vocabularies as named arrays."""
        return {
            f"{part}/{name}": array
            for name, vocabulary in self.vocabularies.items()
            for part, array in vocabulary.to_arrays().items()
        }

    @classmethod
    def restore(
        cls, schema: FeatureSchema, data: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
    ) -> FittedState:
        """Undoes `to_dict` and `to_arrays`.

        Raises:
            SchemaMismatchError: If a vocabulary is missing or not the one that was saved, or anything else is not what
                fitting writes; names the field.
        """
        types, digests, statistics = (_entries(data, key) for key in ("types", "vocabulary_digests", "statistics"))
        owners = [field.name for field in schema.fields if field.kind == "categorical" and field.shares is None]
        scaled = {field.name: field.size for field in schema.fields if "standardize" in field.transforms}
        _check_names("types", types, owners)
        _check_names("statistics", statistics, scaled)
        for name, known in types.items():
            if known not in (None, *get_args(IdType)):
                raise SchemaMismatchError(f"the saved type of field {name!r} is {shown(known)}")
        return cls(
            types=types,
            vocabularies={
                name: _saved_vocabulary(name, arrays, digests.get(name), types[name])
                for name in _vocabulary_owners(schema)
            },
            statistics={name: _saved_statistics(name, statistics[name], size) for name, size in scaled.items()},
        )


def _entries(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = data.get(key)
    if not isinstance(found, dict):
        raise SchemaMismatchError(f"{key!r} of the saved state must be a mapping, got {shown(found)}")
    return found


def _check_names(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    if wrong := set(found) ^ set(expected):
        raise SchemaMismatchError(f"{what!r} of the saved state and the schema differ in field {shown(min(wrong))}")


def _saved_vocabulary(
    name: str, arrays: Mapping[str, npt.NDArray[Any]], digest: Any, known: IdType | None
) -> Vocabulary:
    parts = {part: arrays[f"{part}/{name}"] for part in ("values", "bytes", "offsets") if f"{part}/{name}" in arrays}
    if set(parts) not in ({"values"}, {"bytes", "offsets"}):
        raise SchemaMismatchError(f"the vocabulary of field {name!r} is missing")
    try:
        vocabulary = vocabulary_from_arrays(parts)
    except ValueError as error:
        raise SchemaMismatchError(f"the vocabulary of field {name!r} is damaged: {error}") from error
    found = vocabulary_digest(vocabulary)
    if found != digest:
        raise SchemaMismatchError(
            f"the vocabulary of field {name!r} is not the one this extractor was saved with "
            f"(digest {found[:12]}, expected {shown(digest)[1:13]})"
        )
    if len(vocabulary) and ("bytes" in parts) != (known == "string"):
        raise SchemaMismatchError(f"the vocabulary of field {name!r} does not hold the saved type {known}")
    return vocabulary


def _saved_statistics(name: str, entry: Any, size: int) -> Statistics:
    parts = [entry.get(key) if isinstance(entry, dict) else None for key in ("mean", "std")]
    for part in parts:
        if not isinstance(part, list) or len(part) != size or not all(map(_is_finite, part)):
            raise SchemaMismatchError(
                f"the statistics of field {name!r} must be {size} finite numbers each, got {shown(entry)}"
            )
    mean, std = (np.array(part, dtype=np.float64) for part in parts)
    if not (std > 0).all():
        raise SchemaMismatchError(f"the deviation of field {name!r} must be above 0, got {std.min()}")
    return Statistics(mean=mean, std=std)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def fitted_schema(schema: FeatureSchema, state: FittedState) -> FeatureSchema:
    """Returns the schema with `num_embeddings` and the fingerprint of everything that was learned."""
    fields = tuple(replace(field, num_embeddings=_num_embeddings(schema, field, state)) for field in schema.fields)
    schema = replace(schema, fields=fields, fingerprint=None)
    content = json.dumps({"schema": schema.to_dict(), "state": state.to_dict()}, sort_keys=True)
    return replace(schema, fingerprint=hashlib.sha256(content.encode()).hexdigest())


def unfitted_schema(schema: FeatureSchema) -> FeatureSchema:
    """Returns the schema without what fitting sets."""
    fields = tuple(replace(field, num_embeddings=None) for field in schema.fields)
    return replace(schema, fields=fields, fingerprint=None)


def _vocabulary_owners(schema: FeatureSchema) -> list[str]:
    return [
        field.name
        for field in schema.fields
        if field.kind == "categorical" and field.shares is None and field.hash_size is None
    ]


def _num_embeddings(schema: FeatureSchema, field: FieldSpec, state: FittedState) -> int | None:
    if field.kind != "categorical":
        return None
    owner = schema.owner(field)
    return FIRST_ID + (len(state.vocabularies[owner.name]) if owner.hash_size is None else owner.hash_size)


def fit_state(schema: FeatureSchema, table: Table, types: Mapping[str, IdType | None] | None = None) -> FittedState:
    """Reads all rows once, in slices, and returns what was learned.

    Args:
        schema: What the columns are.
        table: The rows.
        types: The types that categorical fields must have, where they are known already.

    Raises:
        RerankingDataError: If a value cannot be used.
    """
    owners = [spec for spec in schema.fields if spec.kind == "categorical" and spec.shares is None]
    ids = [_IdFitter(spec, (types or {}).get(spec.name)) for spec in owners]
    numbers = [_NumberFitter(spec) for spec in schema.fields if "standardize" in spec.transforms]
    for start in range(0, table.rows, _SLICE_ROWS):
        rows = table.slice(start, min(start + _SLICE_ROWS, table.rows))
        for id_fitter in ids:
            id_fitter.update(rows)
        for number_fitter in numbers:
            number_fitter.update(rows)
    return FittedState(
        types={fitter.spec.name: fitter.type for fitter in ids},
        vocabularies={fitter.spec.name: fitter.vocabulary() for fitter in ids if fitter.spec.hash_size is None},
        statistics={fitter.spec.name: fitter.statistics() for fitter in numbers},
    )


def extend_state(schema: FeatureSchema, state: FittedState, table: Table, update_statistics: bool) -> FittedState:
    """Returns a state that knows the table's values as well; the ids of known ones stay.

    Args:
        schema: What the columns are.
        state: What was learned before.
        table: Further rows.
        update_statistics: Whether the statistics become those of the table.

    Raises:
        RerankingDataError: If a value cannot be used, or has another type than before.
    """
    new = fit_state(schema, table, state.types)
    return FittedState(
        types=new.types,
        vocabularies={
            name: extended_vocabulary(vocabulary, new.vocabularies[name])
            for name, vocabulary in state.vocabularies.items()
        },
        statistics=new.statistics if update_statistics else state.statistics,
    )


def field_depth(spec: FieldSpec) -> int:
    """Returns how many lists deep a field's column is."""
    return (spec.group != "request") + (spec.kind == "dense")


class _IdFitter:
    """Counts the values of a categorical field (of a hashed one, only their type is kept)."""

    def __init__(self, spec: FieldSpec, expected: IdType | None) -> None:
        self.spec = spec
        self.type = expected
        self._integers = IntegerCounter()
        self._strings = StringCounter()

    def update(self, rows: Table) -> None:
        column = rows.column(self.spec.name, field_depth(self.spec))
        found = id_type(column, self.type)
        self.type = self.type or found
        if found is None or self.spec.hash_size is not None:
            return
        values = column.values if column.missing is None else column.values[~column.missing]
        if found == "string":
            self._strings.update(column.strings, np.bincount(values, minlength=len(column.strings)))
        else:
            self._integers.update(values.astype(np.int64, copy=False))

    def vocabulary(self) -> Vocabulary:
        counter = self._strings if self.type == "string" else self._integers
        return counter.vocabulary(self.spec.min_count)


class _NumberFitter:
    """Collects mean and standard deviation of a field, after the transforms that come before "standardize"."""

    def __init__(self, spec: FieldSpec) -> None:
        self.spec = spec
        self._moments = Moments(spec.size)

    def update(self, rows: Table) -> None:
        column = rows.column(self.spec.name, field_depth(self.spec))
        self._moments.update(*transform(column, self.spec, None))

    def statistics(self) -> Statistics:
        return Statistics(mean=self._moments.mean, std=self._moments.std())
