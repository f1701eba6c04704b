"""`rerankzoo benchmark`: trains and evaluates the models of a benchmark file over several seeds, in one run."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    evaluator_quality,
    print_table,
    tune_penalty_alpha,
    write_report,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.mining import mine_folder

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
        mine: Arguments of `rerankzoo.mining.mine_folder`: the generator learns slates that the benchmark's evaluator
            mines from the log. `None`: it learns from the log itself.
    """

    name: str
    recipe: str
    mine: dict[str, Any] | None = None


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file.

    Attributes:
        models: The models.
        evaluator: Recipe of the evaluator that values the slates of all models, chooses among slates and mines.
        judge: Recipe of an independent evaluator, trained on another log of the same simulated world.
        arguments: Added to every recipe's command line; `{seed}` stands for the run's number.
    """

    models: tuple[Entry, ...]
    evaluator: str | None = None
    judge: str | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.evaluator is None and any(entry.mine is not None for entry in self.models):
            raise RerankingDataError("mining needs an evaluator; the benchmark names none", field="evaluator")

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
    referee: Trained | None = None,
    hr_requests: int = 200,
) -> Evaluation:
    """Evaluates a trained generator on the test split; alpha of contrastive decoding is tuned on validation.

    Args:
        name: Of the model, in the table.
        generator: What is judged.
        evaluator: Values all slates, and chooses among several.
        seed: Of the run.
        referee: An independent evaluator.
        hr_requests: See `rerankzoo.evaluation.evaluate`.

    Returns:
        The evaluation, with the CPU time of the training and, where there is an evaluator, its own quality.
    """
    model = AutoModel.from_pretrained(generator.folder)
    extractor = RerankingFeatureExtractor.from_pretrained(generator.folder)
    data = (evaluator or generator).data
    chooser, independent = _load(evaluator), _load(referee)
    shared: dict[str, Any] = {"evaluator": chooser}
    with console.status(f"evaluating {name}, seed {seed}"):
        alpha, record = tune_penalty_alpha(model, data.split("validation"), extractor, data.metadata, **shared)
        found = evaluate(
            model,
            data.split("test"),
            extractor,
            data.metadata,
            name=name,
            decodings=default_decodings(chooser is not None, alpha),
            judge=independent,
            seed=seed,
            hr_requests=hr_requests,
            **shared,
        )
        notes: dict[str, Any] = {}
        if chooser is not None:
            size = model.config.slate_size
            quality = evaluator_quality(chooser, data.split("test"), extractor, data.metadata, slate_size=size)
            notes["evaluator_quality"] = quality
    seconds = {"generator": generator.cpu_seconds, "evaluator": evaluator and evaluator.cpu_seconds}
    return found.with_protocol(penalty_alpha=record, training_cpu_seconds=seconds, **notes)


def _load(trained: Trained | None) -> Any:
    return None if trained is None else AutoModel.from_pretrained(trained.folder)


def mine_and_train(entry: Entry, evaluator: Trained, folder: Path, seed: int, further: Sequence[str]) -> Trained:
    """Mines slates with the evaluator and trains a generator on them; what is there already is not made again."""
    mined = folder / "mined"
    start = time.process_time()
    with console.status(f"mining for {entry.name}, seed {seed}"):
        mine_folder([str(evaluator.folder)], evaluator.data.path, mined, **(entry.mine or {}))
    seconds = time.process_time() - start
    data = [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}"]
    trained = train_once(entry.recipe, folder, seed, [*data, *further])
    total = None if trained.cpu_seconds is None else trained.cpu_seconds + seconds
    return replace(trained, cpu_seconds=total)


def join_options(arguments: Sequence[str]) -> list[str]:
    """Writes every option as one argument: `--key value` becomes `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("--") or not joined:
            joined.append(argument)
        else:
            joined[-1] = f"{joined[-1]}={argument}"
    return joined


def run_benchmark(benchmark: Benchmark, out: Path, seeds: int, further: Sequence[str] = ()) -> list[Evaluation]:
    """Trains and evaluates every model with every seed.

    Args:
        benchmark: What to run.
        out: Where the runs go, as `seed-0/nar4rec`; finished ones are not trained again.
        seeds: Number of runs, with seeds 0, 1...
        further: Options added to every recipe's command line, after the benchmark's own; not to those of generators
            that learn mined slates, whose data is another.

    Returns:
        One evaluation per model and seed.
    """
    evaluations = []
    for seed in range(seeds):
        root = out / f"seed-{seed}"
        options = [argument.format(seed=seed) for argument in (*benchmark.arguments, *further)]
        evaluator = referee = None
        if benchmark.evaluator is not None:
            evaluator = train_once(benchmark.evaluator, root / "evaluator", seed, options)
        if benchmark.judge is not None and evaluator is not None:
            other = ["--data.init_args.log=judge", f"--data.init_args.extractor={evaluator.folder}"]
            referee = train_once(benchmark.judge, root / "judge", seed, [*options, *other])
        for entry in benchmark.models:
            if entry.mine is not None and evaluator is not None:
                kept = [option for option in further if not option.startswith("--data")]
                generator = mine_and_train(entry, evaluator, root / entry.name, seed, kept)
            else:
                generator = train_once(entry.recipe, root / entry.name, seed, options)
            evaluations.append(judge(entry.name, generator, evaluator, seed, referee=referee))
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
    evaluations = run_benchmark(benchmark, options.out, options.seeds, join_options(further))
    paths = write_report(evaluations, options.out)
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))
