"""What was shown and what it earned, or what was mined: slates, feedback, propensities, labels and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.batch import PADDING
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.columns import Column, IntArray, Table
from rerankzoo.features.encoding import finite, id_type
from rerankzoo.features.ragged import Ragged
from rerankzoo.features.schema import SLATE_WEIGHTS, SOFT_LABELS, FeatureSchema

Arrays = dict[str, npt.NDArray[Any]]

#: How far the sum of a soft label may be from 1: it is stored in half precision.
_SUM_TOLERANCE = 0.01


class _SlateLayout:
    """The two list levels of a slate column: slates per row (one if the log has flat lists), positions per slate."""

    def __init__(self, column: Column) -> None:
        self.nested = len(column.offsets) == 2
        rows = len(column.offsets[0]) - 1
        outer = column.offsets[0] if self.nested else np.arange(rows + 1, dtype=np.int64)
        self.slates = Ragged(outer)
        self.positions = Ragged(column.offsets[-1])
        self.column = column

    def check(self, column: Column) -> None:
        """Raises unless `column` (which may have further list levels) is aligned with the slate column."""
        if self.nested:
            self.slates.check_same(column, 0, f"{self.column.name!r}")
        self.positions.check_same(column, len(self.column.offsets) - 1, f"{self.column.name!r}")

    def pad(self, values: npt.NDArray[Any], fill: float = 0) -> npt.NDArray[Any]:
        """(total positions, ...) to (B, S, M, ...)."""
        return self.slates.pad(self.positions.pad(values, fill), fill)


def read_slates(table: Table, schema: FeatureSchema, candidates: Ragged) -> Arrays:
    """Returns `slates`, `feedback`, `propensity`, `slate_weights` and `soft_labels`, as far as the table has them.

    A table with weights is a mined one: nobody was shown its slates, so it may lack feedback.

    Raises:
        RerankingDataError: If a slate is empty, longer than the candidate list, repeats a candidate or points outside
            the list, or if feedback, propensities, weights or soft labels are missing, not in their range or not
            aligned.
    """
    if not table.has(schema.slate):
        return {}
    depth = min(max(table.depth(schema.slate), 1), 2)
    column = table.column(schema.slate, depth)
    layout = _SlateLayout(column)
    arrays: Arrays = {"slates": layout.pad(_check_slates(column, layout, candidates), PADDING)}
    mined = table.has(SLATE_WEIGHTS)
    if not mined or any(table.has(target.name) for target in schema.targets):
        arrays["feedback"] = layout.pad(_feedback(table, schema, layout, depth))
    if schema.propensity is not None and table.has(schema.propensity):
        arrays["propensity"] = layout.pad(_propensity(table.column(schema.propensity, depth), layout))
    if mined:
        arrays["slate_weights"] = layout.slates.pad(_weights(table.column(SLATE_WEIGHTS, 1), layout))
    if mined and table.has(SOFT_LABELS):
        arrays["soft_labels"] = _soft_labels(table.column(SOFT_LABELS, depth + 1), layout, candidates, arrays["slates"])
    return arrays


def _feedback(table: Table, schema: FeatureSchema, layout: _SlateLayout, depth: int) -> npt.NDArray[np.float32]:
    feedback = np.empty((layout.positions.total, len(schema.targets)), dtype=np.float32)
    for index, target in enumerate(schema.targets):
        earned = table.column(target.name, depth)
        earned.refuse_nulls("feedback", "; give 0 where nothing was earned")
        layout.check(earned)
        feedback[:, index] = finite(earned)
    return feedback


def _weights(column: Column, layout: _SlateLayout) -> npt.NDArray[np.float32]:
    column.refuse_nulls("a weight")
    layout.slates.check_same(column, 0, f"{layout.column.name!r}")
    values = finite(column)
    if (values < 0).any():
        index = int((values < 0).argmax())
        raise column.error(f"a weight must not be negative, got {float(values[index])}", index)
    return values.astype(np.float32)


def _soft_labels(column: Column, layout: _SlateLayout, candidates: Ragged, slates: IntArray) -> npt.NDArray[np.float32]:
    """(B, S, M, N): per position a distribution over the candidates that the positions before it left."""
    column.refuse_nulls("a soft label")
    layout.check(column)
    steps = Ragged(column.offsets[-1])
    sizes = np.repeat(np.repeat(candidates.lengths, layout.slates.lengths), layout.positions.lengths)
    if (steps.lengths != sizes).any():
        index = int((steps.lengths != sizes).argmax())
        message = f"{steps.lengths[index]} soft labels for {sizes[index]} candidates"
        raise column.error(message, index, len(column.offsets) - 1)
    values = finite(column)
    if (values < 0).any():
        index = int((values < 0).argmax())
        raise column.error(f"a soft label must not be negative, got {float(values[index])}", index)
    sums = np.add.reduceat(values, steps.offsets[:-1])
    if (np.abs(sums - 1) > _SUM_TOLERANCE).any():
        index = int((np.abs(sums - 1) > _SUM_TOLERANCE).argmax())
        raise column.error(
            f"soft labels of a position must sum to 1, got {sums[index]:.4g}", index, len(column.offsets) - 1
        )
    labels = layout.pad(steps.pad(values.astype(np.float32)))
    _check_chosen_have_none(column, labels, slates)
    return labels


def _check_chosen_have_none(column: Column, labels: npt.NDArray[np.float32], slates: IntArray) -> None:
    """Raises if a position's soft labels include a candidate that stands further up in the slate."""
    length = slates.shape[-1]
    above = np.tri(length, k=-1, dtype=np.bool_) & (slates >= 0)[..., None, :]  # (B, S, M, M)
    wrong = (np.take_along_axis(labels, np.maximum(slates, 0)[..., None, :], axis=-1) > 0) & above
    if wrong.any():
        row, slate, position, earlier = np.argwhere(wrong)[0]
        message = (
            f"position {position + 1} gives a soft label to candidate {slates[row, slate, earlier]}, chosen before"
        )
        raise RerankingDataError(message, field=column.name, row=int(row) + column.first_row)


def _propensity(column: Column, layout: _SlateLayout) -> npt.NDArray[np.float32]:
    column.refuse_nulls("a propensity")
    layout.check(column)
    values = finite(column)
    wrong = (values <= 0) | (values > 1)
    if wrong.any():
        index = int(wrong.argmax())
        raise column.error(f"a probability in (0, 1] is required, got {float(values[index])}", index)
    return values.astype(np.float32)


def _check_slates(column: Column, layout: _SlateLayout, candidates: Ragged) -> IntArray:
    column.refuse_nulls("a candidate index")
    _check_no_empty(column)
    if column.kind != "int":
        raise column.error(f"a candidate index (int) is required, got {shown(column.value(0))}", 0)
    # A copy: the values may be Arrow's own read-only memory, and the batch is the caller's to change.
    indices = column.values.astype(np.int64)
    owners = np.repeat(np.arange(layout.slates.rows), layout.slates.lengths)
    sizes = candidates.lengths[owners]
    long = layout.positions.lengths > sizes
    level = len(column.offsets) - 1
    if long.any():
        slate = int(long.argmax())
        message = f"{layout.positions.lengths[slate]} slate positions for {sizes[slate]} candidates"
        raise column.error(message, slate, level)
    limits = np.repeat(sizes, layout.positions.lengths)
    outside = (indices < 0) | (indices >= limits)
    if outside.any():
        index = int(outside.argmax())
        message = f"slate index {indices[index]} is outside 0..{limits[index] - 1}"
        raise column.error(message, index)
    _check_no_repeats(column, indices, layout, candidates.width)
    return indices


def _check_no_empty(column: Column) -> None:
    for level, offsets in enumerate(column.offsets):
        empty = np.diff(offsets) == 0
        if empty.any():
            raise column.error("an empty slate", int(empty.argmax()), level)


def _check_no_repeats(column: Column, indices: IntArray, layout: _SlateLayout, width: int) -> None:
    slates = np.repeat(np.arange(layout.positions.rows), layout.positions.lengths)
    keys = slates * width + indices
    order = np.argsort(keys, kind="stable")
    repeated = keys[order][1:] == keys[order][:-1]
    if repeated.any():
        index = int(order[1:][repeated].min())
        raise column.error(f"candidate {indices[index]} appears twice in a slate", index)


def read_candidate_values(table: Table, schema: FeatureSchema, candidates: Ragged) -> Arrays:
    """Returns `candidate_value` (B, N, T): 1 where a target has no value column, 0 in padding.

    Raises:
        RerankingDataError: If a value is missing or not finite, or the lists' lengths are not the candidates'.
    """
    values = np.ones((candidates.total, len(schema.targets)), dtype=np.float32)
    for index, target in enumerate(schema.targets):
        if target.value is not None:
            column = candidate_column(table, target.value, schema, candidates)
            column.refuse_nulls("a value", "; the utility of the item is not known without it")
            values[:, index] = finite(column)
    return {"candidate_value": candidates.pad(values)}


def read_candidate_feedback(table: Table, schema: FeatureSchema, candidates: Ragged) -> Arrays:
    """Returns `candidate_feedback` and its mask if the table has all declared columns.

    The mask is True where the labels of all declared targets are known; unknown labels are 0.
    """
    declared = [target.candidate_feedback for target in schema.targets if target.candidate_feedback is not None]
    if not declared or not all(table.has(name) for name in declared):
        return {}
    labels = np.zeros((candidates.total, len(schema.targets)), dtype=np.float32)
    known = np.ones(candidates.total, dtype=np.bool_)
    for index, target in enumerate(schema.targets):
        if target.candidate_feedback is not None:
            column = candidate_column(table, target.candidate_feedback, schema, candidates)
            labels[:, index] = finite(column)
            if column.missing is not None:
                known &= ~column.missing
    labels[~known] = 0
    return {"candidate_feedback": candidates.pad(labels), "candidate_feedback_mask": candidates.pad(known)}


def candidate_column(table: Table, name: str, schema: FeatureSchema, candidates: Ragged, depth: int = 1) -> Column:
    """Reads a list column over the candidates.

    Raises:
        RerankingDataError: If it is missing, or a row's list has another length than the row's candidates.
    """
    column = table.column(name, depth)
    absent = column.nulls[0]
    if absent is not None and absent.any():
        raise column.error("a list is required, got None", int(absent.argmax()), 0)
    candidates.check_same(column, 0, f"{schema.item_id!r}")
    return column


def read_candidates(table: Table, schema: FeatureSchema) -> tuple[Column, Ragged]:
    """Returns the item ids and the layout of the candidate lists.

    Raises:
        RerankingDataError: If a row has no candidates, or a candidate has no id or one that is neither int nor str.
    """
    column = table.column(schema.item_id, 1)
    column.refuse_nulls("an item id")
    layout = Ragged(column.offsets[0])
    if (layout.lengths == 0).any():
        row = int((layout.lengths == 0).argmax()) + column.first_row
        raise RerankingDataError("an empty candidate set", field=schema.item_id, row=row)
    id_type(column)
    return column, layout
