"""How much feedback a table of requests holds: whether figures that rest on it can say anything."""

from __future__ import annotations

import pyarrow.compute as pc
from datasets import Dataset

from rerankzoo.features.schema import FeatureSchema

#: With fewer positives to learn from, the base rate is known to no better than a tenth (95 %), and standard errors
#: are guesses: nothing is fitted to find out what slates earn, and there are words and no figure.
MIN_POSITIVES = 500
#: Fewer observed ones tell a mean to no better than two fifths.
MIN_OBSERVED = 20


def count_positives(data: Dataset, schema: FeatureSchema) -> int | None:
    """How many entries of the feedback that counts are positive; `None` where the table has no feedback."""
    targets = [target.name for target in schema.targets if target.weight]
    known = [name for name in targets if name in data.column_names]
    if not known:
        return None
    table = data.select_columns(known).with_format("arrow")[:]
    leaves = (pc.list_flatten(table[name], recursive=True) for name in known)
    return sum(pc.sum(pc.greater(numbers, 0)).as_py() or 0 for numbers in leaves)
