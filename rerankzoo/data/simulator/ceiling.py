"""The correctly specified model of a simulated log: what the log itself allows, as a ceiling for models of other forms.

It has the form of the world, a `UserModel` over appeal, similarity and complements, and knows none of the constants,
vectors and biases in it: they are fitted to the log by maximum likelihood with a mild ridge (the priors below). It sees
what any model of the log sees: user and item embeddings with their noise, categories, item ids, slates and clicks.

    a_i = b0 + scale * <u, q_i> + b_i,  S_ij = max(0, <q_i, q_j>),  q_i = (observed vector + residual_i) / its length

with a bias b_i, a residual per item, and a free number K for every ordered pair of categories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rerankzoo.data.simulator.audience import Audience
from rerankzoo.data.simulator.settings import SimulatorSettings
from rerankzoo.data.simulator.user_models import Requests, UserModel

_PRIORS = {"bias": 0.5, "residual": 0.15, "complements": 1.0}  # standard deviations of the ridge, about zero
_STARTS = {"positive": 0.1, "probability": 0.8}  # of the user model's constants: effects grow where the log shows them
_BATCH_SIZE, _LEARNING_RATE = 512, 0.02
_LEAST_STEPS, _EPOCHS = 800, 12  # steps of the optimiser, for a log so small that the epochs have fewer
_SMALLEST_RATE = 1e-4  # of clicks, from which the fit starts
_SMALLEST = 1e-30  # likelihood below which its logarithm is cut off


class _Features(NamedTuple):
    """What is seen of B requests; K is N candidates, or the M items of a slate."""

    user: Tensor  # (B, D)
    item_id: Tensor  # (B, K)
    vector: Tensor  # (B, K, D)
    category: Tensor  # (B, K)
    value: Tensor  # (B, K)

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> _Features:
        names = ("user_embedding", "item_id", "item_embedding", "category", "value")
        columns = [torch.from_numpy(_array(table[name])) for name in names]
        return cls(*(column.float() if column.is_floating_point() else column for column in columns))

    def rows(self, rows: Tensor | slice) -> _Features:
        return _Features(*(values[rows] for values in self))

    def shown(self, slates: Tensor) -> _Features:
        """Those of the items of slates (B, M)."""
        rows = torch.arange(len(slates))[:, None]
        return _Features(self.user, *(values[rows, slates] for values in self[1:]))


class _World(nn.Module):
    """The unknowns of a world."""

    def __init__(self, settings: SimulatorSettings, click_rate: Tensor) -> None:
        super().__init__()
        self.user_type = type(settings.user_model)
        self.base = nn.Parameter(click_rate.logit(_SMALLEST_RATE))
        self.scale = nn.Parameter(torch.tensor(0.0))
        self.bias = nn.Parameter(torch.zeros(settings.num_items))
        self.residual = nn.Parameter(torch.zeros(settings.num_items, settings.latent_size))
        self.complements = nn.Parameter(torch.zeros(settings.num_categories, settings.num_categories))
        self.kinds = {entry.name: entry.metadata["kind"] for entry in fields(self.user_type)}
        starts = {name: torch.tensor(_STARTS[kind]) for name, kind in self.kinds.items()}
        self.constants = nn.ParameterDict(
            {name: start.log() if self.kinds[name] == "positive" else start.logit() for name, start in starts.items()}
        )

    def user(self) -> UserModel:
        """The user model, its constants as tensors."""
        values = {name: torch.exp if kind == "positive" else torch.sigmoid for name, kind in self.kinds.items()}
        return self.user_type(**{name: function(self.constants[name]) for name, function in values.items()})

    def requests(self, seen: _Features) -> Requests:
        """What the user model needs of some items."""
        vectors = nn.functional.normalize(seen.vector + self.residual[seen.item_id], dim=-1)
        similarity = torch.relu(vectors @ vectors.mT)
        complement = self.complements[seen.category[:, :, None], seen.category[:, None, :]]
        return Requests(
            appeal=self.base + self.scale * torch.einsum("bd,bkd->bk", seen.user, vectors) + self.bias[seen.item_id],
            value=seen.value,
            category=seen.category,
            similarity=similarity.flatten(1),
            complement=complement.flatten(1),
        )

    def penalty(self) -> Tensor:
        """The negative logarithm of the prior."""
        parts = [(getattr(self, name) / deviation).square().sum() for name, deviation in _PRIORS.items()]
        return 0.5 * torch.stack(parts).sum()


@dataclass(frozen=True)
class CorrectlySpecified:
    """A fitted model of the world's own form; see `fit_ceiling`."""

    world: _World
    user: UserModel  # with the fitted constants

    def audience(self, table: pa.Table | Mapping[str, Any]) -> Audience:
        """What the model takes requests to be, of which it tells utilities and finds slates.

        Args:
            table: The columns of simulated requests, as `Simulator.requests` returns them; slates and clicks are not
                looked at.
        """
        with torch.no_grad():
            requests = self.world.requests(_Features.of(table))
        return Audience(self.user, Requests(*(values.double().numpy() for values in requests)))

    def best_slates(self, table: pa.Table | Mapping[str, Any], slate_size: int) -> np.ndarray:
        """The slates (B, M) of highest utility by this model: of all where they can be listed, else by search."""
        return self.audience(table).best(slate_size)


def fit_ceiling(table: pa.Table | Mapping[str, Any], settings: SimulatorSettings, seed: int = 0) -> CorrectlySpecified:
    """Fits the correctly specified model to a simulated log.

    Args:
        table: The log, as `Simulator.requests` returns it; its hidden column `user_id` is not looked at.
        settings: Of its world; only the kind of user model and sizes are read, no other constant.
        seed: Of the order of the requests.

    Raises:
        ValueError: If the log has no requests, or interest in its world depends on a history, which the model lacks.
    """
    if settings.interest_pull:
        raise ValueError(f"the fitted model reads no histories, on which interest depends: {settings.interest_pull=}")
    seen, slates = _Features.of(table), torch.from_numpy(_array(table["slate"]))
    clicks = torch.from_numpy(_array(table["click"])).float()
    if not len(slates):
        raise ValueError("there are no requests to fit a model to")
    if settings.user_model.reads_candidates:
        pages = slates[:, None]
    else:  # what was not shown need not be looked at
        seen, pages = seen.shown(slates), torch.arange(slates.shape[1]).expand(len(slates), 1, -1)
    world = _World(settings, clicks.mean())
    generator = torch.Generator().manual_seed(seed)
    steps = max(_LEAST_STEPS, _EPOCHS * len(slates) // _BATCH_SIZE)
    optimizer = torch.optim.Adam(world.parameters(), _LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, total_iters=steps)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < min(_BATCH_SIZE, len(slates)):
            order = torch.cat([order, torch.randperm(len(slates), generator=generator)])
        rows, order = order[:_BATCH_SIZE], order[_BATCH_SIZE:]
        positions = clicks[rows].T[..., None].unbind()
        likelihood = world.user().likelihood(world.requests(seen.rows(rows)), pages[rows], positions)
        loss = -likelihood.clamp_min(_SMALLEST).log().mean() + world.penalty() / len(slates)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        fitted = world.user()
        constants = {name: getattr(fitted, name).item() for name in world.kinds}
    return CorrectlySpecified(world, replace(fitted, **constants))


def _array(column: Any) -> np.ndarray:
    """A column of numbers, or of equally long lists of them."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        return np.array(column)
    shape = [len(column)]
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        outer, column = len(column), column.flatten()
        shape.append(len(column) // max(1, outer))
    return np.array(column).reshape(shape)
