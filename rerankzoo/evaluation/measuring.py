"""The units of an evaluation: batches of requests, whose slates are chosen and measured one by one, wherever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.batch import to_device, trim
from rerankzoo.data.loader import slate_lengths
from rerankzoo.engines import Workers, run_units
from rerankzoo.evaluation.measurements import MeasuredBatch, Measurements
from rerankzoo.evaluation.policies import Policy
from rerankzoo.evaluation.results import Key
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.models.base import RerankingPreTrainedModel
from rerankzoo.slates import cut_slates, with_slate_lengths


@dataclass
class Measurer:
    """Chooses and measures the slates of a batch, of which only its number is told.

    What is found does not depend on the batches before it; so any process may be asked, and any number of them.
    """

    model: RerankingPreTrainedModel
    data: Dataset
    extractor: RerankingFeatureExtractor
    policies: dict[Key, Policy]
    measurements: Measurements
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self._longest = slate_lengths(self.data, self.extractor.schema.slate).max(initial=0)
        self._table = self.data.with_format("arrow")

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.data) // self.batch_size)

    def to(self, device: torch.device) -> Measurer:
        """With all models on a device."""
        for part in self._modules():
            part.to(device)
        return self

    def __call__(self, number: int) -> MeasuredBatch:
        """Measures batch `number`, the first of which is 0."""
        first = number * self.batch_size
        rows = self._table[first : first + self.batch_size]
        batch = {**self.extractor(rows), "request_index": torch.arange(first, first + rows.num_rows)}
        batch = to_device(trim(batch), self.model.device)
        batch = with_slate_lengths(batch, self._longest, self.measurements.slate_size)
        seed, ranks_seed = (
            int(np.random.SeedSequence([one, number]).generate_state(1)[0])
            for one in (self.seed, self.measurements.evaluators.seed)
        )
        with _evaluating(*self._modules()):
            chosen = [policy(batch, seed).cpu() for policy in self.policies.values()]
            slates = cut_slates(torch.stack(chosen, dim=1), batch)
            return self.measurements.measure(batch, slates, first, ranks_seed)

    def _modules(self) -> list[nn.Module]:
        evaluators = self.measurements.evaluators
        others = [ranks.evaluator for ranks in (evaluators.evaluator, evaluators.judge) if ranks is not None]
        return [part for part in (self.model, *others) if isinstance(part, nn.Module)]


def measured_batches(
    measurer: Measurer, workers: Workers | None, work: Path | None, on_progress: Callable[[int], None] | None
) -> Iterator[MeasuredBatch]:
    """What is measured of all batches, in their order.

    Args:
        measurer: Whose batches.
        workers: Who measures; `None`: this process.
        work: Where workers leave what they have measured, each batch in a file; those that are there are not measured
            again.
        on_progress: Called with the number of requests of each batch.

    Raises:
        ValueError: If there are workers and no folder for them.
    """
    if workers is None:
        for part in map(measurer, range(len(measurer))):
            if on_progress is not None:
                on_progress(len(part.slates))
            yield part
        return
    if work is None:
        raise ValueError("workers leave what they measure in a folder: work must be given")
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"{number:06d}.pt" for number in range(len(measurer))]
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    device = torch.device("cuda" if workers.gpus_per_worker else "cpu")
    run_units(partial(_BatchWriter, measurer, device, work.absolute()), missing, workers, on_progress)
    for file in files:
        yield MeasuredBatch(*torch.load(file, weights_only=True))


class _BatchWriter:
    """Writes what a measurer finds."""

    def __init__(self, measurer: Measurer, device: torch.device, work: Path) -> None:
        self.measurer, self.work = measurer.to(device), work

    def __call__(self, number: int) -> int:
        part = self.measurer(number)
        write_atomically(self.work / f"{number:06d}.pt", partial(torch.save, tuple(part)))
        return len(part.slates)


@contextmanager
def _evaluating(*parts: nn.Module) -> Iterator[None]:
    """Switches modules to evaluation (no dropout) and back."""
    training = [part for part in parts if part.training]
    for part in training:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.train()
