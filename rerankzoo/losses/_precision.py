"""Losses are computed in single precision, whatever the model computes in."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def in_single_precision(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Runs a function of tensors outside autocast, on float32 copies of half-precision arguments.

    Half precision is for the network. In a loss it rounds sums of logarithms to a few hundredths, turns 1e-12 into 0
    and, as float16, overflows at 65,504; on the CPU autocast leaves the softmax in half precision, too.

    Args:
        loss: The function; at least one argument is a tensor.

    Returns:
        The same function; its result is float32, or float64 where an argument is.
    """

    @wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        widened = {name: _widened(value) for name, value in kwargs.items()}
        with torch.autocast(device.type, enabled=False):
            return loss(*map(_widened, args), **widened)

    return computed


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
