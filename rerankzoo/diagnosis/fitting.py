"""Small evaluators of several forms, fitted to part of a log in memory: what a diagnosis compares.

An evaluator is fitted in two steps: first what items are worth alone, under a behaviour (no pairs: a *pointwise*
reading of the log), then from there with what they do to one another (a *listwise* one). The second is not far from the
first where the log has nothing to tell, and their difference on held-out requests is what there is to win.

The loop is not Lightning's: a diagnosis fits about fifteen models of 40 to 480 steps to requests that are tensors
already, and `RerankingModule` with the same callbacks took 1.5 times the CPU seconds (8.4 to 5.7 for four fits to 5,000
requests) at the same held-out likelihood. Nor would it be shorter, for loader, best weights and trainer need as many
lines.

B requests, S slates per request, M positions, N candidates.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from rerankzoo.batch import Batch, inputs, take
from rerankzoo.diagnosis.log import chunks, positives, rows, shown_positions
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.utility import candidate_utility
from rerankzoo.models.interaction import InteractionEvaluator, InteractionEvaluatorConfig
from rerankzoo.slates import sorted_slates

#: How users may come to a position; see `InteractionEvaluatorConfig`.
BEHAVIOURS = ("independent", "cascade", "satisfaction", "choice")
_SIZES = {"hidden_size": 64, "initializer_range": 0.01, "denoises_upstream": False}
_CHUNK = 2_048  # requests of a forward pass
_BEAMS = 8
#: Candidates x positions of a request beyond which one beam has to do, and of all beams that are searched together.
_LARGE, _MOST = 5_000, 2**20


@dataclass(frozen=True)
class Form:
    """What an evaluator can see."""

    behaviour: str
    pairs: bool = False  # whether items do anything to one another
    looks_ahead: bool = True  # and to those above them, too

    @property
    def name(self) -> str:
        """What a table calls it."""
        if not self.pairs:
            return f"pointwise, {self.behaviour}"
        return f"listwise, {self.behaviour}" + ("" if self.looks_ahead else ", blind to later items")

    def alone(self) -> Form:
        """The same behaviour without pairs."""
        return Form(self.behaviour)


class _Recipe(NamedTuple):
    learning_rate: float
    weight_decay: float


_ALONE, _PAIRS = _Recipe(0.005, 0.1), _Recipe(0.01, 0.5)
_EPOCHS, _PATIENCE = 12, 2  # epochs at most, and without a better validation
_DECAY = 0.98  # of the averaged weights, once there were enough steps


def fit(
    form: Form,
    extractor: RerankingFeatureExtractor,
    learn: Batch,
    stop: Batch,
    start: InteractionEvaluator | None = None,
    seed: int = 0,
    longest: int | None = None,
) -> InteractionEvaluator:
    """Fits an evaluator to a batch of logged requests.

    Args:
        form: Its form.
        extractor: The log's.
        learn: To learn from.
        stop: Whose likelihood says when to stop: the weights of the best epoch are kept.
        start: Of the form without pairs: where to begin.
        seed: Of weights and order.
        longest: The most positions that it will be asked for; default: those of the slates it learns from.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        known = {"feature_schema": extractor.schema.to_dict(), "slate_size": longest or learn["slates"].shape[-1]}
        known |= {"behaviour": form.behaviour, "looks_ahead": form.pairs and form.looks_ahead}
        known |= {} if form.pairs else {"num_interaction_heads": 0}
        shown = shown_positions(learn)
        model = InteractionEvaluator(InteractionEvaluatorConfig(**_SIZES, **known, num_logged_positions=shown))
        model.start_at(((0.5 + positives(learn)) / (1 + shown)).tolist())
        if start is not None:
            model.load_state_dict(start.state_dict(), strict=False)
        return _train(model, learn, stop, _PAIRS if form.pairs else _ALONE, torch.Generator().manual_seed(seed))


def _train(
    model: InteractionEvaluator, learn: Batch, stop: Batch, recipe: _Recipe, generator: torch.Generator
) -> InteractionEvaluator:
    """AdamW with averaged weights of a growing window, until validation gets no better; the best average.

    What it starts with, the base rates or what items are worth alone, is one of those: what learns nothing that
    held-out feedback bears out, as of a few dozen positives, stays there.
    """
    average, parameters, count = deepcopy(model).eval(), list(model.train().parameters()), rows(learn)
    averages = list(average.parameters())
    batch_size = min(1_024, max(64, count // 30))
    steps = _EPOCHS * math.ceil(count / batch_size)
    groups: list[dict[str, Any]] = [{"params": [p for p in parameters if p.dim() > 1]}]
    groups.append({"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0})
    optimizer = AdamW(groups, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)
    falling = LambdaLR(optimizer, lambda done: min(1.0, 2 * (1 - done / steps)))  # linearly over the second half
    best, score, since, done = deepcopy(average), log_likelihoods(average, stop).mean().item(), 0, 0
    while since < _PATIENCE and done < steps:
        for index in torch.randperm(count, generator=generator).split(batch_size):
            optimizer.zero_grad()
            model(**take(learn, index)).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            falling.step()
            done += 1
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1 - min(_DECAY, (1 + done) / (10 + done)))
        now = log_likelihoods(average, stop).mean().item()
        best, score, since = (deepcopy(average), now, 0) if now > score else (best, score, since + 1)
    return best


@torch.no_grad()
def log_likelihoods(model: InteractionEvaluator, batch: Batch) -> Tensor:
    """(B,), log-probability of all the feedback of each request, in nats."""
    return torch.cat([model(**part).log_likelihoods.sum(1) for part in chunks(batch, _CHUNK)]).double()


@torch.no_grad()
def worth(model: InteractionEvaluator, batch: Batch, slates: Tensor) -> tuple[Tensor, Tensor]:
    """What a model says slates (B, S, M) are worth: by their items alone, and what pairs add to it, each (B, S)."""
    known = inputs(batch)
    whole = _values(model, known, slates)
    if model.pairs is None:
        return whole, torch.zeros_like(whole)
    apart = deepcopy(model)
    torch.nn.init.zeros_(apart.get_parameter("pairs.weight"))
    alone = _values(apart, known, slates)
    return alone, whole - alone


def _values(model: InteractionEvaluator, known: Batch, slates: Tensor) -> Tensor:
    parts = chunks({**known, "slates": slates}, _CHUNK)
    found = [model.score_slates(part["slates"], **inputs(part)) for part in parts]
    return torch.cat(found).double()


@torch.no_grad()
def choose(model: InteractionEvaluator, batch: Batch, slate_size: int) -> Tensor:
    """The slates (B, `slate_size`) that a model's own search finds."""
    cells = batch["candidate_mask"].shape[1] * slate_size
    beams = _BEAMS if cells <= _LARGE else 1
    parts: list[Any] = chunks(inputs(batch), min(_CHUNK // beams, max(1, _MOST // (beams * cells))))
    return torch.cat([model.generate(**part, num_beams=beams, slate_size=slate_size) for part in parts])


@torch.no_grad()
def rank(model: InteractionEvaluator, batch: Batch, slate_size: int) -> Tensor:
    """The slates (B, `slate_size`) of the items that are worth most alone, best first."""
    probabilities = model.head.probabilities(model.read_items(batch).logits)
    utility = candidate_utility(probabilities, batch["candidate_value"], model.schema)
    return sorted_slates(utility, batch["candidate_mask"], slate_size)
