"""A simulated world: users, items, a retrieval stage, an upstream ranker, a logging policy, and users who read pages.

An item's appeal to a user, the click logit that it has alone on a page, is

    a_i = base_logit + scale * <u, v_i> + b_i

with user and item vectors of length one, observed with noise, and a bias b_i that is observed nowhere: it can only be
learned through the item id. Items are similar by S_ij = max(0, <v_i, v_j>), and some categories follow up others. What
users make of a whole page is their user model's (`rerankzoo.data.simulator.user_models`).

Where users have made earlier visits, u is their interest now: their taste, pulled towards what they have clicked, which
fades with a known half-life. Their vector is then observed as it was before, the taste.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import list_table, write_data_folder
from rerankzoo.data.simulator.audience import Audience
from rerankzoo.data.simulator.settings import VISIT_ITEMS, SimulatorSettings
from rerankzoo.data.simulator.user_models import CascadeUser, Requests
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.slates import plackett_luce_propensities, plackett_luce_slates

BLOCK_SIZE = 1_000
"""Requests drawn from one random stream: a longer table begins with the rows of a shorter one."""
#: What the truth of a request depends on beside its candidates; no field of the schema.
TRUTH_COLUMNS = frozenset({"user_id"})
_STREAMS = MappingProxyType(
    {"world": 0, "train": 1, "validation": 2, "test": 3, "judge": 4, "click rate": 5, "sets": 6, "visits": 7}
)
_SPLITS = ("train", "validation", "test", "judge")
_LOGITS = (-25.0, 25.0)  # between which base_logit is sought
_CLOSE = 0.02  # of the click rate that was asked for, as a share of it


class Simulator:
    """The simulated world: exposure logs, and the exact expected utility of any slate.

    Slates hold positions into a request's candidates. Ids are row numbers of the world's users and items.

    Args:
        settings: The constants; the same settings always give the same world and the same requests.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        rng = self._stream("world")
        size = settings.latent_size
        self.user_vectors = _unit(rng.normal(size=(settings.num_users, size)))
        centroids = _unit(rng.normal(size=(settings.num_categories, size)))
        self.item_categories = rng.integers(settings.num_categories, size=settings.num_items)
        directions = _unit(rng.normal(size=(settings.num_items, size)))
        self.item_vectors = _unit(centroids[self.item_categories] + settings.category_spread * directions)
        self.item_biases = settings.item_bias_std * rng.normal(size=settings.num_items)
        self.item_values = rng.uniform(*settings.value_range, size=settings.num_items)
        order = rng.random((settings.num_categories, settings.num_categories))
        np.fill_diagonal(order, np.inf)  # a category does not follow itself
        following = np.argsort(order, axis=1)[:, : settings.num_complements]
        self.complements = np.zeros(order.shape)  # [category, following category]
        np.put_along_axis(self.complements, following, 1.0, axis=1)
        self.observed_users = self.user_vectors + settings.feature_noise * rng.normal(size=self.user_vectors.shape)
        self.observed_items = self.item_vectors + settings.feature_noise * rng.normal(size=self.item_vectors.shape)
        self.visits = self._visit() if settings.history_length else None
        rng = self._stream("sets")  # each is what some user would be shown
        self.candidate_sets = self._retrieve(rng.integers(settings.num_users, size=settings.candidate_sets), rng)
        self.user_model = settings.user_model
        self.base_logit = settings.base_logit
        if settings.click_rate is not None:
            self.base_logit = self._find_base_logit(settings.click_rate)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Simulator:
        """Rebuilds the world of a data folder from its `dataset.json`.

        Raises:
            ValueError: If the folder was not written by the simulator, or by one with other constants.
        """
        if metadata.get("source") != "simulator" or not isinstance(metadata.get("settings"), Mapping):
            raise ValueError(
                f"metadata of source {metadata.get('source')!r} holds no simulator settings; "
                "the truth is known for simulated data only"
            )
        return cls(SimulatorSettings.from_dict(metadata["settings"]))

    @property
    def schema(self) -> FeatureSchema:
        """The schema of the tables; a click earns the item's value, and being seen nothing."""
        seen = (TargetSpec(name="seen", weight=0.0),) if self.settings.logs_seen else ()
        size = self.settings.latent_size
        return FeatureSchema(
            name="simulator",
            item_id="item_id",
            fields=(
                FieldSpec(name="user_embedding", group="request", kind="dense", size=size),
                FieldSpec(name="item_id", group="candidate", kind="categorical"),
                FieldSpec(name="category", group="candidate", kind="categorical"),
                FieldSpec(name="item_embedding", group="candidate", kind="dense", size=size),
                FieldSpec(name="affinity", group="candidate", kind="dense", size=size),
                FieldSpec(name="value", group="candidate", kind="numeric", transforms=("standardize",)),
                FieldSpec(name="upstream_score", group="candidate", kind="numeric", transforms=("standardize",)),
                *(() if self.visits is None else self._history_fields()),
            ),
            targets=(TargetSpec(name="click", value="value"), *seen),
            upstream_score="upstream_score",
            propensity="propensity",
        )

    def _history_fields(self) -> tuple[FieldSpec, ...]:
        return (
            FieldSpec(name="history_item_id", group="history", kind="categorical", shares="item_id"),
            FieldSpec(name="history_category", group="history", kind="categorical", shares="category"),
            FieldSpec(name="history_embedding", group="history", kind="dense", size=self.settings.latent_size),
            FieldSpec(name="history_time", group="history", kind="time"),
            *([FieldSpec(name="history_page", group="history", kind="page")] if self.settings.visit_clicks > 1 else ()),
        )

    def requests(self, split: str, num_requests: int) -> pa.Table:
        """Draws the first requests of a split as an exposure log with sampled clicks.

        Args:
            split: An independent stream: "train", "validation", "test", or "judge", a log for another evaluator.
            num_requests: Rows of the table; a longer one begins with the rows of a shorter one.

        Returns:
            The table: `user_id`, the fields of `schema`, `slate`, the targets and `propensity`, the probability with
            which the logging policy chose each position given the ones before. Candidates are in random order. With a
            history also what was clicked in earlier visits, `history_time` hours ago; where a visit has several clicks,
            `history_page` visits ago.

        Raises:
            ValueError: If the split is unknown or `num_requests` is negative.
        """
        return pa.concat_tables(self.blocks(split, num_requests))

    def blocks(self, split: str, num_requests: int) -> Iterator[pa.Table]:
        """See `requests`: its rows, at most `BLOCK_SIZE` at a time, in one table at least."""
        if split not in _SPLITS:
            raise ValueError(f"unknown split {split!r}, choose from {list(_SPLITS)}")
        if num_requests < 0:
            raise ValueError(f"num_requests must not be negative, got {num_requests}")
        starts = range(0, max(1, num_requests), BLOCK_SIZE)
        return (self._block(split, start // BLOCK_SIZE).slice(0, num_requests - start) for start in starts)

    def expected_clicks(self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Returns the exact click probability (B, S, M) of each position, given the whole slate."""
        audience = self.audience(user_ids, item_ids)
        return np.stack(audience.user.expected_clicks(audience.requests, _checked_slates(slates, audience)), axis=-1)

    def expected_utility(self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Returns the exact expected utility of given slates.

        Args:
            user_ids: Users (B,).
            item_ids: Candidates (B, N).
            slates: Positions into the candidates (B, S, M), distinct within a slate; M need not be `slate_size`.

        Returns:
            Expected utilities (B, S), float64.

        Raises:
            RerankingDataError: If an id or a position is out of range, a slate repeats a position, or shapes disagree.
        """
        audience = self.audience(user_ids, item_ids)
        return audience.expected_utility(_checked_slates(slates, audience))

    def all_utilities(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the exact expected utility of every slate of each request.

        Args and errors are those of `expected_utility` and of `rerankzoo.slates.all_slates`.

        Returns:
            Expected utilities (B, P), float64, in the order of `all_slates(N, slate_size)`.
        """
        return self.audience(user_ids, item_ids).all_utilities(slate_size)

    def pointwise_oracle(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the slates (B, M) that sort the candidates by their true stand-alone expected value."""
        return self.audience(user_ids, item_ids, slate_size).pointwise(slate_size)

    def greedy(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the slates (B, M) that add the item of highest true utility of the prefix at every position."""
        return self.beam(user_ids, item_ids, slate_size, num_beams=1)

    def beam(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int, *, num_beams: int) -> np.ndarray:
        """Returns the best slates (B, M) of a beam search on the true utility of prefixes.

        A prefix is scored as if it were the whole slate: what later items will change is missing.
        """
        audience = self.audience(user_ids, item_ids, slate_size)
        if num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {num_beams}")
        return audience.beam(slate_size, num_beams)

    def local_search(self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Improves slates (B, M) until no swap of two positions and no replacement of one item raises the utility.

        Each round takes the best such step of every request; the slates returned are local optima of the true expected
        utility. Errors are those of `expected_utility`.
        """
        audience = self.audience(user_ids, item_ids)
        return audience.local_search(_checked_slates(np.asarray(slates)[:, None], audience)[:, 0])

    def sample_feedback(
        self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws clicks (B, S, M), float64, of one reading of each slate; see `expected_utility`."""
        audience = self.audience(user_ids, item_ids)
        return audience.user.sample_clicks(audience.requests, _checked_slates(slates, audience), rng)

    def _visit(self) -> tuple[np.ndarray, np.ndarray]:
        """Lets all users make their earlier visits, which move their vectors; the items clicked, and hours since.

        In each visit a user sees some random items and clicks those that she then likes best, with Gumbel noise on
        the appeal: `u = unit(taste + pull * sum_l 2^(-hours_l / half_life) v_l)`.

        Returns:
            (U, L) items and (U, L) hours, the newest last; L is visits x clicks.
        """
        settings, rng = self.settings, self._stream("visits")
        shape = (settings.num_users, settings.history_length)
        gaps = rng.exponential(settings.visit_gap, size=shape)  # until the next visit, the last one until the request
        clicked = np.empty((*shape, settings.visit_clicks), dtype=np.int64)
        tastes, pulled = self.user_vectors, np.zeros(self.user_vectors.shape)
        for visit in range(settings.history_length):
            seen = rng.integers(settings.num_items, size=(settings.num_users, VISIT_ITEMS))
            affinity = np.einsum("ud,usd->us", self.user_vectors, self.item_vectors[seen])
            appeal = settings.relevance_scale * affinity + self.item_biases[seen] + rng.gumbel(size=seen.shape)
            best = np.argsort(-appeal, axis=1)[:, : settings.visit_clicks]
            clicked[:, visit] = np.take_along_axis(seen, best, axis=1)
            left = np.exp2(-gaps[:, visit, None] / settings.interest_half_life)
            pulled = left * (pulled + self.item_vectors[clicked[:, visit]].sum(axis=1))
            self.user_vectors = _unit(tastes + settings.interest_pull * pulled)
        hours = gaps[:, ::-1].cumsum(axis=1)[:, ::-1]
        return clicked.reshape(len(clicked), -1), hours.repeat(settings.visit_clicks, axis=1)

    def _stream(self, name: str, block: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, _STREAMS[name], block])

    def audience(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int = 1) -> Audience:
        """The requests and how their users read, of which all utilities follow; errors as of `expected_utility`."""
        users = _checked(user_ids, "user_id", self.settings.num_users, ("B",))
        items = _checked(item_ids, "item_id", self.settings.num_items, (len(users), "N"))
        if not 1 <= slate_size <= items.shape[1]:
            raise ValueError(f"slate_size {slate_size} is outside 1..{items.shape[1]}, the number of candidates")
        vectors, categories = self.item_vectors[items], self.item_categories[items]
        affinity = np.einsum("bd,bnd->bn", self.user_vectors[users], vectors)
        similarity = np.maximum(0.0, vectors @ vectors.swapaxes(1, 2))
        complement = self.complements[categories[:, :, None], categories[:, None, :]]
        requests = Requests(
            appeal=self.base_logit + (self.settings.relevance_scale * affinity + self.item_biases[items]),
            value=self.item_values[items],
            category=categories,
            similarity=similarity.reshape(len(items), -1),
            complement=complement.reshape(len(items), -1),
        )
        return Audience(self.user_model, requests)

    def _find_base_logit(self, click_rate: float) -> float:
        """The base logit with which logged positions are clicked at a rate, by bisection over one block of requests."""
        low, high = _LOGITS
        for _ in range(40):
            self.base_logit = (low + high) / 2
            reached = self._logged_click_rate()
            low, high = (self.base_logit, high) if reached < click_rate else (low, self.base_logit)
        if abs(reached / click_rate - 1) > _CLOSE:
            raise ValueError(f"click_rate {click_rate} cannot be reached in this world, the nearest is {reached:.3g}")
        return self.base_logit

    def _logged_click_rate(self) -> float:
        rng = self._stream("click rate")
        users = rng.integers(self.settings.num_users, size=BLOCK_SIZE)
        audience = self.audience(users, self._candidates(users, rng))
        _, slates, _ = self._log(audience, rng)
        return float(np.mean(audience.user.expected_clicks(audience.requests, slates[:, None])))

    def _log(self, audience: Audience, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The upstream scores (B, N), and the slates (B, M) that the logging policy shows, with its propensities."""
        settings, appeal = self.settings, audience.requests.appeal
        upstream = np.log(audience.stand_alone()) + settings.upstream_noise * rng.normal(size=appeal.shape)
        if settings.logging_temperature > 0:
            logits = upstream / settings.logging_temperature
            slates, propensities = plackett_luce_slates(logits, settings.slate_size, rng)
        else:
            slates = np.argsort(-upstream, axis=1, kind="stable")[:, : settings.slate_size]
            propensities = np.ones(slates.shape)
        if settings.exploration > 0:
            slates, propensities = self._explore(upstream, slates, rng)
        return upstream, slates, propensities

    def _explore(
        self, upstream: np.ndarray, slates: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Replaces the slates (B, M) of some requests by uniform ones; with the propensities of the mixture."""
        temperature, share = self.settings.logging_temperature, self.settings.exploration
        uniform, uniform_propensities = plackett_luce_slates(np.zeros(upstream.shape), slates.shape[1], rng)
        shown = np.where(rng.random((len(slates), 1)) < share, uniform, slates)
        if temperature > 0:
            propensities = plackett_luce_propensities(upstream / temperature, shown)
        else:
            propensities = np.logical_and.accumulate(shown == slates, axis=1).astype(float)
        # Which of the two policies has shown the slate is not known: a mixture of their probabilities of prefixes.
        prefixes = share * uniform_propensities.cumprod(axis=1) + (1 - share) * propensities.cumprod(axis=1)
        before = np.concatenate([np.ones((len(prefixes), 1)), prefixes[:, :-1]], axis=1)
        return shown, prefixes / before

    def _candidates(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Candidates (R, N) of requests (R,), in random order."""
        if not len(self.candidate_sets):
            return self._retrieve(users, rng)
        return rng.permuted(self.candidate_sets[rng.integers(len(self.candidate_sets), size=len(users))], axis=1)

    def _retrieve(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The candidates (R, N) that retrieval finds for users (R,), in random order."""
        settings = self.settings
        keys = rng.random((len(users), settings.num_items), dtype=np.float32)
        pool = np.argpartition(keys, settings.retrieval_pool - 1, axis=1)[:, : settings.retrieval_pool]
        affinity = np.einsum("rd,rpd->rp", self.user_vectors[users], self.item_vectors[pool])
        score = settings.relevance_scale * affinity + self.item_biases[pool]
        score += settings.retrieval_noise * rng.normal(size=pool.shape)
        best = np.argsort(-score, axis=1, kind="stable")[:, : settings.num_candidates]
        return np.take_along_axis(pool, rng.permuted(best, axis=1), axis=1)

    def _block(self, split: str, block: int) -> pa.Table:
        """One block of a split's requests, always drawn whole, so that its rows do not depend on the table's length."""
        rng = self._stream(split, block)
        users = rng.integers(self.settings.num_users, size=BLOCK_SIZE)
        items = self._candidates(users, rng)
        audience = self.audience(users, items)
        upstream, slates, propensities = self._log(audience, rng)
        if isinstance(audience.user, CascadeUser):
            clicks, seen = (drawn[:, 0] for drawn in audience.user.read(audience.requests, slates[:, None], rng))
        else:
            clicks = audience.user.sample_clicks(audience.requests, slates[:, None], rng)[:, 0]
        user_embedding, item_embedding = self.observed_users[users], self.observed_items[items]
        columns = {
            "user_id": users,
            "user_embedding": user_embedding,
            "item_id": items,
            "category": self.item_categories[items],
            "item_embedding": item_embedding,
            "affinity": 4.0 * user_embedding[:, None] * item_embedding,
            "value": audience.requests.value,
            "upstream_score": upstream,
            "slate": slates,
            "click": clicks,
            "propensity": propensities,
        }
        if self.visits is not None:
            clicked, hours = (table[users] for table in self.visits)
            columns |= {
                "history_item_id": clicked,
                "history_category": self.item_categories[clicked],
                "history_embedding": self.observed_items[clicked],
                "history_time": hours,
            }
            if self.settings.visit_clicks > 1:
                ago = np.arange(self.settings.history_length, 0, -1).repeat(self.settings.visit_clicks)
                columns["history_page"] = np.broadcast_to(ago, clicked.shape)
        if self.settings.logs_seen:
            columns["seen"] = seen
        return list_table(columns)


def write_simulator_folder(
    directory: str | Path,
    settings: SimulatorSettings,
    *,
    num_train: int = 40_000,
    num_validation: int = 2_000,
    num_test: int = 500,
    log: str = "train",
) -> None:
    """Writes simulated train, validation and test tables as a data folder.

    Blocks of requests are drawn and written one after another: memory does not grow with their number.

    Args:
        directory: The folder, made if it is missing.
        settings: The world; kept in `dataset.json`, from which `Simulator.from_metadata` rebuilds it.
        num_train: Requests of the train split.
        num_validation: Requests of the validation split.
        num_test: Requests of the test split.
        log: The stream of the train split: "train", or "judge" for an independent log of the same world.

    Raises:
        ValueError: If a split would be empty.
    """
    sizes = {"train": num_train, "validation": num_validation, "test": num_test}
    for split, size in sizes.items():
        if size < 1:
            raise ValueError(f"num_{split} must be at least 1, got {size}")
    simulator = Simulator(settings)
    blocks = {split: simulator.blocks(log if split == "train" else split, size) for split, size in sizes.items()}
    metadata = {
        "source": "simulator",
        "protocol": "independent requests of one world; slates by a Plackett-Luce policy over upstream scores",
        "settings": settings.to_dict(),
    }
    parts = ((split, table) for split, tables in blocks.items() for table in tables)
    write_data_folder(directory, parts, simulator.schema, metadata)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _checked(values: np.ndarray, field: str, bound: int, shape: tuple[int | str, ...]) -> np.ndarray:
    """Integers in 0..bound - 1 of a shape; sizes given by a letter may be any."""
    values = np.asarray(values)
    fits = len(shape) == values.ndim and all(
        isinstance(wanted, str) or wanted == size for wanted, size in zip(shape, values.shape, strict=True)
    )
    if not fits or not np.issubdtype(values.dtype, np.integer):
        expected = f"expected integers ({', '.join(map(str, shape))})"
        raise RerankingDataError(f"{expected}, got shape {values.shape} of {values.dtype}", field=field)
    wrong = np.argwhere((values < 0) | (values >= bound))
    if len(wrong):
        what = f"{'position' if field == 'slate' else 'id'} {values[tuple(wrong[0])]}"
        raise RerankingDataError(f"{what} is outside 0..{bound - 1}", field=field, row=int(wrong[0][0]))
    return values


def _checked_slates(slates: np.ndarray, audience: Audience) -> np.ndarray:
    count, num_candidates = audience.requests.appeal.shape
    slates = _checked(slates, "slate", num_candidates, (count, "S", "M"))
    ordered = np.sort(slates, axis=-1)
    repeated = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(-1))
    if len(repeated):
        row, slate = repeated[0]
        raise RerankingDataError(f"slate {slates[row, slate].tolist()} repeats a position", field="slate", row=int(row))
    return slates
