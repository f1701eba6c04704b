"""How models are judged: on the same requests, beside the same baselines, by the same judges.

What is measured depends on what is known of the data:

- *labels of all candidates* (MovieLens): NDCG, MAP, recall, hit and MRR at the slate size, on requests that have a
  positive and a negative label;
- *the truth* (simulator): `utility`, the true expected utility as a share of the best slate's, `regret` = 1 - utility,
  and `true_hr@1%`, `true_hr@10%`, the share of slates among the truly best 1 % (10 %) of all slates of their request;
- *an evaluator*: `value`, its mean predicted utility, and `hr@1%`, `hr@10%` by it. It may have chosen the slates itself
  or taught the generator, so these tell agreement with the evaluator, not quality; with the truth, `gap` tells how far
  it deceives itself: (mean predicted - mean true utility) / mean true utility of the best slates;
- *a judge*, an independent evaluator: `judge_value`, `judge_hr@1%`, `judge_hr@10%`;
- always `coverage`, the distinct items shown as a share of those among the candidates, and `ild`, the mean cosine
  distance between the items of a slate.

Every metric is a fraction (`value` is in units of utility). B requests, N candidates, M positions, K rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import PADDING, inputs
from rerankzoo.data.loader import RequestLoader
from rerankzoo.evaluation.judges import Judge, Judges
from rerankzoo.evaluation.measures import Catalogue, Measurements, diversity_fields
from rerankzoo.evaluation.results import LOGGED, ORACLE, RANDOM, UPSTREAM, Evaluation, Key, Row
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import Batch, Evaluator, RerankingGenerationConfig
from rerankzoo.metrics import uniform_slates
from rerankzoo.models.base import RerankingPreTrainedModel

PENALTY_ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
"""The grid of `tune_penalty_alpha`; 0 is greedy decoding."""

Policy = Callable[[Batch, int], Tensor]  # (batch, seed of the batch) -> slates (B, M)


@dataclass(frozen=True)
class Decoding:
    """One way to ask a model for slates.

    Attributes:
        name: What the table calls it.
        parameters: Decoding parameters of `generate`; they name the strategy, so that the model's own defaults do not
            matter (`{"num_beams": 1}` is greedy).
        use_evaluator: Whether the evaluator chooses one of `num_return_sequences` slates.

    Raises:
        ValueError: If the parameters are unknown or contradict one another, or if they ask for several slates and no
            evaluator to choose.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    use_evaluator: bool = False

    def __post_init__(self) -> None:
        config = RerankingGenerationConfig(**self.parameters)
        if (config.num_return_sequences or 1) > 1 and not self.use_evaluator:
            raise ValueError(
                f"decoding {self.name!r} returns {config.num_return_sequences} slates per request; "
                "use_evaluator=True chooses one"
            )


def default_decodings(has_evaluator: bool = False, penalty_alpha: float | None = 0.1) -> list[Decoding]:
    """The decodings that are compared unless others are asked for.

    Args:
        has_evaluator: Whether to let an evaluator choose among slates.
        penalty_alpha: Of contrastive decoding; `None` for models that have no candidate representations.

    Returns:
        Greedy, beam 4, contrastive, sampling; with an evaluator also its choice of 4 beams, of 16 sampled slates and of
        16 beams.
    """
    decodings = [Decoding("greedy", {"num_beams": 1}), Decoding("beam 4", {"num_beams": 4})]
    if penalty_alpha is not None:
        decodings.append(Decoding("contrastive", {"penalty_alpha": penalty_alpha}))
    decodings.append(Decoding("sampling", {"do_sample": True}))
    if has_evaluator:
        samples, beams = {"do_sample": True, "num_return_sequences": 16}, {"num_beams": 16, "num_return_sequences": 16}
        few = {"num_beams": 4, "num_return_sequences": 4}
        decodings.append(Decoding("4 beams + evaluator", few, use_evaluator=True))
        decodings.append(Decoding("16 samples + evaluator", samples, use_evaluator=True))
        decodings.append(Decoding("16 beams + evaluator", beams, use_evaluator=True))
    return decodings


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
    judges: Judges | None = None,
    seed: int = 0,
    num_requests: int | None = None,
    batch_size: int = 256,
    hr_requests: int = 200,
    on_progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Measures a model's slates under several decodings, and the baselines, on one split.

    The baselines are the upstream order (where the schema names a score), uniformly random slates, the logged slates
    (where the log has one per request), and on the simulator an oracle that sorts by the true stand-alone value. The
    same arguments give the same figures; sampling does not touch torch's global random state.

    Args:
        model: Has `generate`.
        data: Requests to evaluate on, usually the test split.
        extractor: Fitted on the training split, as the model's.
        metadata: Of the data folder (`dataset.json`); a simulator's reveals the truth.
        name: Of the model, in the table.
        decodings: How to decode, with distinct names.
        evaluator: Values every row's slates and chooses where a decoding says so; on the model's device.
        judge: Values every row's slates too, but chooses and taught nothing: an evaluator trained on another log.
        judges: What values slates, of `Judges.of` with the same data, evaluator and judge; given again for the next
            model, it does not value all slates of a request again. Default: made anew.
        seed: Of this run: random slates, sampling and sampled ranks depend on it.
        num_requests: Evaluate on this many first requests; default: all.
        batch_size: Requests at a time; which slates are sampled depends on it.
        hr_requests: HR@p% by the evaluator looks at this many first requests, for it values all slates of each (5040
            for 4 of 10 candidates); 0 leaves it out. HR@p% by the truth always looks at all.
        on_progress: Called with the number of requests after each batch.

    Returns:
        Rows, protocol and the primary metric of every request.

    Raises:
        ValueError: If there are no requests, decodings repeat a name or need an evaluator that is not given, a number
            is out of its range, or `judges` are of another evaluator or judge.
        SchemaMismatchError: If model, evaluator and extractor were not made for the same schema.
    """
    _check(model, extractor, decodings, evaluator, judge, num_requests, hr_requests)
    if num_requests is not None:
        data = data.select(range(min(num_requests, len(data))))
    if not len(data):
        raise ValueError("there are no requests to evaluate on")
    if judges is None:
        judges = Judges.of(data, extractor.schema.item_id, metadata, evaluator, judge)
    _check_judges(judges, evaluator, judge)
    measurements = _measurements(model, data, extractor.schema, judges, hr_requests)
    policies = _baselines(data, extractor.schema, measurements)
    policies.update({(name, decoding.name): _decoder(model, decoding, evaluator) for decoding in decodings})
    with _evaluating(model, evaluator, judge):
        for number, batch in enumerate(RequestLoader(data, extractor, batch_size)):
            batch = {key: value.to(model.device) for key, value in batch.items()}
            batch_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
            slates = [policy(batch, batch_seed).cpu() for policy in policies.values()]
            measurements.add(batch, torch.stack(slates, dim=1), batch_seed)
            if on_progress is not None:
                on_progress(len(slates[0]))
    rows = [Row(*key, seed, values) for key, values in zip(policies, measurements.metrics(), strict=True)]
    protocol = _protocol(measurements, metadata, decodings, batch_size)
    primary = measurements.primary()
    columns = measurements.per_request(primary).unbind(1) if primary else ()
    return Evaluation(
        rows, protocol, primary, dict(zip(policies, columns, strict=False)), measurements.catalogue.digest
    )


def tune_penalty_alpha(
    model: RerankingPreTrainedModel,
    data: Dataset,
    extractor: RerankingFeatureExtractor,
    metadata: Mapping[str, Any] | None = None,
    *,
    alphas: Sequence[float] = PENALTY_ALPHAS,
    evaluator: Evaluator | None = None,
    judges: Judges | None = None,
    num_requests: int | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[float, dict[str, Any]]:
    """Chooses the penalty of contrastive decoding by the primary metric, on the validation split.

    Args:
        model: See `evaluate`.
        data: The validation split.
        extractor: See `evaluate`.
        metadata: See `evaluate`.
        alphas: The grid; the smallest of equally good values wins.
        evaluator: Needed only where nothing else tells slates apart.
        judges: See `evaluate`.
        num_requests: Use this many first requests; default: all.
        batch_size: See `evaluate`.
        on_progress: See `evaluate`.

    Returns:
        The chosen alpha, and a JSON-able record of the choice for the protocol.

    Raises:
        ValueError: If there is no primary metric or the grid is empty, and as `evaluate`.
    """
    if not alphas:
        raise ValueError("tune_penalty_alpha needs at least one alpha")
    decodings = [Decoding(f"alpha {alpha:g}", {"penalty_alpha": alpha}) for alpha in sorted(alphas)]
    found = evaluate(
        model,
        data,
        extractor,
        metadata,
        name="tuned",
        decodings=decodings,
        evaluator=evaluator,
        judges=judges,
        num_requests=num_requests,
        batch_size=batch_size,
        hr_requests=0,
        on_progress=on_progress,
    )
    if found.primary is None:
        raise ValueError("penalty_alpha cannot be tuned: there is no truth, no candidate labels and no evaluator")
    scores = {alpha: found.row("tuned", f"alpha {alpha:g}").metrics[found.primary] for alpha in sorted(alphas)}
    chosen = max(scores, key=lambda alpha: scores[alpha])
    record = {
        "chosen": chosen,
        "metric": found.primary,
        "num_requests": found.protocol["num_requests"],
        "scores": {f"{alpha:g}": score for alpha, score in scores.items()},
    }
    return chosen, record


def _check(
    model: RerankingPreTrainedModel,
    extractor: RerankingFeatureExtractor,
    decodings: Sequence[Decoding],
    evaluator: Evaluator | None,
    judge: Evaluator | None,
    num_requests: int | None,
    hr_requests: int,
) -> None:
    for part in (model, evaluator, judge):
        if isinstance(part, RerankingPreTrainedModel):
            part.check_schema(extractor.schema)
    names = [decoding.name for decoding in decodings]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"decodings must have distinct names, at least one, got {names}")
    needy = [decoding.name for decoding in decodings if decoding.use_evaluator]
    if needy and evaluator is None:
        raise ValueError(f"decodings {needy} need an evaluator")
    if num_requests is not None and num_requests < 1:
        raise ValueError(f"num_requests must be at least 1, got {num_requests}")
    if hr_requests < 0:
        raise ValueError(f"hr_requests must not be negative, got {hr_requests}")


def _check_judges(judges: Judges, evaluator: Evaluator | None, judge: Evaluator | None) -> None:
    for name, held, given in (("evaluator", judges.evaluator, evaluator), ("judge", judges.judge, judge)):
        if (held and held.evaluator) is not given:
            raise ValueError(f"judges were made with another {name} than the one given")


def _measurements(
    model: RerankingPreTrainedModel, data: Dataset, schema: FeatureSchema, judges: Judges, hr_requests: int
) -> Measurements:
    return Measurements(
        schema=schema,
        slate_size=model.generation_config.slate_size or model.config.slate_size,
        catalogue=Catalogue.of(data, schema.item_id),
        truth=judges.truth,
        evaluator=judges.evaluator,
        judge=judges.judge,
        evaluator_requests=hr_requests,
    )


# Policies: whose slates are compared


def _baselines(data: Dataset, schema: FeatureSchema, measurements: Measurements) -> dict[Key, Policy]:
    size, truth = measurements.slate_size, measurements.truth
    policies: dict[Key, Policy] = {}
    if schema.upstream_score is not None:
        column = schema.position(schema.upstream_score)
        policies[UPSTREAM] = lambda batch, seed: _sort(batch["candidate_numeric"][..., column], batch, size)
    policies[RANDOM] = lambda batch, seed: _random(batch, size, seed)
    if schema.slate in data.column_names and not isinstance(data[0][schema.slate][0], list):
        policies[LOGGED] = lambda batch, seed: _fit(batch["slates"][:, 0], size)
    if truth is not None:
        policies[ORACLE] = lambda batch, seed: truth.pointwise(batch, size)
    return policies


def _sort(scores: Tensor, batch: Batch, slate_size: int) -> Tensor:
    """The slates (B, M) of the highest scores (B, N); the transforms of a score keep its order."""
    order = scores.masked_fill(~batch["candidate_mask"], float("-inf")).argsort(dim=1, descending=True, stable=True)
    real = batch["candidate_mask"].gather(1, order)
    return _fit(order.masked_fill(~real, PADDING), slate_size)


def _random(batch: Batch, slate_size: int, seed: int) -> Tensor:
    mask = batch["candidate_mask"].cpu()
    generator = torch.Generator().manual_seed(seed)
    return _fit(uniform_slates(mask, min(slate_size, mask.shape[1]), 1, generator)[:, 0], slate_size)


def _decoder(model: RerankingPreTrainedModel, decoding: Decoding, evaluator: Evaluator | None) -> Policy:
    chooser = evaluator if decoding.use_evaluator else None
    devices = [model.device] if model.device.type == "cuda" else []

    def decode(batch: Batch, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            return model.generate(**inputs(batch), evaluator=chooser, **decoding.parameters)

    return decode


def _fit(slates: Tensor, slate_size: int) -> Tensor:
    """Cuts or pads slates (B, M') to (B, M)."""
    return F.pad(slates[:, :slate_size], (0, max(0, slate_size - slates.shape[1])), value=PADDING)


@contextmanager
def _evaluating(*parts: object) -> Iterator[None]:
    """Switches modules to evaluation (no dropout) and back."""
    training = [part for part in parts if isinstance(part, nn.Module) and part.training]
    for part in training:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.train()


# Protocol: what the figures mean


def _protocol(
    measurements: Measurements, metadata: Mapping[str, Any] | None, decodings: Sequence[Decoding], batch_size: int
) -> dict[str, Any]:
    schema, size = measurements.schema, measurements.slate_size
    protocol: dict[str, Any] = {
        "data": {key: value for key, value in (metadata or {"source": schema.name}).items() if key != "rows"},
        "num_requests": measurements.num_requests,
        "requests_digest": measurements.catalogue.digest,
        "slate_size": size,
        "num_candidates": measurements.catalogue.codes.shape[1],
        "batch_size": batch_size,
        "primary_metric": measurements.primary(),
        "decodings": {one.name: {**one.parameters, "evaluator": one.use_evaluator} for one in decodings},
        "baselines": _baseline_notes(schema, measurements),
        f"coverage@{size}": f"distinct items shown / the {measurements.catalogue.num_items} among the candidates",
    }
    if fields := diversity_fields(schema):
        protocol[f"ild@{size}"] = f"mean cosine distance over pairs of a slate, by candidate fields {', '.join(fields)}"
    if measurements.truth is not None:
        protocol["truth"] = _space_note(measurements.truth, "true_", measurements) + (
            ""
            if measurements.exact("true_")
            else "; the optimum is the best known: of local searches on the truth from the best of these, of a beam "
            "search and of the slates in the table"
        )
    if measurements.evaluator is not None and measurements.evaluator_requests:
        count = min(measurements.evaluator_requests, measurements.num_requests)
        note = _space_note(measurements.evaluator, "", measurements)
        protocol["hr@p%"] = f"by the evaluator, on the first {count} requests, {note}"
        protocol["hr_requests"] = count
    if measurements.judge is not None:
        protocol["judge"] = "judge_hr@p% and judge_value: by an evaluator that chose and taught nothing"
    if target := measurements.num_labelled():
        protocol["labels"] = _label_note(schema, target, measurements)
    return protocol


def _baseline_notes(schema: FeatureSchema, measurements: Measurements) -> dict[str, str]:
    notes = {"random": "uniformly drawn slates"}
    if schema.upstream_score is not None:
        notes["upstream"] = f"candidates sorted by {schema.upstream_score!r}"
    if measurements.truth is not None:
        notes["oracle"] = "candidates sorted by their true stand-alone value: the limit of every pointwise ranker"
    return notes


def _space_note(judge: Judge, prefix: str, measurements: Measurements) -> str:
    space = "all slates" if measurements.exact(prefix) else f"{judge.num_samples} uniformly sampled slates"
    return (
        f"against {space} of each request; a hit if fewer than the share of them are better by more than "
        f"{judge.tolerance:g} (relative)"
    )


def _label_note(schema: FeatureSchema, num_labelled: int, measurements: Measurements) -> dict[str, Any]:
    index = schema.label_target
    target = schema.targets[index or 0]
    return {
        "column": target.candidate_feedback,
        "num_requests": num_labelled,
        "requests": "those with at least one positive and one negative label",
        "definition": (
            f"cut at {measurements.slate_size}; linear gain, ideal order over all labelled candidates; "
            "average precision over min(positives, cut); recall over all positives"
        ),
    }
