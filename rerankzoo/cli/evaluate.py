"""`rerankzoo evaluate`: compares models with the upstream order and, where it is known, with the truth."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers.utils.logging import disable_progress_bar

from rerankzoo.cli.evaluation_run import EvaluationRun
from rerankzoo.cli.options import choose_device
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE, local_folder, read_origin
from rerankzoo.errors import RecipeError
from rerankzoo.evaluation import Evaluation, default_decodings, print_table, write_report
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.auto import load_checkpoint, load_evaluator


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

    Raises:
        RecipeError: If a model generates nothing.
        FileNotFoundError: If the data folder or a split is missing.
        HubError: If a repository is missing or cannot be reached.
        SchemaMismatchError: If model and evaluator were made for different schemas.
    """
    disable_progress_bar()  # of loading weights, over before it is seen
    folder = local_folder(data)
    splits = open_splits(folder)
    for wanted in (split, *(["validation"] if tune_alpha else [])):
        if wanted not in splits:
            raise FileNotFoundError(f"{folder} has no split {wanted!r}; it has {sorted(splits)}")
    place = choose_device(device)
    loaded = [load_checkpoint(path) for path in models]
    for model, _ in loaded:
        if not model.can_generate():
            raise RecipeError(f"a {type(model).__name__} generates no slates; give it as --evaluator")
        model.to(place)
    evaluating = load_evaluator(evaluator) if evaluator else None
    evaluator_model = evaluating and evaluating.model.to(place)
    judge_model = load_evaluator(judge).model.to(place) if judge else None
    item_id = FeatureSchema.from_yaml(folder / SCHEMA_FILE).item_id
    runs: Counter[str] = Counter()
    evaluations: list[Evaluation] = []
    with _progress() as progress:

        def watch(task: str, total: int) -> Any:
            bar = progress.add_task(task, total=total)
            return lambda done: progress.advance(bar, done)

        run = EvaluationRun(splits, item_id, read_origin(folder), evaluator_model, judge_model, split, watch)
        for path, (model, extractor) in zip(models, loaded, strict=True):
            name = model.config.model_type
            usual = default_decodings(evaluator is not None, penalty_alpha, model.strategies)
            decodings = None if tune_alpha else usual
            evaluation = run.evaluate(
                name, model, extractor, seed + runs[name], decodings, num_requests, num_requests, hr_requests
            )
            notes = {"model": path, "evaluator": evaluator, "split": split}
            evaluations.append(evaluation.with_protocol(**notes, **({"judge_model": judge} if judge else {})))
            runs[name] += 1
    if evaluating is not None:
        quality = run.quality(evaluating.extractor, loaded[0][0].config.slate_size)
        evaluations = [
            evaluation.with_metrics(model.config.model_type, lambda decoding: quality)
            for evaluation, (model, _) in zip(evaluations, loaded, strict=True)
        ]
    paths = write_report(evaluations, out)
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
