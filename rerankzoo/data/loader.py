"""From a table of requests to padded batches, fast: Arrow slices in, tensors out, no Python loop over rows.

B requests of a batch, N candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import Batch, entry_of, take, trim
from rerankzoo.features.arrow_tables import has_missing
from rerankzoo.features.encoding import UNKNOWN_ID
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import SLATE_WEIGHTS
from rerankzoo.features.utility import slate_utility

#: Batches that are read, encoded and shuffled together. More shuffles better and takes more memory.
BUFFER_BATCHES = 32
#: Logged requests whose utilities are looked at, and those whose feedback is counted.
MAX_UTILITY_ROWS = 1_000_000
MAX_COUNTED_ROWS = 50_000
#: Requests whose candidates are compared, and when a field's values count as the same.
MAX_COMPARED_ROWS = 2_000
_AGREEMENT, _ROUNDING = 0.95, 1e-3


@dataclass(eq=False, repr=False)
class RequestLoader:
    """Batches of a table of requests, for training or evaluation, in one process or many.

    The table is read in contiguous blocks of one global batch (`batch_size` x `world_size` rows), which costs a
    fraction of picking random rows. Shuffling draws the order of the blocks anew each epoch, puts `BUFFER_BATCHES` of
    them together and permutes their rows. The order depends on seed and epoch alone: with W processes, each takes every
    W-th row of the very batch that one process would have seen. All have equally many batches. Where rows do not
    suffice, the last batches differ by a row; a process that gets none has a blank request (see `blank_request`).

    Args:
        dataset: A `datasets.Dataset`, one row per request, in the layout of the extractor's schema.
        extractor: The fitted extractor.
        batch_size: Requests per batch and process.
        shuffle: Whether to shuffle.
        seed: Of the shuffling.
        rank: Number of this process.
        world_size: Number of processes, W.

    Raises:
        ValueError: If the batch size is not positive, or the table is too small to give every process a row.
    """

    dataset: Dataset
    extractor: RerankingFeatureExtractor
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if len(self.dataset) < self.world_size:
            raise ValueError(f"a table of {len(self.dataset)} rows cannot be shared by {self.world_size} processes")
        self.dataset = self.dataset.with_format("arrow")
        self.epoch = 0
        self._position = 0  # batches of the pass so far
        self._resumed: dict[str, int] = {}
        self.batch_sampler = SimpleNamespace(sampler=self)  # where Lightning looks for `set_epoch`

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the next pass."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of one pass, the same in all processes."""
        return -(-len(self.dataset) // (self.batch_size * self.world_size))

    def labels(self) -> frozenset[str]:
        """What the table tells models to learn.

        `"slates"`; or `"parts"`, where it is not known what stood at some positions, or all slates have but one; and
        `"candidates"`, where candidates have labels, whether they were shown or not.
        """
        schema, names = self.extractor.schema, set(self.dataset.column_names)
        found = set()
        if schema.slate in names:
            is_open = shows_parts(self.dataset, schema.slate) or self.slate_lengths().max(initial=0) == 1
            found.add("parts" if is_open else "slates")
        declared = {target.candidate_feedback for target in schema.targets if target.candidate_feedback}
        if declared and declared <= names:
            found.add("candidates")
        return frozenset(found)

    def slate_lengths(self) -> np.ndarray:
        """How many positions each slate of the table has (see `slate_lengths`)."""
        return slate_lengths(self.dataset, self.extractor.schema.slate)

    def utility_quantile(self, quantile: float) -> float | None:
        """A quantile of the utility of the logged slates (see `logged_utilities`); `None` of mined ones."""
        if SLATE_WEIGHTS in self.dataset.column_names:
            return None
        return float(np.quantile(logged_utilities(self.dataset, self.extractor, self.batch_size), quantile))

    def feedback_rates(self) -> list[float] | None:
        """How often each target happens (see `logged_rates`); `None` of mined slates and of a table without labels."""
        if not self.labels():
            return None
        if SLATE_WEIGHTS in self.dataset.column_names:
            return None
        return logged_rates(self.dataset, self.extractor, self.batch_size)

    def num_positions(self) -> int:
        """How many positions the log shows, by the slates of the rows that are looked at."""
        looked = spaced_batches(self.dataset, self.extractor, self.batch_size, MAX_COUNTED_ROWS)
        shown = [(batch["slates"] >= 0).sum().item() / len(batch["slates"]) for batch in looked]
        return round(len(self.dataset) * float(np.mean(shown)))

    def item_fields(self) -> list[str]:
        """The fields of candidates that belong to the item and not to the request (see `constant_fields`)."""
        return constant_fields(self.dataset, self.extractor, self.batch_size)

    def state_dict(self) -> dict[str, int]:
        """The pass and the position in it."""
        return {"epoch": self.epoch, "batches": self._position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Lets the next pass, if it is the same epoch's, begin after its batches so far, which are not read."""
        self._resumed = dict(state_dict)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        rng, rows = np.random.default_rng([self.seed, self.epoch]), len(self.dataset)
        block = self.batch_size * self.world_size
        starts = np.arange(0, rows, block)
        if self.shuffle:
            rng.shuffle(starts)
        skipped = self._resumed["batches"] if self._resumed.get("epoch") == self.epoch else 0
        self._resumed, self._position = {}, 0
        for first in range(0, len(starts), BUFFER_BATCHES):
            slices = [(start, min(start + block, rows)) for start in starts[first : first + BUFFER_BATCHES].tolist()]
            index = np.concatenate([np.arange(*bounds) for bounds in slices])
            order = rng.permutation(len(index)) if self.shuffle else np.arange(len(index))
            shares = [batch[self.rank :: self.world_size] for batch in np.split(order, range(block, len(order), block))]
            # Where this process has none of the last rows, it reads one of the others', to be made blank.
            own = np.concatenate([share if len(share) else order[-1:] for share in shares])
            buffer: Batch = {}
            for place, share in enumerate(shares):
                self._position += 1
                if self._position <= skipped:
                    continue
                if not buffer:
                    buffer = self._encode(slices, index, own if self.world_size > 1 else None)
                first_row = place * self.batch_size
                chosen = np.arange(first_row, first_row + max(1, len(share))) if self.world_size > 1 else share
                batch = trim(take(buffer, torch.from_numpy(chosen)))
                yield batch if len(share) else blank_request(batch)

    def _encode(self, slices: Sequence[tuple[int, int]], index: np.ndarray, own: np.ndarray | None) -> Batch:
        """The rows of some slices, or only the `own` ones among them, in their order."""
        table = pa.concat_tables([self.dataset[start:stop] for start, stop in slices])
        batch = self.extractor(table if own is None else table.take(own))
        batch["request_index"] = torch.from_numpy(index if own is None else index[own])
        return batch


def blank_request(batch: Batch) -> dict[str, Tensor]:
    """The batch with requests that have no candidates and slates, for a process that is left without rows.

    All processes must take part in every step: one that stays away leaves the others waiting. A blank request holds
    what padding holds everywhere, and so has the loss 0, which counts for nothing, and -1 as `request_index`.
    """
    return {name: torch.full_like(tensor, entry_of(name).fill) for name, tensor in batch.items()}


def shows_parts(dataset: Dataset, slate: str) -> bool:
    """Whether it is not known what stood at some position of a table's slates; not so where it has none."""
    if slate not in dataset.column_names:
        return False
    return has_missing(dataset.select_columns([slate]).with_format("arrow")[:][slate])


def slate_lengths(dataset: Dataset, slate: str) -> np.ndarray:
    """How many positions each slate of a table has, by its column of slates; empty where it has none."""
    if slate not in dataset.column_names:
        return np.empty(0, dtype=np.int64)
    column = dataset.select_columns([slate]).with_format("arrow")[:][slate]
    nested = pa.types.is_nested(column.type.value_type)
    lengths = pc.list_value_length(pc.list_flatten(column) if nested else column)
    return pc.fill_null(lengths, 0).to_numpy().astype(np.int64)


def logged_utilities(dataset: Dataset, extractor: RerankingFeatureExtractor, batch_size: int = 512) -> np.ndarray:
    """Utility (rows, S) of the logged slates of a table.

    Of a table with more than `MAX_UTILITY_ROWS` rows only so many are looked at, in evenly spaced blocks, so that
    neither memory nor time grows beyond. A million values tell the rank of a quantile to a thousandth.

    Args:
        dataset: A log with feedback.
        extractor: The fitted extractor.
        batch_size: Requests that are encoded together.
    """
    utilities = [
        slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], extractor.schema)
        for batch in spaced_batches(dataset, extractor, batch_size, MAX_UTILITY_ROWS)
    ]
    return torch.cat(utilities).numpy()


def logged_rates(dataset: Dataset, extractor: RerankingFeatureExtractor, batch_size: int = 512) -> list[float]:
    """Mean feedback of each target (T) at the positions that a log shows, or of its labelled candidates, in (0, 1).

    It is the mean of what was counted and half an event in one more position: what never happened is rare, and not
    impossible. Of a table with more than `MAX_COUNTED_ROWS` rows only so many are looked at, in evenly spaced blocks.

    Args:
        dataset: A log with feedback, or labels of candidates, in [0, 1].
        extractor: The fitted extractor.
        batch_size: Requests that are encoded together.
    """
    happened, counted = torch.full((len(extractor.schema.targets),), 0.5, dtype=torch.double), 1
    for batch in spaced_batches(dataset, extractor, batch_size, MAX_COUNTED_ROWS):
        shown = "slates" in batch
        real = batch["slates"] >= 0 if shown else batch["candidate_feedback_mask"]
        happened += batch["feedback" if shown else "candidate_feedback"][real].double().sum(0)
        counted += int(real.sum())
    return (happened / counted).tolist()


def constant_fields(dataset: Dataset, extractor: RerankingFeatureExtractor, batch_size: int = 512) -> list[str]:
    """The fields of candidates, but the item id, that are the same wherever an item is a candidate.

    A field is one if nineteen in twenty of an item's occurrences agree with its first one; where no item occurs twice,
    all are but the upstream score. Of a table with more than `MAX_COMPARED_ROWS` rows only so many are looked at.

    Args:
        dataset: A log.
        extractor: The fitted extractor.
        batch_size: Requests that are encoded together.
    """
    schema, parts = extractor.schema, []
    for batch in spaced_batches(dataset, extractor, batch_size, MAX_COMPARED_ROWS):
        real = batch["candidate_mask"]
        parts.append((batch["candidate_categorical"][real].double(), batch["candidate_numeric"][real].double()))
    categorical, numeric = (torch.cat(part) for part in zip(*parts, strict=True))
    columns = {field.name: categorical[:, [i]] for i, field in enumerate(schema.select("candidate", "categorical"))}
    for field in schema.numeric_fields("candidate"):
        start = schema.position(field.name)
        columns[field.name] = numeric[:, start : start + field.size]
    ids = columns.pop(schema.item_id, None)
    columns.pop(schema.upstream_score or "", None)
    if ids is None:
        return list(columns)
    known = ids[:, 0] > UNKNOWN_ID
    order = ids[known, 0].argsort(stable=True)
    sorted_ids = ids[known, 0][order]
    first = torch.searchsorted(sorted_ids, sorted_ids)
    again = first != torch.arange(len(first))
    if not again.any():
        return list(columns)
    found = []
    for name, values in columns.items():
        values = values[known][order]
        scale = values.std(0, correction=0)
        agree = ((values - values[first]).abs() <= _ROUNDING * scale).all(-1)
        if agree[again].double().mean() >= _AGREEMENT:
            found.append(name)
    return found


def spaced_batches(
    dataset: Dataset, extractor: RerankingFeatureExtractor, batch_size: int, most: int
) -> Iterator[Batch]:
    """Encoded batches of a table, in its order; where it has more than `most` rows, evenly spaced ones of so many."""
    table, rows = dataset.with_format("arrow"), len(dataset)
    starts = np.arange(0, rows, batch_size)
    if rows > most:
        blocks = max(1, most // batch_size)
        starts = np.arange(blocks) * rows // blocks
    for start in starts.tolist():
        yield extractor(table[start : start + batch_size])
