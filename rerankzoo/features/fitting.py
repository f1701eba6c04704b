"""What an extractor learns: vocabularies, types and statistics, and how they are stored."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import SchemaMismatchError, in_one_line, shown
from rerankzoo.features.encoding import (
    FIRST_ID,
    IdEncoder,
    IdType,
    IntegerVocabulary,
    Moments,
    NumberEncoder,
    Statistics,
    StringVocabulary,
    Vocabulary,
    extended_vocabulary,
    id_type,
    vocabulary_digest,
    vocabulary_from_arrays,
)
from rerankzoo.features.schema import FeatureSchema, FieldSpec
from rerankzoo.features.tables import Table

_SLICE_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class FittedState:
    """What fitting learned, by field name.

    Args:
        types: The type of every categorical field that shares no other's vocabulary; `None` if only missing values were
            seen.
        vocabularies: Of those of them that do not hash.
        statistics: Of the fields with "standardize".
    """

    types: dict[str, IdType | None]
    vocabularies: dict[str, Vocabulary]
    statistics: dict[str, Statistics]

    def encoder(self, schema: FeatureSchema, spec: FieldSpec) -> IdEncoder | NumberEncoder:
        """What turns the columns of a field into inputs."""
        if spec.kind != "categorical":
            return NumberEncoder(spec, self.statistics.get(spec.name))
        owner = schema.owner(spec)
        return IdEncoder(owner.hash_size, self.vocabularies.get(owner.name), self.types[owner.name])

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able part: all but the vocabularies, of which it has the digests."""
        return {
            "types": self.types,
            "statistics": {
                name: {"mean": statistics.mean.tolist(), "std": statistics.std.tolist()}
                for name, statistics in self.statistics.items()
            },
            "vocabulary_digests": {name: vocabulary_digest(known) for name, known in self.vocabularies.items()},
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
        owners = _vocabulary_owners(schema)
        try:
            digests = data["vocabulary_digests"]
            return cls(
                types={spec.name: data["types"][spec.name] for spec in owners},
                vocabularies={
                    spec.name: _saved_vocabulary(spec.name, arrays, digests[spec.name])
                    for spec in owners
                    if spec.hash_size is None
                },
                statistics={
                    spec.name: Statistics(**{key: np.array(value, np.float64) for key, value in entry.items()})
                    for spec in _scaled_fields(schema)
                    for entry in [data["statistics"][spec.name]]
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
    ids = {spec.name: _IdFitter(spec, (types or {}).get(spec.name)) for spec in _vocabulary_owners(schema)}
    scaled = _scaled_fields(schema)
    moments = {spec.name: Moments(spec.size) for spec in scaled}
    for start in range(0, table.rows, _SLICE_ROWS):
        rows = table.slice(start, min(start + _SLICE_ROWS, table.rows))
        for fitter in ids.values():
            fitter.update(rows)
        for spec in scaled:
            column = rows.column(spec.name, spec.depth)
            moments[spec.name].update(*NumberEncoder(spec, None).transform(column))
    return FittedState(
        types={name: fitter.type for name, fitter in ids.items()},
        vocabularies={name: fitter.vocabulary() for name, fitter in ids.items() if fitter.spec.hash_size is None},
        statistics={name: moment.statistics() for name, moment in moments.items()},
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
    known = state.vocabularies.items()
    return FittedState(
        types=new.types,
        vocabularies={name: extended_vocabulary(vocabulary, new.vocabularies[name]) for name, vocabulary in known},
        statistics=new.statistics if update_statistics else state.statistics,
    )


class _IdFitter:
    """Counts the values of a categorical field (of a hashed one, only their type is kept)."""

    def __init__(self, spec: FieldSpec, expected: IdType | None) -> None:
        self.spec = spec
        self.type = expected
        self._counts: Counter[Any] = Counter()

    def update(self, rows: Table) -> None:
        column = rows.column(self.spec.name, self.spec.depth)
        kind = id_type(column, self.type)
        self.type = self.type or kind
        if kind is None or self.spec.hash_size is not None:
            return
        missing = column.nulls[-1]
        codes, counts = np.unique(column.values if missing is None else column.values[~missing], return_counts=True)
        values = [column.strings[code] for code in codes] if kind == "string" else codes.astype(np.int64).tolist()
        for value, count in zip(values, counts.tolist(), strict=True):
            self._counts[value] += count

    def vocabulary(self) -> Vocabulary:
        values = sorted(value for value, count in self._counts.items() if count >= self.spec.min_count)
        return (StringVocabulary if self.type == "string" else IntegerVocabulary)(values)
