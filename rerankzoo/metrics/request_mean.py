"""Means of per-request metrics over batches and processes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class RequestMean(Metric):
    """Mean over requests of a metric that gives one value per request, over all batches and processes.

    Kept as a sum and a count, so that batches and processes of different sizes add up to the mean over all requests. It
    is 0 before any, never NaN, so that a sanity check on two batches cannot poison a checkpoint's score. Metrics of a
    `torchmetrics.MetricCollection` are never taken for one another, even if the first batch gives them the same sum.

    Args:
        function: Takes tensors with a row per request and returns (B',) values, such as `ndcg_at_k`.
        **options: Options of the function by keyword, such as `k=4`; all others are those of `torchmetrics.Metric`.

    Raises:
        ValueError: On a keyword that neither knows. What an option may be is checked with the first batch, and so is
            that the function gives a value per request (`auc` and others that pool requests do not).
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        known = inspect.signature(function).parameters
        self.options = {name: options.pop(name) for name in known if name in options}
        super().__init__(**options)
        self.function = function
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")
        name = f"{function.__module__}.{function.__qualname__} {self.options}"
        self.add_state("identity", default=torch.tensor(list(name.encode()), dtype=torch.uint8), dist_reduce_fx="max")

    def update(self, *inputs: Tensor, **named: Tensor) -> None:
        """Adds a batch: what the function takes."""
        values = self.function(*inputs, **named, **self.options)
        if values.dim() != 1:
            message = f"{self.function.__qualname__} gives no value per request, but shape {tuple(values.shape)}"
            raise ValueError(message)
        self.total = self.total + values.sum().to(self.total.dtype)
        self.count = self.count + values.numel()

    def compute(self) -> Tensor:
        """Returns the mean over all requests seen, a scalar."""
        return self.total / self.count.clamp(min=1)
