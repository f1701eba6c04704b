"""What training minimises: the model's own loss, or one that is computed with frozen companions.

B requests, N candidates, M positions, S slates.
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import ModelOutput

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.batch import Batch, take
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.auto import load_checkpoint, load_evaluator
from rerankzoo.models.digest import weights_digest

#: Beside the checkpoints of a run whose objective needs it: the weights that training started with.
START_FILE = "start.safetensors"
#: The source of a companion that is a frozen copy of the model as training starts.
START = "start"
#: The source of an evaluator that is the exact utility of the simulated world that the data are of.
TRUTH = "truth"


@dataclass(frozen=True)
class Companion:
    """A frozen model that an objective needs.

    Args:
        source: Folder or Hub id of its checkpoint, or `"start"`: a copy of the model as training starts.
        evaluator: Whether an evaluator is wanted: the folder may then also be a generator's with one beside it, and
            `"truth"` is the exact utility of the simulated world that the data are of.
    """

    source: str
    evaluator: bool = False


class Companions(dict[str, Any]):
    """Frozen models by name. Copies of what holds them, such as averages of the weights, share them.

    Attributes:
        digests: Of their weights, by which a run that goes on knows them again.
    """

    def __init__(self, **models: Any) -> None:
        super().__init__(**models)
        self.digests: dict[str, str] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Companions:
        return self

    def keep(self, name: str, model: Any) -> None:
        """Takes in a model, frozen.

        Raises:
            RerankingDataError: If it is not the one that the run began with.
        """
        self.identify({name: weights_digest(model)})
        self[name] = model.eval().requires_grad_(False)

    def identify(self, digests: Mapping[str, str]) -> None:
        """Compares digests of companions with those that are known, and remembers them."""
        for name, digest in digests.items():
            if self.digests.setdefault(name, digest) != digest:
                message = f"companion {name!r} is not the model that the run began with: its weights differ"
                raise RerankingDataError(message, field="objective")


@dataclass
class ObjectiveOutput(ModelOutput):
    """What an objective computes.

    Attributes:
        loss: Scalar, the mean over requests, in which a blank request counts 0.
        loss_terms: Each term of the loss before its weight, scalars by name.
        metrics: Other scalars to log by their names, means over requests as well.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    metrics: dict[str, Tensor] | None = None


class Objective(ABC):
    """What a training step minimises; a validation measures it too.

    A subclass keeps every argument of its `__init__`, a plain value, in an attribute of that name: so checkpoints can
    write the objective down and make it again.

    Attributes:
        companions: The frozen models of `declare`, by name: in evaluation mode, without gradients, on the model's
            device. They are no part of the model, its optimiser, its averages or its checkpoints.
        generators_only: Whether only models that generate can be trained with it.
    """

    companions: Companions
    generators_only: ClassVar[bool] = False

    def declare(self) -> dict[str, Companion]:
        """The companions that `loss` needs, by name."""
        return {}

    @abstractmethod
    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """The loss of a batch.

        Args:
            model: The model that is trained; its mode says whether this is training or validation.
            batch: With labels, where the data have them.

        Returns:
            An output with `loss` (`None` where the batch lacks the labels for it) and `loss_terms`.
        """

    def learns_from_labels(self) -> bool:
        """Whether the log must have what the model's own loss is made of."""
        return True

    def load_companions(self, schema: FeatureSchema, metadata: Mapping[str, Any] | None = None) -> None:
        """Loads the companions that have a path; those that are there are kept. Every process does.

        Args:
            schema: That of the model that is trained.
            metadata: What the data folder says of its origin.

        Raises:
            HubError: If there is no such checkpoint.
            ValueError: If the truth is asked for of data that are not simulated.
            SchemaMismatchError: If it was trained with another extractor.
            RerankingDataError: If it is not the model that the run began with.
        """
        for name, companion in self.declare().items():
            if companion.source == START or name in self.companions:
                continue
            if companion.evaluator and companion.source == TRUTH:
                self.companions.keep(name, SimulatorEvaluator.from_metadata(metadata or {}, schema))
                continue
            model = (load_evaluator if companion.evaluator else load_checkpoint)(companion.source).model
            try:
                model.check_schema(schema)
            except SchemaMismatchError as error:
                message = f"companion {name!r} ({companion.source}) does not fit the data: {error}"
                raise SchemaMismatchError(message) from error
            self.companions.keep(name, model)

    def start_name(self) -> str | None:
        """The companion that is a copy of the model as training starts; `None`: there is none."""
        return next((name for name, companion in self.declare().items() if companion.source == START), None)

    def to_dict(self) -> dict[str, Any]:
        """Class and arguments, as a recipe has them.

        Raises:
            ValueError: If an argument is not kept under its name, or is no plain value.
        """
        names = list(inspect.signature(type(self)).parameters)
        missing = [name for name in names if not hasattr(self, name)]
        if missing:
            raise ValueError(f"{type(self).__name__} must keep its arguments {missing} in attributes of that name")
        arguments = {name: getattr(self, name) for name in names}
        try:
            json.dumps(arguments)
        except TypeError as error:
            raise ValueError(f"{type(self).__name__}: a checkpoint cannot hold {arguments}: {error}") from error
        return {"class_path": f"{type(self).__module__}.{type(self).__qualname__}", "init_args": arguments}


class Supervised(Objective):
    """The loss that the model's own `forward` computes from the labels of the batch: the default."""

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        return model(**batch)


def check_supervised_weight(weight: float) -> None:
    """Raises ValueError for a weight of the model's own loss that is negative or infinite."""
    if not 0 <= weight < float("inf"):
        raise ValueError(f"expected a finite supervised_weight of 0 or more, got {weight}")


def with_supervised(
    model: Any, batch: Batch, taught: Tensor, weight: float, metrics: dict[str, Tensor]
) -> ObjectiveOutput:
    """The output for a loss that taught a policy, with the model's own added; with weight 0 that is not computed."""
    if not weight:
        return ObjectiveOutput(loss=taught, loss_terms={"policy": taught}, metrics=metrics)
    supervised = model(**batch).loss
    loss = None if supervised is None else taught + weight * supervised
    return ObjectiveOutput(loss=loss, loss_terms={"policy": taught, "supervised": supervised}, metrics=metrics)


class PropensityWeighted(Objective):
    """The model's own loss, on requests drawn anew by the inverse of their slates' logging probabilities.

    A log shows most often what its policy liked. Drawing the requests of every training batch with replacement, with
    chances proportional to `min(1 / pi(slate), c * mean)`, lets every slate count as if it had been shown as often as
    any other: self-normalised, clipped importance weights as a sampler, so that any family and any loss can be weighed.
    A validation is not weighed. `largest_weight` in the metrics is the largest chance over the mean one.

    Args:
        clip: c, at least 1: no request is drawn more than so many times as often as the mean one.

    Raises:
        ValueError: If `clip` is below 1; in training, if a batch has no propensities, or one outside (0, 1].

    References:
        Horvitz and Thompson (1952); Swaminathan and Joachims (2015), clipped and self-normalised weights.
    """

    def __init__(self, clip: float = 10.0) -> None:
        if not clip >= 1:
            raise ValueError(f"clip: expected a number of 1 or more, got {clip}")
        self.clip = clip

    def loss(self, model: Any, batch: Batch) -> ModelOutput:
        """See `Objective.loss`."""
        if not model.training:
            return model(**batch)
        chances = self.chances(batch)
        drawn = torch.multinomial(chances, len(chances), replacement=True)
        output: ModelOutput = model(**take(batch, drawn))
        metrics = {"largest_weight": chances.max() * len(chances)}
        return ObjectiveOutput(loss=output.loss, loss_terms=getattr(output, "loss_terms", None), metrics=metrics)

    def chances(self, batch: Batch) -> Tensor:
        """With what chance each request (B) is drawn: they sum to 1; those without slates keep a weight of 1."""
        rarity = -logging_log_probs(batch).sum(-1).mean(-1)  # of the log's slates, mostly one
        weights = (rarity - rarity.max()).exp()
        weights = weights.clamp_max(_largest(weights, self.clip))
        return weights / weights.sum()


def logging_log_probs(batch: Batch) -> Tensor:
    """Log-probability (B, S, M), in double precision, of each logged choice by the policy that logged it; 0 at padding.

    Raises:
        RerankingDataError: If the batch has no propensities, or one outside (0, 1].
    """
    if "propensity" not in batch:
        raise RerankingDataError("the log has no propensities to weigh by", field="propensity")
    shown, propensity = batch["slates"] >= 0, batch["propensity"]
    wrong = shown & ~((propensity > 0) & (propensity <= 1))
    if wrong.any():
        row = int(wrong.flatten(1).any(1).nonzero()[0])
        value = propensity[row][wrong[row]][0].item()
        message = f"row {row} of a batch: expected a propensity in (0, 1], got {value}"
        raise RerankingDataError(message, field="propensity")
    return torch.where(shown, propensity, 1.0).double().log()


def _largest(weights: Tensor, clip: float) -> Tensor:
    """Where weights (B) are to be cut, for the largest one to be `clip` times the mean of what is left of them."""
    largest, number = weights.sort(descending=True).values, torch.arange(len(weights))
    rest = weights.sum() - torch.cat([weights.new_zeros(1), largest.cumsum(0)[:-1]])  # without so many of the largest
    left = len(weights) - clip * number.to(weights)
    cut = torch.where(left > 0, clip * rest / left, torch.inf)  # if so many of the largest are cut
    first = int((largest <= cut).long().argmax())
    return torch.minimum(cut[first], largest[first - 1]) if first else largest[0]


def make_objective(objective: Objective | Mapping[str, Any] | None) -> Objective:
    """The objective that a recipe, a checkpoint or a caller names; `Supervised` by default.

    Raises:
        ValueError: If what is named is no objective.
    """
    if objective is None:
        return Supervised()
    if isinstance(objective, Mapping):
        known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _subclasses(Objective)}
        path = objective.get("class_path")
        if path not in known:  # nothing is imported that a checkpoint names
            raise ValueError(f"objective {path!r} not found: import its module, or give an objective to load with")
        objective = known[path](**objective.get("init_args", {}))
    if not isinstance(objective, Objective):
        raise ValueError(f"objective: expected an Objective, got {type(objective).__name__}")
    return objective


def _subclasses(kind: type) -> list[type]:
    children: list[type] = kind.__subclasses__()
    return children + [descendant for child in children for descendant in _subclasses(child)]


def save_start(model: Any, folder: Path) -> None:
    """Writes the weights that training started with beside its checkpoints."""
    state = {key: value.cpu().clone() for key, value in model.state_dict().items()}
    write_atomically(folder / START_FILE, partial(save_file, state))


def read_start(model: Any, folder: Path) -> Any:
    """Gives a model the weights that training started with.

    Raises:
        FileNotFoundError: If they are not beside the checkpoints.
    """
    file = folder / START_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found: the objective needs the weights that training started with")
    model.load_state_dict(load_file(file))
    return model
