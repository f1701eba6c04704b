"""What the tests of training share: tiny models, a trainer that prints nothing, and ways to stop it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16, "slate_size": 4}
POINTWISE = {"hidden_size": 16, "embedding_size": 4, "slate_size": 4}


def make_trainer(folder: Path, **options: Any) -> L.Trainer:
    """A trainer that leaves nothing behind, unless the options ask for it."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 1,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**defaults, **options})


class Crash(Exception):
    """What a test throws into a run."""


def crash() -> None:
    raise Crash


class Stop(L.Callback):
    """Does something before a step."""

    def __init__(self, step: int, action: Callable[[], Any] = crash) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action()


def tensors_of_checkpoint(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, but those of its callbacks, by their place in it."""
    tensors: dict[str, Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict | list | tuple):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                walk(f"{name}/{key}", part)

    walk("", {key: value for key, value in torch.load(path, weights_only=True).items() if key != "callbacks"})
    return tensors


def assert_same_checkpoint(one: Path, other: Path) -> None:
    expected, got = tensors_of_checkpoint(one), tensors_of_checkpoint(other)
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert torch.equal(value, got[key]), f"{one.name}{key}"
