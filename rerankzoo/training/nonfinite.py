"""What is left behind when a loss is no finite number: the batch, and what was known of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.errors import NonFiniteLossError

#: In the trainer's root directory.
FOLDER = "nonfinite"


def nonfinite_loss(
    trainer: L.Trainer, model: nn.Module, batch: Mapping[str, Tensor], losses: Mapping[str, Tensor]
) -> NonFiniteLossError:
    """Saves a batch whose loss is not finite, and makes the error that stops training.

    Two files, `step-S-rank-R.safetensors` and `.json`, in the folder `nonfinite` of the trainer's root directory. The
    first holds the batch, so that `model(**safetensors.torch.load_file(path))` computes the loss again. The second
    names step, epoch, the rows of the requests, each term of the loss, the requests whose own loss is not finite (none:
    it is their sum), the parameters that are not finite (any: the weights were lost before this batch), and the largest
    number of each input.

    Args:
        trainer: Tells where training is.
        model: Computes the loss of single requests.
        batch: This process's batch.
        losses: Its loss and the terms of the loss, by name.

    Returns:
        The error. In a process whose own loss is finite nothing is saved, for the trouble is another one's.
    """
    step, rank = trainer.global_step, trainer.global_rank
    folder = Path(trainer.default_root_dir) / FOLDER
    where = f"at step {step} of epoch {trainer.current_epoch}"
    if all(math.isfinite(value.item()) for value in losses.values()):
        return NonFiniteLossError(f"the loss of another process is not finite {where}; {folder} holds its batch")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step}-rank-{rank}.safetensors"
    tensors = {key: value.detach().cpu().contiguous() for key, value in batch.items()}
    write_atomically(target, partial(save_file, tensors))
    record = {
        "step": step,
        "epoch": trainer.current_epoch,
        "rank": rank,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        **{name: _number(value) for name, value in losses.items()},
        "request_index": _rows(batch),
        "nonfinite_requests": _culprits(model, batch),
        "nonfinite_parameters": [
            name for name, value in model.named_parameters() if not bool(torch.isfinite(value).all())
        ],
        "largest_inputs": {
            key: _number(value.abs().max()) for key, value in batch.items() if value.is_floating_point()
        },
    }
    text = json.dumps(record, indent=2, allow_nan=False) + "\n"
    write_atomically(target.with_suffix(".json"), lambda path: path.write_text(text, encoding="utf-8"))
    value = _number(next(iter(losses.values())))
    return NonFiniteLossError(f"the loss is {value} {where}; its batch is {target}, the .json beside it says more")


@torch.no_grad()
def _culprits(model: nn.Module, batch: Mapping[str, Tensor]) -> list[int]:
    """The requests whose own loss is not finite, as rows of the source where the batch knows them."""
    index = _rows(batch)
    alone = ({key: value[row : row + 1] for key, value in batch.items()} for row in range(len(index)))
    return [
        number for number, single in zip(index, alone, strict=True) if not math.isfinite(model(**single).loss.item())
    ]


def _rows(batch: Mapping[str, Tensor]) -> list[int]:
    known = batch.get("request_index")
    return list(range(len(batch["candidate_mask"]))) if known is None else known.tolist()


def _number(value: Tensor) -> Any:
    """A number for JSON, which has no infinity."""
    number = value.item()
    return number if math.isfinite(number) else str(number)
