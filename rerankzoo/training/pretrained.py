"""Starting from a checkpoint: its config, its decoding parameters and all or some of its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import AutoModel

from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.faults import one_line_errors
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel


def load_pretrained(path: str, schema: FeatureSchema) -> RerankingPreTrainedModel:
    """Loads a checkpoint to start from; safetensors only.

    Args:
        path: Folder or Hub id.
        schema: The fitted schema of the training data.

    Returns:
        The model, whole: a checkpoint that lacks weights, or has others, is refused.

    Raises:
        HubError: If there is no checkpoint at the path, or the Hub cannot be reached.
        RerankingDataError: If the checkpoint is no model of ours, or its weights do not fit its config.
        SchemaMismatchError: If it was trained with another extractor than the data's.
    """
    with one_line_errors(path):
        model, info = AutoModel.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    if not isinstance(model, RerankingPreTrainedModel):
        raise RerankingDataError(f"{path} holds a {type(model).__name__}, no model of rerankzoo", field="pretrained")
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise RerankingDataError(f"{path} has {problem} {sorted(info[problem])}", field="pretrained")
    try:
        model.check_schema(schema)
    except SchemaMismatchError as error:
        hint = f"start from {path} with the extractor it was trained with: --data.init_args.extractor {path}"
        raise SchemaMismatchError(f"{error}; {hint}") from error
    return model


def inherited_values(config: RerankingConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config that continues a checkpoint's.

    Args:
        config: The checkpoint's.
        given: Fields set otherwise: how to train, and what is measured on the log. What makes the network what it is
            may be repeated, not changed.

    Returns:
        All fields but the schema, which is the data's, and what the checkpoint's own log told.

    Raises:
        RerankingDataError: If a field contradicts the checkpoint.
    """
    own = {name: getattr(config, name) for name in config.own_fields()}
    for name in own.keys() & given.keys() - config.training_fields - config.measured_fields:
        if given[name] != own[name]:
            message = f"{given[name]!r} is asked for, the checkpoint to start from has {own[name]!r}"
            raise RerankingDataError(message, field=f"config.{name}")
    dropped = {"feature_schema", *config.measured_fields}
    return {**{name: value for name, value in own.items() if name not in dropped}, **given}


def copy_modules(source: nn.Module, target: nn.Module, names: Sequence[str]) -> None:
    """Copies the weights of the named modules from one model to another.

    Args:
        source: Where the weights come from.
        target: Where they go.
        names: Modules that both have, such as `"item_encoder"` or `"item_encoder.fields"`.

    Raises:
        RerankingDataError: If a model lacks a module, or the tensors of a module differ in name or shape.
    """
    pairs = [(name, _module(source, name), _module(target, name)) for name in names]
    for name, old, new in pairs:
        _check_tensors(name, old, new)
    for _, old, new in pairs:
        new.load_state_dict(old.state_dict())


def _module(model: nn.Module, name: str) -> nn.Module:
    known = dict(model.named_modules())
    if not name or name not in known:
        children = sorted(child for child, _ in model.named_children())
        message = f"{type(model).__name__} has no module {name!r}; it has {children} and what is in them"
        raise RerankingDataError(message, field="pretrained_modules")
    return known[name]


def _check_tensors(name: str, source: nn.Module, target: nn.Module) -> None:
    """Refuses modules whose tensors differ, before any of them is copied."""
    old, new = ({key: tuple(value.shape) for key, value in part.state_dict().items()} for part in (source, target))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            shapes = [shapes.get(key, "missing") for shapes in (old, new)]
            message = f"{name}: tensor {key!r} is {shapes[0]} in the checkpoint and {shapes[1]} in the model"
            raise RerankingDataError(message, field="pretrained_modules")
