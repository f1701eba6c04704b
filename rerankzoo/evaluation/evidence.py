"""How much feedback a table of requests holds: whether figures that rest on it can say anything."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from datasets import Dataset

from rerankzoo.features.schema import FeatureSchema

#: With fewer positives to learn from, the base rate itself is known to no better than a fifth (95 %).
MIN_POSITIVES = 100
#: Fewer observed ones tell a mean to no better than two fifths.
MIN_OBSERVED = 20


def count_positives(data: Dataset, schema: FeatureSchema) -> int | None:
    """How many entries of the feedback that counts are positive; `None` where the table has no feedback."""
    targets = [target.name for target in schema.targets if target.weight]
    known = [name for name in targets if name in data.column_names]
    if not known:
        return None
    table = data.select_columns(known).with_format("arrow")[:]
    return sum(int(np.count_nonzero(_leaves(table[name]) > 0)) for name in known)


def _leaves(column: pa.ChunkedArray) -> np.ndarray:
    """The numbers in a column of lists, whatever their depth."""
    values = column.combine_chunks()
    while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
        values = values.flatten()
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False)
    return numbers
