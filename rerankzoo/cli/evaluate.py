"""`rerankzoo evaluate`: compares models with the upstream order and, where it is known, with the truth."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

import rerankzoo  # noqa: F401  (tells transformers' auto classes about our models)
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import SCHEMA_FILE, local_folder, read_origin
from rerankzoo.evaluation import (
    Evaluation,
    Evaluators,
    default_decodings,
    evaluate,
    evaluator_quality,
    print_table,
    tune_penalty_alpha,
    write_report,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.models.auto import evaluator_subfolder
from rerankzoo.models.base import RerankingPreTrainedModel


def make_parser(command: str = "evaluate") -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog=f"rerankzoo {command}",
        description="Evaluates models under every decoding strategy beside the upstream order and random slates. "
        "Several models of one type on the same data are runs: the table shows mean and spread.",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folder or Hub id of a generator with its extractor")
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder, or a dataset on the Hub")
    parser.add_argument(
        "--evaluator",
        metavar="DIR",
        help="folder or Hub id of an evaluator, or of a generator with one beside it; the same for every row",
    )
    parser.add_argument("--judge", metavar="DIR", help="an independent evaluator: values every row, chooses nothing")
    parser.add_argument("--split", default="test", help="split to evaluate on (default: test)")
    parser.add_argument("--num-requests", type=_positive, metavar="N", help="only the first N requests (default: all)")
    parser.add_argument(
        "--hr-requests",
        type=_not_negative,
        default=200,
        metavar="N",
        help="HR@p%% by the evaluator looks at N requests, for it values all slates of each (default: 200)",
    )
    parser.add_argument("--penalty-alpha", type=_alpha, default=0.1, metavar="A", help="of contrastive decoding")
    parser.add_argument("--tune-alpha", action="store_true", help="choose penalty_alpha on the validation split")
    parser.add_argument(
        "--seed", type=_not_negative, default=0, metavar="S", help="of the first run; the next has S + 1"
    )
    parser.add_argument("--out", default="outputs/evaluation", metavar="DIR", help="default: outputs/evaluation")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Its name and options.

    Raises:
        SystemExit: With status 2, if an option is wrong or a model is of the wrong kind.
        FileNotFoundError: If the data folder or a split is missing.
        HubError: If a repository is missing or cannot be reached.
        SchemaMismatchError: If model and evaluator were made for different schemas.
    """
    parser = make_parser(arguments[0])
    options = parser.parse_args(list(arguments[1:]))
    disable_progress_bar()  # of loading weights, over before it is seen
    options.data = local_folder(options.data)
    splits = open_splits(options.data)
    wanted = [options.split, *(["validation"] if options.tune_alpha else [])]
    missing = [split for split in wanted if split not in splits]
    if missing:
        raise FileNotFoundError(f"{options.data} has no split {missing[0]!r}; it has {sorted(splits)}")
    metadata = read_origin(options.data)
    models = [_load(path) for path in options.models]
    for model in models:
        if not model.can_generate():
            parser.error(f"a {type(model).__name__} generates no slates; give it as --evaluator")
    evaluator, judge = (
        _load(path, evaluator_subfolder(path)) if path else None for path in (options.evaluator, options.judge)
    )
    runs: Counter[str] = Counter()
    evaluations: list[Evaluation] = []
    evaluators = _evaluators(options, evaluator, judge, splits, metadata)
    with _progress() as progress:
        for path, model in zip(options.models, models, strict=True):
            name = model.config.model_type
            seed = options.seed + runs[name]
            runs[name] += 1
            found = _evaluate(path, model, evaluators, dict(splits), metadata, options, seed, progress)
            evaluations.append(found)
    quality = _quality(options, models, evaluator, splits, metadata)
    evaluations = [
        found.with_metrics(model.config.model_type, lambda decoding: quality)
        for found, model in zip(evaluations, models, strict=True)
    ]
    paths = write_report(evaluations, options.out)
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))


def _evaluate(
    path: str,
    model: RerankingPreTrainedModel,
    evaluators: dict[str, Evaluators],
    splits: dict[str, Dataset],
    metadata: dict[str, Any] | None,
    options: argparse.Namespace,
    seed: int,
    progress: Progress,
) -> Evaluation:
    """One run: tunes alpha if asked to, then evaluates."""
    with one_line_errors(path):
        extractor = RerankingFeatureExtractor.from_pretrained(path)
    alpha, notes = options.penalty_alpha, {"model": path, "evaluator": options.evaluator, "split": options.split}
    if options.judge:
        notes["judge_model"] = options.judge
    if options.tune_alpha:
        validation = splits["validation"]
        step = _task(progress, f"tuning alpha of {path}", validation, options.num_requests)
        alpha, notes["penalty_alpha"] = tune_penalty_alpha(
            model,
            validation,
            extractor,
            metadata,
            evaluators=evaluators["tuning"],
            num_requests=options.num_requests,
            on_progress=step,
        )
    data = splits[options.split]
    found = evaluate(
        model,
        data,
        extractor,
        metadata,
        name=model.config.model_type,
        decodings=default_decodings(options.evaluator is not None, alpha),
        evaluators=evaluators[options.split],
        seed=seed,
        hr_requests=options.hr_requests,
        num_requests=options.num_requests,
        on_progress=_task(progress, f"evaluating {path}", data, options.num_requests),
    )
    return found.with_protocol(**notes)


def _evaluators(
    options: argparse.Namespace,
    evaluator: RerankingPreTrainedModel | None,
    judge: RerankingPreTrainedModel | None,
    splits: Mapping[str, Dataset],
    metadata: dict[str, Any] | None,
) -> dict[str, Evaluators]:
    """What values slates, for all models: of the split that is evaluated on, and of the one that alpha is tuned on."""
    item_id = FeatureSchema.from_yaml(options.data / SCHEMA_FILE).item_id
    evaluators = {options.split: Evaluators.of(splits[options.split], item_id, metadata, evaluator, judge)}
    if options.tune_alpha:
        evaluators["tuning"] = Evaluators.of(splits["validation"], item_id, metadata, evaluator)
    return evaluators


def _quality(
    options: argparse.Namespace,
    models: Sequence[RerankingPreTrainedModel],
    evaluator: RerankingPreTrainedModel | None,
    splits: Mapping[str, Dataset],
    metadata: dict[str, Any] | None,
) -> dict[str, float]:
    """The evaluator's own quality on the split, as far as it can be known."""
    if evaluator is None:
        return {}
    place = evaluator_subfolder(options.evaluator)
    with one_line_errors(options.evaluator, subfolder=place):
        extractor = RerankingFeatureExtractor.from_pretrained(options.evaluator, subfolder=place)
    size = models[0].config.slate_size
    return evaluator_quality(evaluator, splits[options.split], extractor, metadata, slate_size=size)


def _load(path: str, subfolder: str = "") -> RerankingPreTrainedModel:
    with one_line_errors(path, subfolder=subfolder):
        return AutoModel.from_pretrained(path, subfolder=subfolder).eval()


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _alpha(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{value} is not in [0, 1]")
    return value


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("requests"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))


def _task(progress: Progress, text: str, data: Dataset, num_requests: int | None) -> Any:
    total = len(data) if num_requests is None else min(num_requests, len(data))
    task = progress.add_task(text, total=total)
    return lambda done: progress.advance(task, done)
