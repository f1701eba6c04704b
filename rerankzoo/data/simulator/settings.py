"""The constants of a simulated world, and named worlds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from rerankzoo.data.simulator.user_models import (
    CascadeUser,
    ChoiceUser,
    ContrastUser,
    DecoyUser,
    NeedsUser,
    SatiationUser,
    UserModel,
    user_model_from_dict,
)
from rerankzoo.errors import did_you_mean

_CASCADE = tuple(entry.name for entry in fields(CascadeUser))
#: Left out of `dataset.json` at their defaults: the folders of the first simulator lack them.
_ADDED = {"user", "exploration", "click_rate", "candidate_sets"}
_ADDED |= {"history_length", "interest_pull", "interest_half_life", "visit_gap", "visit_clicks", "logs_seen"}
VISIT_ITEMS = 10  # that a user sees in an earlier visit
_LOWEST_TEMPERATURE = 0.05  # below, probabilities of the logging policy underflow


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Every constant of the simulated world; the defaults are the setting "strong"."""

    num_users: int = 2_000  # users of the world
    num_items: int = 600  # items of the world
    num_categories: int = 8  # item categories, drawn uniformly for each item
    num_complements: int = 2  # follow-up categories of each category; never the category itself
    latent_size: int = 8  # size of the user and item vectors (both of length one)
    category_spread: float = 0.6  # length of an item's own direction, relative to its category's centroid of length one
    base_logit: float = -1.0  # b0, click logit of an item of relevance zero
    relevance_scale: float = 2.0  # factor of the inner product of user and item in the relevance
    item_bias_std: float = 0.4  # standard deviation of the hidden item bias b_i
    value_range: tuple[float, float] = (0.5, 2.0)  # lowest and highest item value, drawn uniformly
    # The six constants of a `CascadeUser`, who reads where `user` is None.
    substitution: float = 2.0  # ls, what an item of similarity one, shown just before, takes from the click logit
    substitution_decay: float = 0.7  # factor of `substitution` per further position in between
    complement: float = 1.5  # lc, what a complementary category just before adds to the click logit
    lookahead: float = 0.7  # ln, what an item of similarity one, shown just after, takes from the click logit
    continue_without_click: float = 0.75  # g0, probability of looking at the next position after no click
    continue_after_click: float = 0.95  # g1, the same after a click
    feature_noise: float = 0.15  # standard deviation of the noise on each coordinate of the observed vectors
    retrieval_pool: int = 40  # random items that the retrieval stage looks at for each request
    retrieval_noise: float = 0.8  # the same on the relevance by which retrieval keeps its candidates
    upstream_noise: float = 0.5  # the same on the upstream score, a log expected stand-alone value
    logging_temperature: float = 0.7  # of the Plackett-Luce policy over upstream scores that showed the slates
    num_candidates: int = 10  # n, candidates of a request
    slate_size: int = 4  # m, positions of a logged slate
    seed: int = 0  # seed of the world and of its requests, not negative
    user: UserModel | None = None  # how users read, with its own constants; None: the cascade of the constants above
    exploration: float = 0.0  # share of the logged requests whose slate is drawn uniformly
    click_rate: float | None = None  # clicks per logged position, by which base_logit is chosen; None: it stays
    candidate_sets: int = 0  # sets of candidates that all requests share; 0: every request retrieves its own
    history_length: int = 0  # earlier visits of every user, whose clicks the log carries
    interest_pull: float = 0.0  # weight of an item clicked just now in a user's interest, whose taste has weight one
    interest_half_life: float = 24.0  # hours until half of that is left
    visit_gap: float = 24.0  # mean hours between two visits, exponentially distributed
    visit_clicks: int = 1  # clicks of each earlier visit; with several, the log says which page each was on
    logs_seen: bool = False  # whether the log tells which positions were seen, of a cascade

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_range", tuple(self.value_range))  # JSON has lists only
        sizes = (1, self.slate_size, self.num_candidates, self.retrieval_pool, self.num_items)
        if list(sizes) != sorted(sizes):
            raise ValueError(
                "sizes must satisfy 1 <= slate_size <= num_candidates <= retrieval_pool <= num_items, got "
                f"{self.slate_size}, {self.num_candidates}, {self.retrieval_pool}, {self.num_items}"
            )
        complements, categories = self.num_complements, self.num_categories
        if not 0 <= complements < categories:
            raise ValueError(f"num_complements {complements} must be below num_categories {categories}")
        for name, value in vars(self).items():
            if (name.startswith("continue_") or name == "exploration") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a probability, got {value}")
            if name.endswith(("_std", "_noise", "seed", "_sets", "_pull", "history_length")) and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
            if name in ("num_users", "latent_size", "interest_half_life", "visit_gap") and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 1 <= self.visit_clicks <= VISIT_ITEMS:
            raise ValueError(f"visit_clicks must be in 1..{VISIT_ITEMS}, got {self.visit_clicks}")
        temperature = self.logging_temperature
        if temperature != 0 and not temperature >= _LOWEST_TEMPERATURE:
            raise ValueError(f"logging_temperature must be 0 or at least {_LOWEST_TEMPERATURE}, got {temperature}")
        if self.click_rate is not None and not 0.0 < self.click_rate < 1.0:
            raise ValueError(f"click_rate must be between 0 and 1, got {self.click_rate}")
        if self.logs_seen and not isinstance(self.user_model, CascadeUser):
            raise ValueError(f"logs_seen: user model {self.user_model.name!r} does not tell which positions are seen")
        if self.user is not None:
            defaults = {entry.name: entry.default for entry in fields(self)}
            if changed := [name for name in _CASCADE if getattr(self, name) != defaults[name]]:
                raise ValueError(f"{changed} are constants of the cascade user, not of {self.user.name!r}")

    @property
    def user_model(self) -> UserModel:
        """How the users read."""
        return self.user or CascadeUser(**{name: getattr(self, name) for name in _CASCADE})

    @classmethod
    def named(cls, name: str, **overrides: Any) -> SimulatorSettings:
        """Returns one of `SETTINGS` with some constants replaced, those of its user model included.

        Raises:
            ValueError: If the name or an overridden constant is unknown, or the constants contradict each other.
        """
        if name not in SETTINGS:
            near = did_you_mean(name, SETTINGS)
            raise ValueError(f"simulator setting: expected one of {sorted(SETTINGS)}, got {name!r}{near}")
        known, own = SETTINGS[name], {}
        if known.user is not None:
            own = {entry.name: overrides.pop(entry.name) for entry in fields(known.user) if entry.name in overrides}
            overrides = {"user": replace(known.user, **own), **overrides} if own else overrides
        if unknown := sorted(set(overrides) - {field.name for field in fields(cls)}):
            raise ValueError(f"unknown simulator constants {unknown}")
        return replace(known, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, of which `from_dict` makes them again."""
        values = asdict(self) | {"user": self.user and self.user.to_dict()}
        defaults = {entry.name: entry.default for entry in fields(self)}
        return {key: value for key, value in values.items() if key not in _ADDED or value != defaults[key]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SimulatorSettings:
        """Reads the JSON form; errors are those of `named` and of `user_model_from_dict`."""
        user = values.get("user")
        return cls.named("strong", **{**values, "user": user and user_model_from_dict(user)})  # the defaults


_NO_EFFECTS: dict[str, Any] = {
    **dict.fromkeys(("substitution", "complement", "lookahead"), 0.0),
    **dict.fromkeys(("continue_without_click", "continue_after_click"), 0.85),
}
_WITH_HISTORY: dict[str, Any] = {
    **_NO_EFFECTS,
    "num_users": 10_000,
    "history_length": 20,
    "relevance_scale": 3.0,
    "base_logit": -1.5,
    "upstream_noise": 1.0,
}

SETTINGS: Mapping[str, SimulatorSettings] = MappingProxyType(
    {
        "strong": SimulatorSettings(),
        "medium": SimulatorSettings(substitution=1.0, complement=0.75, lookahead=0.35),
        "control": SimulatorSettings(**_NO_EFFECTS),
        "large": SimulatorSettings(num_candidates=50, slate_size=6, retrieval_pool=200),
        "choice": SimulatorSettings(user=ChoiceUser(), base_logit=-0.3),
        "satiation": SimulatorSettings(user=SatiationUser(), base_logit=-1.2),
        "contrast": SimulatorSettings(user=ContrastUser(), base_logit=-1.5),
        "decoys": SimulatorSettings(user=DecoyUser(), base_logit=-1.5),
        "needs": SimulatorSettings(user=NeedsUser()),
        "weak": SimulatorSettings(substitution=0.4, complement=0.4, lookahead=0.15),
        "drift": SimulatorSettings(**_WITH_HISTORY, interest_pull=2.0),
        "steady": SimulatorSettings(**_WITH_HISTORY),
    }
)
"""Named worlds; docs/simulator.md tells what each is for."""
