"""What a log can support: evaluators of several forms on its halves, what they would win, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch, inputs, take
from rerankzoo.diagnosis.crossfit import CrossFittedJudge, Judge, Prediction
from rerankzoo.diagnosis.fitting import BEHAVIOURS, Form, choose, fit, log_likelihoods, rank
from rerankzoo.diagnosis.log import Log, rows
from rerankzoo.diagnosis.support import (
    Support,
    constant_log_likelihoods,
    estimate_counterfactually,
    find_support,
    position_log_likelihoods,
)
from rerankzoo.diagnosis.verdict import WORTH, Figures, Verdict, decide
from rerankzoo.evaluation import MIN_POSITIVES
from rerankzoo.evaluation.counterfactual import Estimate as CounterfactualEstimate
from rerankzoo.features.utility import position_utility
from rerankzoo.metrics import Estimate, mean_interval
from rerankzoo.models.auto import Checkpoint
from rerankzoo.models.interaction import InteractionEvaluator

_LOSS_LEFT = 0.5**0.5  # of what doubling the log last won, the next doubling wins: losses fall as one over its root
_ESTIMATED = 4_000  # requests for which slates are chosen to be estimated counterfactually


@dataclass(frozen=True)
class Loss:
    """How well a reading of the log predicts the feedback of requests that it did not learn from."""

    name: str  # what read the log
    nats: float  # negative log-probability of a request's feedback, the mean
    better: Estimate | None  # than the best pointwise reading, paired over requests; `None` for itself


@dataclass(frozen=True)
class CurvePoint:
    """What so many requests teach."""

    requests: int
    better: float  # listwise over pointwise in log-probability, in nats per request
    gain: Prediction | None  # of the slates chosen, see `Diagnosis.gain`; `None` where it is extrapolated


class Proposal(NamedTuple):
    """What was trained already: a generator, and the evaluator that chose or taught, if it is known."""

    generator: Checkpoint
    evaluator: Checkpoint | None


@dataclass(frozen=True)
class Proposed:
    """What was trained already, against the judges."""

    name: str  # the generator's or evaluator's
    own: float | None  # the gain that its own evaluator predicts, in utility; `None` without one
    judged: Prediction  # the same by the cross-fitted judges; their log is the one it learned from, so at most


@dataclass(frozen=True)
class Diagnosis:
    """All that was found. Utilities are per request; without `losses` there was too little feedback to fit anything."""

    log: Log
    verdict: Verdict
    figures: Figures  # what the verdict rests on
    losses: tuple[Loss, ...] = ()  # on requests that were not learned from
    form: Form | None = None  # the listwise form that held-out likelihood prefers
    later: Estimate | None = None  # what reading later items adds, in nats per request
    pointwise: Prediction | None = None  # utility of the best pointwise ranker's slates, as the judges see it
    gain: Prediction | None = None  # of what the evaluator of one half chooses, by the other half's feedback
    other_form: tuple[str, Prediction] | None = None  # the same by a judge of the second-best form, and its name
    curve: tuple[CurvePoint, ...] = ()  # a quarter, half and (extrapolated) all of the log
    support: Support | None = None  # what the log shows, and of the chosen slates
    estimates: tuple[CounterfactualEstimate, ...] = ()  # of what the first half's evaluator chooses for the second's
    proposed: tuple[Proposed, ...] = ()  # what was trained already
    ranker: Form | None = None  # the form of the best pointwise ranker
    chosen: tuple[tuple[Tensor, Tensor], ...] = ()  # by half, slates (B, M) for the test requests, and its ranker's


class _Fit(NamedTuple):
    model: InteractionEvaluator
    logged: Tensor  # (B,), its log-probabilities of the feedback of the half that it did not learn from


class _Fits(dict[tuple[Form, int], _Fit]):
    """Evaluators by form and half, fitted when they are asked for."""

    def __init__(self, log: Log, watch: Callable[[str], None], seed: int) -> None:
        super().__init__()
        self.log, self.watch, self.seed = log, watch, seed

    def __missing__(self, key: tuple[Form, int]) -> _Fit:
        form, half = key
        start = self[form.alone(), half].model if form.pairs else None
        model = self.fitted(form, self.log.halves[half], start)
        self[key] = _Fit(model, log_likelihoods(model, self.log.halves[1 - half]))
        return self[key]

    def fitted(self, form: Form, learn: Batch, start: InteractionEvaluator | None = None) -> InteractionEvaluator:
        """An evaluator of this form that learns from these requests."""
        self.watch(f"{form.name} on {rows(learn):,} requests")
        return fit(form, self.log.extractor, learn, self.log.validation, start, self.seed, self.log.longest)

    def both(self, form: Form) -> Tensor:
        """Log-probabilities of the feedback of all requests, each by the half that it is not in."""
        return torch.cat([self[form, 0].logged, self[form, 1].logged])

    def best(self, forms: list[Form]) -> list[Form]:
        """Forms that learned from the first half, by the likelihood of the second, best first."""
        return sorted(forms, key=lambda form: -self[form, 0].logged.mean().item())


def cross_fitted_judge(
    log: Log, *, seed: int = 0, watch: Callable[[str], None] = lambda task: None
) -> CrossFittedJudge:
    """Judges of the form that held-out likelihood prefers, one per half of a log, as one evaluator."""
    fits = _Fits(log, watch, seed)
    best = _preferred(fits)[1][0]
    return CrossFittedJudge([Judge.of(fits[best, half].model, log.halves[1 - half]) for half in range(2)])


def _preferred(fits: _Fits) -> tuple[list[Form], list[Form]]:
    """Pointwise forms, best first, and two listwise ones of the best behaviours."""
    alone = fits.best([Form(behaviour) for behaviour in BEHAVIOURS])
    return alone, fits.best([Form(form.behaviour, pairs=True) for form in alone[:2]])


def diagnose(
    log: Log,
    proposals: Mapping[str, Proposal] | None = None,
    *,
    worth: float = WORTH,
    seed: int = 0,
    watch: Callable[[str], None] = lambda task: None,
) -> Diagnosis:
    """Finds out what a log can support.

    Args:
        log: The log.
        proposals: What was trained already, by name.
        worth: A gain that is worth the trouble, as a share of what slates earn.
        seed: Of weights and orders.
        watch: Told what is fitted next.
    """
    # What no utility rests on tells nothing of slates.
    earning = (
        position_utility(half["feedback"], half["slates"], half["candidate_value"], log.schema) for half in log.halves
    )
    count = sum(int((earned != 0).sum()) for earned in earning)
    if count < MIN_POSITIVES:
        figures = Figures(log.used, count)
        return Diagnosis(log, decide(figures, worth), figures)
    fits = _Fits(log, watch, seed)
    alone, (best, second) = _preferred(fits)
    choosers = [fits[best, half].model for half in range(2)]
    slates = [choose(model, log.test, log.slate_size) for model in choosers]
    references = [rank(fits[alone[0], half].model, log.test, log.slate_size) for half in range(2)]
    judges = [Judge.of(model, log.halves[1 - half]) for half, model in enumerate(choosers)]
    gain, earned = _judged(judges, log.test, slates, references), _judged(judges, log.test, slates, [None, None])
    better = fits.both(best) - fits.both(alone[0])
    curve = _curve(fits, best, gain)
    support = find_support(log, slates[0])
    asked = take(log.halves[1], slice(_ESTIMATED))
    unit = max(abs(earned.mean), abs(judges[0].observed))  # judges of noise may predict nought
    figures = Figures(
        requests=log.used,
        positives=count,
        gain=gain.mean / unit,
        error=gain.error / unit,
        rising=_LOSS_LEFT * max(0.0, gain.mean - curve[0].gain.mean) / unit if curve[0].gain else 0.0,
        listwise=(better.mean() / better.std().clamp_min(1e-12) * math.sqrt(len(better))).item(),
        fixed=support.fixed,
        neighbours=support.neighbours,
        spread=judges[0].residual / unit,
        positions=log.slate_size,
    )
    other = Judge.of(fits[second, 0].model, log.halves[1]).gain(log.test, slates[1], references[1])
    later, losses = _losses(fits, alone, best, second)
    return Diagnosis(
        log=log,
        verdict=decide(figures, worth),
        figures=figures,
        losses=losses,
        form=best,
        later=later,
        pointwise=Prediction(earned.mean - gain.mean, earned.error, earned.own - gain.own),
        gain=gain,
        other_form=(second.name, other),
        curve=curve,
        support=support,
        estimates=estimate_counterfactually(log, asked, choose(choosers[0], asked, log.slate_size)),
        proposed=tuple(_proposed(log, judges, references, name, make) for name, make in (proposals or {}).items()),
        ranker=alone[0],
        chosen=tuple(zip(slates, references, strict=True)),
    )


def _judged(
    judges: Sequence[Judge], batch: Batch, slates: Sequence[Tensor], references: Sequence[Tensor | None]
) -> Prediction:
    """What the slates that each half chose earn more than its reference, by the other half's judge, on average."""
    asked = zip(judges, slates, references, strict=True)
    return Prediction.average([judge.gain(batch, chosen, reference) for judge, chosen, reference in asked])


def _losses(fits: _Fits, alone: list[Form], best: Form, second: Form) -> tuple[Estimate, tuple[Loss, ...]]:
    """What reading later items adds, and the losses of all readings, from the simplest on."""
    log, (first, other) = fits.log, fits.log.halves
    blind = Form(next(form.behaviour for form in alone if form.behaviour != "choice"), pairs=True, looks_ahead=False)
    reference = fits.both(alone[0])
    pairs = [(first, other), (other, first)]  # the first half's reading of the second comes first, as in `both`
    constant = torch.cat([constant_log_likelihoods(*pair) for pair in pairs])
    position = torch.cat([position_log_likelihoods(log, *pair) for pair in pairs])
    found = [_loss("constant", constant, reference), _loss("item and position", position, reference)]
    found += [_loss(form.name, fits[form, 0].logged, reference[: rows(other)]) for form in reversed(alone[1:])]
    found.append(Loss(alone[0].name, -reference.mean().item(), None))
    found += [_loss(form.name, fits[form, 0].logged, reference[: rows(other)]) for form in (blind, second)]
    found.append(_loss(best.name, fits.both(best), reference))
    later = mean_interval(fits[best, 0].logged - fits[blind, 0].logged)
    return later, tuple(found)


def _loss(name: str, logged: Tensor, reference: Tensor) -> Loss:
    return Loss(name, -logged.mean().item(), mean_interval(logged - reference))


def _curve(fits: _Fits, best: Form, gain: Prediction) -> tuple[CurvePoint, ...]:
    """A quarter of the log, half of it, and what all of it would teach: losses to noise fall with 1 / requests."""
    log, half = fits.log, fits.log.halves[0]
    quarter = take(half, slice(rows(half) // 2))
    alone = fits.fitted(best.alone(), quarter)
    model = fits.fitted(best, quarter, alone)
    logged = log_likelihoods(model, log.halves[1]) - log_likelihoods(alone, log.halves[1])
    judged = Judge.of(model, log.halves[1]).gain(
        log.test, choose(model, log.test, log.slate_size), rank(alone, log.test, log.slate_size)
    )
    of_half = (fits[best, 0].logged - fits[best.alone(), 0].logged).mean().item()
    whole = of_half + max(0.0, of_half - logged.mean().item()) / 2
    points = [(rows(quarter), logged.mean().item(), judged), (rows(half), of_half, gain), (log.used, whole, None)]
    return tuple(CurvePoint(*point) for point in points)


def _proposed(log: Log, judges: list[Judge], references: list[Tensor], name: str, proposal: Proposal) -> Proposed:
    generator, evaluator = proposal
    size = min(generator.model.config.slate_size, log.slate_size)
    slates = generator.model.generate(**inputs(generator.extractor(log.test_data)), slate_size=size)
    slates = F.pad(slates, (0, references[0].shape[1] - slates.shape[1]), value=PADDING)
    own = None
    if evaluator is not None:
        both = torch.stack([slates, references[0]], dim=1)
        values = evaluator.model.score_slates(both, **inputs(evaluator.extractor(log.test_data))).double()
        own = (values[:, 0] - values[:, 1]).mean().item()
    return Proposed(name, own, _judged(judges, log.test, [slates] * len(judges), references))
