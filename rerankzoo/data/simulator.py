"""A listwise world whose truth is known: users, items, a retrieval stage, an upstream ranker and a logging policy.

The user reads a slate from the top. At position t the item's click logit is its own relevance, less what similar items
already shown took away (substitution, fading with distance), plus what the previous item's category asks for
(complements, asymmetric), less what a similar *next* item takes away (look-ahead: a prefix does not know it):

    x_t = b0 + r[l_t] - ls * sum_{s<t} decay^(t-s-1) S[l_t, l_s] + lc * K[c_{t-1}, c_t] - ln * S[l_t, l_{t+1}]
    a_t = sigmoid(x_t),    r_i = scale * <u, v_i> + b_i,    S_ij = max(0, <v_i, v_j>)

She goes on with a probability that a click raises (a cascade with a hook), so examination and expected utility are

    e_1 = 1,   e_{t+1} = e_t * (g0 + (g1 - g0) * a_t),   U(slate) = sum_t e_t * a_t * value[l_t]

which is exact, because a_t depends on the slate and not on earlier clicks. The bias b_i is observed nowhere: it can
only be learned through the item id. Sorting candidates by their stand-alone value is clearly sub-optimal in the default
setting (`SETTINGS["strong"]`), and optimal once every listwise effect is off (`SETTINGS["control"]`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from rerankzoo.data.folder import list_table, write_data_folder
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.slates import all_slates, neighbour_slates, plackett_luce_slates

BLOCK_SIZE = 1_000
"""Requests drawn from one random stream: a longer table begins with the rows of a shorter one."""
#: What the truth of a request depends on beside its candidates; no field of the schema.
TRUTH_COLUMNS = frozenset({"user_id"})
_STREAMS = MappingProxyType({"world": 0, "train": 1, "validation": 2, "test": 3, "judge": 4})
_ROUNDING = 1e-9  # smaller gains, as a share, are no gains: a local search must end
_CHUNK_ELEMENTS = 2**17  # (request, slate) pairs evaluated at once: temporaries of 1 MiB stay in the CPU cache


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
            if name.startswith("continue_") and not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a probability, got {value}")
            if name.endswith(("_std", "_noise", "seed")) and value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
            if name in ("num_users", "latent_size", "logging_temperature") and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")

    @classmethod
    def named(cls, name: str, **overrides: Any) -> SimulatorSettings:
        """Returns one of `SETTINGS` with some constants replaced.

        Raises:
            ValueError: If the name or an overridden constant is unknown, or the constants contradict each other.
        """
        if name not in SETTINGS:
            raise ValueError(f"unknown simulator setting {name!r}, choose from {sorted(SETTINGS)}")
        if unknown := sorted(set(overrides) - {field.name for field in fields(cls)}):
            raise ValueError(f"unknown simulator constants {unknown}")
        return replace(SETTINGS[name], **overrides)


SETTINGS: Mapping[str, SimulatorSettings] = MappingProxyType(
    {
        "strong": SimulatorSettings(),
        "medium": SimulatorSettings(substitution=1.0, complement=0.75, lookahead=0.35),
        "control": SimulatorSettings(
            substitution=0.0, complement=0.0, lookahead=0.0, continue_without_click=0.85, continue_after_click=0.85
        ),
    }
)
"""Named settings: the default, one with half its listwise effects, and one without any (pointwise is optimal)."""


class _Requests(NamedTuple):
    """What the user model needs of B requests with N candidates each; matrices are (B, N * N), row-major."""

    relevance: np.ndarray  # (B, N)
    value: np.ndarray  # (B, N)
    similarity: np.ndarray  # [i, j] symmetric
    complement: np.ndarray  # [previous, next]

    def select(self, rows: slice | np.ndarray) -> _Requests:
        return _Requests(*(values[rows] for values in self))


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
        return cls(SimulatorSettings.named("strong", **metadata["settings"]))  # the defaults

    @property
    def schema(self) -> FeatureSchema:
        """The schema of the tables; a click earns the item's value."""
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
            ),
            targets=(TargetSpec(name="click", value="value"),),
            upstream_score="upstream_score",
            propensity="propensity",
        )

    def requests(self, split: str, num_requests: int) -> pa.Table:
        """Draws the first requests of a split as an exposure log with sampled clicks.

        Args:
            split: An independent stream: "train", "validation", "test", or "judge", a log for another evaluator.
            num_requests: Rows of the table; a longer one begins with the rows of a shorter one.

        Returns:
            The table: `user_id`, the fields of `schema`, `slate`, `click` and `propensity`, the probability with which
            the logging policy chose each position given the ones before. Candidates are in random order.

        Raises:
            ValueError: If the split is unknown or `num_requests` is negative.
        """
        return pa.concat_tables(self.blocks(split, num_requests))

    def blocks(self, split: str, num_requests: int) -> Iterator[pa.Table]:
        """See `requests`: its rows, at most `BLOCK_SIZE` at a time, in one table at least."""
        logs = [name for name in _STREAMS if name != "world"]
        if split not in logs:
            raise ValueError(f"unknown split {split!r}, choose from {logs}")
        if num_requests < 0:
            raise ValueError(f"num_requests must not be negative, got {num_requests}")
        starts = range(0, max(1, num_requests), BLOCK_SIZE)
        return (self._block(split, start // BLOCK_SIZE).slice(0, num_requests - start) for start in starts)

    def click_probabilities(self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Returns a_t (B, S, M), a position's click probability if it is looked at; see `expected_utility`."""
        requests = self._requests(user_ids, item_ids)
        return self._clicks(requests, _checked_slates(slates, requests))

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
        requests = self._requests(user_ids, item_ids)
        return self._utility(requests, _checked_slates(slates, requests))

    def all_utilities(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the exact expected utility of every slate of each request.

        Args and errors are those of `expected_utility` and of `rerankzoo.slates.all_slates`.

        Returns:
            Expected utilities (B, P), float64, in the order of `all_slates(N, slate_size)`.
        """
        requests = self._requests(user_ids, item_ids)
        slates = all_slates(requests.relevance.shape[1], slate_size)
        step = max(1, _CHUNK_ELEMENTS // len(slates))
        chunks = [requests.select(slice(start, start + step)) for start in range(0, max(1, len(user_ids)), step)]
        return np.concatenate([self._utility(chunk, slates) for chunk in chunks])

    def pointwise_oracle(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the slates (B, M) that sort the candidates by their true stand-alone expected value."""
        requests = self._requests(user_ids, item_ids, slate_size)
        return np.argsort(-self._stand_alone(requests), axis=1, kind="stable")[:, :slate_size]

    def greedy(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int) -> np.ndarray:
        """Returns the slates (B, M) that add the item of highest true utility of the prefix at every position."""
        return self.beam(user_ids, item_ids, slate_size, num_beams=1)

    def beam(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int, *, num_beams: int) -> np.ndarray:
        """Returns the best slates (B, M) of a beam search on the true utility of prefixes.

        A prefix is scored as if it were the whole slate: the loss to its unknown next item (look-ahead) is missing.
        """
        requests = self._requests(user_ids, item_ids, slate_size)
        if num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {num_beams}")
        batch, num_candidates = requests.relevance.shape
        beams = np.empty((batch, 1, 0), dtype=np.int64)
        for length in range(slate_size):
            width = beams.shape[1]
            prefixes = np.repeat(beams, num_candidates, axis=1)
            items = np.broadcast_to(np.tile(np.arange(num_candidates), width)[:, None], (*prefixes.shape[:2], 1))
            slates = np.concatenate([prefixes, items], axis=-1)
            utilities = self._utility(requests, slates)
            utilities[(prefixes == items).any(-1)] = -np.inf
            keep = min(num_beams, width * (num_candidates - length))  # no more than there are without repetition
            best = np.argsort(-utilities, axis=1, kind="stable")[:, :keep]
            beams = np.take_along_axis(slates, best[..., None], axis=1)
        return beams[:, 0]

    def local_search(self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray) -> np.ndarray:
        """Improves slates (B, M) until no swap of two positions and no replacement of one item raises the utility.

        Each round takes the best such step of every request; the slates returned are local optima of the true expected
        utility. Errors are those of `expected_utility`.
        """
        requests = self._requests(user_ids, item_ids)
        current = _checked_slates(np.asarray(slates)[:, None], requests)[:, 0].copy()
        open_rows = np.arange(len(current))  # requests whose slate may still be improved
        while len(open_rows):
            steps = neighbour_slates(current[open_rows], requests.relevance.shape[1])  # the first one is no step
            utilities = self._utility(requests.select(open_rows), steps)
            better = utilities.max(1) > utilities[:, 0] * (1 + _ROUNDING)
            open_rows = open_rows[better]
            current[open_rows] = steps[better, utilities[better].argmax(1)]
        return current

    def sample_feedback(
        self, user_ids: np.ndarray, item_ids: np.ndarray, slates: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Draws clicks (B, S, M), float64, of one reading of each slate; see `expected_utility`."""
        requests = self._requests(user_ids, item_ids)
        return self._read(self._clicks(requests, _checked_slates(slates, requests)), rng)

    def _stream(self, name: str, block: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.settings.seed, _STREAMS[name], block])

    def _requests(self, user_ids: np.ndarray, item_ids: np.ndarray, slate_size: int = 1) -> _Requests:
        users = _checked(user_ids, "user_id", self.settings.num_users, ("B",))
        items = _checked(item_ids, "item_id", self.settings.num_items, (len(users), "N"))
        if not 1 <= slate_size <= items.shape[1]:
            raise ValueError(f"slate_size {slate_size} is outside 1..{items.shape[1]}, the number of candidates")
        vectors, categories = self.item_vectors[items], self.item_categories[items]
        affinity = np.einsum("bd,bnd->bn", self.user_vectors[users], vectors)
        similarity = np.maximum(0.0, vectors @ vectors.swapaxes(1, 2))
        complement = self.complements[categories[:, :, None], categories[:, None, :]]
        return _Requests(
            relevance=self.settings.relevance_scale * affinity + self.item_biases[items],
            value=self.item_values[items],
            similarity=similarity.reshape(len(items), -1),
            complement=complement.reshape(len(items), -1),
        )

    def _stand_alone(self, requests: _Requests) -> np.ndarray:
        return _sigmoid(self.settings.base_logit + requests.relevance) * requests.value

    def _clicks(self, requests: _Requests, slates: np.ndarray) -> np.ndarray:
        """a_t (B, S, M) of slates (B, S, M), or of slates (S, M) that all requests share."""
        settings, size = self.settings, requests.relevance.shape[1]
        items = [slates[..., position] for position in range(slates.shape[-1])]
        after = settings.complement * requests.complement - settings.substitution * requests.similarity
        before = -settings.lookahead * requests.similarity
        clicks = []
        for position, item in enumerate(items):
            logit = settings.base_logit + _gather(requests.relevance, item)
            if position > 0:
                logit += _gather(after, items[position - 1] * size + item)
            for earlier in range(position - 1):
                weight = settings.substitution * settings.substitution_decay ** (position - earlier - 1)
                logit -= weight * _gather(requests.similarity, items[earlier] * size + item)
            if position + 1 < len(items):
                logit += _gather(before, item * size + items[position + 1])
            clicks.append(_sigmoid(logit))
        return np.stack(clicks, axis=-1)

    def _utility(self, requests: _Requests, slates: np.ndarray) -> np.ndarray:
        clicks = self._clicks(requests, slates)
        utility, examined = np.zeros(clicks.shape[:-1]), np.ones(clicks.shape[:-1])
        hook = self.settings.continue_after_click - self.settings.continue_without_click
        for position in range(clicks.shape[-1]):
            click = clicks[..., position]
            utility += examined * click * _gather(requests.value, slates[..., position])
            examined *= self.settings.continue_without_click + hook * click
        return utility

    def _read(self, probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        wants, goes_on = rng.random(probabilities.shape), rng.random(probabilities.shape)
        clicks, examined = np.zeros(probabilities.shape), np.ones(probabilities.shape[:-1], dtype=bool)
        for position in range(probabilities.shape[-1]):
            clicked = examined & (wants[..., position] < probabilities[..., position])
            clicks[..., position] = clicked
            continues = np.where(clicked, self.settings.continue_after_click, self.settings.continue_without_click)
            examined &= goes_on[..., position] < continues
        return clicks

    def _retrieve(self, users: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Candidates (R, N) of requests (R,), in random order."""
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
        settings, rng = self.settings, self._stream(split, block)
        users = rng.integers(settings.num_users, size=BLOCK_SIZE)
        items = self._retrieve(users, rng)
        requests = self._requests(users, items)
        upstream = np.log(self._stand_alone(requests)) + settings.upstream_noise * rng.normal(size=items.shape)
        slates, propensities = plackett_luce_slates(upstream / settings.logging_temperature, settings.slate_size, rng)
        clicks = self._read(self._clicks(requests, slates[:, None]), rng)[:, 0]
        user_embedding, item_embedding = self.observed_users[users], self.observed_items[items]
        columns = {
            "user_id": users,
            "user_embedding": user_embedding,
            "item_id": items,
            "category": self.item_categories[items],
            "item_embedding": item_embedding,
            "affinity": 4.0 * user_embedding[:, None] * item_embedding,
            "value": requests.value,
            "upstream_score": upstream,
            "slate": slates,
            "click": clicks,
            "propensity": propensities,
        }
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
        "settings": asdict(settings),
    }
    parts = ((split, table) for split, tables in blocks.items() for table in tables)
    write_data_folder(directory, parts, simulator.schema, metadata)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits))


def _gather(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(B, S) of a table (B, K), by an index (B, S), or (S,) shared by all rows."""
    return np.take(table, index, axis=1) if index.ndim == 1 else np.take_along_axis(table, index, axis=1)


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


def _checked_slates(slates: np.ndarray, requests: _Requests) -> np.ndarray:
    slates = _checked(slates, "slate", requests.relevance.shape[1], (len(requests.relevance), "S", "M"))
    ordered = np.sort(slates, axis=-1)
    repeated = np.argwhere((ordered[..., 1:] == ordered[..., :-1]).any(-1))
    if len(repeated):
        row, slate = repeated[0]
        raise RerankingDataError(f"slate {slates[row, slate].tolist()} repeats a position", field="slate", row=int(row))
    return slates
