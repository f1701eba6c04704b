"""How a user reads a page: the probability of her clicks, given the page.

A user model is one formula, the likelihood of a page's clicks (`UserModel.likelihood`). The exact expected utility of a
slate, simulated feedback, and the correctly specified model of a log (`rerankzoo.data.simulator.ceiling`) all follow
from it, for it is written for numpy arrays and for tensors alike.

B requests, N candidates, S slates, M positions. In all formulas a_i is an item's appeal (`Requests.appeal`), S_ij the
similarity of two items, K_ij whether j's category follows up i's; the sums run over positions of the slate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

#: A numpy array, or a tensor while a model of this form is fitted.
Array = Any
Kind = Literal["positive", "probability"]
_NEVER = 1e6  # off a logit, so that its softmax is 0


class Requests(NamedTuple):
    """What a user model knows of B requests with N candidates each; tables of pairs are (B, N * N), row-major."""

    appeal: Array  # (B, N), click logit of an item that stands alone on a page
    value: Array  # (B, N), what a click earns
    category: Array  # (B, N) int64
    similarity: Array  # (B, N * N) in [0, 1], symmetric
    complement: Array  # (B, N * N), [previous, next]: 1 where the next item's category follows up

    def select(self, rows: slice | np.ndarray) -> Requests:
        """Some of the requests."""
        return Requests(*(values[rows] for values in self))


def constant(default: float, kind: Kind) -> Any:
    """A constant of a user model: not negative ("positive"), or in [0, 1] ("probability")."""
    return field(default=default, metadata={"kind": kind})


@dataclass(frozen=True, kw_only=True)
class UserModel(ABC):
    """How users read pages. A subclass is a frozen dataclass whose fields are made by `constant`.

    `slates` are (B, S, M), or (S, M) shared by all requests: positions into the candidates. Clicks and probabilities
    come position by position, each (B, S).
    """

    #: Under which `dataset.json` tells it; see `register_user_model`.
    name: ClassVar[str]
    #: Whether candidates that are not shown matter: a log's slates alone then do not tell what users reacted to.
    reads_candidates: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for entry in fields(self):
            value, kind = getattr(self, entry.name), entry.metadata["kind"]
            if isinstance(value, Tensor):
                continue  # being fitted
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{entry.name} must be a number, got {value!r}")
            if kind == "probability" and not 0.0 <= value <= 1.0:
                raise ValueError(f"{entry.name} must be a probability, got {value}")
            if kind == "positive" and not value >= 0.0:
                raise ValueError(f"{entry.name} must not be negative, got {value}")

    @abstractmethod
    def likelihood(self, requests: Requests, slates: Array, clicks: Sequence[Array | float]) -> Array:
        """The probability (B, S) of clicks (0 or 1), one entry for each position, on the whole page.

        It must sum to 1 over all 2^M ways to click, and use operations only that numpy arrays and tensors share.
        """

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """Each position's exact click probability given the whole page.

        Here by listing all 2^M ways to click; a model that knows a shorter way overrides it.
        """
        ways = list(product((0.0, 1.0), repeat=slates.shape[-1]))
        chances = [self.likelihood(requests, slates, clicks) for clicks in ways]
        return [
            sum(chance for chance, clicks in zip(chances, ways, strict=True) if clicks[position])
            for position in range(slates.shape[-1])
        ]

    def sample_clicks(self, requests: Requests, slates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws clicks (B, S, M), float64, of one reading of each slate; here from all 2^M ways to click."""
        ways = np.array(list(product((0.0, 1.0), repeat=slates.shape[-1])))
        chances = np.stack([self.likelihood(requests, slates, clicks) for clicks in ways.tolist()], axis=-1)
        threshold = rng.random((*chances.shape[:-1], 1)) * chances.sum(-1, keepdims=True)  # the sum is 1, but rounded
        return ways[(chances.cumsum(-1) <= threshold).sum(-1).clip(max=len(ways) - 1)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, of which `user_model_from_dict` makes it again."""
        return {"name": self.name, **asdict(self)}


USER_MODELS: dict[str, type[UserModel]] = {}
"""Registered user models by name."""
_Model = TypeVar("_Model", bound=type[UserModel])


def register_user_model(model: _Model) -> _Model:
    """Makes a user model known by its `name`, so that a data folder of its world can be read; a class decorator.

    Raises:
        ValueError: If another class has that name.
    """
    known = USER_MODELS.setdefault(model.name, model)
    if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
        raise ValueError(f"user model {model.name!r} is {known.__qualname__}, it cannot be {model.__qualname__} too")
    USER_MODELS[model.name] = model
    return model


def user_model_from_dict(values: Mapping[str, Any]) -> UserModel:
    """Makes a user model of its JSON form.

    Raises:
        ValueError: If its name is not registered, or a constant is unknown or out of its range.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"user: expected a name and constants, got {values!r}")
    name, constants = values.get("name"), {key: value for key, value in values.items() if key != "name"}
    if name not in USER_MODELS:
        raise ValueError(f"unknown user model {name!r}, expected one of {sorted(USER_MODELS)}; see register_user_model")
    if unknown := sorted(constants.keys() - {entry.name for entry in fields(USER_MODELS[name])}):
        raise ValueError(f"unknown constants {unknown} of the user model {name!r}")
    return USER_MODELS[name](**constants)


def take(table: Array, index: Array) -> Array:
    """(B, S) of a table (B, K), by an index (B, S), or (S,) shared by all rows."""
    if isinstance(table, Tensor):
        index = torch.as_tensor(index)
        return table[:, index] if index.ndim == 1 else table.gather(1, index)
    return np.take(table, index, axis=1) if index.ndim == 1 else np.take_along_axis(table, index, axis=1)


def sigmoid(logits: Array) -> Array:
    """The logistic function."""
    return torch.sigmoid(logits) if isinstance(logits, Tensor) else 1.0 / (1.0 + np.exp(-logits))


def softmax(logits: Array) -> Array:
    """The softmax over the last axis."""
    if isinstance(logits, Tensor):
        return torch.softmax(logits, dim=-1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


class Page:
    """Looks up what stands where on slates; on soft ones, shares (B, S, M, N) of candidates, what stands on average.

    Averages of pairs are over both items. Where shares are 0 or 1 all is as on slates.
    """

    def __init__(self, requests: Requests, slates: Array) -> None:
        self.requests = requests
        self.soft = isinstance(slates, Tensor) and slates.is_floating_point()
        positions = range(slates.shape[2 if self.soft else -1])
        self.items = [slates[:, :, position] if self.soft else slates[..., position] for position in positions]
        self._size = requests.appeal.shape[1]

    def __len__(self) -> int:
        return len(self.items)

    def at(self, table: Array, position: int) -> Array:
        """(B, S) of a table (B, N): its entries for the items at a position."""
        if self.soft:
            return torch.einsum("bsn,bn->bs", self.items[position], table)
        return take(table, self.items[position])

    def pair(self, table: Array, first: int, second: int) -> Array:
        """(B, S) of a table of pairs (B, N * N): its entries [item at `first`, item at `second`]."""
        if self.soft:
            pairs = table.view(-1, self._size, self._size)
            return torch.einsum("bsi,bij,bsj->bs", self.items[first], pairs, self.items[second])
        return take(table, self.items[first] * self._size + self.items[second])


def read_on(
    attractions: Sequence[Array], clicks: Sequence[Array | float], after_none: Array | float, after_click: Array | float
) -> Array:
    """The likelihood (B, S) of clicks of a user who reads from the top and may stop after every position.

    Whether she still reads is not seen: a two-state forward recursion sums over where she stopped.
    """
    reading, stopped = 1.0, 0.0
    for attraction, click in zip(attractions, clicks, strict=True):
        seen = reading * (click * attraction + (1.0 - click) * (1.0 - attraction))
        goes_on = click * after_click + (1.0 - click) * after_none
        stopped = (1.0 - click) * stopped + seen * (1.0 - goes_on)
        reading = seen * goes_on
    return reading + stopped


@register_user_model
@dataclass(frozen=True, kw_only=True)
class CascadeUser(UserModel):
    """Reads from the top; what is shown attracts or repels its neighbours, whether clicked or not; a click hooks.

    At position t the click logit is the item's appeal, less what similar items already shown took away (substitution,
    fading with distance), plus what the previous item's category asks for (complements, asymmetric), less what a
    similar *next* item takes away (look-ahead: a prefix does not know it):

        x_t = a[l_t] - ls * sum_{s<t} decay^(t-s-1) S[l_t, l_s] + lc * K[l_{t-1}, l_t] - ln * S[l_t, l_{t+1}]
        p_t = sigmoid(x_t),   e_1 = 1,   e_{t+1} = e_t * (g0 + (g1 - g0) * p_t),   P(click at t) = e_t * p_t
    """

    name: ClassVar[str] = "cascade"
    substitution: float = constant(2.0, "positive")
    substitution_decay: float = constant(0.7, "probability")
    complement: float = constant(1.5, "positive")
    lookahead: float = constant(0.7, "positive")
    continue_without_click: float = constant(0.75, "probability")
    continue_after_click: float = constant(0.95, "probability")

    def attractions(self, requests: Requests, slates: Array) -> list[Array]:
        """p_t, a position's click probability if it is looked at."""
        page = Page(requests, slates)
        after = self.complement * requests.complement - self.substitution * requests.similarity
        before = -self.lookahead * requests.similarity
        attractions = []
        for position in range(len(page)):
            logit = page.at(requests.appeal, position)
            if position > 0:
                logit = logit + page.pair(after, position - 1, position)
            for earlier in range(position - 1):
                weight = self.substitution * self.substitution_decay ** (position - earlier - 1)
                logit = logit - weight * page.pair(requests.similarity, earlier, position)
            if position + 1 < len(page):
                logit = logit + page.pair(before, position, position + 1)
            attractions.append(sigmoid(logit))
        return attractions

    def likelihood(self, requests: Requests, slates: Array, clicks: Sequence[Array | float]) -> Array:
        """See `UserModel.likelihood`."""
        attractions = self.attractions(requests, slates)
        return read_on(attractions, clicks, self.continue_without_click, self.continue_after_click)

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """See `UserModel.expected_clicks`; exact, because p_t does not depend on earlier clicks."""
        clicks, examined = [], 1.0
        hook = self.continue_after_click - self.continue_without_click
        for attraction in self.attractions(requests, slates):
            clicks.append(examined * attraction)
            examined = examined * (self.continue_without_click + hook * attraction)
        return clicks

    def sample_clicks(self, requests: Requests, slates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """See `UserModel.sample_clicks`; position by position, as she reads."""
        return self.read(requests, slates, rng)[0]

    def read(self, requests: Requests, slates: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Clicks as of `sample_clicks`, and of the same reading 1 where a position was seen (B, S, M)."""
        probabilities = np.stack(self.attractions(requests, slates), axis=-1)
        wants, goes_on = rng.random(probabilities.shape), rng.random(probabilities.shape)
        clicks, seen = np.zeros(probabilities.shape), np.zeros(probabilities.shape)
        examined = np.ones(probabilities.shape[:-1], dtype=bool)
        for position in range(probabilities.shape[-1]):
            clicked = examined & (wants[..., position] < probabilities[..., position])
            clicks[..., position], seen[..., position] = clicked, examined
            continues = np.where(clicked, self.continue_after_click, self.continue_without_click)
            examined &= goes_on[..., position] < continues
        return clicks, seen


@register_user_model
@dataclass(frozen=True, kw_only=True)
class SatiationUser(UserModel):
    """Reads from the top; a click uses up the desire for similar items and wakes that for complements.

        x_t = a[l_t] - ls * sum_{s<t, clicked} S[l_t, l_s] + lc * sum_{s<t, clicked} K[l_s, l_t]

    She goes on with probability g0 after no click and g1 after one. Feedback depends on earlier clicks, so a position's
    click probability is a sum over the 2^(t-1) ways to have clicked above.
    """

    name: ClassVar[str] = "satiation"
    satiation: float = constant(5.0, "positive")
    arousal: float = constant(2.0, "positive")
    continue_without_click: float = constant(0.9, "probability")
    continue_after_click: float = constant(0.9, "probability")

    def _effects(self, page: Page) -> Array:
        """What a click on the first item of a pair adds to the click logit of the second."""
        return self.arousal * page.requests.complement - self.satiation * page.requests.similarity

    def likelihood(self, requests: Requests, slates: Array, clicks: Sequence[Array | float]) -> Array:
        """See `UserModel.likelihood`."""
        page = Page(requests, slates)
        effects = self._effects(page)
        attractions = []
        for position in range(len(page)):
            logit = page.at(requests.appeal, position)
            for earlier in range(position):
                logit = logit + clicks[earlier] * page.pair(effects, earlier, position)
            attractions.append(sigmoid(logit))
        return read_on(attractions, clicks, self.continue_without_click, self.continue_after_click)

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """See `UserModel.expected_clicks`; the histories of clicks are listed position by position."""
        page = Page(requests, slates)
        effects = self._effects(page)
        histories: list[tuple[Array, tuple[int, ...]]] = [(1.0, ())]  # probability to be reading on, clicked positions
        clicks = []
        for position in range(len(page)):
            appeal = page.at(requests.appeal, position)
            moves = [page.pair(effects, earlier, position) for earlier in range(position)]
            total, following = 0.0, []
            for chance, clicked in histories:
                attraction = sigmoid(appeal + sum(moves[earlier] for earlier in clicked))
                click = chance * attraction
                total = total + click
                following.append((click * self.continue_after_click, (*clicked, position)))
                following.append(((chance - click) * self.continue_without_click, clicked))
            clicks.append(total)
            histories = following
        return clicks


class IndependentUser(UserModel):
    """Looks at every position by itself: what a subclass says of the clicks' probabilities is all there is to know."""

    def likelihood(self, requests: Requests, slates: Array, clicks: Sequence[Array | float]) -> Array:
        """See `UserModel.likelihood`."""
        chance = 1.0
        for probability, click in zip(self.expected_clicks(requests, slates), clicks, strict=True):
            chance = chance * (click * probability + (1.0 - click) * (1.0 - probability))
        return chance


@register_user_model
@dataclass(frozen=True, kw_only=True)
class ContrastUser(IndependentUser):
    """Compares every item with its neighbours: beside a worse item of its kind it shines, beside a better one it pales.

        x_t = a[l_t] + lk * sum_{|s-t|=1} S[l_t, l_s] * tanh(a[l_t] - a[l_s])
        P(click at t) = decay^(t-1) * sigmoid(x_t)

    A decoy, which nobody clicks, may earn its place. Positions are looked at independently.
    """

    name: ClassVar[str] = "contrast"
    contrast: float = constant(6.0, "positive")
    attention_decay: float = constant(0.85, "probability")

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """See `UserModel.expected_clicks`."""
        page = Page(requests, slates)
        ahead = requests.appeal[:, :, None] - requests.appeal[:, None, :]
        ahead = torch.tanh(ahead) if isinstance(ahead, Tensor) else np.tanh(ahead)
        gains = self.contrast * requests.similarity * ahead.reshape(requests.similarity.shape)
        clicks = []
        for position in range(len(page)):
            logit = page.at(requests.appeal, position)
            for neighbour in (position - 1, position + 1):
                if 0 <= neighbour < len(page):
                    logit = logit + page.pair(gains, position, neighbour)
            clicks.append(self.attention_decay**position * sigmoid(logit))
        return clicks


@register_user_model
@dataclass(frozen=True, kw_only=True)
class DecoyUser(IndependentUser):
    """Knows all candidates, and finds an item cheap whose like is dear: a decoy works from the list, shown or not.

        r_i = sum_{j != i} w_ij value_j / sum_{j != i} w_ij,  w_ij = exp(lf * S_ij)
        x_t = a[l_t] + lk * (r[l_t] - mean value of the candidates)
        P(click at t) = decay^(t-1) * sigmoid(x_t)

    r_i is the reference price, what the candidates most like item i cost; an only candidate has none. What an item is
    worth does not depend on the slate, so that sorting reaches the optimum, and depends on the list of candidates.
    """

    name: ClassVar[str] = "decoys"
    reads_candidates: ClassVar[bool] = True
    comparison: float = constant(4.0, "positive")
    focus: float = constant(10.0, "positive")
    attention_decay: float = constant(0.85, "probability")

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """See `UserModel.expected_clicks`."""
        page, size = Page(requests, slates), requests.appeal.shape[1]
        similar = self.focus * requests.similarity.reshape(-1, size, size)
        itself = torch.eye(size) if isinstance(similar, Tensor) else np.eye(size)
        dearer = requests.value - requests.value.mean(1)[:, None]
        reference = (softmax(similar - _NEVER * itself) * dearer[:, None]).sum(2)
        appeal = requests.appeal + self.comparison * reference
        return [self.attention_decay**position * sigmoid(page.at(appeal, position)) for position in range(len(page))]


@register_user_model
@dataclass(frozen=True, kw_only=True)
class NeedsUser(UserModel):
    """Looks at the whole page and serves each of her needs, one per category, at most once.

    Of the items of a category she clicks one or none, by a softmax with an outside option (a nested logit model whose
    nests are independent):

        w_t = decay^(t-1) * exp(a[l_t] - lr * sum_{s != t} S[l_t, l_s])
        P(click at t) = w_t / (1 + sum_{s of the same category} w_s)

    What stands below takes from what stands above, which a prefix does not know.
    """

    name: ClassVar[str] = "needs"
    rivalry: float = constant(0.5, "positive")
    attention_decay: float = constant(0.85, "probability")

    def _same_need(self, page: Page, first: int, second: int) -> Array | float:
        category = page.requests.category
        return 1.0 * (page.at(category, first) == page.at(category, second))

    def _weights(self, page: Page) -> tuple[list[Array], list[list[Array | float]]]:
        """w_t, and whether two positions serve one need."""
        weights = []
        for position in range(len(page)):
            logit = page.at(page.requests.appeal, position)
            for other in range(len(page)):
                if other != position:
                    logit = logit - self.rivalry * page.pair(page.requests.similarity, position, other)
            weight = torch.exp(logit) if isinstance(logit, Tensor) else np.exp(logit)
            weights.append(self.attention_decay**position * weight)
        size = range(len(page))
        same: list[list[Array | float]] = [[1.0 for _ in size] for _ in size]
        for first in size:
            for second in range(first):
                same[first][second] = same[second][first] = self._same_need(page, first, second)
        return weights, same

    def expected_clicks(self, requests: Requests, slates: Array) -> list[Array]:
        """See `UserModel.expected_clicks`."""
        weights, same = self._weights(Page(requests, slates))
        return [
            weight / (1.0 + sum(one * other for one, other in zip(row, weights, strict=True)))
            for weight, row in zip(weights, same, strict=True)
        ]

    def likelihood(self, requests: Requests, slates: Array, clicks: Sequence[Array | float]) -> Array:
        """See `UserModel.likelihood`; a product over the needs, each told by its first position."""
        weights, same = self._weights(Page(requests, slates))
        chance = 1.0
        for position, row in enumerate(same):
            first = 1.0
            for earlier in row[:position]:
                first = first * (1.0 - earlier)
            pairs = list(zip(row, clicks, strict=True))
            clicked = sum(one * click for one, click in pairs)
            chosen = sum(one * click * weight for (one, click), weight in zip(pairs, weights, strict=True))
            total = 1.0 + sum(one * weight for one, weight in zip(row, weights, strict=True))
            served = ((clicked == 0) * 1.0 + (clicked == 1) * chosen) / total
            chance = chance * (first * served + (1.0 - first))
        return chance


@register_user_model
@dataclass(frozen=True, kw_only=True)
class ChoiceUser(NeedsUser):
    """Looks at the whole page and clicks at most one item: `NeedsUser` with a single need."""

    name: ClassVar[str] = "choice"
    rivalry: float = constant(1.3, "positive")
    attention_decay: float = constant(0.75, "probability")

    def _same_need(self, page: Page, first: int, second: int) -> Array | float:
        return 1.0
