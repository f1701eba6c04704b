"""How good an evaluator is: against held-out feedback and, on the simulator, against the truth.

R requests, S slates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torchmetrics.functional import spearman_corrcoef

from rerankzoo.batch import inputs
from rerankzoo.data.loader import RequestLoader
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation.judges import EvaluatorJudge, SimulatorJudge
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import Evaluator
from rerankzoo.metrics import uniform_slates

_BATCH = 64


def evaluator_quality(
    evaluator: Evaluator,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    metadata: Mapping[str, Any] | None = None,
    *,
    slate_size: int,
    num_requests: int = 300,
    num_slates: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """Measures an evaluator on held-out requests.

    Args:
        evaluator: Values whole slates.
        data: Held-out requests.
        extractor: The evaluator's.
        metadata: Of the data folder; a simulator's reveals the truth.
        slate_size: M, of the slates that evaluator and truth are compared on.
        num_requests: Use this many first requests.
        num_slates: S, random slates per request for the comparison with the truth.
        seed: Of these slates.

    Returns:
        With logged slates and their feedback `calibration`, the mean predicted over the mean observed utility (1 is
        perfect); with the truth `spearman`, the mean over requests of the rank correlation of predicted and true
        utility over random slates: it orders evaluators as the quality of their best slates does, which the AUC of
        clicks does not.
    """
    data = data.select(range(min(num_requests, len(data))))
    measured = {}
    if {extractor.schema.slate, *(target.name for target in extractor.schema.targets)} <= set(data.column_names):
        measured["calibration"] = _calibration(evaluator, data, extractor)
    if metadata is not None and metadata.get("source") == "simulator":
        truth = SimulatorJudge(Simulator.from_metadata(metadata), data, extractor.schema.item_id)
        measured["spearman"] = _spearman(
            EvaluatorJudge(evaluator), truth, data, extractor, slate_size, num_slates, seed
        )
    return measured


def _calibration(evaluator: Evaluator, data: Dataset, extractor: RerankingFeatureExtractor) -> float:
    predicted, observed = [], []
    for batch in RequestLoader(data, extractor, _BATCH):
        with torch.no_grad():
            predicted.append(evaluator.score_slates(batch["slates"], **inputs(batch)).double())
        observed.append(
            slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], extractor.schema).double()
        )
    return float(torch.cat(predicted).mean() / torch.cat(observed).mean().clamp_min(1e-12))


def _spearman(
    evaluator: EvaluatorJudge,
    truth: SimulatorJudge,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    slate_size: int,
    num_slates: int,
    seed: int,
) -> float:
    generator = torch.Generator().manual_seed(seed)
    correlations = []
    for batch in RequestLoader(data, extractor, _BATCH):
        slates = uniform_slates(batch["candidate_mask"], slate_size, num_slates, generator)
        predicted, true = evaluator.values(batch, slates), truth.values(batch, slates)
        correlations.append(spearman_corrcoef(predicted.T.contiguous(), true.T.contiguous()).reshape(-1))
    return float(torch.cat(correlations).mean())
