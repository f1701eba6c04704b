"""How models are compared: on the same requests, beside the same baselines, by the same evaluators.

What is measured depends on what is known of the data; docs/evaluation.md defines every metric. All are fractions, but
`value`, which is in units of utility.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from torch import nn

from rerankzoo.engines import Workers
from rerankzoo.evaluation.evaluator_quality import device_of
from rerankzoo.evaluation.logged import LoggedTable
from rerankzoo.evaluation.measurements import Catalogue, Measurements
from rerankzoo.evaluation.measuring import Measurer, measured_batches
from rerankzoo.evaluation.policies import Decoding, baselines, decoder
from rerankzoo.evaluation.results import LAMBDAMART, Evaluation, Row
from rerankzoo.evaluation.slate_ranks import Evaluators, SlateRanks
from rerankzoo.evaluation.yardsticks import LambdaMART
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import Evaluator, SchemaBound
from rerankzoo.generation.diverse import diversity_fields
from rerankzoo.models.base import RerankingPreTrainedModel

#: Candidates x positions of the requests that are decoded together.
_CELLS = 2**20

PENALTY_ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""The grid of `tune_penalty_alpha`; 0 is greedy decoding."""


def evaluate(
    model: RerankingPreTrainedModel,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    metadata: Mapping[str, Any] | None = None,
    *,
    name: str,
    decodings: Sequence[Decoding],
    evaluator: Evaluator | None = None,
    judge: Evaluator | None = None,
    evaluators: Evaluators | None = None,
    seed: int = 0,
    num_requests: int | None = None,
    batch_size: int = 256,
    hr_requests: int = 200,
    cuts: Sequence[int] = (),
    counterfactual: bool = False,
    yardstick: LambdaMART | None = None,
    workers: Workers | None = None,
    work: Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a model's slates under several decodings, and the baselines (see `baselines`), on one split.

    The same arguments give the same figures; sampling does not touch torch's global random state.

    Args:
        model: Batches go to its device.
        data: Requests to evaluate on, usually the test split.
        extractor: The model's.
        metadata: Of the data folder (`dataset.json`); a simulator's reveals the truth.
        name: Of the model, in the table.
        decodings: With distinct names.
        evaluator: Values every row's slates and chooses where a decoding says so; an ensemble may be one.
        judge: Values every row's slates too, but chooses and taught nothing: an evaluator trained on another log.
        evaluators: Instead of evaluator and judge, of `Evaluators.of` with the same data; given again for the next
            model, they do not value all slates of a request again.
        seed: Of this run: random slates, sampling and, unless `evaluators` are given, sampled ranks depend on it.
        num_requests: Only this many first requests.
        batch_size: Requests at a time, fewer where candidates and positions are many; which slates are sampled depends
            on it.
        hr_requests: HR@p% by the evaluator looks at this many first requests, for it values all slates of each (5040
            for 4 of 10 candidates); 0 leaves it out. HR@p% by the truth always looks at all.
        cuts: The k of the ranking metrics by labels; the largest one's NDCG is the primary metric. Beyond the model's
            slate size all rows have slates of the largest one. Default: the slate size.
        counterfactual: Whether to ask the log about every row (see `rerankzoo.evaluation.logged`); about 16 ms of CPU a
            request for 4 of 10 candidates.
        yardstick: One more baseline, fitted to other splits of the same data by the model's extractor.
        workers: Who measures the batches, such as those of a Ray cluster; default: this process. What comes out is the
            same.
        work: Where workers leave what they have measured of the batches; a run that was stopped goes on with those that
            are missing if it is given the same folder and otherwise the same arguments.
        on_progress: Called with the number of requests after each batch.

    Raises:
        ValueError: If there are no requests, decodings repeat a name, are unknown to the model or need an evaluator
            that is not given; a number is out of its range; or one of the parts is on another device than the model.
        SchemaMismatchError: If model, evaluator and extractor were not made for the same schema.
    """
    if num_requests is not None and num_requests < 1:
        raise ValueError(f"num_requests must be at least 1, got {num_requests}")
    if hr_requests < 0:
        raise ValueError(f"hr_requests must not be negative, got {hr_requests}")
    if not len(data):
        raise ValueError("there are no requests to evaluate on")
    data = data.select(range(min(num_requests or len(data), len(data))))
    schema = extractor.schema
    if evaluators is None:
        evaluators = Evaluators.of(data, schema.item_id, metadata, evaluator, judge, seed=seed)
    elif (evaluator, judge) != (None, None):
        raise ValueError("expected evaluators, or evaluator and judge, got both")
    chooser = evaluators.evaluator.evaluator if evaluators.evaluator else None
    parts = {"model": model, "evaluator": chooser, "judge": evaluators.judge and evaluators.judge.evaluator}
    for part_name, part in parts.items():
        if isinstance(part, SchemaBound):
            part.check_schema(schema)
        if isinstance(part, nn.Module) and device_of(part) != model.device:
            raise ValueError(
                f"the {part_name} is on {device_of(part)}, the model on {model.device}; move one to the other"
            )
    _check_decodings(decodings, model, chooser)
    cuts = tuple(sorted(set(cuts)))
    if cuts and cuts[0] < 1:
        raise ValueError(f"k must be at least 1, got {list(cuts)}")
    size = max([model.generation_config.slate_size or model.config.slate_size, *cuts])
    for part_name, part in parts.items():
        most = getattr(part, "num_positions", None)
        if most is not None and most < size:
            raise ValueError(f"slates of {size} are compared (k: {list(cuts)}), the {part_name} has {most} positions")
    measurements = Measurements(schema, size, Catalogue.of(data, schema.item_id), evaluators, hr_requests, cuts)
    policies = baselines(data, schema, size, evaluators.truth, yardstick)
    policies.update({(name, decoding.name): decoder(model, decoding, size, chooser) for decoding in decodings})
    most = size * int(np.diff(measurements.catalogue.offsets).max())  # else 16 beams would need gigabytes
    batch_size = min(batch_size, max(1, _CELLS // most))
    log = LoggedTable(schema)
    measurer = Measurer(model, data, extractor, policies, measurements, batch_size, seed)
    for found in measured_batches(measurer, workers, work, on_progress):
        measurements.add(found)
        if counterfactual:
            log.add(found.logged)
    measured = zip(policies, measurements.rows(), measurements.digests(), strict=True)
    rows = [Row(key[0], key[1], seed, values, digest) for key, values, digest in measured]
    protocol = _protocol(measurements, metadata, decodings, batch_size)
    if yardstick is not None:
        trees = yardstick.booster.current_iteration()
        protocol["baselines"][LAMBDAMART[0]] = f"LightGBM's, {trees} trees, on the features that the model reads"
    primary = measurements.primary()
    per_request = dict(zip(policies, measurements.per_request(primary).unbind(1), strict=True)) if primary else {}
    by_row = dict(zip(policies, measurements.slates().unbind(1), strict=True))
    estimates, logged = log.rows(data, by_row) if counterfactual else ({}, "")
    return Evaluation(rows, protocol, primary, per_request, measurements.catalogue.digest, estimates, logged)


def tune_penalty_alpha(
    model: RerankingPreTrainedModel,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    metadata: Mapping[str, Any] | None = None,
    *,
    alphas: Sequence[float] = PENALTY_ALPHAS,
    **options: Any,
) -> tuple[float, dict[str, Any]]:
    """Chooses the penalty of contrastive decoding by the primary metric, on the validation split.

    Of equally good values of the grid `alphas` the smallest wins. The other arguments are those of `evaluate`; an
    evaluator is needed only where nothing else tells slates apart (else a ValueError).

    Returns:
        The chosen alpha, and a JSON-able record of the choice for the protocol.
    """
    if not alphas:
        raise ValueError("tune_penalty_alpha needs at least one alpha")
    names = {alpha: f"alpha {alpha:g}" for alpha in sorted(alphas)}
    decodings = [Decoding(name, {"penalty_alpha": alpha}) for alpha, name in names.items()]
    options = {"name": "tuned", "decodings": decodings, "hr_requests": 0, **options}
    found = evaluate(model, data, extractor, metadata, **options)
    if found.primary is None:
        raise ValueError("penalty_alpha cannot be tuned: there is no truth, no candidate labels and no evaluator")
    scores = {alpha: found.row("tuned", name).metrics[found.primary] for alpha, name in names.items()}
    chosen = max(scores, key=lambda alpha: scores[alpha])
    record = {"chosen": chosen, "metric": found.primary, "num_requests": found.protocol["num_requests"]}
    return chosen, {**record, "scores": {f"{alpha:g}": score for alpha, score in scores.items()}}


def _check_decodings(decodings: Sequence[Decoding], model: Any, evaluator: Evaluator | None) -> None:
    names = [decoding.name for decoding in decodings]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"decodings must have distinct names, at least one, got {names}")
    for decoding in decodings:
        decoding.check(model)
        if decoding.use_evaluator and evaluator is None:
            raise ValueError(f"decoding {decoding.name!r} needs an evaluator")


def _protocol(
    measurements: Measurements, metadata: Mapping[str, Any] | None, decodings: Sequence[Decoding], batch_size: int
) -> dict[str, Any]:
    schema, size, evaluators = measurements.schema, measurements.slate_size, measurements.evaluators
    catalogue = measurements.catalogue
    notes = {"random": "uniformly drawn slates"}
    if schema.upstream_score is not None:
        notes["upstream"] = f"candidates sorted by {schema.upstream_score!r}"
    if evaluators.truth is not None:
        notes["oracle"] = "candidates sorted by their true stand-alone value: what a pointwise ranker aims at"
    if evaluators.truth is not None and evaluators.truth.ceiling is not None:
        notes["correctly specified"] = "the world's own form, fitted to the training log: what that log allows"
    protocol: dict[str, Any] = {
        "data": {key: value for key, value in (metadata or {"source": schema.name}).items() if key != "rows"},
        "num_requests": measurements.num_requests,
        "requests_digest": catalogue.digest,
        "slate_size": size,
        "num_candidates": int(np.diff(catalogue.offsets).max()),
        "batch_size": batch_size,
        "primary_metric": measurements.primary(),
        "decodings": {one.name: {**one.parameters, "evaluator": one.use_evaluator} for one in decodings},
        "baselines": notes,
        f"coverage@{size}": f"distinct items shown / the {catalogue.num_items} among the candidates",
    }
    if fields := diversity_fields(schema):
        protocol[f"ild@{size}"] = f"mean cosine distance over pairs of a slate, by candidate fields {', '.join(fields)}"
    if evaluators.truth is not None:
        protocol["truth"] = _space_note(evaluators.truth, measurements.exact("true_"))
        if not measurements.exact("true_"):
            protocol["truth"] += (
                "; the optimum is the best known: of local searches on the truth from the best of these, of a beam "
                "search and of the slates in the table"
            )
    if evaluators.evaluator is not None and measurements.hr_requests:
        count = min(measurements.hr_requests, measurements.num_requests)
        note = _space_note(evaluators.evaluator, measurements.exact(""))
        protocol["hr@p%"] = f"by the evaluator, on the first {count} requests, {note}"
        protocol["hr_requests"] = count
    if evaluators.judge is not None:
        protocol["judge"] = (
            "crossfit_value: by evaluators of the form that held-out likelihood prefers, each of one half of the train "
            "split and scaled by the other's feedback"
            if evaluators.cross_fitted
            else "judge_hr@p% and judge_value: by an evaluator that chose and taught nothing"
        )
    if count := measurements.num_labelled():
        target = schema.targets[schema.label_target or 0]
        protocol["labels"] = {
            "column": target.candidate_feedback,
            "num_requests": count,
            "requests": "those with at least one positive and one negative label",
            "cut_at": list(measurements.cuts or (size,)),
            "definition": f"{target.gain} gain, ideal order over all labelled candidates; "
            "average precision over min(positives, cut); recall over all positives",
        }
    return protocol


def _space_note(ranks: SlateRanks, exact: bool) -> str:
    space = "all slates" if exact else f"{ranks.num_samples} uniformly sampled slates"
    hit = f"a hit if fewer than the share of them are better by more than {ranks.tolerance:g} (relative)"
    return f"against {space} of each request; {hit}"
