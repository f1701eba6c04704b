"""What tells the weights of two models apart."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from rerankzoo.generation import EvaluatorEnsemble


def weights_digest(model: nn.Module) -> str:
    """SHA-256 of a model's class and weights."""
    # An ensemble by the name that it had when the first folders were mined: they are continued.
    name = "DeGReEvaluatorEnsemble" if isinstance(model, EvaluatorEnsemble) else type(model).__name__
    digest = hashlib.sha256(name.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"/{name}:{tensor.dtype}:{tuple(tensor.shape)}/".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
