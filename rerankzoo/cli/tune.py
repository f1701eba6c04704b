"""`rerankzoo tune`: searches for the settings of a recipe that are best by a metric of the validation split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from rerankzoo.atomic_writing import write_text
from rerankzoo.cli.benchmark import join_options
from rerankzoo.cli.lightning import command_line
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.cli.runs import console
from rerankzoo.engines import ray_cluster
from rerankzoo.errors import RecipeError, did_you_mean, in_one_line, refuse_other_settings, shown
from rerankzoo.evaluation.plots import draw_search, save
from rerankzoo.text_files import read_yaml
from rerankzoo.training.resuming import newest_checkpoint

if TYPE_CHECKING:
    import optuna

STUDY_FILE, BEST_FILE, TABLE_FILE, PLOT_FILE = "study.db", "best.yaml", "trials.md", "search.png"
_KINDS = ("choices", "low", "high", "step", "log")


def tune(
    recipe: str,
    *further: str,
    space: Path,
    out: Path,
    trials: PositiveInt = 20,
    metric: str = "val/loss",
    mode: Literal["min", "max"] = "min",
    seed: int = 0,
    workers: PositiveInt | None = None,
    address: str | None = None,
) -> None:
    """Searches for the best settings of a recipe, by Optuna's tree-structured Parzen estimators.

    Unknown options go to the recipe's command line. A search that was stopped goes on when it is started again, a trial
    in the middle of its training, too.

    Args:
        recipe: Such as pointwise/simulator.yaml.
        *further: Options for the recipe's command line.
        space: YAML file: for each key of the recipe {choices: [A, B]}, or {low: 0.001, high: 0.1} with log: true or
            step: 2; whole numbers where low and high are.
        out: Folder for the trials, study.db, best.yaml (the recipe with the best settings), trials.md and search.png.
        trials: Trials in all, those that are there included.
        metric: Logged by the run, such as val/loss or val/ndcg@4; of each trial its best epoch counts.
        mode: Whether it should be small or large.
        seed: Of the search; all trials train with the recipe's own seed.
        workers: Ray workers, one trial each at a time (default: one trial after another here, without Ray).
        address: Of a running Ray cluster; default: one that is started here for the search.
    """
    search = _Search(recipe, join_options(further), read_space(space), out, metric, mode)
    study = search.open(seed)
    missing = trials - len(search.finished(study))
    if workers:
        _on_ray(search, study, missing, workers, address)
    else:
        for _ in range(missing):
            number, settings = search.ask(study)
            search.tell(study, number, search.train(settings))
    search.write(study)


def read_space(path: Path) -> dict[str, dict[str, Any]]:
    """Reads what is to be searched.

    Raises:
        RecipeError: If a key is unknown, missing or of a wrong type.
        FileNotFoundError: If there is no such file.
    """
    space = read_yaml(path)
    if not isinstance(space, Mapping) or not space:
        raise RecipeError(f"{path} must hold keys of the recipe, got {shown(space)}")
    for key, entry in space.items():
        if not isinstance(entry, Mapping) or not entry:
            raise RecipeError(f"{path}: {key}: expected choices, or low and high, got {shown(entry)}")
        if unknown := [name for name in entry if name not in _KINDS]:
            raise RecipeError(f"{path}: {key}.{unknown[0]}: unknown key{did_you_mean(unknown[0], _KINDS)}")
        choices, ends = entry.get("choices"), [entry.get("low"), entry.get("high")]
        if "choices" in entry:
            if len(entry) > 1 or not isinstance(choices, list) or len(choices) < 2:
                raise RecipeError(f"{path}: {key}: expected a list of choices alone, got {shown(dict(entry))}")
        elif not _are_ends(*ends):
            raise RecipeError(f"{path}: {key}: expected numbers low < high, got {shown(ends[0])} and {shown(ends[1])}")
    return dict(space)


class _Search:
    """What is searched, and where its trials are."""

    def __init__(
        self, recipe: str, options: Sequence[str], space: Mapping[str, Any], out: Path, metric: str, mode: str
    ) -> None:
        self.recipe, self.options, self.space = str(find_recipe(recipe)), list(options), space
        self.out, self.metric, self.mode = out, metric, mode

    def open(self, seed: int) -> optuna.Study:
        """The study of the folder; trials that nobody finished are asked for again."""
        try:
            import optuna
        except ImportError as error:
            raise ImportError("rerankzoo tune needs Optuna: pip install 'rerankzoo[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        first = {key: entry.get("choices", [entry.get("low")])[0] for key, entry in self.space.items()}
        self._command(first)  # a wrong key ends it here
        self.out.mkdir(parents=True, exist_ok=True)
        study = optuna.create_study(
            storage=f"sqlite:///{self.out / STUDY_FILE}",
            study_name="rerankzoo",
            direction="minimize" if self.mode == "min" else "maximize",
            sampler=optuna.samplers.TPESampler(seed=seed),
            load_if_exists=True,
        )
        told = {"recipe": self.recipe, "options": self.options, "space": dict(self.space), "metric": self.metric}
        refuse_other_settings(self.out, study.user_attrs.get("search", told), told)
        study.set_user_attr("search", told)
        for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(trial.params)
        return study

    def finished(self, study: optuna.Study) -> list[Any]:
        """The trials with a value, the best first."""
        sign = 1 if self.mode == "min" else -1
        return sorted(
            (trial for trial in study.trials if trial.value is not None), key=lambda trial: sign * trial.value
        )

    def ask(self, study: optuna.Study) -> tuple[int, dict[str, Any]]:
        """The number and the settings of the next trial."""
        trial = study.ask()
        settings = {key: _suggest(trial, key, entry) for key, entry in self.space.items()}
        return trial.number, settings

    def tell(self, study: optuna.Study, number: int, value: float) -> None:
        """Keeps a value, and what is known now."""
        study.tell(number, value)
        console.print(f"trial {number}: {self.metric} {value:.5g}")
        self.write(study)

    def train(self, settings: Mapping[str, Any]) -> float:
        """Trains one trial, from where it was stopped; the metric of its best epoch."""
        run = self._command(settings)
        seed = run.config.seed_everything
        if not isinstance(seed, bool):
            L.seed_everything(seed, verbose=False)
        checkpoint = newest_checkpoint(Path(run.trainer.default_root_dir) / "checkpoints")
        try:
            run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)
        except (MisconfigurationException, RuntimeError) as error:  # of the callbacks that watch the metric
            if self.metric in run.trainer.callback_metrics:
                raise
            logged = sorted(map(str, run.trainer.callback_metrics))
            near = did_you_mean(self.metric, logged)
            raise RecipeError(f"metric: the run logs {logged}, not {self.metric!r}{near}") from error
        return float(run.trainer.checkpoint_callback.best_model_score)

    def _command(self, settings: Mapping[str, Any]) -> Any:
        """The run of a trial, in a folder that is named after its settings."""
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        watched = [f"--{part}.{key}={value}" for part in ("checkpoint", "early_stopping") for key, value in
                   (("monitor", self.metric), ("mode", self.mode))]  # fmt: skip
        own = [f"--{key}={json.dumps(value)}" for key, value in settings.items()]
        place = f"--trainer.default_root_dir={self.out / f'trial-{name}'}"
        return command_line(["--config", self.recipe, *self.options, *watched, *own, place], run=False)

    def write(self, study: optuna.Study) -> None:
        """Writes the best recipe, the table and the plot."""
        trials = self.finished(study)
        if not trials:
            return
        chosen = read_yaml(Path(self.recipe))
        written = {option.lstrip("-").partition("=")[0]: option.partition("=")[2] for option in self.options}
        settings = {key: yaml.safe_load(value) for key, value in written.items()} | trials[0].params
        for key, value in settings.items():
            _set(chosen, key.split("."), value)
        text = f"# {Path(self.recipe).name} with the best settings of {len(trials)} trials: {self.metric} "
        write_text(self.out / BEST_FILE, f"{text}{trials[0].value:.5g}\n{yaml.safe_dump(chosen, sort_keys=False)}")
        keys = list(self.space)
        rows = [f"| trial | {self.metric} | {' | '.join(keys)} |", f"|---:|---:|{'---|' * len(keys)}"]
        for rank, trial in enumerate(trials):
            value = f"**{trial.value:.5g}**" if rank == 0 else f"{trial.value:.5g}"
            rows.append(f"| {trial.number} | {value} | {' | '.join(_short(trial.params[key]) for key in keys)} |")
        write_text(self.out / TABLE_FILE, "\n".join(rows) + "\n")
        values = {trial.number: trial.value for trial in trials}
        save(draw_search(values, _importances(study), self.metric, self.mode), self.out / PLOT_FILE)


def _are_ends(low: Any, high: Any) -> bool:
    return all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high)) and low < high


def _suggest(trial: optuna.Trial, key: str, entry: Mapping[str, Any]) -> Any:
    if "choices" in entry:
        return trial.suggest_categorical(key, entry["choices"])
    low, high, log = entry["low"], entry["high"], bool(entry.get("log", False))
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, step=entry.get("step", 1), log=log)
    return trial.suggest_float(key, low, high, step=entry.get("step"), log=log)


def _importances(study: optuna.Study) -> dict[str, float]:
    """How much of the difference between good and bad trials each key explains; nothing of too few trials."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in study.trials if trial.value is not None]
    if len({trial.value for trial in complete}) < 4:
        return {}
    return dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))


def _set(recipe: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        if not isinstance(recipe.get(name), dict):
            recipe[name] = {}
        recipe = recipe[name]
    recipe[path[-1]] = value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _on_ray(search: _Search, study: optuna.Study, missing: int, workers: int, address: str | None) -> None:
    """One trial a Ray task; the next one is asked for when one is done."""
    with ray_cluster(address, workers) as ray:
        train = ray.remote(num_cpus=1, max_retries=3)(_Search.train)
        running: dict[Any, int] = {}
        while missing or running:
            while missing and len(running) < workers:
                number, settings = search.ask(study)
                running[train.remote(search, settings)] = number
                missing -= 1
            done, _ = ray.wait(list(running), num_returns=1)
            try:
                search.tell(study, running.pop(done[0]), ray.get(done[0]))
            except ray.exceptions.RayTaskError as error:
                raise RecipeError(in_one_line(error.cause)) from error
