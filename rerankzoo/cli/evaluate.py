"""`rerankzoo evaluate`: compares models with the upstream order and, where it is known, with the truth."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from rerankzoo import evaluation as protocol
from rerankzoo.atomic_writing import kept_folder
from rerankzoo.cli.options import choose_device, takes, workers_of
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE, SPLITS, local_folder, read_origin, split_files
from rerankzoo.data.simulator import Simulator
from rerankzoo.data.simulator.ceiling import fit_ceiling
from rerankzoo.diagnosis import Log, cross_fitted_judge
from rerankzoo.engines import Workers, ray_cluster
from rerankzoo.errors import RecipeError
from rerankzoo.evaluation.measurements import is_by_labels
from rerankzoo.evaluation.results import is_by_evaluator
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.auto import Checkpoint, load_checkpoint, load_evaluator
from rerankzoo.models.digest import weights_digest

#: Told what is begun and how many requests it takes; returns what is told how many more are done.
Watch = Callable[[str, int], Callable[[int], None]]

_TUNING_SAMPLES = 1_000  # slates of a request where there are too many to list: only the optimum is asked for


#: As `--judge`: evaluators of the halves of the log, or nobody.
CROSS_FITTED, NO_JUDGE = "cross-fitted", "none"


@dataclass
class EvaluationRun:
    """Made once for several models, for it remembers the value of all slates of a request."""

    splits: Mapping[str, Dataset]
    schema: FeatureSchema
    metadata: Mapping[str, Any] | None  # of the data folder; a simulator's reveals the truth
    evaluator: Any = None  # values all slates, and chooses among several
    judge: Any = None  # an independent evaluator; it has no say on validation
    split: str = "test"
    watch: Watch = lambda task, total: lambda done: None
    cross_fitted: bool = False  # whether the judge learned from the halves of the train split
    ceiling: bool = False  # whether the correctly specified model of the training split is a baseline
    counterfactual: bool = False  # whether the log is asked about every row
    lambdamart: bool = False  # whether LightGBM's LambdaMART, fitted to the training split, is a baseline
    seed: int = 0  # of sampled ranks
    workers: Workers | None = None  # who measures; default: this process
    work: Path | None = None  # where workers leave what they have measured

    def __post_init__(self) -> None:
        if self.ceiling and (self.metadata or {}).get("source") != "simulator":
            raise RecipeError("ceiling: only of simulated data the correctly specified model is known")
        if self.ceiling and "train" not in self.splits:
            raise RecipeError("ceiling: there is no split 'train' to fit the correctly specified model to")
        if self.lambdamart and (missing := {"train", "validation"} - set(self.splits)):
            raise RecipeError(f"lambdamart: there is no split {sorted(missing)[0]!r} to fit it with")
        self._yardsticks: dict[str | None, protocol.LambdaMART] = {}
        self._tables = itertools.count()  # a folder of each for what workers have measured

    def _yardstick(self, extractor: RerankingFeatureExtractor, k: int, seed: int) -> protocol.LambdaMART | None:
        """Fitted once for all models of one extractor."""
        key = extractor.schema.fingerprint
        if self.lambdamart and key not in self._yardsticks:
            parts = (self.splits["train"], self.splits["validation"], extractor)
            self._yardsticks[key] = protocol.LambdaMART.fit(*parts, k, seed)
        return self._yardsticks.get(key)

    @cached_property
    def _evaluators(self) -> protocol.Evaluators:
        data, item_id, ceiling = self.splits[self.split], self.schema.item_id, None
        if self.ceiling and self.metadata:
            settings = Simulator.from_metadata(self.metadata).settings
            ceiling = fit_ceiling(self.splits["train"].with_format("arrow")[:], settings)
        both = (self.evaluator, self.judge)
        return protocol.Evaluators.of(data, item_id, self.metadata, *both, ceiling, self.cross_fitted, self.seed)

    @cached_property
    def _not_shown(self) -> dict[str, str]:
        """What evaluator and judge had too little feedback to learn, if the log that they learned from is here.

        Nothing where the truth is known: there it is the truth that shows how they err.
        """
        count = protocol.count_positives(self.splits["train"], self.schema) if "train" in self.splits else None
        valued = (self.evaluator, self.judge) != (None, None) and self._evaluators.truth is None
        if count is None or count >= protocol.MIN_POSITIVES or not valued:
            return {}
        reason = f"for the log has {count} positives to learn from, and at least {protocol.MIN_POSITIVES} are needed"
        return {"what evaluators predict": reason}

    def needs_judge(self) -> bool:
        """Whether nothing better is known of slates than what the evaluator says, and the log can teach a judge."""
        data = self.splits[self.split]
        labels = [target.candidate_feedback for target in self.schema.targets if target.candidate_feedback]
        better = self._evaluators.truth is not None or any(label in data.column_names for label in labels)
        taught = {self.schema.slate, *(target.name for target in self.schema.targets)}
        columns = set(self.splits["train"].column_names) if "train" in self.splits else set()
        return self.evaluator is not None and not better and not self._not_shown and taught <= columns

    def cross_fit(self, folder: Path, model: Checkpoint, slate_size: int) -> None:
        """Makes the judge, of the log in a folder, for a model's batches; none where the log's slates are shorter."""
        log = Log.read(folder, extractor=model.extractor)
        if log.longest >= slate_size:
            self.judge, self.cross_fitted = cross_fitted_judge(log), True
            del self._evaluators  # made anew, with the judge

    def quality(
        self, model: Any, extractor: RerankingFeatureExtractor, slate_size: int
    ) -> tuple[dict[str, float], dict[str, str]]:
        """An evaluator's own quality (see `evaluator_quality`), and what of it is not shown, with the reason."""
        data, count = self.splits[self.split], protocol.QUALITY_REQUESTS
        found = protocol.evaluator_quality(model, data, extractor, self.metadata, slate_size=slate_size)
        observed = protocol.count_positives(data.select(range(min(count, len(data)))), self.schema)
        if observed is None or observed >= protocol.MIN_OBSERVED:
            return found, {}
        return found, {"calibration": f"for the {min(count, len(data))} requests have {observed} positives"}

    @cached_property
    def _tuning_evaluators(self) -> protocol.Evaluators:
        data, item_id = self.splits["validation"], self.schema.item_id
        evaluators = protocol.Evaluators.of(data, item_id, self.metadata, self.evaluator)
        if evaluators.truth is not None:
            evaluators.truth.num_samples = _TUNING_SAMPLES
        return evaluators

    def evaluate(
        self,
        name: str,
        model: Any,
        extractor: RerankingFeatureExtractor,
        seed: int,
        decodings: Sequence[protocol.Decoding] | None = None,
        tuning_requests: int | None = None,
        num_requests: int | None = None,
        hr_requests: int = 200,
        cuts: Sequence[int] = (),
    ) -> protocol.Evaluation:
        """Evaluates a model as `rerankzoo.evaluation.evaluate` does.

        Without decodings these are the usual ones, with alpha of contrastive decoding tuned on so many requests of the
        validation split. What evaluators had too little feedback to learn is left out, and the protocol says so.
        """

        def run(function: Any, task: str, split: str, requests: int | None, **options: Any) -> Any:
            data = self.splits[split]
            watch = self.watch(f"{task} {name}", min(requests or len(data), len(data)))
            options |= {"num_requests": requests, "on_progress": watch, "workers": self.workers}
            options["work"] = self.work and self.work / str(next(self._tables))
            return function(model, data, extractor, self.metadata, **options)

        alpha, notes = None, {}
        if decodings is None and "contrastive" in model.strategies:
            tuning = (protocol.tune_penalty_alpha, "tuning alpha of", "validation", tuning_requests)
            alpha, notes["penalty_alpha"] = run(*tuning, evaluators=self._tuning_evaluators)
        if decodings is None:
            decodings = protocol.default_decodings(self.evaluator is not None, alpha, model.strategies)
        options = {"decodings": decodings, "evaluators": self._evaluators, "seed": seed, "hr_requests": hr_requests}
        options["counterfactual"] = self.counterfactual
        size = model.generation_config.slate_size or model.config.slate_size
        options["yardstick"] = self._yardstick(extractor, max(cuts, default=size), seed)
        evaluation = run(protocol.evaluate, "evaluating", self.split, num_requests, name=name, cuts=cuts, **options)
        if self._not_shown:
            evaluation = evaluation.without(is_by_evaluator, self._not_shown)
        labelled, least = evaluation.protocol.get("labels", {}).get("num_requests"), protocol.MIN_OBSERVED
        if labelled is not None and labelled < least:
            few = f"for {labelled} requests have labels of both kinds, and at least {least} are needed"
            evaluation = evaluation.without(is_by_labels, {"ranking metrics by labels": few})
        return evaluation.with_protocol(**notes)


def _check_judge(others: Mapping[str, Any], judge: Any) -> None:
    """Raises RecipeError for a judge that has chosen or generated: nobody judges his own slates."""
    members = getattr(judge, "members", [judge]) if judge is not None else []
    for name, other in others.items():
        for one in getattr(other, "members", [other]):
            if any(_same_weights(one, member) for member in members):
                raise RecipeError(f"judge: expected another one than {name}, got the same weights")


def _same_weights(a: Any, b: Any) -> bool:
    first, second = ({} if one is None else one.state_dict() for one in (a, b))
    same = type(a) is type(b) and first.keys() == second.keys()
    return same and all(torch.equal(first[name], second[name]) for name in first)


@contextmanager
def _place_of_work(
    workers: Workers | None, out: Path, data: Path, models: Sequence[Any], asked: Mapping[str, Any]
) -> Iterator[Path | None]:
    """Where workers leave what they have measured, and goes on what was stopped; `None` of this process."""
    if workers is None:
        yield None
        return
    states = {str(path): path.stat() for split in SPLITS for path in split_files(data, split)}
    settings = {
        **asked,
        "weights": [model and weights_digest(model) for model in models],
        "files": {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()},
        "workers": [workers.gpus_per_worker > 0, workers.threads_per_worker],
    }
    num_cpus = workers.num_workers * workers.threads_per_worker
    with kept_folder(out, settings) as work, ray_cluster(workers.address, num_cpus):
        yield work


@takes(Workers)
def evaluate(
    models: list[str],
    *,
    data: str,
    evaluator: str | None = None,
    judge: str = CROSS_FITTED,
    split: str = "test",
    k: tuple[PositiveInt, ...] = (),
    num_requests: PositiveInt | None = None,
    hr_requests: NonNegativeInt = 200,
    penalty_alpha: ClosedUnitInterval = 0.1,
    tune_alpha: bool = False,
    ceiling: bool = False,
    lambdamart: bool = False,
    seed: NonNegativeInt = 0,
    device: str = "auto",
    out: Path = Path("outputs/evaluation"),
    **options: Any,
) -> None:
    """Evaluates models under every decoding strategy beside the upstream order and random slates.

    Several models of one type on the same data are runs: the table shows mean and spread.

    Args:
        models: Folders or Hub ids of generators with their extractors.
        data: Data folder, or a dataset on the Hub.
        evaluator: Folder or Hub id of an evaluator, or of a generator with one beside it; the same for every row.
        judge: Folder or Hub id of an independent evaluator: values every row, chooses nothing. cross-fitted: where
            there is an evaluator and nothing better is known, evaluators of the halves of the train split; or none.
        split: Split to evaluate on.
        k: Where ranking metrics by labels cut the slates, such as 1,5,10 (default: at their end); beyond the model's
            slate size all rows have slates of the largest k.
        num_requests: Only this many first requests (default: all).
        hr_requests: HR@p% by the evaluator looks at this many requests, for it values all slates of each.
        penalty_alpha: Of contrastive decoding.
        tune_alpha: Choose penalty_alpha on the validation split.
        ceiling: Also fit the correctly specified model to the training split (simulated data only), as a baseline.
        lambdamart: Also fit LightGBM's LambdaMART to the training split (extra "yardsticks"), as a baseline.
        seed: Of the first run; the next has the next one.
        device: Where models run, such as cpu or cuda:1; auto: the accelerator where there is one.
        out: Folder for the report.
        **options: For the engine ray, of `Workers`.
    """
    workers = workers_of(options)
    if workers is not None and device != "auto":
        raise RecipeError(f"device is of the engine 'local', got {device!r} with 'ray': give gpus_per_worker")
    disable_progress_bar()  # of loading weights, over before it is seen
    folder = local_folder(data)
    splits, metadata = open_splits(folder), read_origin(folder)
    for wanted in (split, *(["validation"] if tune_alpha else [])):
        if wanted not in splits:
            raise FileNotFoundError(f"{folder} has no split {wanted!r}; it has {sorted(splits)}")
    place = choose_device(device if workers is None else "cpu")  # workers move the models where they are
    loaded = [load_checkpoint(path) for path in models]
    for model, _ in loaded:
        if not model.can_generate():
            raise RecipeError(f"a {type(model).__name__} generates no slates; give it as --evaluator")
        model.to(place)
    given = None if judge in (CROSS_FITTED, NO_JUDGE) else judge
    evaluating, judging = (load_evaluator(path) if path else None for path in (evaluator, given))
    evaluator_model, judge_model = (one and one.model.to(place) for one in (evaluating, judging))
    others = {path: model for path, (model, _) in zip(models, loaded, strict=True)}
    _check_judge({"the evaluator": evaluator_model, **others}, judge_model)
    schema = FeatureSchema.from_yaml(folder / SCHEMA_FILE)
    notes = {"evaluator": evaluator, "split": split, **({"judge_model": given} if given else {})}
    runs: Counter[str] = Counter()
    evaluations: list[protocol.Evaluation] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    asked = {
        "judge": judge,
        "split": split,
        "k": k,
        "requests": [num_requests, hr_requests],
        "penalty_alpha": None if tune_alpha else penalty_alpha,
        "baselines": [ceiling, lambdamart],
        "seed": seed,
    }
    models_used = [*others.values(), evaluator_model, judge_model]
    with _place_of_work(workers, out, folder, models_used, asked) as work, progress:

        def watch(task: str, total: int) -> Any:
            bar = progress.add_task(task, total=total)
            return lambda done: progress.advance(bar, done)

        parts = (splits, schema, metadata, evaluator_model, judge_model, split, watch)
        run = EvaluationRun(
            *parts,
            ceiling=ceiling,
            counterfactual=True,
            lambdamart=lambdamart,
            seed=seed,
            workers=workers,
            work=work,
        )
        if judge == CROSS_FITTED and run.needs_judge():
            with progress.console.status("fitting a judge to the halves of the log"):
                run.cross_fit(folder, loaded[0], max([loaded[0].model.config.slate_size, *k]))
        quality: dict[str, float] = {}
        doubts: dict[str, str] = {}
        if evaluating is not None:
            quality, doubts = run.quality(evaluating.model, evaluating.extractor, loaded[0].model.config.slate_size)
        for path, (model, extractor) in zip(models, loaded, strict=True):
            name, usual = model.config.model_type, None
            if not tune_alpha:
                usual = protocol.default_decodings(evaluator is not None, penalty_alpha, model.strategies)
            sizes = (num_requests, num_requests, hr_requests)
            evaluation = run.evaluate(name, model, extractor, seed + runs[name], usual, *sizes, cuts=k)
            evaluation = evaluation.without(doubts.__contains__, doubts).with_metrics(name, quality)
            evaluations.append(evaluation.with_protocol(model=path, **notes))
            runs[name] += 1
    paths = protocol.write_report(evaluations, out)
    protocol.print_table(evaluations)
    print("written:", ", ".join(map(str, paths.values())))
