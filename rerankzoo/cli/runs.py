"""Training runs of several recipes in one process: what `rerankzoo benchmark` and `quickstart` are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import rerankzoo
from rerankzoo.atomic_writing import write_json
from rerankzoo.cli.evaluate import EvaluationRun
from rerankzoo.cli.lightning import command_line
from rerankzoo.cli.options import choose_device
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import METADATA_FILE
from rerankzoo.generation import EvaluatorEnsemble
from rerankzoo.mining import mine_folder
from rerankzoo.models.auto import load_checkpoint
from rerankzoo.serving.bench import describe_machine
from rerankzoo.training.resuming import newest_checkpoint

console = Console(stderr=True)

#: What a finished run leaves beside its result, so that a benchmark that goes on can still tell it.
COST_FILE = "cpu_seconds.json"


@dataclass(frozen=True)
class Trained:
    """A trained model."""

    folders: tuple[Path, ...]  # what `from_pretrained` reads; several are an ensemble
    data: RerankingDataModule  # that it was trained on, set up
    cpu_seconds: float | None  # over all threads; `None`: not known, for the run was stopped in between

    @property
    def folder(self) -> Path:
        """The (first) checkpoint."""
        return self.folders[0]

    def load(self, device: str = "auto") -> Any:
        """The model, or the ensemble of them, for inference."""
        models = [load_checkpoint(folder).model.to(choose_device(device)) for folder in self.folders]
        return models[0] if len(models) == 1 else EvaluatorEnsemble(models)

    def evaluation(self, evaluator: Any, judge: Any = None, **options: Any) -> EvaluationRun:
        """The evaluation of models on the data that this one was trained on; `options` as of `EvaluationRun`."""
        splits = {name: self.data.split(name) for name in ("train", "validation", "test")}
        return EvaluationRun(splits, self.data.extractor.schema, self.data.metadata, evaluator, judge, **options)


def train(recipe: str, folder: Path, seed: int, arguments: Sequence[str] = (), anew_to: Path | None = None) -> Trained:
    """Trains a recipe in the run's root `folder`, unless its result is there, and goes on where it was stopped.

    The checkpoint appears with the first validation: only the cost, which is written last, tells of a result. With
    `anew_to` the recipe is trained in any case, and exported to that folder.
    """
    best, cost = anew_to or folder / "best", folder / COST_FILE
    options = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", *arguments]
    options += [f"--export.dirpath={anew_to}"] if anew_to else []
    run = command_line(["--config", recipe, *options], run=False)
    done = anew_to is None and best.is_dir() and cost.is_file()
    if done:
        console.print(f"{best} is there and not trained again")
    elif anew_to is None:
        console.rule(f"{folder.name}: {recipe}, seed {seed}")
    checkpoint = None if anew_to or done else newest_checkpoint(folder / "checkpoints")

    def fit() -> None:
        run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)

    seconds = _cpu_seconds(fit, cost, done, begun=checkpoint is not None)
    run.datamodule.prepare_data()
    run.datamodule.setup()
    return Trained((best,), run.datamodule, seconds)


def train_members(recipe: str, folder: Path, seed: int, members: int, arguments: Sequence[str] = ()) -> Trained:
    """Trains the members of an ensemble of evaluators; one is a plain evaluator."""
    if members == 1:
        return train(recipe, folder, seed, arguments)
    # The members' seeds are far from those of other runs.
    trained = [train(recipe, folder / f"member-{k}", seed + 1000 * k, arguments) for k in range(members)]
    seconds = total(member.cpu_seconds for member in trained)
    return replace(trained[0], folders=tuple(member.folder for member in trained), cpu_seconds=seconds)


def mine_once(evaluator: Trained, folder: Path, **settings: Any) -> float | None:
    """Mines slates of the evaluator's training log, unless they are there; settings as of `mine_folder`.

    Returns:
        CPU seconds; `None` where they are not known.

    Raises:
        RerankingDataError: If they were mined by another evaluator, or with other settings.
    """

    def mine() -> None:
        with console.status(f"mining {folder.name}"):
            mine_folder([str(member) for member in evaluator.folders], evaluator.data.path, folder, **settings)

    cost, done = folder.parent / f"{folder.name}-{COST_FILE}", (folder / METADATA_FILE).is_file()
    if done:
        mine()  # finds everything there, or refuses what was mined otherwise
    return _cpu_seconds(mine, cost, done, begun=folder.exists())


def _cpu_seconds(work: Callable[[], None], file: Path, done: bool, begun: bool) -> float | None:
    """Does some work, unless it is done, and keeps its cost in a file; `None`: not known, for it was stopped."""
    if not done:
        start = time.process_time()
        work()
        write_json(file, {"cpu_seconds": None if begun else time.process_time() - start})
    return json.loads(file.read_text(encoding="utf-8"))["cpu_seconds"] if file.is_file() else None


def total(parts: Iterable[float | None]) -> float | None:
    """The sum of CPU seconds; `None` where one of them is not known."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def origin_of_figures() -> dict[str, str]:
    """The code's commit, or the version where it is no checkout of git, and the machine."""
    git = Path(rerankzoo.__file__).parents[1] / ".git"
    head = (git / "HEAD").read_text(encoding="utf-8").strip() if (git / "HEAD").is_file() else ""
    branch = git / head.removeprefix("ref: ")
    commit = branch.read_text(encoding="utf-8")[:10] if head.startswith("ref: ") and branch.is_file() else ""
    machine = describe_machine()
    place = f"{machine.get('processor', 'unknown')}, {machine['cores']} cores, {machine['threads']} threads"
    return {"commit": commit or rerankzoo.__version__, "machine": place}
