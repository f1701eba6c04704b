"""`rerankzoo benchmark`: trains and evaluates the models of a benchmark file over several seeds, in one run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from transformers import AutoModel

from rerankzoo.cli.lightning import RerankingCLI, command_line
from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import RerankingDataError
from rerankzoo.evaluation import (
    Evaluation,
    default_decodings,
    evaluate,
    print_table,
    tune_penalty_alpha,
    write_report,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor

console = Console(stderr=True)


@dataclass(frozen=True)
class Trained:
    """A trained checkpoint.

    Attributes:
        folder: What `from_pretrained` reads.
        data: The data it was trained on, set up.
        cpu_seconds: CPU time of the training, over all threads; `None` where it was found and not trained again.
    """

    folder: Path
    data: RerankingDataModule
    cpu_seconds: float | None


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark.

    Attributes:
        name: What the table calls it.
        recipe: Recipe of the generator, relative to the shipped recipes or to the working directory.
        evaluator: Recipe of its evaluator; `None` for none.
    """

    name: str
    recipe: str
    evaluator: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file.

    Attributes:
        models: The models.
        arguments: Added to every recipe's command line; `{seed}` stands for the run's number.
    """

    models: tuple[Entry, ...]
    arguments: tuple[str, ...] = ()

    @classmethod
    def from_yaml(cls, path: Path) -> Benchmark:
        """Reads a benchmark file.

        Raises:
            RerankingDataError: If the file holds unknown keys or no models.
        """
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        try:
            entries = tuple(Entry(name=name, **entry) for name, entry in values.pop("models").items())
            return cls(models=entries, arguments=tuple(values.pop("arguments", ())), **values)
        except (TypeError, KeyError, AttributeError) as error:
            raise RerankingDataError(f"{path} is no benchmark file: {error}", field="models") from error


def find_recipe(name: str) -> Path:
    """A recipe's file: a path as given, or one of the shipped recipes.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for path in (Path(name), recipes_folder() / name, recipes_folder() / name.removeprefix("recipes/")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"no file {name!r}, here or among the shipped recipes")


def prepare_run(recipe: str, folder: Path, seed: int, arguments: Sequence[str] = ()) -> RerankingCLI:
    """Makes trainer, module and data of a recipe.

    Args:
        recipe: See `find_recipe`.
        folder: The run's root directory.
        seed: Of initialisation and shuffling.
        arguments: Further options of the command line.

    Returns:
        The command line, ready for `train`.
    """
    options = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", *arguments]
    return command_line(["--config", str(find_recipe(recipe)), *options], run=False)


def train(run: RerankingCLI, folder: Path) -> Trained:
    """Trains what `prepare_run` made; the best checkpoint is exported to `folder`."""
    start = time.process_time()
    run.trainer.fit(run.model, datamodule=run.datamodule)
    return _trained(run, folder, time.process_time() - start)


def train_once(recipe: str, folder: Path, seed: int, arguments: Sequence[str] = ()) -> Trained:
    """Trains a recipe, unless its folder holds the result already; arguments as of `prepare_run`."""
    run = prepare_run(recipe, folder, seed, arguments)
    best = folder / "best"
    if best.is_dir():
        console.print(f"{best} is there and not trained again")
        return _trained(run, best, None)
    console.rule(f"{recipe}, seed {seed}")
    return train(run, best)


def _trained(run: RerankingCLI, folder: Path, cpu_seconds: float | None) -> Trained:
    run.datamodule.prepare_data()
    run.datamodule.setup()
    return Trained(folder, run.datamodule, cpu_seconds)


def judge(
    name: str,
    generator: Trained,
    evaluator: Trained | None,
    seed: int,
    *,
    num_requests: int | None = None,
    hr_requests: int = 200,
) -> Evaluation:
    """Evaluates a trained generator on the test split; alpha of contrastive decoding is tuned on validation."""
    model = AutoModel.from_pretrained(generator.folder)
    chooser = None if evaluator is None else AutoModel.from_pretrained(evaluator.folder)
    extractor = RerankingFeatureExtractor.from_pretrained(generator.folder)
    data = generator.data
    shared: dict[str, Any] = {"evaluator": chooser, "num_requests": num_requests}
    with console.status(f"evaluating {name}, seed {seed}"):
        alpha, record = tune_penalty_alpha(model, data.split("validation"), extractor, data.metadata, **shared)
        decodings = default_decodings(chooser is not None, alpha)
        found = evaluate(
            model,
            data.split("test"),
            extractor,
            data.metadata,
            name=name,
            decodings=decodings,
            seed=seed,
            hr_requests=hr_requests,
            **shared,
        )
    seconds = {"generator": generator.cpu_seconds, "evaluator": evaluator and evaluator.cpu_seconds}
    return found.with_protocol(penalty_alpha=record, training_cpu_seconds=seconds)


def run_benchmark(benchmark: Benchmark, out: Path, seeds: int, arguments: Sequence[str] = ()) -> list[Evaluation]:
    """Trains and evaluates every model with every seed.

    Args:
        benchmark: What to run.
        out: Where the runs go, as `seed-0/nar4rec`; finished ones are not trained again.
        seeds: Number of runs, with seeds 0, 1...
        arguments: Options added to every recipe's command line, after the benchmark's own.

    Returns:
        One evaluation per model and seed.
    """
    evaluations = []
    for seed in range(seeds):
        options = [argument.format(seed=seed) for argument in (*benchmark.arguments, *arguments)]
        for entry in benchmark.models:
            folder = out / f"seed-{seed}" / entry.name
            evaluator = None
            if entry.evaluator is not None:
                evaluator = train_once(entry.evaluator, folder.with_name(f"{entry.name}-evaluator"), seed, options)
            generator = train_once(entry.recipe, folder, seed, options)
            evaluations.append(judge(entry.name, generator, evaluator, seed))
    return evaluations


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["benchmark", "nar4rec/benchmark-simulator.yaml", "--out", "outputs/benchmark"]`; what it
            does not know is added to every recipe's command line.
    """
    parser = argparse.ArgumentParser(
        prog="rerankzoo benchmark",
        description="Trains and evaluates models over several seeds. Unknown options go to every recipe's command "
        "line, such as --data.init_args.path DIR.",
    )
    parser.add_argument("file", help="a benchmark file, such as nar4rec/benchmark-simulator.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs (default: 3)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, table, plot and results.json")
    options, further = parser.parse_known_args(list(arguments[1:]))
    benchmark = Benchmark.from_yaml(find_recipe(options.file))
    evaluations = run_benchmark(benchmark, options.out, options.seeds, further)
    paths = write_report(evaluations, options.out)
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))
