"""Evaluating several models on the same data: what `rerankzoo evaluate`, `benchmark` and `quickstart` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from datasets import Dataset

from rerankzoo.evaluation import (
    Decoding,
    Evaluation,
    Evaluators,
    default_decodings,
    evaluate,
    evaluator_quality,
    tune_penalty_alpha,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor

#: Told what is begun and how many requests it takes; returns what is told how many more are done.
Watch = Callable[[str, int], Callable[[int], None]]

_TUNING_SAMPLES = 1_000  # slates of a request where there are too many to list: only the optimum is asked for


class EvaluationRun:
    """Made once for several models, for it remembers the value of all slates of a request.

    Args:
        splits: The data.
        item_id: The column of the candidates' ids.
        metadata: Of the data folder; a simulator's reveals the truth.
        evaluator: Values all slates, and chooses among several.
        judge: An independent evaluator; it has no say on validation.
        split: What to evaluate on.
        watch: Shows progress.
    """

    def __init__(
        self,
        splits: Mapping[str, Dataset],
        item_id: str,
        metadata: Mapping[str, Any] | None,
        evaluator: Any = None,
        judge: Any = None,
        split: str = "test",
        watch: Watch = lambda task, total: lambda done: None,
    ) -> None:
        self.splits, self.item_id, self.metadata = splits, item_id, metadata
        self.evaluator, self.data, self.watch = evaluator, splits[split], watch
        self.evaluators = Evaluators.of(self.data, item_id, metadata, evaluator, judge)

    @cached_property
    def tuning_evaluators(self) -> Evaluators:
        """What values slates of the validation split."""
        evaluators = Evaluators.of(self.splits["validation"], self.item_id, self.metadata, self.evaluator)
        if evaluators.truth is not None:
            evaluators.truth.num_samples = _TUNING_SAMPLES
        return evaluators

    def evaluate(
        self,
        name: str,
        model: Any,
        extractor: RerankingFeatureExtractor,
        seed: int,
        decodings: Sequence[Decoding] | None = None,
        tuning_requests: int | None = None,
        num_requests: int | None = None,
        hr_requests: int = 200,
    ) -> Evaluation:
        """Evaluates a model as `rerankzoo.evaluation.evaluate` does.

        Without decodings these are the usual ones, with alpha of contrastive decoding tuned on so many requests of the
        validation split.
        """
        notes: dict[str, Any] = {}
        alpha = None
        if decodings is None and "contrastive" in model.strategies:
            data = self.splits["validation"]
            alpha, notes["penalty_alpha"] = tune_penalty_alpha(
                model,
                data,
                extractor,
                self.metadata,
                evaluators=self.tuning_evaluators,
                num_requests=tuning_requests,
                on_progress=self.watch(f"tuning alpha of {name}", min(tuning_requests or len(data), len(data))),
            )
        if decodings is None:
            decodings = default_decodings(self.evaluator is not None, alpha, model.strategies)
        evaluation = evaluate(
            model,
            self.data,
            extractor,
            self.metadata,
            name=name,
            decodings=decodings,
            evaluators=self.evaluators,
            seed=seed,
            num_requests=num_requests,
            hr_requests=hr_requests,
            on_progress=self.watch(f"evaluating {name}", min(num_requests or len(self.data), len(self.data))),
        )
        return evaluation.with_protocol(**notes)

    def quality(self, extractor: RerankingFeatureExtractor, slate_size: int) -> dict[str, float]:
        """The evaluator's own quality on the split, as far as it can be known."""
        if self.evaluator is None:
            return {}
        return evaluator_quality(self.evaluator, self.data, extractor, self.metadata, slate_size=slate_size)
