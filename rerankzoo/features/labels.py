"""What was shown and what it earned, or what was mined: slates, feedback, propensities, labels and values.

The lists of a column run along the axes of a batch. Where slates are flat, one per row, no column has a level for S.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.batch import BUILT_IN, ENTRIES, PADDING
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.encoding import FloatArray, finite
from rerankzoo.features.schema import MINED_COLUMNS, SLATE_WEIGHTS, SOFT_LABELS, FeatureSchema, TargetSpec
from rerankzoo.features.tables import Column, IntArray, Ragged, Table

#: Grades beyond it are a mistake more often than a wish, and float32 does not hold their gains exactly.
_LARGEST_GRADE = 24

#: How far the sum of a soft label may be from 1: it is stored in half precision.
_SUM_TOLERANCE = 0.01


def read_labels(table: Table, schema: FeatureSchema, candidates: Ragged) -> dict[str, npt.NDArray[Any]]:
    """Returns `candidate_value`, the labels that a table has, and the registered entries that are columns of it.

    A table with `slate_weights` is a mined one: nobody was shown its slates, so it may lack feedback.
    """
    lists = _Lists(table, schema, candidates)
    arrays: dict[str, npt.NDArray[Any]] = {"candidate_value": _candidate_values(lists, schema, candidates)}
    if lists.slates is not None:
        mined = SLATE_WEIGHTS in table.names
        if mined:
            lists.slates.refuse_nulls("a candidate index")
        arrays["slates"] = lists.pad(lists.slates, _check_slates(lists.slates, candidates), "SM", PADDING)
        if not mined or any(target.name in table.names for target in schema.targets):
            arrays["feedback"] = _feedback(lists, schema, arrays["slates"].shape)
        if schema.propensity is not None and schema.propensity in table.names:
            arrays["propensity"] = _read_entry(lists, schema.propensity, "propensity")
        for name in MINED_COLUMNS:
            if mined and name in table.names:
                arrays[name] = _read_entry(lists, name, name)
        if SOFT_LABELS in arrays:
            _check_chosen_have_none(arrays[SOFT_LABELS], arrays["slates"], table.first_row)
    arrays.update(_candidate_feedback(lists, schema, candidates))
    for name in sorted(table.names & (ENTRIES.keys() - BUILT_IN)):
        arrays[name] = _read_entry(lists, name, name)
    return arrays


class _Lists:
    """How long the lists of label columns must be: as the slate column's, or as those of the candidates."""

    def __init__(self, table: Table, schema: FeatureSchema, candidates: Ragged) -> None:
        self.table = table
        self._schema = schema
        self._candidates = candidates
        self._nested = schema.slate in table.names and table.is_nested(schema.slate)
        self.slates = table.column(schema.slate, 1 + self._nested) if schema.slate in table.names else None
        #: Positions (leaves) of which it is not known what stood there; `None` if there are none.
        self.unknown = None if self.slates is None else self.slates.nulls[-1]

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

    def of_slates(self, name: str, what: str, advice: str = "") -> tuple[Column, FloatArray]:
        """Reads numbers along the slates; where a slate does not say what stood at a position, none or 0, read as 0."""
        column = self.column(name, "SM", what if self.unknown is None else None, advice)
        values = finite(column)
        if self.unknown is not None:
            if column.nulls[-1] is not None:
                column.refuse(column.nulls[-1] & ~self.unknown, f"{what} is required, got None{advice}")
            told = (values != 0) & self.unknown
            column.refuse(told, f"{{}} at a position that {self._schema.slate!r} leaves open", None, values)
        return column, values

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
    if name == "propensity":
        column, values = lists.of_slates(column_name, "a number")
    else:
        column = lists.column(column_name, entry.axes[1:], "a number")
        values = finite(column)
    if not entry.dtype.is_floating_point:
        column.refuse(values != np.floor(values), "an integer is required, got {}", None, values)
    if name == "propensity":
        wrong = ((values <= 0) | (values > 1)) & (True if lists.unknown is None else ~lists.unknown)
        column.refuse(wrong, "a probability in (0, 1] is required, got {}", None, values)
    elif name == "slate_length":
        column.refuse(values < 1, "at least one position is required, got {}", None, values)
    elif name in (SLATE_WEIGHTS, SOFT_LABELS):
        column.refuse(values < 0, "a number that is not negative is required, got {}", None, values)
    if name == SOFT_LABELS:
        sums = np.add.reduceat(values, column.offsets[-1][:-1])
        message = "soft labels of a position must sum to 1, got {:.4g}"
        column.refuse(np.abs(sums - 1) > _SUM_TOLERANCE, message, len(column.offsets) - 1, sums)
    return lists.pad(column, values.astype(str(entry.dtype).removeprefix("torch.")), entry.axes[1:], entry.fill)


def _feedback(lists: _Lists, schema: FeatureSchema, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    feedback = np.empty((*shape, len(schema.targets)), dtype=np.float32)
    for index, target in enumerate(schema.targets):
        column, values = lists.of_slates(target.name, "feedback", "; give 0 where nothing was earned")
        feedback[..., index] = lists.pad(column, _gains(column, values, target), "SM")
    return feedback


def _gains(column: Column, values: FloatArray, target: TargetSpec) -> FloatArray:
    """What the labels of a target count."""
    if target.gain == "linear":
        return values
    wrong = (values < 0) | (values > _LARGEST_GRADE)
    column.refuse(wrong, f"a grade from 0 to {_LARGEST_GRADE} is required, got {{}}", None, values)
    return np.exp2(values) - 1


def _candidate_values(lists: _Lists, schema: FeatureSchema, candidates: Ragged) -> npt.NDArray[np.float32]:
    """(B, N, T): 1 where a target has no value column, 0 in padding."""
    values = np.empty((candidates.rows, candidates.width, len(schema.targets)), dtype=np.float32)
    values[...] = candidates.mask[..., None]
    for index, target in enumerate(schema.targets):
        if target.value is not None:
            advice = "; the utility of the item is not known without it"
            candidates.place(finite(lists.column(target.value, "N", "a value", advice)), values[..., index])
    return values


def _candidate_feedback(lists: _Lists, schema: FeatureSchema, candidates: Ragged) -> dict[str, npt.NDArray[Any]]:
    """`candidate_feedback` and its mask: True where the labels of all declared targets are known; 0 elsewhere."""
    targets = enumerate(schema.targets)
    declared = {target.candidate_feedback: index for index, target in targets if target.candidate_feedback is not None}
    if not declared or not lists.table.names.issuperset(declared):
        return {}
    labels = np.zeros((candidates.total, len(schema.targets)), dtype=np.float32)
    known = np.ones(candidates.total, dtype=np.bool_)
    for name, index in declared.items():
        column = lists.column(name, "N", None)
        labels[:, index] = _gains(column, finite(column), schema.targets[index])
        if column.nulls[-1] is not None:
            known &= ~column.nulls[-1]
    labels[~known] = 0
    return {"candidate_feedback": candidates.pad(labels), "candidate_feedback_mask": candidates.pad(known)}


def _check_slates(column: Column, candidates: Ragged) -> IntArray:
    """The candidate indexes of all slates, -100 where it is not known what stood at a position."""
    column.refuse_nulls(None)
    last, unknown = len(column.offsets) - 1, column.nulls[-1]
    sizes = candidates.lengths  # of the row that each slate belongs to
    for level, offsets in enumerate(column.offsets):
        lengths = np.diff(offsets)
        column.refuse(lengths == 0, "an empty slate", level)
        sizes = sizes if level == last else np.repeat(sizes, lengths)
    slates = np.repeat(np.arange(len(lengths)), lengths)
    if unknown is not None:
        lengths = np.bincount(slates[~unknown], minlength=len(lengths))
        column.refuse(lengths == 0, "a candidate index is required at one position at least, got None", last)
    if column.kind != "int":
        raise column.error(f"a candidate index (int) is required, got {shown(column.value(0))}", 0)
    # A copy: the values may be Arrow's own read-only memory, and the batch is the caller's to change.
    indices = column.values.astype(np.int64)
    column.refuse(lengths > sizes, "{} slate positions for {} candidates", last, lengths, sizes)
    limits = sizes[slates]
    outside = (indices < 0) | (indices >= limits)
    column.refuse(outside, "slate index {} is outside 0..{}", None, indices, limits - 1)
    keys = slates * candidates.width + indices
    if unknown is not None:
        indices[unknown] = PADDING
        keys[unknown] = -1 - np.flatnonzero(unknown)  # of which none is another's
    repeated = np.ones_like(indices, dtype=np.bool_)
    repeated[np.unique(keys, return_index=True)[1]] = False
    column.refuse(repeated, "candidate {} appears twice in a slate", None, indices)
    return indices


def _check_chosen_have_none(labels: npt.NDArray[np.float32], slates: IntArray, first_row: int) -> None:
    """Raises if a position's soft labels include a candidate that stands further up in the slate."""
    above = np.tri(slates.shape[-1], k=-1, dtype=np.bool_) & (slates >= 0)[..., None, :]  # (B, S, M, M)
    wrong = (np.take_along_axis(labels, np.maximum(slates, 0)[..., None, :], axis=-1) > 0) & above
    if wrong.any():
        row, slate, position, earlier = np.argwhere(wrong)[0]
        chosen = slates[row, slate, earlier]
        message = f"position {position + 1} gives a soft label to candidate {chosen}, chosen before"
        raise RerankingDataError(message, field=SOFT_LABELS, row=int(row) + first_row)
