"""What was shown and what it earned, or what was mined: slates, feedback, propensities, labels and values.

The lists of such a column run along the axes of a batch: S and M as long as the slate column's, N as the candidates'.
Where the slate column is flat, with one slate per row, no column has a list level for S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.batch import BUILT_IN, ENTRIES, PADDING
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.encoding import FloatArray, finite
from rerankzoo.features.schema import SLATE_WEIGHTS, SOFT_LABELS, FeatureSchema
from rerankzoo.features.tables import Column, IntArray, Ragged, Table

Arrays = dict[str, npt.NDArray[Any]]

#: How far the sum of a soft label may be from 1: it is stored in half precision.
_SUM_TOLERANCE = 0.01


def read_labels(table: Table, schema: FeatureSchema, candidates: Ragged) -> Arrays:
    """Returns the labels that a table has, and the registered entries of whose name it has a column.

    A table with `slate_weights` is a mined one: nobody was shown its slates, so it may lack feedback.

    Raises:
        RerankingDataError: If a slate is empty, longer than the candidate list, repeats a candidate or points outside
            the list, or if anything else is missing, not in its range or not aligned.
    """
    lists = _Lists(table, schema, candidates)
    arrays: Arrays = {}
    if lists.slates is not None:
        arrays["slates"] = lists.pad(lists.slates, _check_slates(lists.slates, candidates), "SM", PADDING)
        mined = SLATE_WEIGHTS in table.names
        if not mined or any(target.name in table.names for target in schema.targets):
            arrays["feedback"] = _feedback(lists, schema, arrays["slates"].shape)
        if schema.propensity is not None and schema.propensity in table.names:
            arrays["propensity"] = _read_entry(lists, schema.propensity, "propensity")
        if mined:
            arrays[SLATE_WEIGHTS] = _read_entry(lists, SLATE_WEIGHTS, SLATE_WEIGHTS)
        if mined and SOFT_LABELS in table.names:
            arrays[SOFT_LABELS] = _read_entry(lists, SOFT_LABELS, SOFT_LABELS)
            _check_chosen_have_none(arrays[SOFT_LABELS], arrays["slates"], table.first_row)
    arrays.update(_candidate_feedback(lists, schema, candidates))
    arrays.update(
        {name: _read_entry(lists, name, name) for name in ENTRIES if name not in BUILT_IN and name in table.names}
    )
    return arrays


def read_candidate_values(table: Table, schema: FeatureSchema, candidates: Ragged) -> npt.NDArray[np.float32]:
    """Returns `candidate_value` (B, N, T): 1 where a target has no value column, 0 in padding.

    Raises:
        RerankingDataError: If a value is missing or not finite, or the lists' lengths are not the candidates'.
    """
    values = np.ones((candidates.total, len(schema.targets)), dtype=np.float32)
    for index, target in enumerate(schema.targets):
        if target.value is not None:
            column = table.column(target.value, 1)
            column.refuse_nulls("a value", "; the utility of the item is not known without it")
            candidates.check_same(column, 0, repr(schema.item_id))
            values[:, index] = finite(column)
    return candidates.pad(values)


class _Lists:
    """How long the lists of label columns must be.

    Args:
        table: The rows.
        schema: Names its columns.
        candidates: The layout of the candidate lists.
    """

    def __init__(self, table: Table, schema: FeatureSchema, candidates: Ragged) -> None:
        self.table = table
        self._schema = schema
        self._candidates = candidates
        self.slates: Column | None = None
        self._nested = schema.slate in table.names and table.is_nested(schema.slate)
        if schema.slate in table.names:
            self.slates = table.column(schema.slate, 1 + self._nested)

    def _levels(self, axes: str) -> str:
        return axes if self._nested else axes.replace("SM", "M")

    def column(self, name: str, axes: str, what: str | None, advice: str = "") -> Column:
        """Reads a column whose lists run along these axes; nothing of it (if `what` is None, no list) is missing."""
        column = self.table.column(name, len(self._levels(axes)))
        column.refuse_nulls(what, advice)
        candidates = self._candidates.lengths  # of the row that each entry of a level belongs to
        for level, letter in enumerate(self._levels(axes)):
            lengths = np.diff(column.offsets[level])
            expected, other = self._expected(letter, lengths, candidates)
            if (wrong := lengths != expected).any():
                index = int(wrong.argmax())
                raise column.error(f"{lengths[index]} entries, but {other} has {expected[index]}", index, level)
            candidates = np.repeat(candidates, lengths)
        return column

    def _expected(self, letter: str, lengths: IntArray, candidates: IntArray) -> tuple[IntArray, str]:
        """The lengths that a level's lists must have, and what else has them."""
        if letter == "N":
            return candidates, repr(self._schema.item_id)
        if letter in "SM":
            if self.slates is None:
                raise RerankingDataError("missing column: slates are needed to read others", field=self._schema.slate)
            flat = letter == "S" and not self._nested
            offsets = self.slates.offsets[0 if letter == "S" else -1]
            return np.ones_like(lengths) if flat else np.diff(offsets), repr(self._schema.slate)
        return lengths if letter == "L" else np.full_like(lengths, lengths[:1].sum()), "the first"

    def pad(self, column: Column, values: npt.NDArray[Any], axes: str, fill: float = 0) -> npt.NDArray[Any]:
        """(leaves, ...) of a column to (B, axes..., ...)."""
        levels = self._levels(axes)
        for letter, offsets in zip(reversed(levels), reversed(column.offsets), strict=True):
            values = Ragged(offsets, self._candidates.width if letter == "N" else 0).pad(values, fill)
        return values if levels == axes else values[:, None]


def _read_entry(lists: _Lists, column_name: str, name: str) -> npt.NDArray[Any]:
    """An entry of the batch that is one column."""
    entry = ENTRIES[name]
    column = lists.column(column_name, entry.axes[1:], "a number")
    values = finite(column)
    if not entry.dtype.is_floating_point:
        column.refuse(values != np.floor(values), "an integer is required, got {}", None, values)
    if name == "propensity":
        column.refuse((values <= 0) | (values > 1), "a probability in (0, 1] is required, got {}", None, values)
    elif name in (SLATE_WEIGHTS, SOFT_LABELS):
        column.refuse(values < 0, "a number that is not negative is required, got {}", None, values)
    if name == SOFT_LABELS:
        _check_sums(column, values)
    return lists.pad(column, values.astype(str(entry.dtype).removeprefix("torch.")), entry.axes[1:], entry.fill)


def _feedback(lists: _Lists, schema: FeatureSchema, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    feedback = np.empty((*shape, len(schema.targets)), dtype=np.float32)
    for index, target in enumerate(schema.targets):
        column = lists.column(target.name, "SM", "feedback", "; give 0 where nothing was earned")
        feedback[..., index] = lists.pad(column, finite(column), "SM")
    return feedback


def _candidate_feedback(lists: _Lists, schema: FeatureSchema, candidates: Ragged) -> Arrays:
    """`candidate_feedback` and its mask: True where the labels of all declared targets are known; 0 elsewhere."""
    columns = {index: target.candidate_feedback for index, target in enumerate(schema.targets)}
    declared = {index: name for index, name in columns.items() if name is not None}
    if not declared or not lists.table.names.issuperset(declared.values()):
        return {}
    labels = np.zeros((candidates.total, len(schema.targets)), dtype=np.float32)
    known = np.ones(candidates.total, dtype=np.bool_)
    for index, name in declared.items():
        column = lists.column(name, "N", None)
        labels[:, index] = finite(column)
        if column.nulls[-1] is not None:
            known &= ~column.nulls[-1]
    labels[~known] = 0
    return {"candidate_feedback": candidates.pad(labels), "candidate_feedback_mask": candidates.pad(known)}


def _check_slates(column: Column, candidates: Ragged) -> IntArray:
    """The candidate indexes of all slates."""
    column.refuse_nulls("a candidate index")
    sizes = candidates.lengths  # of the row that each slate belongs to
    for level, offsets in enumerate(column.offsets):
        lengths = np.diff(offsets)
        if (lengths == 0).any():
            raise column.error("an empty slate", int((lengths == 0).argmax()), level)
        sizes = sizes if level == len(column.offsets) - 1 else np.repeat(sizes, lengths)
    if column.kind != "int":
        raise column.error(f"a candidate index (int) is required, got {shown(column.value(0))}", 0)
    # A copy: the values may be Arrow's own read-only memory, and the batch is the caller's to change.
    indices = column.values.astype(np.int64)
    if (long := lengths > sizes).any():
        slate = int(long.argmax())
        message = f"{lengths[slate]} slate positions for {sizes[slate]} candidates"
        raise column.error(message, slate, len(column.offsets) - 1)
    limits = np.repeat(sizes, lengths)
    if (outside := (indices < 0) | (indices >= limits)).any():
        index = int(outside.argmax())
        raise column.error(f"slate index {indices[index]} is outside 0..{limits[index] - 1}", index)
    keys = np.repeat(np.arange(len(lengths)), lengths) * candidates.width + indices
    order = np.argsort(keys, kind="stable")
    repeated = keys[order][1:] == keys[order][:-1]
    if repeated.any():
        index = int(order[1:][repeated].min())
        raise column.error(f"candidate {indices[index]} appears twice in a slate", index)
    return indices


def _check_sums(column: Column, values: FloatArray) -> None:
    """Raises if the soft labels of a position do not sum to 1."""
    sums = np.add.reduceat(values, column.offsets[-1][:-1])
    if (wrong := np.abs(sums - 1) > _SUM_TOLERANCE).any():
        index = int(wrong.argmax())
        message = f"soft labels of a position must sum to 1, got {sums[index]:.4g}"
        raise column.error(message, index, len(column.offsets) - 1)


def _check_chosen_have_none(labels: npt.NDArray[np.float32], slates: IntArray, first_row: int) -> None:
    """Raises if a position's soft labels include a candidate that stands further up in the slate."""
    above = np.tri(slates.shape[-1], k=-1, dtype=np.bool_) & (slates >= 0)[..., None, :]  # (B, S, M, M)
    wrong = (np.take_along_axis(labels, np.maximum(slates, 0)[..., None, :], axis=-1) > 0) & above
    if wrong.any():
        row, slate, position, earlier = np.argwhere(wrong)[0]
        chosen = slates[row, slate, earlier]
        message = f"position {position + 1} gives a soft label to candidate {chosen}, chosen before"
        raise RerankingDataError(message, field=SOFT_LABELS, row=int(row) + first_row)
