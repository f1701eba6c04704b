"""An exponential moving average of the weights that forgets where training started."""

from __future__ import annotations

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

_Tensors = tuple[Tensor, ...] | list[Tensor]


class WarmWeightAveraging(WeightAveraging):
    """Lightning's weight averaging, with a decay of min(decay, (1 + k) / (10 + k)) after k averaged steps.

    With a fixed decay of 0.995, the average of 120 steps consists by 55 % of the weights that training started with. A
    decay that grows with the number of steps averages over about the last tenth of them, until that is the fixed one's
    window of 1 / (1 - decay) steps. Checkpoints and runs that go on from them are those of `WeightAveraging`.

    Args:
        decay: What the decay grows to.

    Raises:
        ValueError: If the decay lies outside [0, 1).

    References:
        The warm-up of TensorFlow's `ExponentialMovingAverage`.
    """

    def __init__(self, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay}")
        self.decay = decay
        super().__init__(multi_avg_fn=self._average)

    def _average(self, averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        """Moves the averages of some tensors towards their current values, after so many averaged steps."""
        if not averaged[0].is_floating_point():  # a buffer that counts
            torch._foreach_copy_(averaged, current)
            return
        steps = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(self.decay, (1 + steps) / (10 + steps)))
