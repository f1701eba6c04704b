"""`rerankzoo benchmark`: trains and evaluates the models of a benchmark file over several seeds, in one run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from transformers import AutoConfig

from rerankzoo.cli.evaluation_run import EvaluationRun
from rerankzoo.cli.recipe_parser import RecipeParser
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.cli.runs import Trained, console, mine_once, total, train_members, train_once
from rerankzoo.errors import RecipeError, did_you_mean, shown
from rerankzoo.evaluation import Decoding, Evaluation, Point, print_table, write_curve, write_report
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import SlateGenerationMixin
from rerankzoo.mining import MiningSettings, mine_folder
from rerankzoo.models.registry import model_class
from rerankzoo.text_files import read_yaml

_ANY_DATA = tuple(f"--data.init_args.{name}" for name in ("batch_size", "eval_batch_size", "seed"))  # not of a source
_TUNING_REQUESTS = 500  # of the validation split, for alpha
_NAME = re.compile(r"\w[\w .+@=,-]*")  # of a model, an evaluator, a setting of mining: it becomes a folder's
_NOT_OF_MINING = {"evaluators", "data", "out", "fabric", "on_progress", "settings"}
_MINING = {*inspect.signature(mine_folder).parameters, *(entry.name for entry in fields(MiningSettings))}


@dataclass(frozen=True)
class EvaluatorSpec:
    """How an evaluator of a benchmark is made.

    Attributes:
        recipe: Its recipe.
        arguments: Added to the recipe's command line.
        members: How many are trained, with different seeds, to be one ensemble.
        story: What to say of it while it trains.
    """

    recipe: str
    arguments: list[str] = field(default_factory=list)
    members: PositiveInt = 1
    story: str = ""

    def __post_init__(self) -> None:
        find_recipe(self.recipe)  # before anything is trained


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark.

    Attributes:
        recipe: Recipe of the generator, relative to the shipped recipes or to the working directory. `None`: the
            evaluator itself is the model, and searches.
        arguments: Added to the recipe's command line; `{evaluator}` stands for the evaluator's checkpoint.
        mine: Arguments of `rerankzoo.mining.mine_folder`: the generator learns slates that the evaluator mines from the
            log. `None`: it learns from the log itself.
        evaluator: Which of the benchmark's `evaluators` mines, values and chooses; `None`: the one of all models.
        decodings: Decoding parameters by name, with `evaluator: true` where the evaluator chooses. `None`: the usual
            ones, with alpha of contrastive decoding tuned on validation.
        at: Where on the axis of the benchmark's curve.
        series: Of which line of the curve.
        story: What to say of it while it trains.
    """

    recipe: str | None = None
    arguments: list[str] = field(default_factory=list)
    mine: dict[str, int | float | str] | None = None
    evaluator: str | None = None
    decodings: dict[str, dict[str, Any]] | None = None
    at: float | None = None
    series: str = ""
    story: str = ""

    def __post_init__(self) -> None:
        if self.recipe is not None:
            find_recipe(self.recipe)
        elif self.decodings is None or self.mine is not None:
            raise RecipeError("without a recipe it needs decodings, and no mine")
        for name, value in (self.mine or {}).items():
            if name not in _MINING - _NOT_OF_MINING:
                raise RecipeError(f"mine.{name}: unknown setting{did_you_mean(name, _MINING)}")
            _check_name(str(value), f"mine.{name}")
        for decoding in self.named_decodings() or ():
            decoding.check(_generator_class(self.recipe))

    def mined_folder(self) -> str:
        """The name of the folder of its mined slates: models that learn the same share it."""
        settings = [f"{key}={value}" for key, value in sorted((self.mine or {}).items())]
        return ",".join([f"mined-{self.evaluator}" if self.evaluator else "mined", *settings])

    def named_decodings(self) -> list[Decoding] | None:
        """The decodings; `None`: the usual ones."""
        if self.decodings is None:
            return None
        return [
            Decoding(name, {key: asked[key] for key in asked if key != "evaluator"}, bool(asked.get("evaluator")))
            for name, asked in self.decodings.items()
        ]


def _generator_class(recipe: str | None) -> Any:
    """The class that a recipe trains, whose decodings may be asked for; without a recipe an evaluator searches."""
    entry = read_yaml(find_recipe(recipe)) if recipe else None
    for key in ("model", "init_args", "architecture"):
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    architecture = model_class(entry) if isinstance(entry, str) else SlateGenerationMixin
    return architecture if issubclass(architecture, SlateGenerationMixin) else SlateGenerationMixin


@dataclass(frozen=True)
class Curve:
    """What a benchmark draws beside its table.

    Attributes:
        axis: What the models' `at` is.
        metrics: One panel each, of the first decoding of each model.
        log: Whether the axis is logarithmic.
    """

    axis: str
    metrics: list[str]
    log: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file.

    Attributes:
        models: The models by name.
        evaluator: The evaluator that values the slates of all models, chooses among slates and mines.
        judge: An independent evaluator, trained on another log of the same simulated world.
        evaluators: Further evaluators, for models that name one: it values the slates of these models only.
        arguments: Added to every recipe's command line; `{seed}` stands for the run's number.
        curve: A picture of some of the models.
    """

    models: dict[str, Entry]
    evaluator: EvaluatorSpec | None = None
    judge: EvaluatorSpec | None = None
    evaluators: dict[str, EvaluatorSpec] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    curve: Curve | None = None

    def __post_init__(self) -> None:
        for name, entry in self.models.items():
            if entry.evaluator is not None and entry.evaluator not in self.evaluators:
                near = did_you_mean(entry.evaluator, self.evaluators)
                raise RecipeError(f"models.{name}.evaluator: no {entry.evaluator!r} in evaluators{near}")
            searches = entry.mine is not None or entry.recipe is None
            if searches and self.evaluator is None and entry.evaluator is None:
                raise RecipeError(f"models.{name} needs an evaluator; the benchmark names none")

    @classmethod
    def from_yaml(cls, path: Path) -> Benchmark:
        """Reads a benchmark file.

        Raises:
            RecipeError: If a key is unknown or missing, its value is of a wrong type, or parts contradict one another.
            UnreadableFileError: If the file is no YAML.
            FileNotFoundError: If a recipe in it is missing.
        """
        values = read_yaml(path)
        try:
            _check_keys(cls, values, "benchmark")
            parts = {key: _part(key, value) for key, value in values.items() if value is not None}
            if not parts.get("models"):
                raise RecipeError("models: expected models by name, got none")
            return cls(**parts)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def only(self, names: Sequence[str]) -> Benchmark:
        """The same benchmark of some of its models."""
        if unknown := [name for name in names if name not in self.models]:
            near = did_you_mean(unknown[0], self.models)
            raise RecipeError(f"unknown models {unknown}; there are {list(self.models)}{near}")
        return replace(self, models={name: entry for name, entry in self.models.items() if name in names})


def _part(key: str, value: Any) -> Any:
    """The value of a key of a benchmark file."""
    kind = {"models": Entry, "curve": Curve, "arguments": list}.get(key, EvaluatorSpec)
    if kind is list:
        if not isinstance(value, list) or not all(isinstance(argument, str) for argument in value):
            raise RecipeError(f"{key}: expected a list of texts, got {shown(value)}")
        return value
    if key not in ("models", "evaluators"):
        return _parsed(kind, value, key)
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key}: expected {key} by name, got {shown(value)}")
    for name in value:
        _check_name(name, key)
    return {name: _parsed(kind, part, f"{key}.{name}") for name, part in value.items()}


def _parsed(kind: Any, values: Any, where: str) -> Any:
    """A part of a benchmark file as its dataclass."""
    if kind is EvaluatorSpec and isinstance(values, str):
        values = {"recipe": values}
    _check_keys(kind, values, where)
    parser = RecipeParser()
    parser.add_class_arguments(kind)
    try:
        return kind(**parser.parse_object(dict(values)).as_dict())
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_keys(kind: Any, values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} must hold keys, got {shown(values)}")
    known = [entry.name for entry in fields(kind)]
    if unknown := [key for key in values if key not in known]:
        raise RecipeError(f"{where}.{shown(unknown[0])[1:-1]}: unknown key{did_you_mean(unknown[0], known)}")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(f"{where}: expected a text that can name a folder, got {shown(name)}")


class _Run:
    """One seed of a benchmark, in the folder `root`."""

    def __init__(self, benchmark: Benchmark, root: Path, seed: int, further: Sequence[str], device: str) -> None:
        self.benchmark, self.root, self.seed, self.device = benchmark, root, seed, device
        self.options = [option.replace("{seed}", str(seed)) for option in (*benchmark.arguments, *further)]
        self.evaluators: dict[str | None, Trained] = {}
        self.runs: dict[str | None, tuple[EvaluationRun, dict[str, float]]] = {}
        self.judge: Trained | None = None
        if benchmark.evaluator is not None:
            shared = self.evaluators[None] = self._train_evaluator(benchmark.evaluator, "evaluator")
            if benchmark.judge is not None:
                other = ["--data.init_args.log=judge", f"--data.init_args.extractor={shared.folder}"]
                self.judge = self._train_evaluator(benchmark.judge, "judge", other)

    def evaluations(self) -> Iterator[Evaluation]:
        """Trains and judges one model after the other."""
        for name, entry in self.benchmark.models.items():
            yield self._evaluate(name, entry, *self._train(name, entry))

    def _train_evaluator(self, spec: EvaluatorSpec, name: str, further: Sequence[str] = ()) -> Trained:
        arguments = [*self.options, *further, *spec.arguments]
        return train_members(spec.recipe, self.root / name, self.seed, spec.members, arguments)

    def _evaluator(self, name: str | None) -> Trained | None:
        if name is not None and name not in self.evaluators:
            self.evaluators[name] = self._train_evaluator(self.benchmark.evaluators[name], f"evaluator-{name}")
        return self.evaluators.get(name)

    def _train(self, name: str, entry: Entry) -> tuple[Trained, dict[str, float | None]]:
        """The model, and the CPU seconds of its stages."""
        evaluator = self._evaluator(entry.evaluator)
        if entry.recipe is None and evaluator is not None:
            return evaluator, {}
        recipe, seconds, options = str(entry.recipe), {}, self.options
        if entry.mine is not None and evaluator is not None:
            mined = self.root / entry.mined_folder()
            seconds["mining"] = mine_once(evaluator, mined, **entry.mine)
            kept = [option for option in options if not option.startswith("--data") or option.startswith(_ANY_DATA)]
            options = [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}", *kept]
        place = str(evaluator and evaluator.folder)
        options = [*options, *(argument.replace("{evaluator}", place) for argument in entry.arguments)]
        trained = train_once(recipe, self.root / name, self.seed, options)
        return trained, {**seconds, "generator": trained.cpu_seconds}

    def _evaluate(self, name: str, entry: Entry, trained: Trained, seconds: dict[str, float | None]) -> Evaluation:
        evaluator = self._evaluator(entry.evaluator)
        run, quality = self._evaluation_run(entry, trained)
        model = run.evaluator if trained is evaluator else trained.load(self.device)
        extractor = RerankingFeatureExtractor.from_pretrained(trained.folder)
        with console.status(f"evaluating {name}, seed {self.seed}"):
            evaluation = run.evaluate(name, model, extractor, self.seed, entry.named_decodings(), _TUNING_REQUESTS)
        costs = {"evaluator": evaluator.cpu_seconds, **seconds} if evaluator else seconds
        evaluation = evaluation.with_protocol(training_cpu_seconds={name: costs}, evaluator_quality=quality)
        asked = evaluation.protocol["decodings"]
        evaluation = evaluation.with_metrics(name, lambda key: {**quality, **_cost(entry, asked[key], costs)})
        return evaluation if entry.evaluator is None else evaluation.with_own_evaluator()

    def _evaluation_run(self, entry: Entry, trained: Trained) -> tuple[EvaluationRun, dict[str, float]]:
        """What judges the models of one evaluator, and the evaluator's own quality."""
        if entry.evaluator not in self.runs:
            evaluator = self._evaluator(entry.evaluator)
            # Judge and evaluator speak of the same table only where they share the feature extractor.
            judge = self.judge.load(self.device) if self.judge and entry.evaluator is None else None
            run = evaluation_run(evaluator or trained, evaluator and evaluator.load(self.device), judge)
            size = AutoConfig.from_pretrained(trained.folder).slate_size
            self.runs[entry.evaluator] = run, run.quality((evaluator or trained).data.extractor, size)
        return self.runs[entry.evaluator]


def evaluation_run(trained: Trained, evaluator: Any, judge: Any = None) -> EvaluationRun:
    """The evaluation on the data that a model was trained on."""
    data = trained.data
    splits = {name: data.split(name) for name in ("validation", "test")}
    return EvaluationRun(splits, data.extractor.schema.item_id, data.metadata, evaluator, judge)


def _cost(entry: Entry, decoding: Mapping[str, Any], seconds: Mapping[str, float | None]) -> dict[str, float]:
    """CPU seconds of all that one row needs: of the evaluator's training only where it taught, chooses or searches."""
    uses = entry.recipe is None or entry.mine is not None or decoding["evaluator"]
    needed = total(cost for stage, cost in seconds.items() if uses or stage != "evaluator")
    return {} if needed is None else {"cpu_seconds": needed}


def join_options(arguments: Sequence[str]) -> list[str]:
    """Writes every option as one argument: `--key value` becomes `--key=value`."""
    joined: list[str] = []
    for argument in arguments:
        if argument.startswith("--") or not joined:
            joined.append(argument)
        else:
            joined[-1] = f"{joined[-1]}={argument}"
    return joined


def benchmark(
    file: str,
    *further: str,
    out: Path,
    seeds: PositiveInt = 3,
    models: list[str] | None = None,
    device: str = "auto",
) -> None:
    """Trains and evaluates models over several seeds.

    Unknown options go to every recipe's command line, such as --data.init_args.path DIR; but for batch sizes and the
    seed of the shuffling, those of --data do not reach generators that learn mined slates.

    Args:
        file: A benchmark file, such as nar4rec/benchmark-simulator.yaml.
        *further: Options for every recipe's command line, after the benchmark's own.
        out: Folder for checkpoints, table, plot and results.json; what is trained there is not trained again.
        seeds: Number of runs, with seeds 0, 1...
        models: Only these of the file's models (default: all).
        device: Where models are evaluated, such as cpu or cuda:1; auto: the accelerator where there is one. (For the
            training: --trainer.accelerator.)
    """
    asked = Benchmark.from_yaml(find_recipe(file))
    asked = asked.only(models) if models else asked
    options = join_options(further)
    runs = (_Run(asked, out / f"seed-{seed}", seed, options, device) for seed in range(seeds))
    evaluations = [evaluation for run in runs for evaluation in run.evaluations()]
    paths = write_report(evaluations, out)
    if asked.curve is not None:
        points = [Point(name, entry.series, entry.at) for name, entry in asked.models.items() if entry.at is not None]
        paths["curve"] = write_curve(evaluations, out, points, **asdict(asked.curve))
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))
