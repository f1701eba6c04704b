"""Losses are computed in single precision, whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from rerankzoo.batch import widened

Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def in_single_precision(loss: Loss) -> Loss:
    """Runs a function of tensors outside autocast, on float32 copies of half-precision arguments.

    Half precision is for the network. In a loss it rounds sums of logarithms to a few hundredths, turns 1e-12 into 0
    and, as float16, overflows at 65,504; on the CPU autocast leaves the softmax in half precision, too.

    Args:
        loss: The function; at least one argument is a tensor.

    Returns:
        The same function; its result is float32, or float64 where an argument is.
    """

    @wraps(loss)
    def computed(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tuple(map(widened, args)), {name: widened(value) for name, value in kwargs.items()}
        device = next(value.device.type for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        if not torch.is_autocast_enabled(device):  # the context would cost more than a small loss
            return loss(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return loss(*args, **kwargs)

    return cast(Loss, computed)
