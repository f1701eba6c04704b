"""`RerankingFeatureExtractor`: to a reranker what a tokenizer is to a language model.

Fitted on training rows, it turns raw rows into the batch of `rerankzoo.batch` and slates back into item ids,
and is saved, loaded and pushed to the Hub with the model.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from transformers.feature_extraction_utils import FeatureExtractionMixin
from transformers.utils import cached_file

from rerankzoo.atomic_writing import write_atomically, write_text
from rerankzoo.batch import PADDING, take, trim
from rerankzoo.errors import (
    RerankingDataError,
    SchemaError,
    SchemaMismatchError,
    UnreadableFileError,
    in_one_line,
    shown,
)
from rerankzoo.features.encoding import FittedState, begins_with, extended_vocabulary, fit_state, id_type, read_field
from rerankzoo.features.labels import read_labels
from rerankzoo.features.schema import FeatureSchema, FieldSpec
from rerankzoo.features.tables import INT64_MAX, Column, Ragged, RowTable, Table, holds_columns, read_table
from rerankzoo.remote_code import OwnAutoMap, auto_map, write_module
from rerankzoo.text_files import read_json

CONFIG_NAME: Final = "preprocessor_config.json"
VOCABULARY_NAME: Final = "vocabularies.safetensors"
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


@dataclass(frozen=True)
class ItemIds:
    """The ids of the candidates of some rows: a column of one list per row, and the lengths of these lists."""

    column: Column
    layout: Ragged

    def decode(self, slates: Tensor | npt.NDArray[np.int64] | Sequence[Any]) -> list[list[Any]]:
        """Turns slates (B, M) or (B, S, M) of candidate indexes into lists of item ids per row; -100 is left out.

        Slates that are not integers, have other rows or point outside a row's candidates are a `RerankingDataError`.
        """
        indices = torch.as_tensor(slates).cpu().numpy()
        if indices.dtype.kind not in "iu":
            raise RerankingDataError(f"expected candidate indexes (int), got {indices.dtype}", field="slates")
        if indices.ndim not in (2, 3) or len(indices) != self.layout.rows:
            message = f"slates of shape {indices.shape} do not fit {self.layout.rows} rows"
            raise RerankingDataError(message, field="slates")
        real = indices != PADDING
        shape = (-1, *[1] * (indices.ndim - 1))
        outside = real & ((indices < 0) | (indices >= self.layout.lengths.reshape(shape)))
        if outside.any():
            place = tuple(np.argwhere(outside)[0])
            message = f"slate index {indices[place]} is outside 0..{self.layout.lengths[place[0]] - 1}"
            raise RerankingDataError(message, field="slates", row=int(place[0]))
        items = self.column.values[np.where(real, indices, 0) + self.layout.offsets[:-1].reshape(shape)]
        return _item_lists(items, real, self.column)

    def locate(self, items: Sequence[Any]) -> Tensor:
        """Finds candidates by item ids, looked for in every row, or by one list of item ids per row.

        Returns (B, N) bool, True where a candidate has one of the ids. Ids that no candidate has are left out; those of
        another type than the rows' own are a `RerankingDataError`.
        """
        rows = self.layout.rows
        nested = any(isinstance(entry, list | tuple) for entry in items)
        if nested and (len(items) != rows or not all(isinstance(entry, list | tuple) for entry in items)):
            message = f"expected one list of item ids, or one for each of the {rows} rows, got {shown(list(items))}"
            raise RerankingDataError(message, field=self.column.name)
        known = [_item_codes(entry, self.column) for entry in (items if nested else [items])]
        values = self.column.values
        parts = np.split(values, self.layout.offsets[1:-1]) if nested else [values]
        located = np.concatenate([np.isin(part, codes) for part, codes in zip(parts, known, strict=True)])
        return torch.from_numpy(self.layout.pad(located))

    def take(self, rows: slice) -> ItemIds:
        """The ids of a range of rows."""
        offsets = self.layout.offsets[rows.start : rows.stop + 1]
        values, first_row = self.column.values[offsets[0] : offsets[-1]], self.column.first_row + rows.start
        layout = Ragged(offsets - offsets[0])
        return ItemIds(replace(self.column, values=values, offsets=(layout.offsets,), first_row=first_row), layout)


def read_item_ids(table: Table, item_id: str) -> ItemIds:
    """Reads the item ids of a table: at least one per row, all int or str, none missing."""
    column = table.column(item_id, 1)
    column.refuse_nulls("an item id")
    layout = Ragged(column.offsets[0])
    if not layout.lengths.all():
        column.refuse(layout.lengths == 0, "an empty candidate set", 0)
    id_type(column)
    return ItemIds(column, layout)


@dataclass(frozen=True)
class Encoded:
    """Consecutive rows of a table that were read together."""

    batch: dict[str, Tensor]  # `request_index` counts from the first row of the whole table
    item_ids: ItemIds
    rows: slice  # in the table

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def take(self, rows: slice) -> Encoded:
        """A range of the rows (counted from 0 here), without what is padding in all of them."""
        if rows == slice(0, len(self)):
            return self
        first = self.rows.start
        return Encoded(
            trim(take(self.batch, rows)), self.item_ids.take(rows), slice(first + rows.start, first + rows.stop)
        )


def _item_codes(items: Any, column: Column) -> list[int]:
    """Item ids as they stand in a column's values; -1 for a string that it does not have."""
    kind: Any = str if column.kind == "string" else (int, np.integer)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            message = f"item ids are {'str' if kind is str else 'int'}, got {shown(item)}"
            raise RerankingDataError(message, field=column.name)
        if kind is not str and not -INT64_MAX - 1 <= int(item) <= INT64_MAX:
            raise RerankingDataError(f"{shown(item)} is too large", field=column.name)
    codes = {string: code for code, string in enumerate(column.strings)}
    return [codes.get(item, -1) for item in items] if kind is str else list(map(int, items))


def _item_lists(items: npt.NDArray[Any], real: npt.NDArray[np.bool_], column: Column) -> list[Any]:
    if items.ndim > 1:
        return [_item_lists(part, mask, column) for part, mask in zip(items, real, strict=True)]
    values = items[real].tolist()
    return [column.strings[value] for value in values] if column.kind == "string" else values


class RerankingFeatureExtractor(OwnAutoMap, FeatureExtractionMixin):
    """Turns raw requests into batches, and slates into item ids.

    Example:
        >>> extractor = RerankingFeatureExtractor(schema).fit(train)
        >>> batch = extractor({"user_id": 7, "item_id": [3, 1, 2], "price": [9.5, None, 2.0]})
        >>> extractor.decode(torch.tensor([[2, 0]]), {"user_id": 7, "item_id": [3, 1, 2]})
        [[2, 3]]

    Whatever needs what fitting learns raises a `SchemaError` before.

    Args:
        schema: What the columns are. What fitting once set in it (`num_embeddings`, `fingerprint`...) is forgotten.
    """

    model_input_names: ClassVar[list[str]] = [
        f"{group}_{kind}" for group in ("request", "candidate") for kind in ("categorical", "numeric")
    ]

    def __init__(self, schema: FeatureSchema) -> None:
        super().__init__()
        fields = tuple(replace(field, num_embeddings=None, time_unit=None) for field in schema.fields)
        self._declared = replace(schema, fields=fields, fingerprint=None)
        self._state: FittedState | None = None

    @property
    def schema(self) -> FeatureSchema:
        """The fitted schema, with `num_embeddings` and `fingerprint`."""
        return self._fitted_state().schema

    def _fitted_state(self) -> FittedState:
        if self._state is None:
            raise SchemaError(f"the extractor of schema {self._declared.name!r} is not fitted; call fit(data) first")
        return self._state

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._declared if self._state is None else self.schema!r})"

    def fit(self, data: Any) -> RerankingFeatureExtractor:
        """Learns vocabularies and statistics anew; call it on training rows only.

        Rows are read in slices: memory grows with the vocabularies only. Labels are not read. A field that shares
        another's vocabulary adds nothing to it, and a hashed field only has its type (int or str) recorded.

        Args:
            data: Any supported table (see `rerankzoo.features.tables`).

        Raises:
            RerankingDataError: If a value cannot be used; it names field, row and value.
        """
        self._state = fit_state(self._declared, read_table(data, self._declared.item_id))
        return self

    def extend(self, data: Any, update_statistics: bool = False) -> RerankingFeatureExtractor:
        """Returns an extractor that knows further rows, for fine-tuning; the ids of known values stay what they are.

        New values come after the known ones; those seen less often than a field's `min_count` in the data stay unknown.
        Hashed fields have no new ids.

        Args:
            data: As for `fit`.
            update_statistics: Whether numeric fields are standardised by the data's own mean and deviation, and no
                longer by those of the rows that the extractor was fitted on.

        Raises:
            RerankingDataError: If a value cannot be used, or is a string where ids are integers (or the reverse).
        """
        state = self._fitted_state()
        new = fit_state(self._declared, read_table(data, self._declared.item_id), state.types)
        extractor = RerankingFeatureExtractor(self._declared)
        extractor._state = replace(
            new,
            vocabularies={
                name: extended_vocabulary(known, new.vocabularies[name]) for name, known in state.vocabularies.items()
            },
            statistics=(new if update_statistics else state).statistics,
            quantiles=(new if update_statistics else state).quantiles,
        )
        return extractor

    def check_extends(self, other: RerankingFeatureExtractor, other_statistics: bool = False) -> None:
        """Refuses an extractor that this one does not continue: a model of the other's could not be used with it.

        A `SchemaMismatchError` names the fields whose columns, ids of known values or (unless there may be
        `other_statistics`) standardisation differ.
        """
        after, before = self._fitted_state(), other._fitted_state()
        self._declared.check_same(other._declared)
        problems = []
        for field in self._declared.fields:
            name, known, type_before = field.name, before.vocabularies.get(field.name), before.types.get(field.name)
            moved = known is not None and not begins_with(after.vocabularies[name], known)
            if moved or type_before not in (None, after.types.get(name)):
                problems.append(f"field {name!r} has other ids")
        for part, what in {"quantiles": "ranked", "statistics": "standardised"}.items():
            for name, fitted in ({} if other_statistics else getattr(before, part)).items():
                if not np.array_equal(fitted, getattr(after, part)[name]):
                    problems.append(f"field {name!r} is {what} otherwise")
        if problems:
            message = f"schema {self._declared.name!r} was fitted on other data: {'; '.join(problems)}"
            raise SchemaMismatchError(message)

    def __call__(self, data: Any) -> dict[str, Tensor]:
        """Turns rows into a padded batch.

        N, M, S and L are the largest in the data (L at least 1). `slates` and `feedback` are there if the data has the
        slate column (with -100 where it is not known what stood at a position), `propensity` if it has that column too,
        `candidate_feedback` and its mask if it has all declared columns, `history_*` if the schema has history fields.
        Feedback is what it counts, its target's gain. A mined table has `slate_weights` and `soft_labels`
        instead of `feedback`. A group without fields yields tensors with F = 0.

        Args:
            data: Any supported table (see `rerankzoo.features.tables`).

        Returns:
            The batch, on the CPU; keys and shapes as in `rerankzoo.batch.ENTRIES`.

        Raises:
            RerankingDataError: If anything in the rows cannot be used; it names field, row and value.
        """
        return self.read(data).batch

    def is_single(self, data: Any) -> bool:
        """Whether data are one request (a dictionary that holds no columns), and not a table of requests."""
        return isinstance(data, Mapping) and not holds_columns(data, self._declared.item_id)

    def read(self, data: Any) -> Encoded:
        """The batch of rows (see `__call__`, also for errors), with the ids of their candidates."""
        return self._encode(read_table(data, self._declared.item_id))

    def usable(self, data: Any) -> tuple[list[Encoded], dict[int, RerankingDataError]]:
        """Sorts usable rows from others; what `extractor(data)` would say of the first bad row, this says of each.

        All rows are read together. Only if that fails, halves are, and their halves, down to the rows that cannot be
        used even alone: so a bad row costs about 2 log2 B further readings of ever fewer rows.

        Returns batches of consecutive usable rows (usually one, of all rows), and the error of every other row.

        Raises:
            RerankingDataError: If none of the rows could be used: the data is no table, or one whose columns are
                missing, of a wrong type or of different lengths.
        """
        table = read_table(data, self.schema.item_id)
        parts: list[Encoded] = []
        errors: dict[int, RerankingDataError] = {}
        pending = [slice(0, table.rows)]
        while pending:
            rows = pending.pop()
            part = table if rows == slice(0, table.rows) else table.slice(rows.start, rows.stop)
            try:
                parts.append(self._encode(part))
            except RerankingDataError as error:
                if error.row is None and not isinstance(table, RowTable):
                    raise
                middle = (rows.start + rows.stop) // 2
                if middle == rows.start:
                    # Made anew: a caught error keeps all that the failed reading had in memory.
                    errors[rows.start] = RerankingDataError(error.message, field=error.field, row=rows.start)
                else:
                    pending += [slice(middle, rows.stop), slice(rows.start, middle)]
        return parts, errors

    def _encode(self, table: Table) -> Encoded:
        state = self._fitted_state()
        item_ids = read_item_ids(table, state.schema.item_id)
        requests, candidates = Ragged(np.arange(table.rows + 1, dtype=np.int64)), item_ids.layout
        arrays = state.encode("request", table, item_ids.column, requests)
        arrays = {key: array[:, 0] for key, array in arrays.items()}  # one value per request: no list dimension
        arrays.update(state.encode("candidate", table, item_ids.column, candidates))
        arrays["candidate_mask"] = candidates.mask.copy()  # the batch is the caller's to change
        if history := state.fields["history"]:
            # A model attends over the history: one masked place is kept where no row has any.
            layout = Ragged(read_field(table, history[0][0]).offsets[0], min_width=1)
            arrays |= {**state.encode("history", table, item_ids.column, layout), "history_mask": layout.mask}
            if not state.schema.numeric_fields("history"):
                del arrays["history_numeric"]
        arrays.update(read_labels(table, state.schema, candidates))
        rows = slice(table.first_row, table.first_row + table.rows)
        arrays["request_index"] = np.arange(rows.start, rows.stop, dtype=np.int64)
        return Encoded({key: torch.from_numpy(array) for key, array in arrays.items()}, item_ids, rows)

    def example_values(self, spec: FieldSpec, limit: int = 1000) -> list[Any]:
        """Raw values that a categorical field takes: the first of its vocabulary, or made-up ones if it is hashed."""
        state = self._fitted_state()
        owner = self._declared.owner(spec).name
        vocabulary = state.vocabularies.get(owner)
        if vocabulary is not None and len(vocabulary.values):
            return cast(list[Any], np.asarray(vocabulary.values[:limit]).tolist())
        return list(map(str, range(limit))) if state.types[owner] == "string" else list(range(limit))

    def decode(self, slates: Tensor | npt.NDArray[np.int64] | list[Any], data: Any) -> list[list[Any]]:
        """Turns slates into the item ids of `data`, of which nothing else is read; see `ItemIds.decode`."""
        return self._item_ids(data).decode(slates)

    def locate(self, items: Sequence[Any], data: Any) -> Tensor:
        """Finds candidates of `data` by their item ids; see `ItemIds.locate`."""
        return self._item_ids(data).locate(items)

    def _item_ids(self, data: Any) -> ItemIds:
        return read_item_ids(read_table(data, self._declared.item_id), self._declared.item_id)

    def to_dict(self) -> dict[str, Any]:
        """Returns the JSON-able configuration; the vocabularies are stored beside it."""
        state = self._fitted_state()
        return {
            "feature_extractor_type": type(self).__name__,
            "auto_map": auto_map(AutoFeatureExtractor=type(self).__name__),
            "schema": state.schema.to_dict(),
            "state": state.to_dict(),
        }

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any
    ) -> list[str]:
        """Saves `preprocessor_config.json`, `vocabularies.safetensors` and the module that `trust_remote_code` loads.

        Returns their paths.

        Args:
            save_directory: The folder, created if need be. Files are replaced in one step each.
            push_to_hub: Also push to the Hub.
            **kwargs: For `push_to_hub`: `repo_id`, `commit_message`, `private`, `token`, `revision`...
        """
        state = self._fitted_state()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        vocabularies, config = folder / VOCABULARY_NAME, folder / CONFIG_NAME
        # Not save_file: it makes files that only their owner can read.
        write_atomically(vocabularies, lambda path: path.write_bytes(save(state.to_arrays())))
        write_text(config, self.to_json_string())
        module = write_module(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(config), str(vocabularies), str(module)]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> RerankingFeatureExtractor:
        """Loads a fitted extractor.

        Args:
            pretrained_model_name_or_path: A folder or a repository on the Hub.
            **kwargs: `cache_dir`, `force_download`, `local_files_only`, `token`, `revision`, `subfolder`.

        Raises:
            OSError: If a file is not found.
            UnreadableFileError: If a file is cut off or garbled; names the file.
            SchemaError: If the schema in it contradicts itself; names the file.
            SchemaMismatchError: If the vocabularies are not those the configuration was saved with; names the field.
            TypeError: If an argument is unknown.
        """
        unknown = [key for key in kwargs if key not in (*_HUB_OPTIONS, "trust_remote_code") and not key.startswith("_")]
        if unknown:
            raise TypeError(f"unknown arguments: {', '.join(unknown)}; known: {', '.join(_HUB_OPTIONS)}")
        options = {key: kwargs[key] for key in _HUB_OPTIONS if kwargs.get(key) is not None}
        place = os.fspath(pretrained_model_name_or_path)
        config, vocabularies = (cached_file(place, name, **options) for name in (CONFIG_NAME, VOCABULARY_NAME))
        data = read_json(Path(config))
        if not isinstance(data, dict) or not all(isinstance(data.get(key), dict) for key in ("schema", "state")):
            raise SchemaError(f"{config} is not the configuration of a fitted extractor: expected a schema and a state")
        try:
            arrays = load_file(vocabularies)
        except (SafetensorError, TypeError, KeyError, ValueError) as error:  # the latter of types that numpy has not
            raise UnreadableFileError(f"{vocabularies} is damaged: {in_one_line(error)}") from error
        try:
            saved = FeatureSchema.from_dict(data["schema"])
            extractor = cls(saved)
            extractor._state = FittedState.restore(extractor._declared, data["state"], arrays)
            if extractor.schema.fingerprint != saved.fingerprint:
                raise SchemaMismatchError(
                    f"schema {saved.name!r} or its statistics were changed after saving: fingerprint "
                    f"{extractor.schema.fingerprint}, expected {shown(saved.fingerprint)}"
                )
            return extractor
        except SchemaMismatchError as error:
            raise SchemaMismatchError(f"{vocabularies}: {error}") from error
        except SchemaError as error:
            raise type(error)(f"{config}: {error}") from error

    @classmethod
    def from_dict(cls, feature_extractor_dict: dict[str, Any], **kwargs: Any) -> RerankingFeatureExtractor:
        """Raises a `SchemaError`: the configuration alone lacks the vocabularies."""
        raise SchemaError("a dictionary lacks the vocabularies; use from_pretrained")
