"""The weights that training starts with: those of a checkpoint, all or some, and which of them stay as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.layers import PackedEmbedding
from rerankzoo.models.auto import load_checkpoint, load_evaluator
from rerankzoo.models.base import RerankingConfig, RerankingPreTrainedModel


def load_pretrained(
    path: str, extractor: RerankingFeatureExtractor, other_statistics: bool = False
) -> RerankingPreTrainedModel:
    """Loads a checkpoint to start from, whole.

    Args:
        path: Folder or Hub id.
        extractor: Of the training data: the checkpoint's, or one that extends it.
        other_statistics: Whether the extractor may standardise numbers otherwise than the checkpoint's.

    Raises:
        HubError: If there is no checkpoint at the path, it lacks weights, or the Hub cannot be reached.
        RerankingDataError: If it is an ensemble.
        SchemaMismatchError: If the data's extractor does not extend the one that it was trained with; lists the fields.
    """
    model, trained_with = load_checkpoint(path)
    if not isinstance(model, RerankingPreTrainedModel):
        raise RerankingDataError(f"{path} holds a {type(model).__name__}, expected one model", field="pretrained")
    try:
        extractor.schema.check_same(trained_with.schema)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"the data does not fit {path}: {error}") from error
    try:
        extractor.check_extends(trained_with, other_statistics)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(
            f"{path} was trained with another extractor than the data's: {error}; start with its own, "
            f"--data.init_args.extractor {path}, and --data.init_args.extend_extractor true where the data has new ids"
        ) from error
    return model


def load_guide(path: str, schema: FeatureSchema) -> RerankingPreTrainedModel:
    """Loads the evaluator that a generator carries with it.

    Args:
        path: Folder or Hub id of an evaluator, or of a generator with one beside it.
        schema: The generator's.

    Raises:
        HubError: If there is none.
        RerankingDataError: If it is an ensemble.
        SchemaMismatchError: If it was trained with another extractor.
    """
    model = load_evaluator(path).model
    if not isinstance(model, RerankingPreTrainedModel):
        raise RerankingDataError(f"{path} holds a {type(model).__name__}, expected one evaluator", field="guide")
    try:
        model.check_schema(schema)
    except SchemaMismatchError as error:
        raise SchemaMismatchError(f"guide {path} does not fit the data: {error}") from error
    return model


def guide_values(guide: RerankingPreTrainedModel) -> dict[str, Any]:
    """What a generator's config keeps of its guide's: its class, and its fields without the schema, which are equal."""
    fields = {name: getattr(guide.config, name) for name in guide.config.own_fields() if name != "feature_schema"}
    return {"architectures": [type(guide).__name__], **fields}


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
    saved = {name: getattr(config, name) for name in config.own_fields()}
    for name in saved.keys() & given.keys() - config.training_fields - config.measured_fields:
        if given[name] != saved[name]:
            message = f"{given[name]!r} is asked for, the checkpoint to start from has {saved[name]!r}"
            raise RerankingDataError(message, field=f"config.{name}")
    dropped = {"feature_schema", *config.measured_fields}
    return {**{name: value for name, value in saved.items() if name not in dropped}, **given}


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
        RerankingDataError: If a model lacks a module, or the tensors of one differ; then nothing is copied.
    """
    parts = [[find_module(model, name, "pretrained_modules") for model in (source, target)] for name in names]
    states = [continued_weights(old, new) for old, new in parts]
    for name, state, (_, part) in zip(names, states, parts, strict=True):
        difference = first_difference(state, part.state_dict())
        if difference is not None:
            key, old, new = difference
            message = f"{name}: tensor {key!r} is {old} in the checkpoint and {new} in the model"
            raise RerankingDataError(message, field="pretrained_modules")
    for state, (_, part) in zip(states, parts, strict=True):
        part.load_state_dict(state)


def first_difference(saved: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> tuple[str, Any, Any] | None:
    """The first tensor that two states do not have in the same shape: its name and both shapes; `None`: all agree."""
    old, new = ({key: list(value.shape) for key, value in state.items()} for state in (saved, made))
    keys = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    return (keys[0], old.get(keys[0], "missing"), new.get(keys[0], "missing")) if keys else None


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
