"""Whose slates are compared: a model's under several decodings, and those of the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch, inputs
from rerankzoo.data.loader import shows_parts
from rerankzoo.evaluation.results import CEILING, LAMBDAMART, LOGGED, ORACLE, RANDOM, UPSTREAM, Key
from rerankzoo.evaluation.slate_ranks import SimulatorTruth
from rerankzoo.evaluation.yardsticks import LambdaMART
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import Evaluator, SlateGenerationMixin
from rerankzoo.slates import sorted_slates, uniform_slates

Policy = Callable[[Batch, int], Tensor]  # (batch, seed of the batch) -> slates (B, M)


@dataclass(frozen=True)
class Decoding:
    """One way to ask a model for slates.

    The parameters are those of the model's own generation config; they name the strategy, so that the model's defaults
    do not matter (`{"num_beams": 1}` is greedy). It is a ValueError to ask for several slates without an evaluator.
    """

    name: str  # in the table
    parameters: Mapping[str, Any] = field(default_factory=dict)
    use_evaluator: bool = False  # whether the evaluator chooses one of `num_return_sequences` slates

    def __post_init__(self) -> None:
        sequences = self.parameters.get("num_return_sequences") or 1
        if sequences != 1 and not self.use_evaluator:
            raise ValueError(
                f"decoding {self.name!r} returns {sequences} slates per request; use_evaluator=True chooses one"
            )

    def check(self, model: type[SlateGenerationMixin] | SlateGenerationMixin = SlateGenerationMixin) -> None:
        """Raises ValueError for parameters that a model's own generation config or the model itself cannot follow.

        Nor may they ask for another slate size: all rows of a table have slates of one size.
        """
        strategy = model.generation_config_class(**self.parameters).strategy
        if strategy not in model.strategies:
            raise ValueError(f"decoding {self.name!r} is {strategy!r}, expected one of {list(model.strategies)}")
        if "slate_size" in self.parameters:
            raise ValueError(f"decoding {self.name!r}: slate_size is the model's, not a decoding's")


def default_decodings(
    has_evaluator: bool = False,
    penalty_alpha: float | None = 0.1,
    strategies: Sequence[str] = SlateGenerationMixin.strategies,
) -> list[Decoding]:
    """The decodings that are compared unless others are asked for, as far as the model has their strategies.

    Greedy, beam 4, contrastive (without `penalty_alpha` left out), sampling; with an evaluator also its choice of 4
    beams, of 16 sampled slates and of 16 beams. Of a model that has none of them: its default.
    """
    decodings = [Decoding("greedy", {"num_beams": 1}), Decoding("beam 4", {"num_beams": 4})]
    if penalty_alpha is not None:
        decodings.append(Decoding("contrastive", {"penalty_alpha": penalty_alpha}))
    decodings.append(Decoding("sampling", {"do_sample": True}))
    if has_evaluator:
        decodings += [
            Decoding("4 beams + evaluator", {"num_beams": 4, "num_return_sequences": 4}, True),
            Decoding("16 samples + evaluator", {"do_sample": True, "num_return_sequences": 16}, True),
            Decoding("16 beams + evaluator", {"num_beams": 16, "num_return_sequences": 16}, True),
        ]
    config_class = SlateGenerationMixin.generation_config_class
    known = [one for one in decodings if config_class(**one.parameters).strategy in strategies]
    return known or [Decoding("default")]


def baselines(
    data: Dataset,
    schema: FeatureSchema,
    slate_size: int,
    truth: SimulatorTruth | None,
    yardstick: LambdaMART | None = None,
) -> dict[Key, Policy]:
    """The baselines that a table of requests allows, slates of M.

    The upstream order (where the schema names a score), uniformly random slates, the logged slates (where there is one
    per request, and none is a part of a page), the yardstick's order, with the truth the order by the true stand-alone
    value, and what the correctly specified model chooses where there is one.
    """
    policies: dict[Key, Policy] = {}
    if schema.upstream_score is not None:
        column = schema.position(schema.upstream_score)
        policies[UPSTREAM] = lambda batch, seed: sorted_slates(
            batch["candidate_numeric"][..., column], batch["candidate_mask"], slate_size
        )
    policies[RANDOM] = lambda batch, seed: _random(batch, slate_size, seed)
    nested = schema.slate in data.column_names and isinstance(data[0][schema.slate][0], list)
    if schema.slate in data.column_names and not nested and not shows_parts(data, schema.slate):
        policies[LOGGED] = lambda batch, seed: _fit(batch["slates"][:, 0], slate_size)
    if yardstick is not None:
        policies[LAMBDAMART] = lambda batch, seed: sorted_slates(
            yardstick.scores(batch), batch["candidate_mask"], slate_size
        )
    if truth is not None:
        policies[ORACLE] = lambda batch, seed: truth.pointwise(batch, slate_size)
    if truth is not None and truth.ceiling is not None:
        policies[CEILING] = lambda batch, seed: truth.attainable(batch, slate_size)
    return policies


def decoder(model: Any, decoding: Decoding, slate_size: int, evaluator: Evaluator | None) -> Policy:
    """A model's slates of M under a decoding; sampling is seeded, and leaves torch's global random state alone."""
    chooser = evaluator if decoding.use_evaluator else None
    devices = [model.device] if model.device.type == "cuda" else []

    def decode(batch: Batch, seed: int) -> Tensor:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            options = {"slate_size": slate_size, "evaluator": chooser, **decoding.parameters}
            slates: Tensor = model.generate(**inputs(batch), **options)
            return slates

    return decode


def _random(batch: Batch, slate_size: int, seed: int) -> Tensor:
    mask = batch["candidate_mask"].cpu()
    generator = torch.Generator().manual_seed(seed)
    return _fit(uniform_slates(mask, min(slate_size, mask.shape[1]), 1, generator)[:, 0], slate_size)


def _fit(slates: Tensor, slate_size: int) -> Tensor:
    """Cuts or pads slates (B, M') to (B, M)."""
    return F.pad(slates, (0, slate_size - slates.shape[1]), value=PADDING)
