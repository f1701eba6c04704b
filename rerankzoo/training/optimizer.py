"""AdamW with warm-up."""

from __future__ import annotations

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler


def make_optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW whose decay leaves biases, norms and embeddings alone.

    Args:
        model: Its trainable parameters are optimised.
        learning_rate: Peak learning rate.
        weight_decay: Of the matrices.

    Returns:
        The optimiser.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.dim() > 1 and id(p) not in embeddings]
    spared = [p for p in parameters if p.dim() <= 1 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return AdamW(groups, lr=learning_rate, fused=True)


def make_scheduler(optimizer: Optimizer, kind: str, warmup_steps: int, total_steps: int) -> LRScheduler:
    """A schedule of `transformers.get_scheduler`, stepped after every batch.

    Args:
        optimizer: What to schedule.
        kind: Its name, such as `"constant_with_warmup"` or `"cosine"`.
        warmup_steps: Steps of linear growth to the peak.
        total_steps: Steps of the whole run.

    Returns:
        The schedule.
    """
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
