"""A loss that is no finite number stops training: what is looked at when, and what is left behind."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.batch import Batch, take
from rerankzoo.errors import NonFiniteLossError

#: In the trainer's root directory.
FOLDER = "nonfinite"


class LossGuard:
    """Stops training before a loss that is not finite touches the weights.

    On a CPU every loss is looked at as soon as it is there. On an accelerator this would make the processor wait in
    every step: there the optimiser, on the device, leaves the weights as they are, and the loss is looked at when the
    next one is there.
    """

    def __init__(self) -> None:
        self._last: tuple[Batch, dict[str, Tensor], Tensor, int] | None = None
        self._skip: Tensor | None = None

    def check(self, module: Any, batch: Batch, losses: dict[str, Tensor], mean: Tensor) -> None:
        """Takes in the losses of a step, and looks at them or at those before.

        Args:
            module: The `RerankingModule` that is trained.
            batch: This process's batch.
            losses: Its loss and the terms of the loss, by name.
            mean: The loss over all processes.

        Raises:
            NonFiniteLossError: If it is not finite; the batch is saved.
        """
        self.finish(module)
        self._last = (batch, losses, torch.isfinite(mean), module.trainer.global_step)
        if not _must_wait(mean):
            self.finish(module)
        else:
            self._skip = ~self._last[2] if self._skip is None else self._skip | ~self._last[2]

    def skip_step(self, optimizer: Optimizer) -> None:
        """Tells a fused optimiser, without waiting, to skip its step where a loss since the last one is not finite."""
        if self._skip is not None:
            optimizer.found_inf = self._skip.float()  # type: ignore[attr-defined]  # what a gradient scaler sets, too
            self._skip = None

    def finish(self, module: Any) -> None:
        """Looks at the losses that have not been looked at.

        Raises:
            NonFiniteLossError: If they are not finite; the batch is saved.
        """
        last, self._last = self._last, None
        if last is not None and not bool(last[2]):
            raise nonfinite_loss(module, last[0], last[1], last[3])


def _must_wait(value: Tensor) -> bool:
    return value.device.type != "cpu"


def nonfinite_loss(module: Any, batch: Batch, losses: dict[str, Tensor], step: int) -> NonFiniteLossError:
    """Saves a batch whose loss is not finite, and makes the error that stops training.

    Two files, `step-S-rank-R.safetensors` and `.json`, in the folder `nonfinite` of the trainer's root directory. The
    first holds the batch, so that `model(**safetensors.torch.load_file(path))` computes the loss again. The second
    names step, epoch, the rows of the requests, each term of the loss, the requests whose own loss is not finite (none:
    it is their sum), the parameters that are not finite (any: the weights were lost before this batch), and the largest
    number of each input.

    Args:
        module: Computes the loss of single requests, and knows where training is.
        batch: This process's batch.
        losses: Its loss and the terms of the loss, by name.
        step: Optimiser steps before it.

    Returns:
        The error. In a process whose own loss is finite nothing is saved, for the trouble is another one's.
    """
    trainer = module.trainer
    folder = Path(trainer.default_root_dir) / FOLDER
    where = f"at step {step} of epoch {trainer.current_epoch}"
    if all(math.isfinite(value.item()) for value in losses.values()):
        return NonFiniteLossError(f"the loss of another process is not finite {where}; {folder} holds its batch")
    target = folder / f"step-{step}-rank-{trainer.global_rank}.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items()}
    write_atomically(target, partial(save_file, tensors))
    parameters, rows = module.model.named_parameters(), batch.get("request_index")
    numbers = list(range(len(batch["candidate_mask"]))) if rows is None else rows.tolist()
    record = {
        "step": step,
        "epoch": trainer.current_epoch,
        "rank": trainer.global_rank,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        **{name: _number(value) for name, value in losses.items()},
        "request_index": numbers,
        "nonfinite_requests": [
            number for row, number in enumerate(numbers) if not _is_finite_alone(module, batch, row)
        ],
        "nonfinite_parameters": [name for name, value in parameters if not bool(torch.isfinite(value).all())],
        "largest_inputs": {
            key: _number(value.abs().max()) for key, value in batch.items() if value.is_floating_point()
        },
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_atomically(target.with_suffix(".json"), lambda path: path.write_text(text, encoding="utf-8"))
    value = _number(losses["loss"])
    return NonFiniteLossError(f"the loss is {value} {where}; its batch is {target}, the .json beside it says more")


@torch.no_grad()
def _is_finite_alone(module: Any, batch: Batch, row: int) -> bool:
    """Whether the loss of a single request is finite."""
    return math.isfinite(module.objective.loss(module.model, take(batch, slice(row, row + 1))).loss.item())


def _number(value: Tensor) -> Any:
    """A number for JSON, which has no infinity."""
    number = value.item()
    return number if math.isfinite(number) else str(number)
