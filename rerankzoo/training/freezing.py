"""Parts of a model that training leaves as they are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rerankzoo.errors import RerankingDataError


def find_module(model: nn.Module, name: str, field: str) -> nn.Module:
    """A part of a model.

    Args:
        model: Where to look.
        name: Such as `"item_encoder"` or `"item_encoder.fields"`.
        field: The argument that named it, for the message.

    Raises:
        RerankingDataError: If there is none; it lists what there is.
    """
    known = dict(model.named_modules())
    if not name or name not in known:
        children = sorted(child for child, _ in model.named_children())
        message = f"{type(model).__name__} has no module {name!r}; it has {children} and what is in them"
        raise RerankingDataError(message, field=field)
    return known[name]


def freeze_modules(model: nn.Module, names: Sequence[str]) -> None:
    """Makes the parameters of the named modules get no gradient; dropout in them stays.

    Args:
        model: The model.
        names: Its modules, such as `"item_encoder"` or `"item_encoder.fields"`.

    Raises:
        RerankingDataError: If there is no such module, or nothing is left to train.
    """
    for part in [find_module(model, name, "freeze") for name in names]:
        part.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RerankingDataError(f"{list(names)} leaves nothing to train", field="freeze")
