"""`rerankzoo benchmark`: trains and evaluates the models of a benchmark file over several seeds, in one run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from transformers import AutoConfig

from rerankzoo.cli.evaluate import EvaluationRun
from rerankzoo.cli.lightning import RecipeParser
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.cli.runs import Trained, console, mine_once, origin_of_figures, total, train, train_members
from rerankzoo.cli.trying import log_likelihoods, parse_choice
from rerankzoo.errors import RecipeError, did_you_mean, shown
from rerankzoo.evaluation import (
    Decoding,
    Evaluation,
    Point,
    print_table,
    write_curve,
    write_report,
    write_worlds,
)
from rerankzoo.evaluation.board import BoardRow, append_rows, board_rows, has_model, read_board, serving_costs
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.generation import ExhaustiveSearch, GeneratorPool, SlateGenerationMixin
from rerankzoo.metrics import within_one_error
from rerankzoo.mining import MiningSettings, mine_folder
from rerankzoo.models.registry import model_class
from rerankzoo.text_files import read_yaml

_ANY_DATA = tuple(f"--data.init_args.{name}" for name in ("batch_size", "eval_batch_size", "seed"))  # not of a source
_EVALUATOR = "evaluator"  # the one of all models, in `{evaluator}`
_TUNING_REQUESTS = 500  # of the validation split, for alpha
_NAME = re.compile(r"\w[\w .+@=,-]*")  # of a model, an evaluator, a setting of mining: it becomes a folder's
_MINING = {*inspect.signature(mine_folder).parameters, *(entry.name for entry in fields(MiningSettings))}
_MINING -= {"evaluators", "data", "out", "fabric", "on_progress", "settings"}


@dataclass(frozen=True)
class EvaluatorSpec:
    """How an evaluator of a benchmark is made."""

    recipe: str
    arguments: list[str] = field(default_factory=list)  # added to the recipe's command line
    members: PositiveInt = 1  # so many are trained, with different seeds, to be one ensemble
    choose: str | None = None  # "KEY=A,B": of one for each value, the one that held-out feedback prefers
    story: str = ""  # what to say of it while it trains

    def __post_init__(self) -> None:
        find_recipe(self.recipe)  # before anything is trained
        if self.choose is not None:
            parse_choice([self.choose])


@dataclass(frozen=True)
class World:
    """A world, or another setting of the data, in which all models of a benchmark are measured."""

    arguments: list[str] = field(default_factory=list)  # added to every recipe's
    models: list[str] | None = None  # only these of the benchmark's; `None`: all
    story: str = ""  # what to say of it


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark."""

    recipe: str | None = None  # of the generator; `None`: the evaluator itself is the model, and searches
    arguments: list[str] = field(default_factory=list)  # added to the recipe's; `{NAME}`: the checkpoint of that model
    generators: list[str] = field(default_factory=list)  # instead of a recipe, models of the benchmark that propose
    mine: dict[str, int | float | str] | None = None  # as of `mine_folder`; `None`: it learns from the log itself
    evaluator: str | None = None  # which of the `evaluators` mines, values and chooses; `None`: the one of all models
    decodings: dict[str, dict[str, Any]] | None = None  # with `evaluator: true` where it chooses; `None`: the usual
    at: float | None = None  # where on the axis of the benchmark's curve
    series: str = ""  # of which line of the curve
    story: str = ""  # what to say of it while it trains

    def __post_init__(self) -> None:
        if self.recipe is not None:
            find_recipe(self.recipe)
        elif self.decodings is None or self.mine is not None:
            raise RecipeError("without a recipe it needs decodings, and no mine")
        if self.generators and self.recipe is not None:
            raise RecipeError(f"generators: a pool has no recipe, got {self.recipe!r}")
        if _EVALUATOR in self.generators:
            raise RecipeError("generators: the evaluator chooses among their slates, and is none of them")
        for name, value in (self.mine or {}).items():
            if name not in _MINING:
                raise RecipeError(f"mine.{name}: unknown setting{did_you_mean(name, _MINING)}")
            _folder_name(str(value), f"mine.{name}")
        for decoding in self.named_decodings() or ():
            decoding.check(_generator_class(self.recipe))

    def needs(self, name: str) -> bool:
        """Whether another model, or the evaluator, must be trained before."""
        return name in self.generators or any(f"{{{name}}}" in argument for argument in self.arguments)

    def mined_folder(self) -> str:
        """The name of the folder of its mined slates: models that learn the same share it."""
        settings = [f"{key}={value}" for key, value in sorted((self.mine or {}).items())]
        return ",".join([f"mined-{self.evaluator}" if self.evaluator else "mined", *settings])

    def named_decodings(self) -> list[Decoding] | None:
        """The decodings; `None`: the usual ones."""
        if self.decodings is None:
            return None
        asked = {name: dict(parameters) for name, parameters in self.decodings.items()}
        chooses = {name: bool(parameters.pop("evaluator", False)) for name, parameters in asked.items()}
        return [Decoding(name, parameters, chooses[name]) for name, parameters in asked.items()]


def _generator_class(recipe: str | None) -> Any:
    """The class that a recipe trains, whose decodings may be asked for; without a recipe an evaluator searches."""
    entry = read_yaml(find_recipe(recipe)) if recipe else None
    for key in ("model", "init_args", "architecture"):
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    architecture = model_class(entry) if isinstance(entry, str) else SlateGenerationMixin
    return architecture if issubclass(architecture, SlateGenerationMixin) else SlateGenerationMixin


@dataclass(frozen=True)
class Curve:
    """What a benchmark draws beside its table."""

    axis: str  # what the models' `at` is
    metrics: list[str]  # one panel each, of the first decoding of each model
    log: bool = False  # whether the axis is logarithmic


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file."""

    models: dict[str, Entry]
    companions: dict[str, Entry] = field(default_factory=dict)  # models that others need; no rows of the table
    evaluator: EvaluatorSpec | None = None  # values the slates of all models, chooses among slates and mines
    judge: EvaluatorSpec | None = None  # an independent one, trained on another log of the same simulated world
    evaluators: dict[str, EvaluatorSpec] = field(default_factory=dict)  # for the slates of models that name one only
    arguments: list[str] = field(default_factory=list)  # added to every recipe's; `{seed}`: the run's number
    curve: Curve | None = None
    worlds: dict[str, World] = field(default_factory=dict)  # each is measured by itself, and all in one table
    pointwise: list[str] = field(default_factory=list)  # the models that only sort: where the gap of a world begins
    ceiling: bool = False  # whether the correctly specified model of the simulated log is a baseline
    lambdamart: bool = False  # whether LightGBM's LambdaMART is one (extra "yardsticks")

    def __post_init__(self) -> None:
        for name, entry in self.every.items():
            if entry.evaluator is not None and entry.evaluator not in self.evaluators:
                near = did_you_mean(entry.evaluator, self.evaluators)
                raise RecipeError(f"models.{name}.evaluator: no {entry.evaluator!r} in evaluators{near}")
            searches = entry.mine is not None or entry.recipe is None
            if searches and self.evaluator is None and entry.evaluator is None:
                raise RecipeError(f"models.{name} needs an evaluator; the benchmark names none")
            before = list(self.every)[: list(self.every).index(name)]
            for other in (*entry.generators, *filter(entry.needs, self.every)):
                if other != _EVALUATOR and other not in before:
                    raise RecipeError(f"models.{name} needs {other!r}, which must stand before it; there are {before}")

    @property
    def every(self) -> dict[str, Entry]:
        """All models; what one needs stands before it."""
        return {**self.companions, **self.models}

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

    def of_world(self, name: str) -> Benchmark:
        """The same benchmark of the models of one of its worlds."""
        models = self.worlds[name].models
        return self if models is None else self.only([model for model in models if model in self.models])

    def only(self, names: Sequence[str]) -> Benchmark:
        """The same benchmark of some of its models."""
        if unknown := [name for name in names if name not in self.models]:
            near = did_you_mean(unknown[0], self.models)
            raise RecipeError(f"unknown models {unknown}; there are {list(self.models)}{near}")
        needed = set(names)
        for name, entry in reversed(self.every.items()):
            needed |= {other for other in self.every if name in needed and entry.needs(other)}
        models = {name: entry for name, entry in self.models.items() if name in names}
        companions = {name: entry for name, entry in self.every.items() if name in needed and name not in models}
        return replace(self, models=models, companions=companions)


def _part(key: str, value: Any) -> Any:
    """The value of a key of a benchmark file."""
    if key in ("arguments", "pointwise"):
        if not isinstance(value, list) or not all(isinstance(argument, str) for argument in value):
            raise RecipeError(f"{key}: expected a list of texts, got {shown(value)}")
        return value
    if key in ("ceiling", "lambdamart"):
        if not isinstance(value, bool):
            raise RecipeError(f"{key}: expected true or false, got {shown(value)}")
        return value
    kind = {"models": Entry, "companions": Entry, "curve": Curve, "worlds": World}.get(key, EvaluatorSpec)
    if key not in ("models", "companions", "evaluators", "worlds"):
        return _parsed(kind, value, key)
    if not isinstance(value, Mapping):
        raise RecipeError(f"{key}: expected {key} by name, got {shown(value)}")
    return {_folder_name(name, key): _parsed(kind, part, f"{key}.{name}") for name, part in value.items()}


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


def _folder_name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(f"{where}: expected a text that can name a folder, got {shown(name)}")
    return name


class _Run:
    """One seed of a benchmark, in the folder `root`."""

    def __init__(self, benchmark: Benchmark, root: Path, seed: int, further: Sequence[str], device: str) -> None:
        self.benchmark, self.root, self.seed, self.device = benchmark, root, seed, device
        self.options = [option.replace("{seed}", str(seed)) for option in (*benchmark.arguments, *further)]
        self.evaluators: dict[str | None, Trained] = {}
        self.runs: dict[str | None, tuple[EvaluationRun, dict[str, float]]] = {}
        self.chosen: dict[str, str] = {}  # by the evaluator's name, what held-out feedback preferred

    def evaluate(self, name: str, entry: Entry) -> Evaluation:
        """Trains and judges one model."""
        return self._judged(name, entry)[0]

    def _judged(self, name: str, entry: Entry) -> tuple[Evaluation, Any, RerankingFeatureExtractor, EvaluationRun]:
        """The evaluation of one model, the model with its extractor, and what judged it."""
        evaluator = self._evaluator(entry.evaluator)
        trained, seconds = self._train(name, entry, evaluator)
        if entry.evaluator not in self.runs:
            self.runs[entry.evaluator] = self._evaluation_run(entry.evaluator, evaluator, trained)
        run, quality = self.runs[entry.evaluator]
        model = run.evaluator if trained is evaluator else self._load(entry, trained)
        extractor = RerankingFeatureExtractor.from_pretrained(trained.folder)
        with console.status(f"evaluating {name}, seed {self.seed}"):
            evaluation = run.evaluate(name, model, extractor, self.seed, entry.named_decodings(), _TUNING_REQUESTS)
        costs = {"evaluator": evaluator.cpu_seconds, **seconds} if evaluator else seconds
        evaluation = evaluation.with_protocol(training_cpu_seconds={name: costs}, evaluator_quality=quality)
        evaluation = evaluation.with_metrics(name, quality)
        for decoding, asked in evaluation.protocol["decodings"].items():
            uses = asked["evaluator"] or self._taught(entry)
            evaluation = evaluation.with_metrics(name, _cost(costs, uses), decoding)
        if entry.evaluator is not None:
            evaluation = evaluation.with_own_evaluator()
        return evaluation, model, extractor, run

    def board_rows(self, name: str, entry: Entry, **origin: str) -> list[BoardRow]:
        """Trains and judges one model, and measures what it costs to serve."""
        evaluation, model, extractor, run = self._judged(name, entry)
        batch = extractor(run.splits["test"].with_format("arrow")[:32])
        size, costs = evaluation.protocol["slate_size"], {}
        for asked in entry.named_decodings() or ():
            told = evaluation.row(name, asked.name).metrics.get("cpu_seconds")
            known = {} if told is None else {"training_cpu_seconds": round(told, 1)}
            costs[name, asked.name] = {**known, **serving_costs(model, batch, asked, size, run.evaluator)}
        return board_rows(evaluation, costs, **origin)

    def _evaluator(self, name: str | None) -> Trained | None:
        """The evaluator of that name; `None`: the one of all models, if there is one."""
        spec = self.benchmark.evaluator if name is None else self.benchmark.evaluators[name]
        if spec is not None and name not in self.evaluators:
            self.evaluators[name] = self._train_evaluator(spec, f"evaluator-{name}" if name else "evaluator")
        return self.evaluators.get(name)

    def _train_evaluator(self, spec: EvaluatorSpec, name: str, further: Sequence[str] = ()) -> Trained:
        arguments = [*self.options, *further, *spec.arguments]
        if spec.choose is not None:
            return self._choose_evaluator(spec, name, arguments)
        return train_members(spec.recipe, self.root / name, self.seed, spec.members, arguments)

    def _choose_evaluator(self, spec: EvaluatorSpec, name: str, arguments: Sequence[str]) -> Trained:
        """Of one evaluator for each value, the first within one standard error of the best; its cost is that of all."""
        key, values = parse_choice([spec.choose or ""])
        trials = {}
        for value in values:
            own = [*arguments, f"--{key}={value}"]
            trials[value] = train_members(spec.recipe, self.root / f"{name}-{value}", self.seed, spec.members, own)
        loader = next(iter(trials.values())).data.loader("validation")
        logged = {value: log_likelihoods(trial.folder, loader) for value, trial in trials.items()}
        self.chosen[name] = within_one_error(logged)
        means = {value: one.mean().item() for value, one in logged.items()}
        console.print(f"{name}: {self.chosen[name]}, by the held-out log-likelihoods {means}")
        return replace(trials[self.chosen[name]], cpu_seconds=total(trial.cpu_seconds for trial in trials.values()))

    def _train(self, name: str, entry: Entry, evaluator: Trained | None) -> tuple[Trained, dict[str, float | None]]:
        """The model, and the CPU seconds of its stages."""
        others: dict[str, Trained] = {}
        seconds: dict[str, float | None] = {}
        for other in self._needs(entry):
            its = self.benchmark.every[other]
            others[other], stages = self._train(other, its, self._evaluator(its.evaluator))
            # By name, for two models may need a third one, which costs once.
            seconds |= {stage if ": " in stage else f"{other}: {stage}": cost for stage, cost in stages.items()}
        if entry.generators:
            pool = [others[other] for other in entry.generators]
            return replace(pool[0], folders=tuple(one.folder for one in pool)), seconds
        if entry.recipe is None and evaluator is not None:
            return evaluator, {}
        options = self.options
        if entry.mine is not None and evaluator is not None:
            mined = self.root / entry.mined_folder()
            seconds["mining"] = mine_once(evaluator, mined, **entry.mine)
            kept = [option for option in options if not option.startswith("--data") or option.startswith(_ANY_DATA)]
            options = [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}", *kept]
        places = {_EVALUATOR: evaluator, **others}
        arguments = list(entry.arguments)
        for other, made in places.items():
            arguments = [argument.replace(f"{{{other}}}", str(made and made.folder)) for argument in arguments]
        options = [*options, *arguments]
        trained = train(str(entry.recipe), self.root / name, self.seed, options)
        return trained, {**seconds, "generator": trained.cpu_seconds}

    def _needs(self, entry: Entry) -> list[str]:
        """The models that must be trained before."""
        return [other for other in self.benchmark.every if other != _EVALUATOR and entry.needs(other)]

    def _taught(self, entry: Entry) -> bool:
        """Whether the evaluator had a part in a model's training, or is the model."""
        every = self.benchmark.every
        mined = entry.mine is not None or (entry.recipe is None and not entry.generators)
        return mined or entry.needs(_EVALUATOR) or any(self._taught(every[other]) for other in self._needs(entry))

    def _load(self, entry: Entry, trained: Trained) -> Any:
        """What is asked for slates: an evaluator that scores no prefixes looks through all of them."""
        if entry.generators:
            return GeneratorPool([replace(trained, folders=(one,)).load(self.device) for one in trained.folders]).eval()
        model = trained.load(self.device)
        return model if isinstance(model, SlateGenerationMixin) else ExhaustiveSearch([model]).eval()

    def _evaluation_run(
        self, name: str | None, evaluator: Trained | None, trained: Trained
    ) -> tuple[EvaluationRun, dict[str, float]]:
        """What judges the models of one evaluator, and the evaluator's own quality."""
        # Evaluators of single models may learn from another log, of which nobody else knows.
        baselines = {} if name else {"ceiling": self.benchmark.ceiling, "lambdamart": self.benchmark.lambdamart}
        if evaluator is None:
            return trained.evaluation(None, seed=self.seed, **baselines), {}
        judge = None
        if self.benchmark.judge is not None and name is None:  # others have not the judge's feature extractor
            other = ["--data.init_args.log=judge", f"--data.init_args.extractor={evaluator.folder}"]
            judge = self._train_evaluator(self.benchmark.judge, "judge", other).load(self.device)
        run = evaluator.evaluation(evaluator.load(self.device), judge, seed=self.seed, **baselines)
        size = AutoConfig.from_pretrained(trained.folder).slate_size
        return run, run.quality(run.evaluator, evaluator.data.extractor, size)[0]


def _cost(seconds: Mapping[str, float | None], evaluator: bool) -> dict[str, float]:
    """CPU seconds of all that one row needs: of the evaluator's training only where it taught, chooses or searches."""
    needed = total(cost for stage, cost in seconds.items() if evaluator or stage != _EVALUATOR)
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
    worlds: list[str] | None = None,
    device: str = "auto",
    board: Path | None = None,
    shard: str = "0/1",
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
        worlds: Only these of the file's worlds (default: all).
        device: Where models are evaluated, such as cpu or cuda:1; auto: the accelerator where there is one. (For the
            training: --trainer.accelerator.)
        board: File of a board, to which the rows of each model are added when it is measured; what is there is not
            measured again. The models need named decodings, the benchmark worlds.
        shard: i/k: with --board, only every k-th world and seed, from the i-th on; for several processes or machines
            with a file each.
    """
    asked = Benchmark.from_yaml(find_recipe(file))
    asked = asked.only(models) if models else asked
    options = join_options(further)
    if worlds and (unknown := sorted(set(worlds) - asked.worlds.keys())):
        raise RecipeError(f"unknown worlds {unknown}; there are {list(asked.worlds)}")
    if not asked.worlds:
        _measure(asked, out, seeds, options, device)
        return
    if board is not None:
        runs = [(name, seed) for name in worlds or asked.worlds for seed in range(seeds)]
        if options:
            raise RecipeError(f"board: its rows are of the benchmark file as it is, got {' '.join(options)}")
        for name, seed in runs[slice(*_shard(shard))]:
            fill_board(asked, file, name, seed, out, board, device)
        return
    found: dict[str, list[Evaluation]] = {}
    notes: dict[str, dict[str, str]] = {}
    for name in worlds or asked.worlds:
        console.rule(f"world {name}")
        arguments = [*asked.worlds[name].arguments, *options]
        found[name], notes[name] = _measure(asked.of_world(name), out / name, seeds, arguments, device)
        paths = write_worlds(found, asked.pointwise, notes, out)
    print("written:", ", ".join(map(str, paths.values())))


def _measure(
    asked: Benchmark, out: Path, seeds: int, options: Sequence[str], device: str
) -> tuple[list[Evaluation], dict[str, str]]:
    """Trains and evaluates all models over several seeds; also tells which evaluators were chosen."""
    runs = [_Run(asked, out / f"seed-{seed}", seed, options, device) for seed in range(seeds)]
    evaluations = [run.evaluate(name, entry) for run in runs for name, entry in asked.models.items()]
    paths = write_report(evaluations, out)
    if asked.curve is not None:
        points = [Point(name, entry.series, entry.at) for name, entry in asked.models.items() if entry.at is not None]
        paths["curve"] = write_curve(evaluations, out, points, **asdict(asked.curve))
    print_table(evaluations)
    print("written:", ", ".join(map(str, paths.values())))
    return evaluations, {f"chosen, seed {run.seed}": ", ".join(run.chosen.values()) for run in runs if run.chosen}


def _shard(text: str) -> tuple[int, None, int]:
    """Of "i/k", what `slice` takes: from i on, every k-th."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise RecipeError(f"shard: expected i/k with 0 <= i < k, such as 0/4, got {text!r}")
    return int(number), None, int(total)


def fill_board(
    asked: Benchmark, file: str, world: str, seed: int, out: Path, board: Path, device: str = "auto"
) -> None:
    """Adds the rows of a world and seed that a board has not.

    Args:
        asked: The benchmark, of the models that are wanted.
        file: Its name.
        world: One of its worlds.
        seed: Of the run.
        out: Folder for checkpoints.
        board: The file.
        device: Where models are evaluated.
    """
    there = asked.of_world(world)
    run = _Run(there, out / world / f"seed-{seed}", seed, asked.worlds[world].arguments, device)
    for name, entry in there.models.items():
        if entry.decodings is None:
            raise RecipeError(f"models.{name}: a board needs named decodings")
        if board.is_file() and has_model(read_board([board]), world, seed, name):
            console.print(f"{board} has {name} in {world}, seed {seed}")
            continue
        append_rows(board, run.board_rows(name, entry, benchmark=file, world=world, **origin_of_figures()))
        console.print(f"added to {board}: {name} in {world}, seed {seed}")
