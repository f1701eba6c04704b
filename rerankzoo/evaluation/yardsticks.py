"""Yardsticks from outside: what a practitioner would take instead of a model of ours (extra `yardsticks`).

B requests, N candidates, S lists of K items, F features.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import PADDING, Batch, gather_candidates
from rerankzoo.data.loader import spaced_batches
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.utility import candidate_utility
from rerankzoo.models.score_and_sort import labelled_candidates

#: Requests that a yardstick learns from, evenly spaced in a larger log.
MAX_REQUESTS = 100_000
_BATCH = 256
#: Settings of LightGBM's own ranking example, with early stopping instead of its number of rounds.
_PARAMETERS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "learning_rate": 0.1,
    "num_leaves": 31,
    "min_data_in_leaf": 50,
    "min_sum_hessian_in_leaf": 5.0,
    "deterministic": True,
    "verbose": -1,
}
_MOST_ROUNDS, _PATIENCE = 500, 50


@dataclass(frozen=True)
class LambdaMART:
    """Gradient-boosted trees that learn to order lists, LightGBM's `lambdarank`, of the features that models read.

    These are the encoded fields of candidate and request side by side, ids as categories; a user's history is none of
    them. It learns the order by utility of what a log has shown or, without slates, of labelled candidates; a utility
    below 0 counts as 0.

    References:
        Burges, From RankNet to LambdaRank to LambdaMART: An Overview (2010); Ke et al., LightGBM (NIPS 2017).
    """

    booster: Any  # lightgbm.Booster

    @classmethod
    def fit(
        cls, train: Dataset, validation: Dataset, extractor: RerankingFeatureExtractor, k: int, seed: int = 0
    ) -> LambdaMART:
        """Fits trees to one table, as many as NDCG@k on another one asks for.

        Raises:
            ImportError: If LightGBM is not installed.
            RerankingDataError: If a table has neither slates with feedback nor labels of candidates.
        """
        try:
            import lightgbm
        except ImportError as error:
            raise ImportError("LambdaMART is LightGBM's: pip install 'rerankzoo[yardsticks]'") from error
        (x, y, sizes), held_out = (
            _lists(spaced_batches(table, extractor, _BATCH, MAX_REQUESTS), extractor.schema)
            for table in (train, validation)
        )
        gains = np.unique(np.concatenate([[0.0], y, held_out[1]]))  # LightGBM's labels are numbers of gains
        schema = extractor.schema
        numeric = schema.numeric_size("candidate") + schema.numeric_size("request")
        options = {"categorical_feature": list(range(numeric, x.shape[1])), "params": {"verbose": -1}}
        data = lightgbm.Dataset(x, np.searchsorted(gains, y), group=sizes, **options)
        check = lightgbm.Dataset(held_out[0], np.searchsorted(gains, held_out[1]), group=held_out[2], reference=data)
        parameters = {**_PARAMETERS, "eval_at": [k], "label_gain": gains.tolist(), "seed": seed}
        parameters["num_threads"] = torch.get_num_threads()
        stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
        return cls(lightgbm.train(parameters, data, _MOST_ROUNDS, valid_sets=[check], callbacks=[stop]))

    def scores(self, batch: Batch) -> Tensor:
        """(B, N); those of padding mean nothing."""
        features = _features(batch)
        predicted = self.booster.predict(features.flatten(0, 1).cpu().numpy())
        return torch.from_numpy(predicted).view(features.shape[:2]).to(batch["candidate_mask"].device)


def _features(batch: Batch) -> Tensor:
    """(B, N, F): numbers, then ids."""
    size = batch["candidate_mask"].shape[1]
    kinds = [
        (batch[f"candidate_{kind}"], batch[f"request_{kind}"].unsqueeze(1).expand(-1, size, -1))
        for kind in ("numeric", "categorical")
    ]
    return torch.cat([part.float() for kind in kinds for part in kind], dim=-1)


def _lists(batches: Iterable[Batch], schema: FeatureSchema) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (items, F), utility (items) and the lengths of lists of items whose feedback is known."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in batches:
        if "feedback" in batch:
            items, feedback = batch["slates"], batch["feedback"]
        elif "candidate_feedback" in batch:
            items, feedback = labelled_candidates(batch)
        else:
            raise RerankingDataError("not found: without feedback there is nothing to learn", field=schema.slate)
        utility = candidate_utility(feedback, gather_candidates(batch["candidate_value"], items), schema)
        real = items != PADDING
        lengths = real.sum(-1).flatten()
        parts.append((gather_candidates(_features(batch), items)[real], utility[real], lengths[lengths > 0]))
    features, utilities, sizes = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return features, np.maximum(utilities, 0), sizes
