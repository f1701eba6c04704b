"""How good an evaluator is: against held-out feedback and, on the simulator, against the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torchmetrics.functional import spearman_corrcoef

from rerankzoo.batch import to_device
from rerankzoo.data.loader import RequestLoader, shows_parts
from rerankzoo.evaluation.evidence import MIN_OBSERVED, count_positives
from rerankzoo.evaluation.slate_ranks import Evaluators
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import Evaluator
from rerankzoo.slates import uniform_slates

#: So many first requests of a split tell an evaluator's quality.
QUALITY_REQUESTS = 300
_BATCH = 64


def evaluator_quality(
    evaluator: Evaluator,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    metadata: Mapping[str, Any] | None = None,
    *,
    slate_size: int,
    num_requests: int = QUALITY_REQUESTS,
    num_slates: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """Measures an evaluator, on its own device, on held-out requests.

    Of `data` the first `num_requests` are used; a simulator's `metadata` reveals the truth.

    Returns:
        With logged slates and enough positive feedback `calibration`, the mean predicted over the mean observed utility
        (1 is perfect); with the truth `spearman`, the mean over requests of the rank correlation of predicted and true
        utility over `num_slates` random slates of `slate_size`: it orders evaluators as the quality of their best
        slates does, which the AUC of clicks does not.
    """
    data = data.select(range(min(num_requests, len(data))))
    schema = extractor.schema
    evaluators = Evaluators.of(data, schema.item_id, metadata, evaluator)
    ranks, truth = evaluators.by_prefix()[""], evaluators.truth
    has_feedback = {schema.slate, *(target.name for target in schema.targets)} <= set(data.column_names)
    has_feedback = has_feedback and not shows_parts(data, schema.slate)  # of whose neighbours nobody knows
    generator = torch.Generator().manual_seed(seed)
    predicted, observed, correlations = [], [], []
    for batch in RequestLoader(data, extractor, _BATCH) if has_feedback or truth is not None else ():
        on_device = to_device(batch, device_of(evaluator))
        if has_feedback:
            slates, feedback = batch["slates"], batch["feedback"]
            predicted.append(ranks.values(on_device, slates))
            observed.append(slate_utility(feedback, slates, batch["candidate_value"], schema).double())
        if truth is not None:
            slates = uniform_slates(batch["candidate_mask"], slate_size, num_slates, generator)
            values, true = ranks.values(on_device, slates), truth.values(batch, slates)
            correlations.append(spearman_corrcoef(values.T.contiguous(), true.T.contiguous()).reshape(-1))
    measured = {}
    if predicted and (count_positives(data, schema) or 0) >= MIN_OBSERVED and torch.cat(observed).mean() > 0:
        measured["calibration"] = float(torch.cat(predicted).mean() / torch.cat(observed).mean())
    if correlations:
        measured["spearman"] = float(torch.cat(correlations).mean())
    return measured


def device_of(evaluator: object) -> torch.device:
    """Where a module's weights are; the CPU for what has none."""
    weights = evaluator.parameters() if isinstance(evaluator, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))
