"""What all models share: config, weight initialisation, outputs.

B requests, N candidates, M positions, S slates, T targets, D hidden.
"""

from __future__ import annotations

import inspect
import os
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Protocol, get_args

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.dataclasses import strict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.type_validators import interval

from rerankzoo.atomic_writing import CHECKSUMS_FILE, SAVED_MODEL, saved_over, verify_checksums, write_checksums
from rerankzoo.batch import Batch, inputs
from rerankzoo.errors import RerankingDataError, SchemaError, UnreadableFileError
from rerankzoo.features.schema import FeatureSchema, Group
from rerankzoo.features.utility import slate_utility
from rerankzoo.generation import SchemaBound, SlateGenerationMixin
from rerankzoo.layers import (
    ExitValueHead,
    FeatureEmbedding,
    FeedbackHead,
    FieldEmbedding,
    GatedFieldNorm,
    HistoryEncoder,
    PackedEmbedding,
    PageContext,
    QueryEncoder,
    TargetAttention,
    TransformerBlock,
)
from rerankzoo.remote_code import OwnAutoMap, auto_map, write_module

#: Of a config: with more, a damaged file would keep a machine building a model that it cannot hold.
_MAX_SIZE = 65_536

#: Fields of configs that must lie in a range.
size_field: Any = interval(min=1, max=_MAX_SIZE)
count_field: Any = interval(min=0, max=_MAX_SIZE)
probability_field: Any = interval(min=0.0, max=1.0, exclude_max=True)
share_field: Any = interval(min=0.0, max=1.0)
weight_field: Any = interval(min=0.0)

#: What a config is handed beside its fields, by us and by transformers; everything else is a typing error of the user.
_BASE_NAMES = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "torch_dtype",
    "transformers_version",
    "use_return_dict",
}


def _takes_numpy(make: Callable[..., None]) -> Callable[..., None]:
    """The `__init__` of a config, with scalars of numpy as Python's: `@strict` takes them for wrong types."""

    @wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{k: v.item() if isinstance(v, np.generic) else v for k, v in kwargs.items()})

    return __init__


class TrainingLog(Protocol):
    """What a config may ask of the training data."""

    def utility_quantile(self, quantile: float) -> float | None:
        """The quantile of the utility of the logged slates (of mined ones: of the log that they were mined from).

        `None` where nobody knows it.
        """

    def num_positions(self) -> int:
        """How many positions the slates show, about."""

    def item_fields(self) -> list[str]:
        """The fields of candidates that belong to the item and not to the request."""


@strict
class RerankingConfig(OwnAutoMap, PreTrainedConfig):
    """Fields that all models have. Unknown names and wrong types are refused, unless they stand in a saved file.

    Args:
        feature_schema: The fitted `FeatureSchema` as a dictionary; `None` only until the model's data is known.
        slate_size: M, positions of a slate that the model was made for.
        hidden_size: D.
        embedding_size: Width of a categorical field's embedding.
        num_attention_heads: Attention heads; divides `hidden_size`.
        intermediate_size: Width of the feed-forward layers.
        hidden_dropout_prob: Probability of dropping a unit of a residual branch.
        attention_probs_dropout_prob: Probability of dropping an attention weight.
        initializer_range: Standard deviation of the embeddings at the start.
        pool_history: Whether all candidates are handed the mean of the user's past items; if not, each reads them for
            itself by target attention (`rerankzoo.layers.TargetAttention`).

    Raises:
        ValueError: If a name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type, a size is not positive, the heads do
            not divide the hidden size, or the schema contradicts itself.
    """

    #: Fields that say how to train and not what is computed: a run that starts from a checkpoint may change them.
    training_fields = frozenset({"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"})
    #: Of an output, what transformers' `Trainer.predict` does not gather: all but the logits.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "loss_terms",
        "candidate_states",
        "utilities",
        "prefix_values",
        "probabilities",
        "log_likelihoods",
    ]
    #: Fields that `adapt_to_log` fills in: a run that starts from a checkpoint measures them on its own log.
    measured_fields = frozenset[str]()

    feature_schema: dict | None = None
    slate_size: int = size_field(default=4)
    hidden_size: int = size_field(default=64)
    embedding_size: int = size_field(default=16)
    num_attention_heads: int = size_field(default=4)
    intermediate_size: int = size_field(default=128)
    hidden_dropout_prob: float | int = probability_field(default=0.0)
    attention_probs_dropout_prob: float | int = probability_field(default=0.0)
    initializer_range: float | int = weight_field(default=0.1)
    pool_history: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the dataclass, and its annotations types again: `@strict` does not check those that are strings."""
        super().__init_subclass__(**kwargs)
        for base in cls.__mro__[: cls.__mro__.index(RerankingConfig) + 1]:
            for name, kind in inspect.get_annotations(base, eval_str=True).items():
                cls.__dataclass_fields__[name].type = kind
        cls.__init__ = _takes_numpy(cls.__init__)  # type: ignore[method-assign]

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_names(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`. Names that this version does not know become attributes, as they are."""
        known = {*_BASE_NAMES, *(entry.name for entry in fields(cls))}
        loaded = super().from_dict({name: value for name, value in config_dict.items() if name in known}, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded  # with return_unused_kwargs=True
        for name in config_dict.keys() - known:
            setattr(config, name, config_dict[name])
        return loaded

    @classmethod
    def own_fields(cls) -> list[str]:
        """The fields of the model, without those that every config of transformers has."""
        inherited = {entry.name for entry in fields(PreTrainedConfig)}
        return [entry.name for entry in fields(cls) if entry.name not in inherited]

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Refuses names that are no fields of the model.

        Raises:
            ValueError: If there are any; it tells which field may be meant.
        """
        unknown = sorted(set(names) - _BASE_NAMES - {entry.name for entry in fields(cls)})
        if unknown:
            meant = get_close_matches(unknown[0], cls.own_fields(), n=1)
            hint = f" (did you mean {meant[0]!r}?)" if meant else ""
            raise ValueError(f"{cls.__name__} has no fields {unknown}{hint}, expected some of {cls.own_fields()}")

    def validate_heads(self) -> None:
        """Checks that the heads divide the hidden size; called by the strict dataclass."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    def validate_feature_schema(self) -> None:
        """Checks the schema; called by the strict dataclass."""
        if self.feature_schema is not None:
            FeatureSchema.from_dict(self.feature_schema)

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Saves `config.json` and, where it names one, the module that `trust_remote_code` loads.

        Args:
            save_directory: The folder, created if need be.
            push_to_hub: Also push to the Hub.
            **kwargs: For `push_to_hub`.
        """
        if getattr(self, "auto_map", None):
            write_module(save_directory)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @property
    def schema(self) -> FeatureSchema:
        """The fitted schema.

        Raises:
            ValueError: If there is none yet.
        """
        if self.feature_schema is None:
            raise ValueError(
                f"{type(self).__name__}.feature_schema is not set; pass feature_schema=extractor.schema.to_dict()"
            )
        return FeatureSchema.from_dict(self.feature_schema)

    def adapt_to_log(self, log: TrainingLog) -> None:
        """Fills in what only the training log can tell; most models need nothing."""


@strict
class FeedbackConfig(RerankingConfig):
    """Config of models that predict feedback of which some depends on other.

    Args:
        conditional_targets: Maps a target to the target it depends on, such as `{"order": "click"}`: its logit is that
            of an order given a click, its probability the product of both, and it learns only from positions where the
            click happened. Chains are allowed.
    """

    conditional_targets: dict[str, str] | None = None

    def validate_conditional_targets(self) -> None:
        """Checks that conditional targets exist and end in an unconditional one; called by the strict dataclass."""
        parents = self.conditional_targets or {}
        if self.feature_schema is not None and parents:
            known = [target.name for target in self.schema.targets]
            unknown = sorted({*parents, *parents.values()} - set(known))
            if unknown:
                raise ValueError(f"conditional_targets names {unknown}; the schema's targets are {known}")
        for target in parents:
            seen = [target]
            while seen[-1] in parents:
                seen.append(parents[seen[-1]])
                if seen[-1] in seen[:-1]:
                    raise ValueError(f"conditional_targets go in a circle: {' -> '.join(seen)}")


@strict
class ImitationConfig(RerankingConfig):
    """Config of generators that imitate the better slates of a log.

    Args:
        utility_threshold: Logged slates are learned whose utility reaches it. `None` until the training data is known;
            the Lightning module sets it to the quantile below.
        utility_quantile: The quantile of the logged utility on the training split, or of the log that mined slates are
            from, that becomes the threshold.
    """

    training_fields = RerankingConfig.training_fields | {"utility_quantile"}
    measured_fields = frozenset({"utility_threshold"})

    utility_threshold: float | int | None = None
    utility_quantile: float | int = share_field(default=0.5)

    def adapt_to_log(self, log: TrainingLog) -> None:
        """Sets the utility threshold, unless it was given; see `RerankingConfig.adapt_to_log`."""
        if self.utility_threshold is None:
            self.utility_threshold = log.utility_quantile(float(self.utility_quantile))


@dataclass
class SlateModelOutput(ModelOutput):
    """Output of a generator's `forward`.

    Attributes:
        loss: Scalar, the mean over requests; present where the batch holds slates.
        loss_terms: Each term of the loss before its weight, scalars by name.
        logits: (B, M, N), scores of every candidate at every position before the softmax; (B, S, M, N) from a model
            whose scores depend on the items further up, where they are those of the batch's slates.
        candidate_states: (B, N, D), representations of the candidates.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    candidate_states: Tensor | None = None


@dataclass
class EvaluatorOutput(ModelOutput):
    """Output of an evaluator's `forward`.

    Attributes:
        loss: Scalar, the mean over requests; present where the batch holds feedback.
        loss_terms: Each term of the loss before its weight, scalars by name.
        logits: (B, S, M, T), one logit per position and feedback target; `None` for an evaluator that predicts none.
        utilities: (B, S), predicted utility of each slate. (Not `values`: that is a dictionary's method.)
        prefix_values: (B, S, M), predicted utility of each prefix, where the evaluator gives one: at position t the
            value of the slate down to t, at padding that of the whole slate.
        probabilities: (B, S, M, T), probability of each target at each position of the slate, whatever happens at the
            others; `None` for an evaluator that predicts none.
        log_likelihoods: (B, S), log-probability of all the feedback of each slate, in nats, summed over positions and
            targets; present where the batch holds feedback and the evaluator predicts probabilities. Models of any form
            can be compared by it.
    """

    loss: Tensor | None = None
    loss_terms: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    utilities: Tensor | None = None
    prefix_values: Tensor | None = None
    probabilities: Tensor | None = None
    log_likelihoods: Tensor | None = None


class RerankingPreTrainedModel(OwnAutoMap, SchemaBound, PreTrainedModel):
    """Base of all models: saving, loading, weight initialisation, and the parts that are made from the config.

    Attributes:
        paper: Where the family comes from, for model cards: what it is, and the paper to cite; `None` for a yardstick.
        learns_from: Labels of a log (`RequestLoader.labels`), any of which is enough to train it.
        required: Entries of a batch beside candidates and request without which `forward` raises a ValueError.
    """

    config: RerankingConfig
    config_class = RerankingConfig
    base_model_prefix = "model"
    main_input_name = "candidate_numeric"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]
    paper: ClassVar[tuple[str, str] | None] = None
    learns_from: ClassVar[frozenset[str]] = frozenset({"slates"})
    required: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: RerankingConfig) -> None:
        super().__init__(config)
        self.schema = config.schema  # parsed once, not in every forward pass

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Saves weights, their checksums, config and generation config, such that auto classes find the model anywhere.

        What an earlier save of a model left in the folder goes; other files stay.

        Args:
            save_directory: The folder, created if need be.
            **kwargs: See `transformers.PreTrainedModel.save_pretrained`.
        """
        # Set anew: a config that was loaded from the Hub names the repository it came from.
        self.config.auto_map = auto_map(AutoConfig=type(self.config).__name__, AutoModel=type(self).__name__)
        with saved_over(Path(save_directory), SAVED_MODEL if kwargs.get("is_main_process", True) else ()) as folder:
            super().save_pretrained(folder, **kwargs)
            write_checksums(folder, "model*.safetensors")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        verify: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a model from safetensors files only; see `transformers.PreTrainedModel.from_pretrained`.

        Args:
            pretrained_model_name_or_path: A folder or Hub id.
            *args: See transformers.
            verify: Whether to compare the weights with their SHA256SUMS first, for which they are read once more.
            **kwargs: See transformers.

        Raises:
            UnreadableFileError: If the weights are damaged.
        """
        name = pretrained_model_name_or_path
        if verify and name is not None:
            _verify(name, **kwargs)
        try:
            return super().from_pretrained(name, *args, **{**kwargs, "use_safetensors": True})
        except SafetensorError as error:
            raise UnreadableFileError(f"the weights of {name} are damaged: {error}") from error

    def get_input_embeddings(self) -> nn.Embedding:
        """The table with the embeddings of all categorical fields."""
        return next(part.table for part in self.modules() if isinstance(part, PackedEmbedding))

    def make_blocks(self, number: int, cross_attention: bool = False) -> nn.ModuleList:
        """Transformer blocks of the config's sizes."""
        config = self.config
        return nn.ModuleList(
            TransformerBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_dropout_prob,
                config.attention_probs_dropout_prob,
                cross_attention,
            )
            for _ in range(number)
        )

    def make_feature_embedding(self, without: Collection[str] = ()) -> FeatureEmbedding:
        """The feature embedding for the config's schema: one vector per candidate.

        Args:
            without: Categorical fields of the candidates that it does not read; it is then handed the others only.
        """
        num_embeddings, owners = self._categorical_layout(without)
        return FeatureEmbedding(
            num_embeddings=num_embeddings,
            owners=owners,
            num_numeric={group: self.schema.numeric_size(group) for group in get_args(Group)},
            embedding_size=self.config.embedding_size,
            hidden_size=self.config.hidden_size,
            history_heads=0 if self.config.pool_history else self.config.num_attention_heads,
            timed=self.schema.history_time is not None,
            paged=self.schema.history_page is not None,
        )

    def make_field_embedding(self, field_size: int) -> FieldEmbedding:
        """The field embedding for the config's schema: one vector per field."""
        num_embeddings, owners = self._categorical_layout()
        return FieldEmbedding(
            num_embeddings=num_embeddings,
            owners=owners,
            numeric_sizes={
                group: [field.size for field in self.schema.numeric_fields(group)] for group in get_args(Group)
            },
            embedding_size=self.config.embedding_size,
            field_size=field_size,
            reads_history=not self.config.pool_history,
            timed=self.schema.history_time is not None,
            paged=self.schema.history_page is not None,
        )

    def _categorical_layout(self, without: Collection[str] = ()) -> tuple[list[int], dict[str, list[int]]]:
        """Number of ids of each field that owns embeddings, and per group the number of each field's owner."""
        schema = self.schema
        groups = {group: schema.select(group, "categorical") for group in ("request", "candidate", "history")}
        groups["candidate"] = [field for field in groups["candidate"] if field.name not in without]
        used = {field.shares or field.name for fields in groups.values() for field in fields}
        owning = [field for field in schema.fields if field.name in used]
        block = {field.name: number for number, field in enumerate(owning)}
        unfitted = [field.name for field in owning if field.num_embeddings is None]
        if unfitted:
            raise ValueError(f"fields {unfitted} of the schema have no num_embeddings; use a fitted extractor's schema")
        owners = {group: [block[field.shares or field.name] for field in fields] for group, fields in groups.items()}
        return [field.num_embeddings or 0 for field in owning], owners

    def start_at(self, rates: Sequence[float]) -> None:
        """Lets an untrained model predict the base rates of its log: all its feedback heads begin with them.

        Where feedback is sparse, training would spend most of its steps on finding that it is. A family whose logits
        mean something else overrides it.

        Args:
            rates: (T), in (0, 1), how often each target happens at a logged position.
        """
        for module in self.modules():
            if isinstance(module, FeedbackHead):
                module.start_at(rates)

    def upstream_score_column(self) -> int:
        """Where the first stage's score stands in `candidate_numeric`.

        Raises:
            SchemaError: If the schema names none.
        """
        if self.schema.upstream_score is None:
            raise SchemaError(
                f"{type(self).__name__} reads the upstream list, but schema {self.schema.name!r} has no "
                "upstream_score; name the numeric candidate field that holds the first stage's score"
            )
        return self.schema.position(self.schema.upstream_score)

    @property
    def num_positions(self) -> int | None:
        """The most positions of a slate that the model reads or decodes; `None`: any number."""
        return self.config.slate_size

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        history_numeric: Tensor | None = None,
        history_time: Tensor | None = None,
        history_page: Tensor | None = None,
        candidate_value: Tensor | None = None,
        slates: Tensor | None = None,
        feedback: Tensor | None = None,
        slate_weights: Tensor | None = None,
        soft_labels: Tensor | None = None,
        candidate_feedback: Tensor | None = None,
        candidate_feedback_mask: Tensor | None = None,
        **other: Tensor,
    ) -> ModelOutput:
        """Scores candidates, or values slates; with the labels that the family learns from, also the loss.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            candidate_mask: (B, N), True where a candidate is real.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            history_numeric: (B, L, F), where the history has numeric fields.
            history_time: (B, L), where it has times.
            history_page: (B, L), where it has pages.
            candidate_value: (B, N, T), value of each target for each candidate.
            slates: (B, S, M'), to learn from or to value, M' at most the config's slate size; -100 pads.
            feedback: (B, S, M', T), of logged slates; in [0, 1] where probabilities are learned.
            slate_weights: (B, S), of mined slates; a request's weights sum to 1.
            soft_labels: (B, S, M', N), of mined slates: per position a distribution over the candidates left.
            candidate_feedback: (B, N, T), labels of candidates.
            candidate_feedback_mask: (B, N), True where they are known.
            **other: Further entries of the batch, for families that registered them.

        Returns:
            `SlateModelOutput` of generators, `EvaluatorOutput` of evaluators.

        Raises:
            ValueError: If slates are longer than the config's slate size, or the family cannot do without an entry.
        """
        batch = {
            "candidate_categorical": candidate_categorical,
            "candidate_numeric": candidate_numeric,
            "candidate_mask": candidate_mask,
            "request_categorical": request_categorical,
            "request_numeric": request_numeric,
            "history_categorical": history_categorical,
            "history_mask": history_mask,
            "history_numeric": history_numeric,
            "history_time": history_time,
            "history_page": history_page,
            "candidate_value": candidate_value,
            "slates": slates,
            "feedback": feedback,
            "slate_weights": slate_weights,
            "soft_labels": soft_labels,
            "candidate_feedback": candidate_feedback,
            "candidate_feedback_mask": candidate_feedback_mask,
            **other,
        }
        self._check_length(slates)
        known = {name: tensor for name, tensor in batch.items() if tensor is not None}
        if missing := [name for name in self.required if name not in known]:
            raise ValueError(f"{type(self).__name__} values slates: the batch needs {' and '.join(missing)}")
        return self.compute(known)

    @abstractmethod
    def compute(self, batch: Batch) -> ModelOutput:
        """What `forward` returns for a batch, whose slates have at most as many positions as the model."""

    def _check_length(self, slates: Tensor | None) -> None:
        most = self.num_positions
        if slates is not None and most is not None and slates.shape[-1] > most:
            raise ValueError(f"slates have {slates.shape[-1]} positions, the model has slate_size {most}")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # A fixed standard deviation, as large text models use, starves layers as narrow as ours.
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)
            if isinstance(module, ExitValueHead):
                init.zeros_(module.exits)
        elif isinstance(module, GatedFieldNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.normal_(module.gate_weight, mean=0.0, std=module.field_size**-0.5)
            init.zeros_(module.gate_bias)
        elif isinstance(module, QueryEncoder):
            init.normal_(module.queries, mean=0.0, std=1.0)
        elif isinstance(module, HistoryEncoder):
            init.zeros_(module.age)
        elif isinstance(module, PageContext):
            init.zeros_(module.weight)
        elif isinstance(module, TargetAttention):
            half_lives = torch.tensor(module.first_half_lives(), dtype=module.log_half_life.dtype)
            init.copy_(module.log_half_life, half_lives.log())
        elif isinstance(module, PackedEmbedding):
            for group in module.owners:
                buffer = module.get_buffer(f"{group}_offsets")
                init.copy_(buffer, torch.tensor(module.offsets(group), dtype=buffer.dtype))


def worth_imitating(model: RerankingPreTrainedModel, batch: Batch) -> Tensor:
    """Which slates (B, S) of a log reach the utility threshold of the model's `ImitationConfig`: 1.0 or 0.0.

    Raises:
        RerankingDataError: If there is no threshold.
    """
    threshold = model.config.utility_threshold
    if threshold is None:
        message = (
            "it is not set, and logged slates are learned if they reach it; use a quantile of slate_utility() over"
        )
        raise RerankingDataError(f"{message} the training split", field="utility_threshold")
    utility = slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], model.schema)
    return (utility >= threshold).float()


class SlateGenerator(SlateGenerationMixin, RerankingPreTrainedModel):
    """Base of models that generate slates.

    A family implements `compute`, and either `scorer` (all decodings then work) or `decode`.
    """


class SlateEvaluator(RerankingPreTrainedModel):
    """Base of models that value slates.

    A family implements `compute`. Slates may be soft (see `score_choices`), so that they are read by
    `gather_candidates` and `shown` of `rerankzoo.batch` alone; there are then no labels.
    """

    required = ("slates", "candidate_value")

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility of slates; see `rerankzoo.generation.Evaluator`.

        Args:
            slates: (B, S, M), -100 pads.
            **batch: The batch by its keys; labels in it are ignored.

        Returns:
            (B, S).
        """
        utilities: Tensor = self(slates=slates, **inputs(batch)).utilities
        return utilities

    def score_choices(self, choices: Tensor, /, **batch: Tensor) -> EvaluatorOutput:
        """Values soft slates, with gradients: what is read of a position is the mean over its candidates.

        A slate of one candidate per position is worth what `score_slates` says of it.

        Args:
            choices: (B, S, M, N), the share of each candidate in each position; rows sum to 1, those of padding to 0.
            **batch: The batch by its keys; labels in it are ignored.

        Returns:
            What `forward` returns for slates.

        Raises:
            ValueError: If slates are longer than the config's slate size.
        """
        self._check_length(choices[..., 0])
        return self.compute({**inputs(batch), "slates": choices})


def _verify(name: str | os.PathLike[str], subfolder: str = "", **options: Any) -> None:
    """Compares the weights of a folder or repository with their checksums."""
    folder = Path(name)
    if not folder.is_dir():
        place = {key: options[key] for key in ("revision", "token", "cache_dir", "local_files_only") if key in options}
        wanted = [str(PurePosixPath(subfolder, file)) for file in (CHECKSUMS_FILE, "model*.safetensors")]
        folder = Path(snapshot_download(str(name), allow_patterns=wanted, **place))
    verify_checksums(folder / subfolder)
