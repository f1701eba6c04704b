"""What an extractor learns: vocabularies, types and statistics, and how they are stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import SchemaMismatchError, in_one_line, shown
from rerankzoo.features.encoding import (
    FIRST_ID,
    FloatArray,
    IdEncoder,
    IdType,
    IntegerVocabulary,
    Moments,
    NumberEncoder,
    StringVocabulary,
    Vocabulary,
    id_type,
    vocabulary_digest,
    vocabulary_from_arrays,
)
from rerankzoo.features.schema import FeatureSchema, FieldSpec, Group
from rerankzoo.features.tables import Column, Table

#: The name, the depth of the lists and the encoder of each field of a group, the categorical ones first.
Fields = list[tuple[str, int, IdEncoder | NumberEncoder]]

_SLICE_ROWS = 16_384


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedState:
    """What fitting learned, by field name."""

    declared: FeatureSchema  # without what fitting sets
    #: Of the categorical fields that share no other's vocabulary; `None` if only missing values were seen.
    types: dict[str, IdType | None]
    vocabularies: dict[str, Vocabulary]  # of those of them that do not hash
    statistics: dict[str, FloatArray]  # of the fields with "standardize", (2, size): mean and standard deviation

    @cached_property
    def schema(self) -> FeatureSchema:
        """The schema with `num_embeddings` and the fingerprint of everything that was learned."""
        sizes = {spec.name: spec.hash_size for spec in _vocabulary_owners(self.declared)}
        sizes |= {name: len(vocabulary.values) for name, vocabulary in self.vocabularies.items()}
        fields = tuple(
            replace(spec, num_embeddings=FIRST_ID + (sizes[spec.shares or spec.name] or 0))
            if spec.kind == "categorical"
            else spec
            for spec in self.declared.fields
        )
        schema = replace(self.declared, fields=fields)
        content = json.dumps({"schema": schema.to_dict(), "state": self.to_dict()}, sort_keys=True)
        return replace(schema, fingerprint=hashlib.sha256(content.encode()).hexdigest())

    @cached_property
    def fields(self) -> dict[Group, Fields]:
        """What encodes each group of columns."""
        return {
            group: [
                (spec.name, spec.depth, self._encoder(spec))
                for spec in (*self.schema.select(group, "categorical"), *self.schema.numeric_fields(group))
            ]
            for group in get_args(Group)
        }

    def _encoder(self, spec: FieldSpec) -> IdEncoder | NumberEncoder:
        if spec.kind != "categorical":
            return NumberEncoder(spec, self.statistics.get(spec.name))
        owner = self.declared.owner(spec)
        return IdEncoder(owner.hash_size, self.vocabularies.get(owner.name), self.types[owner.name])

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able part of what was learned: all but the vocabularies, of which it has the digests."""
        statistics = {
            name: {"mean": mean.tolist(), "std": std.tolist()} for name, (mean, std) in self.statistics.items()
        }
        digests = {name: vocabulary_digest(vocabulary) for name, vocabulary in self.vocabularies.items()}
        return {"types": self.types, "statistics": statistics, "vocabulary_digests": digests}

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the vocabularies as named arrays."""
        return {
            f"{part}/{name}": array
            for name, vocabulary in self.vocabularies.items()
            for part, array in vocabulary.to_arrays().items()
        }

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
            )
        except SchemaMismatchError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            message = f"the saved state is not that of the schema: {type(error).__name__}: {in_one_line(error)}"
            raise SchemaMismatchError(message) from error


def _vocabulary_owners(schema: FeatureSchema) -> list[FieldSpec]:
    return [spec for spec in schema.fields if spec.kind == "categorical" and spec.shares is None]


def _scaled_fields(schema: FeatureSchema) -> list[FieldSpec]:
    return [spec for spec in schema.fields if "standardize" in spec.transforms]


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
    """Reads all rows once, in slices, and returns what was learned; categorical fields must have the known types."""
    owners, scaled = _vocabulary_owners(declared), _scaled_fields(declared)
    types = {spec.name: (known_types or {}).get(spec.name) for spec in owners}
    counts = {spec.name: Counter[Any]() for spec in owners if spec.hash_size is None}
    moments = {spec.name: Moments(spec.size) for spec in scaled}
    for start in range(0, table.rows, _SLICE_ROWS):
        rows = table.slice(start, min(start + _SLICE_ROWS, table.rows))
        for spec in owners:
            column = rows.column(spec.name, spec.depth)
            types[spec.name] = id_type(column, types[spec.name]) or types[spec.name]
            if spec.name in counts:
                _count(column, counts[spec.name])
        for spec in scaled:
            column = rows.column(spec.name, spec.depth)
            moments[spec.name].update(*NumberEncoder(spec, None).transform(column))
    vocabularies: dict[str, Vocabulary] = {}
    for name, numbers in counts.items():
        known = sorted(value for value, number in numbers.items() if number >= declared.field(name).min_count)
        vocabularies[name] = (StringVocabulary if types[name] == "string" else IntegerVocabulary)(known)
    statistics = {name: moment.statistics() for name, moment in moments.items()}
    return FittedState(declared=declared, types=types, vocabularies=vocabularies, statistics=statistics)


def _count(column: Column, counts: Counter[Any]) -> None:
    """Counts the leaves of a column that are not missing."""
    present = column.values if column.nulls[-1] is None else column.values[~column.nulls[-1]]
    codes, numbers = np.unique(present, return_counts=True)
    values = [column.strings[code] for code in codes] if column.kind == "string" else codes.astype(np.int64).tolist()
    for value, number in zip(values, numbers.tolist(), strict=True):
        counts[value] += number
