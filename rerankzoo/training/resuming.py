"""Runs that can be killed at any moment and started again: whole checkpoints, found again, that hold everything.

A checkpoint holds the state of every random generator and the loader's position besides what Lightning keeps, so a run
that goes on from one does, in one process on the CPU, to the bit what it would have done undisturbed.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
import zipfile
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.data.loader import RequestLoader
from rerankzoo.errors import OutputError, UnreadableFileError

#: Exit status of a process that SIGTERM has ended, as shells tell it.
TERMINATED = 128 + signal.SIGTERM
#: Where a run goes on.
LAST_FILE = "last.ckpt"


# --- checkpoint files -----------------------------------------------------------------------------------------------


class WholeCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, which appear in one step on any disk, and are checked to the last byte when loaded."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """See `TorchCheckpointIO.save_checkpoint`.

        Raises:
            OutputError: If the file cannot be written; an earlier one of that name is as it was.
        """
        save = partial(super().save_checkpoint, checkpoint, storage_options=storage_options)
        if "://" in str(path):
            save(path)
            return
        write_atomically(Path(path), save)

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """See `TorchCheckpointIO.load_checkpoint`.

        Raises:
            UnreadableFileError: If the file is damaged.
        """
        if Path(path).is_file():
            check_checkpoint(Path(path))
        return super().load_checkpoint(path, map_location, weights_only)


def check_checkpoint(path: Path) -> None:
    """Reads a Lightning checkpoint to its end.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        UnreadableFileError: If it is damaged; names the newest good one beside it, if there is one.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    damage = _damage(path)
    if damage is not None:
        other = newest_checkpoint(path.parent)
        advice = "no good one is beside it" if other is None else f"the newest good one is {other}: --ckpt_path {other}"
        raise UnreadableFileError(f"{path} is damaged ({damage}); {advice}")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint to go on from: `last.ckpt`, or where it is damaged, the whole one with most steps.

    A run that begins anew removes the `last.ckpt` of an earlier one: where there is none, a run begins.

    Args:
        folder: Such as a run's `checkpoints`.

    Returns:
        The file; `None` where there is none. Damaged ones are named in a warning and left alone.
    """
    last = folder / LAST_FILE
    if not last.exists() or _is_whole(last):
        return last if last.exists() else None
    steps = {}
    for path in sorted(folder.glob("*.ckpt")):
        if path != last and path.is_file() and _is_whole(path):
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            if "optimizer_states" in saved:
                steps[path] = saved["global_step"]
    return max(steps, key=lambda path: steps[path], default=None)


def _is_whole(path: Path) -> bool:
    damage = _damage(path)
    if damage is not None:
        rank_zero_warn(f"{path} is damaged ({damage}) and passed over")
    return damage is None


def best_checkpoint(folder: Path) -> Path | None:
    """The checkpoint that a run has found best so far.

    Args:
        folder: Such as a run's `checkpoints`.

    Returns:
        The file, as the newest checkpoint there tells; `None` where there is none.
    """
    newest = newest_checkpoint(folder)
    if newest is None or not newest.is_file():
        return None
    callbacks = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
    paths = [state["best_model_path"] for name, state in callbacks.items() if name.startswith("ModelCheckpoint")]
    names = [Path(path).name for path in paths if path]  # the folder may have been moved
    return folder / names[-1] if names and (folder / names[-1]).exists() else None


def checkpoint_callback(trainer: L.Trainer) -> ModelCheckpoint | None:
    """The callback that chooses the best checkpoint: of several, the last that monitors something.

    (The command line puts its own behind those of a recipe.)
    """
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    monitoring = [callback for callback in callbacks if callback.monitor is not None]
    return (monitoring or callbacks or [None])[-1]


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file: its archive holds a checksum of every part.

    Of a folder, as which a sharded model is saved, nothing is known.
    """
    if path.is_dir():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        return str(error) or type(error).__name__
    return None if part is None else f"wrong checksum of {part}"


# --- random generators ----------------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """The state of all global random generators, as plain values and tensors."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Puts the random generators back to what `random_state` has returned."""
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, dtype=np.uint32), *rest))
    random.setstate(state["python"])
    if len(state.get("cuda", ())) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


# --- going on -------------------------------------------------------------------------------------------------------


class ExactResume(Checkpoint):
    """Writes `last.ckpt`, from which a run goes on as if nothing had happened, and ends runs cleanly on SIGTERM.

    It is written at the end of every epoch (Lightning's `save_last` leaves out those without a better result). Every
    checkpoint gets what Lightning forgets: the state of the random generators and of the loader, the last metrics, and
    whether early stopping has ended the run. On SIGTERM a training run finishes its batch, writes `last.ckpt` and
    raises Lightning's `SIGTERMException`. In the middle of a validation, and by one of several processes, nothing is
    written: the run then goes on from the checkpoint before it.

    Args:
        dirpath: Folder of `last.ckpt`; default: that of `ModelCheckpoint`, which must stand before this callback.
        every_n_train_steps: Write it after every so many optimiser steps, too: for long epochs.

    Raises:
        ValueError: If the number of steps is not positive.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps must be positive, got {every_n_train_steps}")
        self.dirpath = dirpath
        self.every_n_train_steps = every_n_train_steps
        self._loaded: dict[str, Any] | None = None
        self._saved_step = -1
        self._in_loop = False  # where Lightning looks at its flag, or we do
        self._at_epoch_end = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends the process on SIGTERM whenever no loop is there to do so.

        Raises:
            ValueError: If there is no folder to write to.
        """
        if stage == "fit" and self.dirpath is None:
            chosen = checkpoint_callback(trainer)
            if chosen is None:
                raise ValueError("ExactResume needs a dirpath, or a ModelCheckpoint callback before it")
            self.dirpath = str(chosen.dirpath)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if not self._in_loop:
            raise SystemExit(TERMINATED)

    # what a checkpoint holds

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning forgets, and writes the curves up to here, which will not be computed again.

        Raises:
            OutputError: If the curves cannot be written.
        """
        loader = trainer.train_dataloader
        checkpoint["callbacks"][self.state_key] = {
            "stopped": trainer.should_stop,
            "random": random_state(),
            "metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
            "loader": loader.state_dict() if isinstance(loader, RequestLoader) else None,
        }
        for logger in trainer.loggers:
            try:
                logger.save()
            except OSError as error:
                raise OutputError(f"cannot write the logs in {logger.save_dir}: {error.strerror or error}") from error

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remembers what a checkpoint tells, until training starts."""
        self._loaded = state_dict

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remembers that a run was stopped early, and finds the best checkpoint where the folder was moved."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._at_epoch_end = _end_epoch(checkpoint["loops"]["fit_loop"]["epoch_progress"])
        trainer.should_stop = bool(checkpoint["callbacks"].get(self.state_key, {}).get("stopped"))
        chosen = checkpoint_callback(trainer)
        if chosen is not None and trainer.ckpt_path is not None:
            _relocate(checkpoint["callbacks"].get(chosen.state_key, {}), str(chosen.dirpath), Path(trainer.ckpt_path))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the `last.ckpt` of an earlier run, from which no process shall go on."""
        folder, resumed = Path(str(self.dirpath)), trainer.ckpt_path
        same_run = resumed is not None and Path(resumed).resolve().parent == folder.resolve()
        if trainer.is_global_zero and not trainer.fast_dev_run and not same_run:
            last = folder / LAST_FILE
            shutil.rmtree(last) if last.is_dir() else last.unlink(missing_ok=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts random generators and loader where they were.

        Lightning would do so for the loader, had it not been made already, for the number of steps of the schedule. And
        a run with `max_steps` would go through the epoch before once more, without a batch.
        """
        self._in_loop = True
        if self._at_epoch_end:
            trainer.fit_loop.epoch_loop.restarting = False
        if self._loaded is not None:
            set_random_state(self._loaded["random"])
            trainer.callback_metrics.update(self._loaded["metrics"])  # of the last validation, for what monitors it
            if self._loaded["loader"] is not None and isinstance(trainer.train_dataloader, RequestLoader):
                trainer.train_dataloader.load_state_dict(self._loaded["loader"])  # before its first batch is read
            self._loaded = None

    # when it is written

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Writes `last.ckpt` in the middle of an epoch, if asked to."""
        steps, every = trainer.global_step, self.every_n_train_steps
        if every is not None and steps % every == 0 and steps != self._saved_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes `last.ckpt`, after early stopping and the choice of the best checkpoint."""
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Writes `last.ckpt` where SIGTERM has ended training between two batches."""
        self._in_loop = False
        between = isinstance(exception, SIGTERMException) and trainer.training
        # Of several processes, not all may have come as far, and one would wait for the others.
        if between and trainer.world_size == 1 and trainer.global_step not in (0, self._saved_step):
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:
            self._saved_step = trainer.global_step
            trainer.save_checkpoint(Path(str(self.dirpath)) / LAST_FILE, weights_only=False)

    # SIGTERM

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on SIGTERM ends the process at once."""
        self._in_loop = False
        _leave_on_sigterm(trainer)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets the batch end, whose slates may then be kept."""
        self._in_loop = True

    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Ends prediction on SIGTERM, which Lightning's loop does not."""
        _leave_on_sigterm(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From here on SIGTERM ends the process at once."""
        self._in_loop = False


def _leave_on_sigterm(trainer: L.Trainer) -> None:
    if trainer.received_sigterm:
        raise SIGTERMException


def _end_epoch(progress: dict[str, dict[str, int]]) -> bool:
    """Completes the epoch of a checkpoint that was written at its end, which Lightning counts only afterwards.

    Returns:
        Whether it was; otherwise the checkpoint stands in the middle of an epoch.
    """
    if progress["current"]["processed"] < progress["current"]["ready"]:
        return False
    for counts in progress.values():
        counts["completed"] = counts["processed"]
    return True


def _relocate(state: dict[str, Any], folder: str, resumed: Path) -> None:
    """Rewrites the paths that a `ModelCheckpoint` has saved, where the run goes on in a folder that was moved."""
    before = state.get("dirpath")
    if before is None or before == folder or resumed.resolve().parent != Path(folder).resolve():
        return

    def moved(path: str) -> str:
        return folder + path.removeprefix(before) if path.startswith(f"{before}/") else path

    state["dirpath"] = folder
    state["best_k_models"] = {moved(path): score for path, score in state["best_k_models"].items()}
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        state[name] = moved(state[name])
