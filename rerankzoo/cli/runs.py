"""Training runs of several recipes in one process: what `rerankzoo benchmark` and `quickstart` are made of."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.cli.lightning import RerankingCLI, command_line
from rerankzoo.cli.options import choose_device
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import METADATA_FILE
from rerankzoo.generation import EvaluatorEnsemble
from rerankzoo.mining import mine_folder
from rerankzoo.models.auto import load_checkpoint
from rerankzoo.training.resuming import newest_checkpoint

console = Console(stderr=True)

#: What a finished run leaves beside its result, so that a benchmark that goes on can still tell it.
COST_FILE = "cpu_seconds.json"


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        folders: What `from_pretrained` reads; several are an ensemble.
        data: The data it was trained on, set up.
        cpu_seconds: CPU time of the training, over all threads; `None` where it is not known, for the run was stopped
            in between.
    """

    folders: tuple[Path, ...]
    data: RerankingDataModule
    cpu_seconds: float | None

    @property
    def folder(self) -> Path:
        """The (first) checkpoint."""
        return self.folders[0]

    def load(self, device: str = "auto") -> Any:
        """The model, or the ensemble of them, for inference."""
        models = [load_checkpoint(folder).model.to(choose_device(device)) for folder in self.folders]
        return models[0] if len(models) == 1 else EvaluatorEnsemble(models)


def prepare_run(recipe: str, folder: Path, seed: int, arguments: Sequence[str] = ()) -> RerankingCLI:
    """Makes trainer, module and data of a recipe, ready for `train`; `folder` becomes the run's root directory."""
    options = [f"--seed_everything={seed}", f"--trainer.default_root_dir={folder}", *arguments]
    return command_line(["--config", recipe, *options], run=False)


def train(run: RerankingCLI, folder: Path, checkpoint: Path | None = None) -> Trained:
    """Trains what `prepare_run` made, from a checkpoint where it was stopped, and exports to `folder`."""
    start = time.process_time()
    run.trainer.fit(run.model, datamodule=run.datamodule, ckpt_path=checkpoint)
    return _trained(run, folder, time.process_time() - start if checkpoint is None else None)


def train_once(recipe: str, folder: Path, seed: int, arguments: Sequence[str] = ()) -> Trained:
    """Trains a recipe, unless its folder holds the result already.

    The checkpoint appears with the first validation: only the cost, which is written last, tells of a result.
    """
    run = prepare_run(recipe, folder, seed, arguments)
    best, cost = folder / "best", folder / COST_FILE
    if best.is_dir() and cost.is_file():
        console.print(f"{best} is there and not trained again")
        return _trained(run, best, _read_cost(cost))
    console.rule(f"{folder.name}: {recipe}, seed {seed}")
    trained = train(run, best, newest_checkpoint(folder / "checkpoints"))
    _write_cost(cost, trained.cpu_seconds)
    return trained


def train_members(recipe: str, folder: Path, seed: int, members: int, arguments: Sequence[str] = ()) -> Trained:
    """Trains the members of an ensemble of evaluators; one is a plain evaluator."""
    if members == 1:
        return train_once(recipe, folder, seed, arguments)
    # The members' seeds are far from those of other runs.
    trained = [train_once(recipe, folder / f"member-{k}", seed + 1000 * k, arguments) for k in range(members)]
    seconds = total(member.cpu_seconds for member in trained)
    return replace(trained[0], folders=tuple(member.folder for member in trained), cpu_seconds=seconds)


def mine_once(evaluator: Trained, folder: Path, **settings: Any) -> float | None:
    """Mines slates of the evaluator's training log, unless they are there; settings as of `mine_folder`.

    Returns:
        CPU seconds; `None` where they are not known.
    """
    cost = folder.parent / f"{folder.name}-{COST_FILE}"
    if (folder / METADATA_FILE).is_file():
        return _read_cost(cost)
    begun, start = folder.exists(), time.process_time()
    with console.status(f"mining {folder.name}"):
        mine_folder([str(member) for member in evaluator.folders], evaluator.data.path, folder, **settings)
    if begun:
        return None
    seconds = time.process_time() - start
    _write_cost(cost, seconds)
    return seconds


def total(parts: Iterable[float | None]) -> float | None:
    """The sum of CPU seconds; `None` where one of them is not known."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def _trained(run: RerankingCLI, folder: Path, cpu_seconds: float | None) -> Trained:
    run.datamodule.prepare_data()
    run.datamodule.setup()
    return Trained((folder,), run.datamodule, cpu_seconds)


def _write_cost(path: Path, seconds: float | None) -> None:
    text = json.dumps({"cpu_seconds": seconds}) + "\n"
    write_atomically(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def _read_cost(path: Path) -> float | None:
    return json.loads(path.read_text(encoding="utf-8"))["cpu_seconds"] if path.is_file() else None
