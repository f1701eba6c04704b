"""The log that is diagnosed: its parts as tensors, encoded once, and what can be counted in it.

B requests, S slates per request, M positions, N candidates, T targets, P (request, slate) pairs that are real.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import Batch, take
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE
from rerankzoo.data.loader import shows_parts
from rerankzoo.errors import RerankingDataError
from rerankzoo.evaluation import count_positives
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema

#: Of a log with fewer candidates for validation a share of the training requests is taken.
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Log:
    """A log as a diagnosis reads it."""

    schema: FeatureSchema
    extractor: RerankingFeatureExtractor
    halves: tuple[Batch, Batch]  # two random halves of the training requests: what one teaches, the other tests
    validation: Batch  # tells when to stop fitting
    test: Batch  # requests for which slates are chosen
    test_data: Dataset  # the same as a table
    counts: Mapping[str, Mapping[str, int]]  # requests and positives by split, of the whole log
    used: int  # training requests in `halves`

    @classmethod
    def read(
        cls,
        folder: Path,
        *,
        max_requests: int = 40_000,
        num_chosen: int = 500,
        seed: int = 0,
        extractor: RerankingFeatureExtractor | None = None,
    ) -> Log:
        """Reads a data folder.

        Args:
            folder: With the splits train and, where there are some, validation and test.
            max_requests: Of more training requests, so many are drawn.
            num_chosen: Requests of the test split that slates are chosen for.
            seed: Of the drawing.
            extractor: A fitted one; default: one is fitted to the train split.

        Raises:
            FileNotFoundError: If there is no train split.
            RerankingDataError: If it has no slates with feedback, or too few to be halved.
        """
        splits = open_splits(folder)
        if "train" not in splits:
            raise FileNotFoundError(f"{folder} has no train*.parquet; it has {sorted(splits)}")
        schema = FeatureSchema.from_yaml(folder / SCHEMA_FILE)
        for name in (schema.slate, *(target.name for target in schema.targets)):
            if name not in splits["train"].column_names:
                raise RerankingDataError("not found: a log without slates and feedback says nothing", field=name)
        if shows_parts(splits["train"], schema.slate):
            message = "expected whole slates, got parts of pages: of their neighbours nobody knows"
            raise RerankingDataError(message, field=schema.slate)
        train, rng = splits["train"], np.random.default_rng(seed)
        order = rng.permutation(len(train))[:max_requests]
        validation, test = splits.get("validation"), splits.get("test", splits.get("validation"))
        if validation is None:
            cut = int(_VALIDATION_SHARE * len(order))
            validation, order = train.select(np.sort(order[:cut])), order[cut:]
        test = validation if test is None else test
        if min(len(order) // 2, len(validation), len(test)) < 1:
            raise RerankingDataError(f"expected requests to learn from and to test, got {len(train)}", field="train")
        extractor = extractor or RerankingFeatureExtractor(schema).fit(train)
        test, validation = (
            part.select(range(min(most, len(part)))) for part, most in ((test, num_chosen), (validation, 4_000))
        )
        tables = (*(train.select(np.sort(part)) for part in np.array_split(order, 2)), validation, test)
        first, second, *others = (extractor(table.with_format("arrow")[:]) for table in tables)
        counts = {name: _counts(data, schema) for name, data in splits.items()}
        return cls(extractor.schema, extractor, (first, second), others[0], others[1], test, counts, len(order))

    @property
    def longest(self) -> int:
        """The most positions of any slate that is read."""
        parts = (*self.halves, self.validation, self.test)
        return max(part["slates"].shape[-1] for part in parts if "slates" in part)

    @property
    def slate_size(self) -> int:
        """M, the commonest length of logged slates: of others the log says little."""
        lengths = torch.cat([(half["slates"] >= 0).sum(-1).flatten() for half in self.halves])
        return int(lengths[lengths > 0].mode().values)


def _counts(data: Dataset, schema: FeatureSchema) -> dict[str, int]:
    return {"requests": len(data), "positives": count_positives(data, schema) or 0}


def rows(batch: Batch) -> int:
    """B of a batch."""
    return len(batch["candidate_mask"])


def chunks(batch: Batch, size: int) -> list[Batch]:
    """A batch in pieces of at most so many requests."""
    return [take(batch, slice(start, start + size)) for start in range(0, rows(batch), size)]


def shown_positions(batch: Batch) -> int:
    """Positions of logged slates that hold an item."""
    return int((batch["slates"] >= 0).sum())


def positives(batch: Batch) -> Tensor:
    """(T,), how often each target happened."""
    return ((batch["feedback"] > 0) & (batch["slates"] >= 0).unsqueeze(-1)).sum((0, 1, 2))


def base_rates(batch: Batch) -> Tensor:
    """(M, T), share of positives at each position of the logged slates; 0 where nothing was shown."""
    shown = (batch["slates"] >= 0).unsqueeze(-1).double()
    positive = (batch["feedback"] > 0).double() * shown
    return positive.sum((0, 1)) / shown.sum((0, 1)).clamp_min(1)
