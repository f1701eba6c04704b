"""The weights that training starts with: those of a checkpoint, all or some, and which of them stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from transformers import AutoModel

from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.layers import PackedEmbedding
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel


def load_pretrained(
    path: str, extractor: RerankingFeatureExtractor, other_statistics: bool = False
) -> RerankingPreTrainedModel:
    """Loads a checkpoint to start from; safetensors only.

    Args:
        path: Folder or Hub id.
        extractor: Of the training data: the checkpoint's, or one that extends it.
        other_statistics: Whether the extractor may standardise numbers otherwise than the checkpoint's.

    Returns:
        The model, whole: a checkpoint that lacks weights, or has others, is refused.

    Raises:
        HubError: If there is no checkpoint at the path, or the Hub cannot be reached.
        RerankingDataError: If the checkpoint is no model of ours, or its weights do not fit its config.
        SchemaMismatchError: If the data's extractor does not extend the one that it was trained with; lists the fields.
    """
    with one_line_errors(path):
        model, info = AutoModel.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    if not isinstance(model, RerankingPreTrainedModel):
        raise RerankingDataError(f"{path} holds a {type(model).__name__}, no model of rerankzoo", field="pretrained")
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise RerankingDataError(f"{path} has {problem} {sorted(info[problem])}", field="pretrained")
    if model.schema.fingerprint != extractor.schema.fingerprint:
        _check_extractor(path, model, extractor, other_statistics)
    return model


def _check_extractor(
    path: str, model: RerankingPreTrainedModel, extractor: RerankingFeatureExtractor, other_statistics: bool
) -> None:
    """Refuses data whose extractor does not extend the checkpoint's."""
    with one_line_errors(path):
        own = RerankingFeatureExtractor.from_pretrained(path)
    model.check_schema(own.schema)
    try:
        extractor.schema.check_same(own.schema)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"the data does not fit {path}: {error}") from error
    try:
        extractor.check_extends(own, other_statistics)
    except SchemaMismatchError as error:
        hint = (
            f"start with its own, --data.init_args.extractor {path}, and --data.init_args.extend_extractor true where "
            "the data has new ids"
        )
        message = f"{path} was trained with another extractor than the data's: {error}; {hint}"
        raise SchemaMismatchError(message) from error


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


def continued_weights(source: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """The weights of one module, for another whose vocabularies may have grown.

    Args:
        source: Where the weights come from.
        target: A module of the same kind; initialised, because its embeddings of ids that the source lacks stay.

    Returns:
        The source's state, with the rows of embedding tables where the target has them.
    """
    state = source.state_dict()
    known = dict(source.named_modules())
    for name, table in target.named_modules():
        old = known.get(name)
        if isinstance(table, PackedEmbedding) and isinstance(old, PackedEmbedding) and table.continues(old):
            prefix = f"{name}." if name else ""
            state[f"{prefix}table.weight"] = table.continued_table(old)
            state.update({f"{prefix}{key}": value for key, value in table.named_buffers()})
    return state


def warn_of_frozen_ids(source: RerankingPreTrainedModel, target: RerankingPreTrainedModel) -> None:
    """Warns where new ids have embeddings that training will not change."""
    tables = [part for part in target.modules() if isinstance(part, PackedEmbedding)]
    if any(not part.table.weight.requires_grad for part in tables):
        pairs = zip(source.schema.fields, target.schema.fields, strict=True)
        grown = [new.name for old, new in pairs if old.num_embeddings != new.num_embeddings]
        if grown:
            rank_zero_warn(f"the embeddings are frozen: those of the new ids of {grown} stay as they are initialised")


def copy_modules(source: nn.Module, target: nn.Module, names: Sequence[str]) -> None:
    """Copies the weights of the named modules from one model to another, as `continued_weights` does.

    Args:
        source: Where the weights come from.
        target: Where they go.
        names: Modules that both have, such as `"item_encoder"` or `"item_encoder.fields"`.

    Raises:
        RerankingDataError: If a model lacks a module, or the tensors of a module differ in name or shape.
    """
    parts = [[find_module(model, name, "pretrained_modules") for model in (source, target)] for name in names]
    states = [continued_weights(old, new) for old, new in parts]
    for name, state, (_, new) in zip(names, states, parts, strict=True):
        _check_tensors(name, state, new.state_dict())
    for state, (_, new) in zip(states, parts, strict=True):
        new.load_state_dict(state)


def _check_tensors(name: str, source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Refuses modules whose tensors differ, before any of them is copied."""
    old, new = ({key: tuple(value.shape) for key, value in state.items()} for state in (source, target))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            shapes = [shapes.get(key, "missing") for shapes in (old, new)]
            message = f"{name}: tensor {key!r} is {shapes[0]} in the checkpoint and {shapes[1]} in the model"
            raise RerankingDataError(message, field="pretrained_modules")


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
