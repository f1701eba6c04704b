"""Look-ahead mining: beam search with an evaluator, over the requests of a log, into a table of mined slates.

A request gets the best slates found, their values, a weight each, and for every position a distribution over the
candidates left, the *soft label* that a generator learns, read off the scores of the search.

`mine_batch` is the computation, `mine_folder` makes a data folder of it. The method is DeGRe's (KDD 2026,
arXiv:2605.25749); the look-ahead soft label and the normalisation of values are ours.

B requests, N candidates, M positions, W beams, S kept slates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import torch
from datasets import DatasetDict
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.atomic_writing import write_atomically, write_json
from rerankzoo.batch import PADDING, Batch, inputs, take, to_device, trim
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import (
    METADATA_FILE,
    MINED_SOURCE,
    SCHEMA_FILE,
    SETTINGS_FILE,
    UTILITY_QUANTILES,
    link_or_copy,
    local_folder,
    read_metadata,
    split_files,
)
from rerankzoo.data.loader import logged_utilities, slate_lengths
from rerankzoo.data.shards import has_shard, write_shard
from rerankzoo.engines import Workers, run_units
from rerankzoo.errors import RerankingDataError, UnreadableFileError, refuse_other_settings
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import MINED_COLUMNS, SLATE_VALUES, SLATE_WEIGHTS, SOFT_LABELS, FeatureSchema
from rerankzoo.generation import BeamStep, Constraint, Evaluator, EvaluatorEnsemble, Scorer, beam_search, bind
from rerankzoo.generation.rollouts import PERTURBED, UNIFORM, UPSTREAM, distinct, parse_proposals, propose
from rerankzoo.losses import group_targets
from rerankzoo.models.auto import load_checkpoint, load_evaluator
from rerankzoo.models.digest import weights_digest
from rerankzoo.slates import with_slate_lengths

SoftLabel = Literal["look_ahead", "prefix_value", "none"]
Weights = Literal["tempered", "standardised", "uniform"]

_NEVER = float("-inf")
_ROUNDING = 1e-5  # values closer than this share of the largest are the same


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """How slates are mined.

    Args:
        slate_size: M, positions of a slate.
        num_beams: W, prefixes kept at every position; 0: nothing is searched for.
        keep: S, slates kept of each request, the best ones; at most W and the proposals.
        soft_label: What q_t(v) is the softmax of: `"look_ahead"`, the best completed value found below the prefix and v
            (the better one in truth); `"prefix_value"`, DeGRe's own, the value of the prefix with v; or `"none"`.
        weight_temperature: tau_w of the slates' weights, in spreads of the request (see `value_spread`).
        label_temperature: tau_q of the soft labels, in the same unit.
        weights: What the weights are made of: `"tempered"`, see above; `"standardised"`, GoalRank's, the softmax of the
            values in standard deviations of those kept; or `"uniform"`.
        proposals: Slates from elsewhere, beside those that the search finds, such as `"upstream=1,uniform=4"` or
            `"perturbed=4"`, changed copies of what was found before; a checkpoint's path proposes its greedy slate and
            draws (see `rerankzoo.generation.rollouts.parse_proposals`). They have no soft labels.

    Raises:
        ValueError: If a number is not positive, `keep` exceeds what there is, a name is unknown, or settings contradict
            one another.
    """

    slate_size: int
    num_beams: int = 8
    keep: int = 4
    soft_label: SoftLabel = "look_ahead"
    weight_temperature: float = 0.9
    label_temperature: float = 0.3
    weights: Weights = "tempered"
    proposals: str = ""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("slate_size", "num_beams", "keep") and value < (name != "num_beams"):
                raise ValueError(f"{name} must be at least 1, got {value}")
            if name.endswith("_temperature") and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if self.soft_label not in get_args(SoftLabel):
            raise ValueError(f"soft_label must be one of {get_args(SoftLabel)}, got {self.soft_label!r}")
        if self.weights not in get_args(Weights):
            raise ValueError(f"weights must be one of {get_args(Weights)}, got {self.weights!r}")
        found = self.num_beams + sum(self.sources.values())
        if self.keep > found:
            raise ValueError(f"keep {self.keep} exceeds num_beams {self.num_beams} and the proposals, {found} in all")
        if (self.proposals or not self.num_beams) and self.soft_label != "none":
            raise ValueError(f"slates that no search has found have no soft labels, got soft_label {self.soft_label!r}")
        if not self.num_beams and self.weights == "tempered":
            raise ValueError("without a search values have no spread to temper weights by: choose other weights")

    @property
    def sources(self) -> dict[str, int]:
        """Where proposals come from, and how many; no generator proposes its own."""
        return parse_proposals(self.proposals, known=self.num_beams > 0)


@dataclass
class MinedSlates:
    """The slates mined for a batch of requests, best first.

    Attributes:
        slates: (B, S, M), indexes into the candidates; -100 where there are fewer candidates or slates.
        values: (B, S), by the evaluator; -inf where there is no slate.
        weights: (B, S), w: sum to 1 over a request's slates; 0 where there is no slate.
        soft_labels: (B, S, M, N), q: sum to 1 over N, 0 at padding; `None` if none were asked for.
    """

    slates: Tensor
    values: Tensor
    weights: Tensor
    soft_labels: Tensor | None


@torch.no_grad()
def mine_batch(
    scorer: Scorer | None,
    batch: Batch,
    slate_size: int,
    constraints: Sequence[Constraint] = (),
    schema: FeatureSchema | None = None,
    evaluator: Evaluator | None = None,
    generators: Mapping[str, Any] | None = None,
    **settings: Any,
) -> MinedSlates:
    """Mines slates: beam search by the evaluator's values, whose scores are also the source of the soft labels.

    With proposals, the best of what was found and proposed are kept, by the evaluator's word on whole slates.

    With s the request's spread (`value_spread`):

    - `w_l = softmax over the kept slates of V(l) / (s tau_w)`;
    - `q_t(v) = softmax over the candidates left of X(l_<t, v) / (s tau_q)`, where X is V([l_<t ; v]) for
      `"prefix_value"`, and for `"look_ahead"` the best V of all full slates scored below that prefix. Where v fell out
      of the beam nothing is known below it; X is then V([l_<t ; v]) plus the mean gain still to come of the
      candidates of that prefix that stayed, but at most the smallest of their completed values.

    Args:
        scorer: Of an evaluator: its kind is `"value"`; `None` where nothing is searched for.
        batch: The requests; `candidate_mask` (B, N) and the features of the scorer's model.
        slate_size: M.
        constraints: What slates must keep. Labels are then distributions over the candidates that are allowed; boosts
            count as value in the search, the weights and the labels, not in the values returned.
        schema: The batch's, where a constraint names a field, or the upstream order is proposed.
        evaluator: The scorer's, where there are proposals.
        generators: Those that propose, by their sources.
        **settings: Other entries of `MiningSettings`.

    Returns:
        The S best slates of the beam, exactly those of `beam_search`.

    Raises:
        ValueError: If the scorer is no evaluator's, or a setting is out of its range.
        InfeasibleConstraintError: If a request has no slate that keeps the constraints.
    """
    options = MiningSettings(slate_size=slate_size, **settings)
    if scorer is not None and scorer.kind != "value":
        raise ValueError(f"mining needs an evaluator, whose scorer has kind 'value', got {scorer.kind!r}")
    if options.proposals or scorer is None:
        if constraints:
            raise ValueError("proposals keep no constraints; mine without either")
        return _mine_proposals(scorer, batch, options, schema, evaluator, generators or {})
    history: list[BeamStep] = []
    rules = bind(constraints, batch, slate_size, schema)
    best = beam_search(scorer, batch, slate_size, options.num_beams, options.keep, history, rules)
    spread = value_spread(history, len(best.slates))
    worth = best.scores if rules is None else best.scores + rules.boosts(best.slates)
    weights = slate_weights(worth, options, spread)
    if options.soft_label == "none":
        return MinedSlates(best.slates, best.scores, weights, None)
    targets = _step_targets(history, len(best.slates), options.keep, options.soft_label == "look_ahead")
    labels = tempered_softmax(targets, spread * options.label_temperature)
    labels = F.pad(labels, (0, 0, 0, 0, 0, options.keep - labels.shape[1]))  # fewer prefixes exist than are asked for
    return MinedSlates(best.slates, best.scores, weights, labels.masked_fill((best.slates == PADDING)[..., None], 0))


def _mine_proposals(
    scorer: Scorer | None,
    batch: Batch,
    options: MiningSettings,
    schema: FeatureSchema | None,
    evaluator: Any,
    generators: Mapping[str, Any],
) -> MinedSlates:
    """The best of what the search finds and of the proposals; equal slates are one."""
    known, spread, found = inputs(batch), None, None
    if scorer is not None:
        history: list[BeamStep] = []
        found = beam_search(scorer, batch, options.slate_size, options.num_beams, options.num_beams, history).slates
        spread = value_spread(history, len(found))
    slates = propose(options.sources, known, options.slate_size, generators, schema, found)
    values = evaluator.score_slates(slates, **known).float().masked_fill(~distinct(slates), _NEVER)
    values, best = values.topk(options.keep, dim=1)
    slates = slates.gather(1, best.unsqueeze(-1).expand(-1, -1, slates.shape[-1]))
    slates = slates.masked_fill((values == _NEVER).unsqueeze(-1), PADDING)
    return MinedSlates(slates, values, slate_weights(values, options, spread), None)


def slate_weights(values: Tensor, options: MiningSettings, spread: Tensor | None) -> Tensor:
    """The weights (B, S) of slates with values (B, S), -inf where there is none."""
    exists = values > _NEVER
    if options.weights == "standardised":
        return group_targets(values.masked_fill(~exists, 0.0), exists)
    if options.weights == "uniform":
        return exists / exists.sum(-1, keepdim=True).clamp_min(1)
    return tempered_softmax(values, cast(Tensor, spread) * options.weight_temperature)


def value_spread(history: Sequence[BeamStep], num_requests: int) -> Tensor:
    """The unit of a request's values: how much its slates differ, read off a beam search.

    At each position, the variance of the prefix values over the candidates left, averaged over the beams; the spread is
    the root of the sum over positions. Why: docs/mining.md.

    Args:
        history: The steps of a beam search by values.
        num_requests: B.

    Returns:
        (B,), above 0: at least the rounding of the values.
    """
    variance = torch.zeros(num_requests, device=history[0].totals.device)
    largest = variance
    for step in history:
        totals = step.totals.float()
        exists = totals > _NEVER
        count = exists.sum(-1)
        totals = totals.masked_fill(~exists, 0.0)
        mean = totals.sum(-1) / count.clamp_min(1)
        squares = (totals - mean.unsqueeze(-1)).masked_fill(~exists, 0.0).square().sum(-1) / count.clamp_min(1)
        beams = (count > 0).view(num_requests, -1).sum(-1).clamp_min(1)
        variance = variance + squares.view(num_requests, -1).sum(-1) / beams
        largest = torch.maximum(largest, totals.abs().view(num_requests, -1).amax(-1))
    return torch.maximum(variance.sqrt(), _ROUNDING * largest).clamp_min(torch.finfo(variance.dtype).tiny)


def tempered_softmax(values: Tensor, temperature: Tensor) -> Tensor:
    """Softmax over the last axis of values (B, ...) by one temperature (B,) per request; -inf gets 0."""
    values = values.float()
    values = values - values.amax(-1, keepdim=True)  # first: a tiny temperature must not make them all infinite
    return (values / temperature.view(-1, *[1] * (values.dim() - 1))).softmax(-1)


def _step_targets(history: Sequence[BeamStep], num_requests: int, keep: int, look_ahead: bool) -> Tensor:
    """What the soft labels are the softmax of, for the kept slates and each of their positions: (B, S', M, N)."""
    width = len(history[-1].parent) // num_requests
    rows = torch.arange(num_requests * width, device=history[-1].parent.device)
    rows = rows.view(num_requests, width)[:, :keep].flatten()
    below: Tensor | None = None  # (R,), the best completed value below each prefix that a step kept
    targets = []
    for step in reversed(history):
        rows, completed = step.parent[rows], step.totals  # (R, N), -inf where nothing was scored below
        target = step.totals[rows]
        if below is not None:
            completed = torch.full_like(step.totals, _NEVER)
            completed[step.parent, step.index] = below
            ends = completed[rows]
            known = ends > _NEVER  # the others fell out of the beam (see `mine_batch`)
            gains = (ends - target).masked_fill(~known, 0.0)
            gain = gains.sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp_min(1)
            smallest = ends.masked_fill(~known, float("inf")).amin(-1, keepdim=True)
            target = torch.where(known, ends, torch.minimum(target + gain, smallest))
        targets.append(target)
        below = completed.amax(-1) if look_ahead else None
    return torch.stack(targets[::-1], dim=1).unflatten(0, (num_requests, -1))


@dataclass(frozen=True)
class Shard:
    """A file of a split of the mined folder, and the rows of the source's split that it holds."""

    split: str
    source: str
    name: str
    rows: np.ndarray


def plan_shards(split: str, source: str, available: int, num_requests: int | None, shard_size: int) -> list[Shard]:
    """Cuts so many requests (`None`, or more than there are: all), evenly spaced over a split, into shards."""
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    count = available if num_requests is None else min(num_requests, available)
    rows = np.arange(count) * available // max(count, 1)
    total = -(-count // shard_size)
    return [
        Shard(split, source, f"{split}-{i:05d}-of-{total:05d}.parquet", rows[i * shard_size : (i + 1) * shard_size])
        for i in range(total)
    ]


def _mined_table(rows: pa.Table, batch: Batch, mined: MinedSlates, schema: FeatureSchema) -> pa.Table:
    """The rows of a log with mined slates, weights, values and (in half precision) soft labels in place of labels."""
    labels = {*schema.label_columns(), *MINED_COLUMNS}
    columns = {name: rows.column(name) for name in rows.column_names if name not in labels}
    slates, values = mined.slates.cpu().numpy(), mined.values.float().cpu().numpy()
    exists, shown = values > _NEVER, slates != PADDING
    per_row, per_slate = exists.sum(-1), shown.sum(-1)[exists]
    columns[schema.slate] = _lists(slates[shown].astype(np.int32), per_slate, per_row)
    columns[SLATE_WEIGHTS] = _lists(mined.weights.float().cpu().numpy()[exists], per_row)
    columns[SLATE_VALUES] = _lists(values[exists], per_row)
    if mined.soft_labels is not None:
        candidates = batch["candidate_mask"].cpu().numpy()
        real = shown[..., None] & candidates[:, None, None, :]
        sizes = np.broadcast_to(candidates.sum(-1)[:, None, None], shown.shape)[shown]
        flat = mined.soft_labels.half().cpu().numpy()[real]
        columns[SOFT_LABELS] = _lists(flat, sizes, per_slate, per_row)
    return pa.table(columns)


def _lists(values: np.ndarray, *lengths: np.ndarray) -> pa.Array:
    """Flat values as a column of nested lists; `lengths` from the innermost list to the rows."""
    column: pa.Array = pa.array(values)
    for length in lengths:
        column = pa.ListArray.from_arrays(np.concatenate([[0], length]).cumsum(dtype=np.int32), column)
    return column


def mine_folder(
    evaluators: Sequence[str],
    data: str | Path,
    out: str | Path,
    *,
    split: str = "train",
    num_requests: int | None = None,
    num_validation: int = 1_000,
    slate_size: int | None = None,
    spread_penalty: float = 0.0,
    shard_size: int = 500,
    batch_size: int | None = None,
    fabric: Fabric | None = None,
    workers: Workers | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Path:
    """Mines a data folder into another one, on which a generator trains.

    The new folder holds mined `train` and `validation` shards, the source's test split and schema, and the evaluator's
    feature extractor. Shards are written whole or not at all, and `schema.yaml` and `dataset.json` last: a run that was
    stopped continues with the shards that are missing, and nobody trains on half a folder. Each process mines its own
    shards; what they hold does not depend on the number of processes.

    Args:
        evaluators: Folders or Hub ids of evaluators, or of generators with one beside them; several are an ensemble.
        data: The source: a folder, or a dataset repository on the Hub.
        out: The folder to make or to complete.
        split: The source's split that becomes the training split; the log's labels are not used.
        num_requests: Requests to mine of it, evenly spaced; default: all.
        num_validation: Requests to mine of the validation split.
        slate_size: M; default: the evaluator's.
        spread_penalty: Of several evaluators: a value is their mean minus this many times their standard deviation.
        shard_size: Requests per file.
        batch_size: Requests per evaluator call; default: as many as suit the device.
        fabric: Lightning's device and processes, launched; default: one process on the best device there is.
        workers: Who mines instead of the processes of `fabric`, such as those of a Ray cluster, which see the same
            folders.
        on_progress: Called with the numbers of requests that this process has mined and has to mine.
        **settings: Other entries of `MiningSettings`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If the source or a split is missing.
        HubError: If a repository is missing or cannot be reached.
        SchemaMismatchError: If the evaluators were made for different schemas.
        RerankingDataError: If the folder was begun with other settings, or a model is no evaluator of prefixes.
        UnreadableFileError: If a file is damaged.
        OutputError: If a file cannot be written; the shards that are finished stay.
        ValueError: If a setting is out of its range.
    """
    if (num_requests is not None and num_requests < 1) or num_validation < 0:
        raise ValueError(f"cannot mine {num_requests} requests and {num_validation} for validation")
    fabric = fabric or Fabric(accelerator="auto", devices=1)
    folder, out = local_folder(data), Path(out)
    splits, wanted = open_splits(folder), {"train": (split, num_requests)}
    if num_validation:
        wanted["validation"] = ("validation", num_validation)
    shards: list[Shard] = []
    for name, (source, count) in wanted.items():
        if source not in splits:
            raise FileNotFoundError(f"{folder} has no {source}*.parquet; it has {sorted(splits)}")
        shards += plan_shards(name, source, len(splits[source]), count, shard_size)
    models = (list(evaluators), spread_penalty, slate_size, settings)
    miner = _Miner(*models, folder, out, batch_size, fabric.device)
    options = miner.options
    record = {
        "evaluator": weights_digest(miner.evaluator),
        "generators": {name: weights_digest(model) for name, model in miner.generators.items()},
        "spread_penalty": spread_penalty,
        "source": {
            name: [len(splits[name]), sum(path.stat().st_size for path in split_files(folder, name))]
            for name in sorted({source for source, _ in wanted.values()})
        },
        "split": split,
        "num_requests": num_requests,
        "num_validation": num_validation,
        "shard_size": shard_size,
        **asdict(options),
    }
    _check_settings(out, record)  # in every process, so that none waits for one that gave up
    if fabric.is_global_zero:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / SETTINGS_FILE, record)
    missing = [shard for shard in shards if not has_shard(out / shard.name, len(shard.rows))]
    fabric.barrier()  # nobody writes before everybody has seen what is missing
    share = missing[fabric.global_rank :: fabric.world_size]
    done, total = 0, sum(len(shard.rows) for shard in share)

    def watch(rows: int) -> None:
        nonlocal done
        done += rows
        if on_progress is not None:
            on_progress(done, total)

    if workers is None:
        miner.on_rows = watch
        for shard in share:
            miner(shard)
    else:
        device = torch.device("cuda" if workers.gpus_per_worker else "cpu")
        run_units(
            partial(_Miner, *models, folder.absolute(), out.absolute(), batch_size, device), share, workers, watch
        )
    fabric.barrier()
    if fabric.is_global_zero and (missing or not (out / METADATA_FILE).is_file()):
        counts = {name: sum(len(shard.rows) for shard in shards if shard.split == name) for name in wanted}
        _complete(out, folder, splits, miner.extractor, list(evaluators), record, counts)
    fabric.barrier()
    return out


class _Miner:
    """Mines the requests of one shard after another; it loads what it needs itself, and so can be made anywhere.

    `on_rows` is called with the number of requests after each batch of them.
    """

    def __init__(
        self,
        evaluators: Sequence[str],
        spread_penalty: float,
        slate_size: int | None,
        settings: Mapping[str, Any],
        data: Path,
        out: Path,
        batch_size: int | None,
        device: torch.device,
    ) -> None:
        self.evaluator, self.extractor = _load(evaluators, spread_penalty, bool(settings.get("num_beams", 1)))
        self.evaluator.to(device)
        self.options = MiningSettings(slate_size=slate_size or self.evaluator.config.slate_size, **settings)
        self.generators = _load_generators(self.options, self.extractor.schema, device)
        self.splits, self.out, self.batch_size = open_splits(data), out, batch_size
        self.on_rows: Callable[[int], None] | None = None

    def __call__(self, shard: Shard) -> int:
        """Writes a shard; returns the number of its requests."""
        split, tables = self.splits[shard.source], []
        rows = split.with_format("arrow")[shard.rows.tolist()]
        longest = slate_lengths(split, self.extractor.schema.slate).max(initial=0)
        models = (self.evaluator, self.generators, self.extractor)
        for table in _mined_tables(rows, *models, self.options, self.batch_size, longest):
            tables.append(table)
            if self.on_rows is not None:
                self.on_rows(table.num_rows)
        write_shard(self.out / shard.name, tables)
        return len(shard.rows)


def _load(evaluators: Sequence[str], spread_penalty: float, search: bool) -> tuple[Any, RerankingFeatureExtractor]:
    checkpoints = [load_evaluator(path) for path in evaluators]
    models = [checkpoint.model for checkpoint in checkpoints]
    for path, model in zip(evaluators, models, strict=True):
        for member in getattr(model, "members", [model]):  # an ensemble searches with its members' scorers
            if search and (not hasattr(member, "scorer") or member.scorer().kind != "value"):
                message = f"a {type(member).__name__} ({path}) gives prefixes no value"
                raise RerankingDataError(message, field="evaluator")
    evaluator = models[0] if len(models) == 1 else EvaluatorEnsemble(models, spread_penalty)
    return evaluator.eval(), checkpoints[0].extractor


def _load_generators(options: MiningSettings, schema: FeatureSchema, device: torch.device) -> dict[str, Any]:
    """The models that propose slates, by their sources."""
    generators = {}
    for name in options.sources.keys() - {UPSTREAM, UNIFORM, PERTURBED}:
        model = load_checkpoint(name).model
        model.check_schema(schema)
        generators[name] = model.to(device)
    return generators


def _mined_tables(
    source: pa.Table,
    evaluator: Any,
    generators: Mapping[str, Any],
    extractor: RerankingFeatureExtractor,
    settings: MiningSettings,
    batch_size: int | None,
    longest: int,
) -> Iterator[pa.Table]:
    """Mines some rows of a table whose longest slate is given, and yields a table for each batch of them."""
    encoded = inputs(with_slate_lengths(extractor(source), longest, settings.slate_size))
    # Requests x beams x candidates of a call, unless a batch size is given. A CPU gains nothing beyond.
    scores = 8_192 if evaluator.device.type == "cpu" else 262_144
    width = settings.num_beams + sum(settings.sources.values())
    size = batch_size or max(1, scores // (width * encoded["candidate_mask"].shape[1]))
    for start in range(0, source.num_rows, size):
        batch = to_device(trim(take(encoded, slice(start, start + size))), evaluator.device)
        scorer = evaluator.scorer() if settings.num_beams else None
        known = {"evaluator": evaluator, "generators": generators, "schema": extractor.schema}
        mined = mine_batch(scorer, batch, **known, **asdict(settings))
        yield _mined_table(source.slice(start, size), batch, mined, extractor.schema)


def _check_settings(out: Path, record: dict[str, Any]) -> None:
    """Refuses a folder that was begun with other settings."""
    path = out / SETTINGS_FILE
    if not path.is_file() and not (out / SCHEMA_FILE).is_file():
        return
    if not path.is_file():
        raise RerankingDataError(f"{out} holds a data set that was not mined; choose another folder", field="out")
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnreadableFileError(f"{path} is damaged ({error}); delete {out} and mine it again") from error
    defaults = {"generators": {}, "weights": "tempered", "proposals": ""}  # of folders begun before there were any
    refuse_other_settings(out, {**defaults, **begun}, record)


def _complete(
    out: Path,
    source: Path,
    splits: DatasetDict,
    extractor: RerankingFeatureExtractor,
    evaluators: list[str],
    record: dict[str, Any],
    rows: dict[str, int],
) -> None:
    """Writes what makes the shards a data folder."""
    files = split_files(source, "test")
    for number, path in enumerate(files):
        name = "test.parquet" if len(files) == 1 else f"test-{number:05d}-of-{len(files):05d}.parquet"
        write_atomically(out / name, partial(link_or_copy, path))
    extractor.save_pretrained(out)  # the generator must have the evaluator's: `data.init_args.extractor`
    origin = read_metadata(source) if (source / METADATA_FILE).is_file() else None
    log, schema, quantiles = splits[record["split"]], extractor.schema, None
    if SLATE_WEIGHTS in log.column_names:  # mined itself
        quantiles = (origin or {}).get(UTILITY_QUANTILES)
    elif {schema.slate, *(target.name for target in schema.targets)} <= set(log.column_names):
        # A generator's threshold for logged slates cannot be measured without the log.
        quantiles = np.quantile(logged_utilities(log, extractor), np.linspace(0, 1, 101)).tolist()
    metadata = {
        "source": MINED_SOURCE,
        "protocol": "slates mined by beam search with an evaluator from logged requests, without their labels; the "
        "test split is the source's",
        "evaluators": evaluators,
        "settings": record,
        "origin": origin,
        UTILITY_QUANTILES: quantiles,
        "rows": rows | ({"test": len(splits["test"])} if "test" in splits else {}),
    }
    FeatureSchema.from_yaml(source / SCHEMA_FILE).to_yaml(out / SCHEMA_FILE)
    write_json(out / METADATA_FILE, metadata)
