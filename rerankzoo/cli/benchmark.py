"""`rerankzoo benchmark`: trains and evaluates the models of a benchmark file over several seeds, in one run."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from rerankzoo.cli.runs import Trained, console, find_recipe, mine_once, train_members, train_once
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import RecipeError, RerankingDataError, shown
from rerankzoo.evaluation import (
    Decoding,
    Evaluation,
    Evaluators,
    Point,
    default_decodings,
    evaluate,
    evaluator_quality,
    print_table,
    tune_penalty_alpha,
    write_curve,
    write_report,
)
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.mining import MiningSettings
from rerankzoo.text_files import read_yaml

_ANY_DATA = tuple(f"--data.init_args.{name}" for name in ("batch_size", "eval_batch_size", "seed"))  # not of a source
_TUNING_REQUESTS = 500  # of the validation split, for alpha
_TUNING_SAMPLES = 1_000  # slates of a request where there are too many to list: only the optimum is asked for


@dataclass(frozen=True)
class EvaluatorSpec:
    """How an evaluator of a benchmark is made.

    Attributes:
        recipe: Its recipe.
        arguments: Added to the recipe's command line.
        members: How many are trained, with different seeds, to be one ensemble.
    """

    recipe: str
    arguments: tuple[str, ...] = ()
    members: int = 1

    @classmethod
    def of(cls, value: str | Mapping[str, Any], where: str) -> EvaluatorSpec:
        """Reads the entry of a benchmark file, at a key: a recipe's name, or the attributes."""
        found = cls(**_checked(cls, {"recipe": value} if isinstance(value, str) else value, where))
        find_recipe(found.recipe)  # before anything is trained
        return found


@dataclass(frozen=True)
class Entry:
    """One model of a benchmark.

    Attributes:
        name: What the table calls it.
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
    """

    name: str
    recipe: str | None = None
    arguments: tuple[str, ...] = ()
    mine: dict[str, Any] | None = None
    evaluator: str | None = None
    decodings: dict[str, dict[str, Any]] | None = None
    at: float | None = None
    series: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", tuple(self.arguments))
        if self.recipe is None and (self.decodings is None or self.mine is not None):
            raise RerankingDataError(
                f"model {self.name!r} has no recipe: it needs decodings, and no mine", field="models"
            )

    def mined_folder(self) -> str:
        """The name of the folder of its mined slates: models that learn the same share it."""
        settings = [f"{key}={value}" for key, value in sorted((self.mine or {}).items())]
        return ",".join([f"mined-{self.evaluator}" if self.evaluator else "mined", *settings])


@dataclass(frozen=True)
class Curve:
    """What a benchmark draws beside its table.

    Attributes:
        axis: What the models' `at` is.
        metrics: One panel each, of the first decoding of each model.
        log: Whether the axis is logarithmic.
    """

    axis: str
    metrics: tuple[str, ...]
    log: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark file.

    Attributes:
        models: The models.
        evaluator: The evaluator that values the slates of all models, chooses among slates and mines.
        judge: An independent evaluator, trained on another log of the same simulated world.
        evaluators: Further evaluators, for models that name one: it values the slates of these models only.
        arguments: Added to every recipe's command line; `{seed}` stands for the run's number.
        curve: A picture of some of the models.
    """

    models: tuple[Entry, ...]
    evaluator: EvaluatorSpec | None = None
    judge: EvaluatorSpec | None = None
    evaluators: dict[str, EvaluatorSpec] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    curve: Curve | None = None

    def __post_init__(self) -> None:
        for entry in self.models:
            if entry.evaluator is not None and entry.evaluator not in self.evaluators:
                message = f"model {entry.name!r} names {entry.evaluator!r}; there are {sorted(self.evaluators)}"
                raise RerankingDataError(message, field="evaluators")
            needs = entry.mine is not None or entry.recipe is None
            if needs and self.evaluator is None and entry.evaluator is None:
                message = f"model {entry.name!r} needs an evaluator; the benchmark names none"
                raise RerankingDataError(message, field="evaluator")

    @classmethod
    def from_yaml(cls, path: Path) -> Benchmark:
        """Reads a benchmark file.

        Raises:
            RecipeError: If a key is unknown or missing, or its value is of a wrong type; names file and key.
            RerankingDataError: If the parts contradict one another.
            UnreadableFileError: If the file is no YAML.
            FileNotFoundError: If a recipe in it is missing.
        """
        values = read_yaml(path)
        try:
            values = _checked(cls, values, "benchmark")
            values["models"] = tuple(_entry(name, entry) for name, entry in values["models"].items())
            for name in {"evaluator", "judge"} & set(values):
                values[name] = EvaluatorSpec.of(values[name], name)
            specs = values.get("evaluators", {}).items()
            values["evaluators"] = {name: EvaluatorSpec.of(spec, f"evaluators.{name}") for name, spec in specs}
            if "curve" in values:
                values["curve"] = Curve(**_checked(Curve, values["curve"], "curve"))
            return cls(**values)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from error

    def only(self, names: Sequence[str]) -> Benchmark:
        """The same benchmark of some of its models.

        Raises:
            RerankingDataError: If there is no model of such a name.
        """
        known = [entry.name for entry in self.models]
        if unknown := [name for name in names if name not in known]:
            raise RerankingDataError(f"unknown models {unknown}; there are {known}", field="models")
        return replace(self, models=tuple(entry for entry in self.models if entry.name in names))


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _mappings(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) and isinstance(value[key], dict) for key in value)


#: Key of a benchmark file -> what its value must be, and how to tell.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "models": ("models by name", lambda value: _mappings(value) and len(value) > 0),
    "evaluator": ("a name or keys", lambda value: isinstance(value, str | dict)),
    "judge": ("a name or keys", lambda value: isinstance(value, str | dict)),
    "evaluators": ("evaluators by name", lambda value: isinstance(value, dict) and all(map(_is_name, value))),
    "arguments": ("a list of texts", _texts),
    "curve": ("keys", lambda value: isinstance(value, dict)),
    "name": ("a text that can name a folder", lambda value: _is_name(value)),
    "recipe": ("the name of a recipe", lambda value: isinstance(value, str)),
    "mine": ("settings of mining", lambda value: isinstance(value, dict) and _are_settings(value)),
    "decodings": ("decoding parameters by name", _mappings),
    "members": ("a positive integer", lambda value: type(value) is int and value > 0),
    "at": ("a number", lambda value: type(value) in (int, float)),
    "series": ("a text", lambda value: isinstance(value, str)),
    "axis": ("a text", lambda value: isinstance(value, str)),
    "metrics": ("a list of texts", _texts),
    "log": ("true or false", lambda value: isinstance(value, bool)),
}
_NAME = re.compile(r"\w[\w .+@=,-]*")
_MINING: set[str] = {
    *(entry.name for entry in fields(MiningSettings)),
    *("split", "num_requests", "num_validation", "spread_penalty", "shard_size", "batch_size"),
}


def _is_name(value: Any) -> bool:
    """Whether a model or an evaluator may be called so: it becomes a folder of the output."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _are_settings(values: dict[Any, Any]) -> bool:
    """Whether these are arguments of `mine_folder`; names and values together become a folder, too."""
    known = all(key in _MINING for key in values)
    return known and all(type(value) in (int, float) or _is_name(value) for value in values.values())


def _entry(name: Any, values: Mapping[str, Any]) -> Entry:
    """One model of a benchmark file, with all that can be checked before anything is trained."""
    entry = Entry(**_checked(Entry, {**values, "name": name}, f"models.{shown(name)[1:-1]}"))
    if not isinstance(entry.evaluator, str | None):
        raise RecipeError(f"models.{name}.evaluator must be a name of evaluators, got {shown(entry.evaluator)}")
    if entry.recipe is not None:
        find_recipe(entry.recipe)
    try:
        for decoding in _decodings(entry) or ():
            decoding.check()
    except ValueError as error:
        raise RecipeError(f"models.{name}.decodings: {error}") from error
    return entry


def _checked(spec: type[Any], values: Any, where: str) -> dict[str, Any]:
    """The keys of a part of a benchmark file, for its class.

    Raises:
        RecipeError: If one is unknown, missing, or not what it must be.
    """
    if not isinstance(values, Mapping):
        raise RecipeError(f"{where} must hold keys, got {shown(values)}")
    known = [entry.name for entry in fields(spec)]
    for key, value in values.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key)[:100], known, n=1, cutoff=0.5)
            raise RecipeError(f"{where}.{key}: unknown key" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))
        what, is_right = _KINDS[key]
        if value is not None and not is_right(value):
            raise RecipeError(f"{where}.{key} must be {what}, got {shown(value)}")
    if missing := [entry.name for entry in fields(spec) if _is_required(entry) and values.get(entry.name) is None]:
        raise RecipeError(f"{where} lacks {missing[0]}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return {key: value for key, value in given.items() if value is not None}


def _is_required(entry: Field[Any]) -> bool:
    return entry.default is MISSING and entry.default_factory is MISSING


class Jury:
    """What judges the models of one run: made once, for it remembers the value of all slates of a request.

    Args:
        data: Its splits "validation" and "test" are evaluated on.
        slate_size: M.
        evaluator: Values all slates, and chooses among several.
        referee: An independent evaluator; it has no say on validation.
    """

    def __init__(
        self, data: RerankingDataModule, slate_size: int, evaluator: Trained | None, referee: Trained | None = None
    ) -> None:
        self.data = data
        self.trained = evaluator
        self.evaluator = None if evaluator is None else evaluator.load()
        self.referee = None if referee is None else referee.load()
        item_id = data.extractor.schema.item_id
        self.evaluators = {
            "validation": Evaluators.of(data.split("validation"), item_id, data.metadata, self.evaluator),
            "test": Evaluators.of(data.split("test"), item_id, data.metadata, self.evaluator, self.referee),
        }
        if truth := self.evaluators["validation"].truth:
            truth.num_samples = _TUNING_SAMPLES
        self.quality: dict[str, float] = {}
        if self.evaluator is not None:
            test = data.split("test")
            self.quality = evaluator_quality(self.evaluator, test, data.extractor, data.metadata, slate_size=slate_size)

    def judge(
        self,
        name: str,
        generator: Trained,
        seed: int,
        decodings: Sequence[Decoding] | None = None,
        hr_requests: int = 200,
    ) -> Evaluation:
        """Evaluates a trained generator on the test split.

        Args:
            name: Of the model, in the table.
            generator: What is judged; the jury's own evaluator may be, which searches.
            seed: Of the run.
            decodings: How to decode; default: the usual ones, alpha of contrastive decoding tuned on validation.
            hr_requests: See `rerankzoo.evaluation.evaluate`.

        Returns:
            The evaluation.
        """
        model: Any = self.evaluator if generator is self.trained else generator.load()
        extractor = RerankingFeatureExtractor.from_pretrained(generator.folder)
        notes: dict[str, Any] = {}
        with console.status(f"evaluating {name}, seed {seed}"):
            if decodings is None:
                alpha, notes["penalty_alpha"] = tune_penalty_alpha(
                    model,
                    self.data.split("validation"),
                    extractor,
                    self.data.metadata,
                    evaluators=self.evaluators["validation"],
                    num_requests=_TUNING_REQUESTS,
                )
                decodings = default_decodings(self.evaluator is not None, alpha)
            found = evaluate(
                model,
                self.data.split("test"),
                extractor,
                self.data.metadata,
                name=name,
                decodings=decodings,
                evaluators=self.evaluators["test"],
                seed=seed,
                hr_requests=hr_requests,
            )
        return found.with_protocol(**notes)


class _Run:
    """One seed of a benchmark.

    Args:
        benchmark: What to run.
        root: The seed's folder.
        seed: The seed.
        further: Options added to every recipe's command line.
    """

    def __init__(self, benchmark: Benchmark, root: Path, seed: int, further: Sequence[str]) -> None:
        self.benchmark = benchmark
        self.root = root
        self.seed = seed
        self.options = [option.replace("{seed}", str(seed)) for option in (*benchmark.arguments, *further)]
        self.shared = self._evaluator(benchmark.evaluator, "evaluator")
        self.referee = self._referee()
        self.juries: dict[str | None, Jury] = {}
        self.own: dict[str, Trained] = {}

    def evaluations(self) -> Iterator[Evaluation]:
        """Trains and judges one model after the other."""
        for entry in self.benchmark.models:
            yield self._judge(entry, *self._train(entry))

    def _evaluator(self, spec: EvaluatorSpec | None, name: str, further: Sequence[str] = ()) -> Trained | None:
        if spec is None:
            return None
        arguments = [*self.options, *further, *spec.arguments]
        return train_members(spec.recipe, self.root / name, self.seed, spec.members, arguments)

    def _referee(self) -> Trained | None:
        if self.benchmark.judge is None or self.shared is None:
            return None
        other = ["--data.init_args.log=judge", f"--data.init_args.extractor={self.shared.folder}"]
        return self._evaluator(self.benchmark.judge, "judge", other)

    def _evaluator_of(self, entry: Entry) -> Trained | None:
        if entry.evaluator is None:
            return self.shared
        if entry.evaluator not in self.own:
            spec = self.benchmark.evaluators[entry.evaluator]
            trained = self._evaluator(spec, f"evaluator-{entry.evaluator}")
            if trained is not None:
                self.own[entry.evaluator] = trained
        return self.own[entry.evaluator]

    def _train(self, entry: Entry) -> tuple[Trained, dict[str, float | None]]:
        """The model, and the CPU seconds of its stages."""
        evaluator = self._evaluator_of(entry)
        if entry.recipe is None:
            if evaluator is None:
                raise RerankingDataError(f"model {entry.name!r} needs an evaluator", field="evaluator")
            return evaluator, {}
        own = [argument.replace("{evaluator}", str(evaluator and evaluator.folder)) for argument in entry.arguments]
        if entry.mine is None or evaluator is None:
            trained = train_once(entry.recipe, self.root / entry.name, self.seed, [*self.options, *own])
            return trained, {"generator": trained.cpu_seconds}
        mined = self.root / entry.mined_folder()
        mining = mine_once(evaluator, mined, **entry.mine)
        data = [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}"]
        kept = [option for option in self.options if not option.startswith("--data") or option.startswith(_ANY_DATA)]
        trained = train_once(entry.recipe, self.root / entry.name, self.seed, [*data, *kept, *own])
        return trained, {"mining": mining, "generator": trained.cpu_seconds}

    def _judge(self, entry: Entry, trained: Trained, seconds: dict[str, float | None]) -> Evaluation:
        jury = self._jury(entry, trained)
        found = jury.judge(entry.name, trained, self.seed, _decodings(entry))
        costs = {"evaluator": jury.trained.cpu_seconds, **seconds} if jury.trained else seconds
        found = found.with_protocol(training_cpu_seconds={entry.name: costs}, evaluator_quality=jury.quality)
        found = found.with_metrics(entry.name, lambda name: {**jury.quality, **_cost(entry, found, name, costs)})
        return found if entry.evaluator is None else found.with_own_evaluator()

    def _jury(self, entry: Entry, trained: Trained) -> Jury:
        if entry.evaluator not in self.juries:
            evaluator = self._evaluator_of(entry)
            # Judge and evaluator speak of the same table only where they share the feature extractor.
            referee = self.referee if entry.evaluator is None else None
            size = AutoConfig.from_pretrained(trained.folder).slate_size
            self.juries[entry.evaluator] = Jury((evaluator or trained).data, size, evaluator, referee)
        return self.juries[entry.evaluator]


def _decodings(entry: Entry) -> list[Decoding] | None:
    if entry.decodings is None:
        return None
    return [
        Decoding(name, {key: value for key, value in asked.items() if key != "evaluator"}, bool(asked.get("evaluator")))
        for name, asked in entry.decodings.items()
    ]


def _cost(entry: Entry, found: Evaluation, decoding: str, seconds: Mapping[str, float | None]) -> dict[str, float]:
    """CPU seconds of all that one row needs: of the evaluator's training only where it taught, chooses or searches."""
    uses = entry.recipe is None or entry.mine is not None or found.protocol["decodings"][decoding]["evaluator"]
    needed = [cost for stage, cost in seconds.items() if uses or stage != "evaluator"]
    return {} if None in needed else {"cpu_seconds": sum(cost for cost in needed if cost is not None)}


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
        further: Options added to every recipe's command line, after the benchmark's own. Those of `--data`, but for
            batch sizes and the seed of the shuffling, do not reach generators that learn mined slates.

    Returns:
        One evaluation per model and seed.
    """
    return [
        evaluation
        for seed in range(seeds)
        for evaluation in _Run(benchmark, out / f"seed-{seed}", seed, further).evaluations()
    ]


def curve_points(benchmark: Benchmark) -> list[Point]:
    """The models of a benchmark's curve."""
    return [Point(entry.name, entry.series, entry.at) for entry in benchmark.models if entry.at is not None]


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
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these of the file's models (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, table, plot and results.json")
    options, further = parser.parse_known_args(list(arguments[1:]))
    benchmark = Benchmark.from_yaml(find_recipe(options.file))
    if options.models:
        benchmark = benchmark.only(options.models)
    evaluations = run_benchmark(benchmark, options.out, options.seeds, join_options(further))
    paths = write_report(evaluations, options.out)
    if benchmark.curve is not None:
        curve = benchmark.curve
        paths["curve"] = write_curve(
            evaluations, options.out, curve_points(benchmark), curve.axis, curve.metrics, log=curve.log
        )
    print_table(evaluations)
    print("written:", ", ".join(str(path) for path in paths.values()))
