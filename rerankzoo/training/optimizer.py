"""AdamW with warm-up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer, SparseAdam
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler
from transformers.trainer_utils import SchedulerType

from rerankzoo.layers import PackedEmbedding

#: Embedding tables with at least this many rows get sparse gradients: a dense update of all rows would cost more than
#: the rest of a step.
SPARSE_ROWS = 100_000
_STABLE = SchedulerType.WARMUP_STABLE_DECAY.value


class MixedAdamW(Optimizer):
    """AdamW for most parameters, and `SparseAdam` for embedding tables with sparse gradients, as one optimiser.

    A row of such a table is updated in the steps that use it; its moments do not fade in the others.

    Args:
        dense: Parameter groups of AdamW.
        sparse: The tables.
        learning_rate: Of all.
    """

    def __init__(self, dense: list[dict[str, Any]], sparse: Sequence[Tensor], learning_rate: float) -> None:
        self.parts = (AdamW(dense, lr=learning_rate, fused=True), SparseAdam(list(sparse), lr=learning_rate))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Gives the parts this optimiser's groups and state, so that what changes them changes the parts'."""
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `torch.optim.Optimizer.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._share()


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW whose decay leaves biases, norms and embeddings alone.

    In a single process on the CPU, embedding tables with `SPARSE_ROWS` rows or more get sparse gradients from here on
    (see `MixedAdamW`). On an accelerator a dense update is cheap, and several processes exchange dense gradients.

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: Peak learning rate.
        weight_decay: Of the matrices.
    """
    tables = _large_tables(model)
    for table in tables:
        table.sparse = True
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    sparse = {id(table.weight) for table in tables}
    parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in sparse]
    decayed = [p for p in parameters if p.dim() > 1 and id(p) not in embeddings]
    spared = [p for p in parameters if p.dim() <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if tables:
        return MixedAdamW(groups, [table.weight for table in tables], learning_rate)
    return AdamW(groups, lr=learning_rate, fused=True)


def _large_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables that train with sparse gradients."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return []
    tables = [module.table for module in model.modules() if isinstance(module, PackedEmbedding)]
    return [
        table
        for table in tables
        if table.weight.requires_grad and table.num_embeddings >= SPARSE_ROWS and table.weight.device.type == "cpu"
    ]


def make_scheduler(optimizer: Optimizer, kind: str, warmup_steps: int, total_steps: int) -> LRScheduler:
    """A schedule of `transformers.get_scheduler`, stepped after every batch.

    Args:
        optimizer: The optimizer.
        kind: Such as `"cosine"`; `"warmup_stable_decay"` falls linearly over the second half of the steps.
        warmup_steps: Of a linear rise before it; with `"warmup_stable_decay"` at most a fifth of all steps.
        total_steps: Optimizer steps of the whole run.
    """
    if kind != _STABLE:
        return get_scheduler(kind, optimizer, warmup_steps, total_steps)
    fall = {"num_decay_steps": total_steps // 2, "decay_type": "linear"}
    return get_scheduler(
        kind, optimizer, min(warmup_steps, total_steps // 5), total_steps, scheduler_specific_kwargs=fall
    )
