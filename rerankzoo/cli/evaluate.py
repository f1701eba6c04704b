"""`rerankzoo evaluate`: compares models with the upstream order and, where it is known, with the truth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets import Dataset
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from rerankzoo import evaluation as protocol
from rerankzoo.cli.options import choose_device
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE, local_folder, read_origin
from rerankzoo.errors import RecipeError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.auto import load_checkpoint, load_evaluator

#: Told what is begun and how many requests it takes; returns what is told how many more are done.
Watch = Callable[[str, int], Callable[[int], None]]

_TUNING_SAMPLES = 1_000  # slates of a request where there are too many to list: only the optimum is asked for


@dataclass
class EvaluationRun:
    """Made once for several models, for it remembers the value of all slates of a request."""

    splits: Mapping[str, Dataset]
    item_id: str  # the column of the candidates' ids
    metadata: Mapping[str, Any] | None  # of the data folder; a simulator's reveals the truth
    evaluator: Any = None  # values all slates, and chooses among several
    judge: Any = None  # an independent evaluator; it has no say on validation
    split: str = "test"
    watch: Watch = lambda task, total: lambda done: None

    @cached_property
    def _evaluators(self) -> protocol.Evaluators:
        return protocol.Evaluators.of(self.splits[self.split], self.item_id, self.metadata, self.evaluator, self.judge)

    @cached_property
    def _tuning_evaluators(self) -> protocol.Evaluators:
        evaluators = protocol.Evaluators.of(self.splits["validation"], self.item_id, self.metadata, self.evaluator)
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
    ) -> protocol.Evaluation:
        """Evaluates a model as `rerankzoo.evaluation.evaluate` does.

        Without decodings these are the usual ones, with alpha of contrastive decoding tuned on so many requests of the
        validation split.
        """

        def run(function: Any, task: str, split: str, requests: int | None, **options: Any) -> Any:
            data = self.splits[split]
            watch = self.watch(f"{task} {name}", min(requests or len(data), len(data)))
            options |= {"num_requests": requests, "on_progress": watch}
            return function(model, data, extractor, self.metadata, **options)

        alpha, notes = None, {}
        if decodings is None and "contrastive" in model.strategies:
            tuning = (protocol.tune_penalty_alpha, "tuning alpha of", "validation", tuning_requests)
            alpha, notes["penalty_alpha"] = run(*tuning, evaluators=self._tuning_evaluators)
        if decodings is None:
            decodings = protocol.default_decodings(self.evaluator is not None, alpha, model.strategies)
        options = {"decodings": decodings, "evaluators": self._evaluators, "seed": seed, "hr_requests": hr_requests}
        evaluation = run(protocol.evaluate, "evaluating", self.split, num_requests, name=name, **options)
        return evaluation.with_protocol(**notes)


def evaluate(
    models: list[str],
    *,
    data: str,
    evaluator: str | None = None,
    judge: str | None = None,
    split: str = "test",
    num_requests: PositiveInt | None = None,
    hr_requests: NonNegativeInt = 200,
    penalty_alpha: ClosedUnitInterval = 0.1,
    tune_alpha: bool = False,
    seed: NonNegativeInt = 0,
    device: str = "auto",
    out: Path = Path("outputs/evaluation"),
) -> None:
    """Evaluates models under every decoding strategy beside the upstream order and random slates.

    Several models of one type on the same data are runs: the table shows mean and spread.

    Args:
        models: Folders or Hub ids of generators with their extractors.
        data: Data folder, or a dataset on the Hub.
        evaluator: Folder or Hub id of an evaluator, or of a generator with one beside it; the same for every row.
        judge: An independent evaluator: values every row, chooses nothing.
        split: Split to evaluate on.
        num_requests: Only this many first requests (default: all).
        hr_requests: HR@p% by the evaluator looks at this many requests, for it values all slates of each.
        penalty_alpha: Of contrastive decoding.
        tune_alpha: Choose penalty_alpha on the validation split.
        seed: Of the first run; the next has the next one.
        device: Where models run, such as cpu or cuda:1; auto: the accelerator where there is one.
        out: Folder for the report.
    """
    disable_progress_bar()  # of loading weights, over before it is seen
    folder = local_folder(data)
    splits, metadata = open_splits(folder), read_origin(folder)
    for wanted in (split, *(["validation"] if tune_alpha else [])):
        if wanted not in splits:
            raise FileNotFoundError(f"{folder} has no split {wanted!r}; it has {sorted(splits)}")
    place = choose_device(device)
    loaded = [load_checkpoint(path) for path in models]
    for model, _ in loaded:
        if not model.can_generate():
            raise RecipeError(f"a {type(model).__name__} generates no slates; give it as --evaluator")
        model.to(place)
    evaluating, judging = (load_evaluator(path) if path else None for path in (evaluator, judge))
    evaluator_model, judge_model = (one and one.model.to(place) for one in (evaluating, judging))
    item_id = FeatureSchema.from_yaml(folder / SCHEMA_FILE).item_id
    notes = {"evaluator": evaluator, "split": split, **({"judge_model": judge} if judge else {})}
    runs: Counter[str] = Counter()
    evaluations: list[protocol.Evaluation] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:

        def watch(task: str, total: int) -> Any:
            bar = progress.add_task(task, total=total)
            return lambda done: progress.advance(bar, done)

        run = EvaluationRun(splits, item_id, metadata, evaluator_model, judge_model, split, watch)
        for path, (model, extractor) in zip(models, loaded, strict=True):
            name, usual = model.config.model_type, None
            if not tune_alpha:
                usual = protocol.default_decodings(evaluator is not None, penalty_alpha, model.strategies)
            sizes = (num_requests, num_requests, hr_requests)
            evaluation = run.evaluate(name, model, extractor, seed + runs[name], usual, *sizes)
            evaluations.append(evaluation.with_protocol(model=path, **notes))
            runs[name] += 1
    if evaluating is not None:
        size = loaded[0].model.config.slate_size
        test = splits[split]
        quality = protocol.evaluator_quality(evaluating.model, test, evaluating.extractor, metadata, slate_size=size)
        names = [model.config.model_type for model, _ in loaded]
        pairs = zip(evaluations, names, strict=True)
        evaluations = [evaluation.with_metrics(name, lambda decoding: quality) for evaluation, name in pairs]
    paths = protocol.write_report(evaluations, out)
    protocol.print_table(evaluations)
    print("written:", ", ".join(map(str, paths.values())))
