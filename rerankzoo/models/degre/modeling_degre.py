"""DeGRe: an evaluator that values every prefix of every slate, and the generator distilled from its search.

DeGRe (KDD 2026, arXiv 2605.25749, Zhejiang University and Alibaba). Exploration is offline: beam search over the
requests with the evaluator's prefix values finds slates that nobody was shown. Online, the generator needs one greedy
pass.

B requests, N candidates, M positions, S slates, T targets, D hidden; R rows being decoded, each a prefix, L layers.

Where this differs from the paper, or fills in what our sources (summaries and the method figure) do not state:

- The evaluator's default head predicts feedback: one probability per target and position, and V of a prefix is the
  expected utility of its positions, weights and known values applied. The paper regresses the accumulated reward; that
  head is there too, and much worse in truth from the same logs. It predicts each position's increment of the value.
- "GLN" is a gated, normalised transform per field (`GatedFieldNorm`); the formula is ours.
- Inter-field attention: the fields of an item attend to those of the item and of the request; the request's fields do
  not attend. An item's vector is a linear map of its fields plus one of the request's.
- Pre-norm Transformer blocks with GELU; learned positions. The pointer is scaled by 1/sqrt(D), with a linear map of
  the decoder's state.
- The decoder's input at a step is the encoder's vector of the item chosen before, plus the position.
- From plain logs, where nothing was mined, the generator learns the likelihood of the logged slates whose utility
  reaches a threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from rerankzoo.batch import PADDING, gather_candidates, inputs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import candidate_utility, position_discount, position_utility, slate_utility
from rerankzoo.generation import Batch, RerankingGenerationConfig, Scorer, ScorerState, SlateGenerationMixin
from rerankzoo.generation.scorer import remaining_log_probs
from rerankzoo.layers import (
    FieldEmbedding,
    GatedFieldNorm,
    InterFieldAttention,
    PointerHead,
    TokenBlock,
    TransformerBlock,
    additive_mask,
    causal_mask,
    key_mask,
    norm_function,
)
from rerankzoo.losses import (
    cumulative_regression_loss,
    feedback_loss,
    hard_label_loss,
    log_probabilities,
    slate_mean,
    soft_label_loss,
)
from rerankzoo.models.base import EvaluatorOutput, RerankingPreTrainedModel, SlateModelOutput
from rerankzoo.models.degre.configuration_degre import DeGReConfig

Features = Mapping[str, Tensor | None]


def _blocks(config: DeGReConfig, number: int, cross_attention: bool = False) -> nn.ModuleList:
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


def _check_length(slates: Tensor, config: DeGReConfig) -> None:
    if slates.shape[-1] > config.slate_size:
        raise ValueError(f"slates have {slates.shape[-1]} positions, the model has slate_size {config.slate_size}")


def _next_position(state: ScorerState, slate_size: int) -> int:
    position = state.prefix.shape[1]
    if position >= slate_size:
        raise ValueError(f"slate_size must be at most {slate_size}, the number of positions of the model")
    return position


class DeGReItemEncoder(nn.Module):
    """From the fields of candidates and request to one vector per candidate, without looking at other candidates.

    Evaluator and generator have the same, so that one can start from the other's (`pretrained_modules` of
    `rerankzoo.training.RerankingModule`).
    """

    def __init__(self, fields: FieldEmbedding, config: DeGReConfig) -> None:
        super().__init__()
        size, own, shared = config.field_size, fields.num_candidate_fields, fields.num_request_fields
        self.fields = fields
        self.candidate_norm = GatedFieldNorm(own, size)
        # Nothing without fields of the request: a parameter that can get no gradient stops distributed training.
        self.request_norm = GatedFieldNorm(shared, size) if shared else None
        self.attention = InterFieldAttention(size, dropout=config.attention_probs_dropout_prob)
        self.candidate_projection = nn.Linear(own * size, config.hidden_size)
        self.request_projection = nn.Linear(shared * size, config.hidden_size, bias=False) if shared else None

    @property
    def request_size(self) -> int:
        """Width of the request's vector."""
        return self.fields.num_request_fields * self.fields.field_size

    def forward(self, batch: Features) -> tuple[Tensor, Tensor]:
        """Encodes a batch.

        Args:
            batch: The features of the model's schema.

        Returns:
            The candidates (B, N, D), and the request's own fields (B, `request_size`), side by side.
        """
        candidates, request = self.fields(
            batch["request_categorical"],
            batch["request_numeric"],
            batch["candidate_categorical"],
            batch["candidate_numeric"],
            batch.get("history_categorical"),
            batch.get("history_mask"),
        )
        if self.request_norm is not None:
            request = self.request_norm(request)
        candidates = self.attention(self.candidate_norm(candidates), request)
        items, request = self.candidate_projection(candidates.flatten(-2)), request.flatten(-2)
        if self.request_projection is not None:
            items = items + self.request_projection(request).unsqueeze(1)
        return items, request


class DeGRePreTrainedModel(RerankingPreTrainedModel):
    """Base of the DeGRe family."""

    config: DeGReConfig
    config_class = DeGReConfig
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]


# --- the evaluator --------------------------------------------------------------------------------------------------


class DeGReEvaluator(SlateGenerationMixin, DeGRePreTrainedModel):
    """DeGRe-E, the look-ahead evaluator: V(l_1..l_t) for every prefix of every slate.

    Trained on logged slates. `generate` searches by the values themselves: with `num_beams=8` it is the search that
    mining runs.

    Example:
        >>> evaluator = DeGReEvaluator.from_pretrained("outputs/degre-evaluator-simulator/best")  # doctest: +SKIP
        >>> evaluator.score_slates(slates, **batch)  # doctest: +SKIP
    """

    def __init__(self, config: DeGReConfig) -> None:
        super().__init__(config)
        self.item_encoder = DeGReItemEncoder(self.make_field_embedding(config.field_size), config)
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.layers = _blocks(config, config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.predicts_feedback = config.value_head == "feedback"
        self.value_head = nn.Linear(config.hidden_size, len(self.schema.targets) if self.predicts_feedback else 1)
        self.chains = _chains([target.name for target in self.schema.targets], config.conditional_targets or {})
        self.post_init()

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        slates: Tensor,
        candidate_value: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        feedback: Tensor | None = None,
        **other: Tensor,
    ) -> EvaluatorOutput:
        """Values the prefixes of slates; with feedback, also the loss.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            candidate_mask: (B, N), True where a candidate is real.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            slates: (B, S, M'), M' at most the config's slate size; -100 pads.
            candidate_value: (B, N, T), value of each target for each candidate.
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            feedback: (B, S, M', T); in [0, 1] for the feedback head.
            **other: Further keys of the batch, which this model does not use.

        Returns:
            `EvaluatorOutput`; its logits only with the feedback head.

        Raises:
            ValueError: If slates are longer than the config's slate size, or feedback lies outside [0, 1] for the
                feedback head.
        """
        _check_length(slates, self.config)
        features = {
            "request_categorical": request_categorical,
            "request_numeric": request_numeric,
            "candidate_categorical": candidate_categorical,
            "candidate_numeric": candidate_numeric,
            "history_categorical": history_categorical,
            "history_mask": history_mask,
        }
        predicted = self.value_head(self._read(self._slate_items(features, slates), slates))  # (B, S, M, T or 1)
        if self.predicts_feedback:
            gains = position_utility(self.probabilities(predicted), slates, candidate_value, self.schema)
        else:
            gains = predicted.squeeze(-1).masked_fill(slates < 0, 0.0)
        values = gains.cumsum(-1)  # padding adds nothing: the last one is the whole slate's
        found = EvaluatorOutput(
            logits=predicted if self.predicts_feedback else None, utilities=values[..., -1], prefix_values=values
        )
        if feedback is None:
            return found
        if self.predicts_feedback:
            losses = feedback_loss(predicted, feedback, slates >= 0, self._possible(feedback))
        else:
            rewards = position_utility(feedback, slates, candidate_value, self.schema)
            losses = cumulative_regression_loss(values, rewards, slates >= 0)
        loss = slate_mean(losses, slates).mean()
        return EvaluatorOutput(loss=loss, loss_terms={self.config.value_head: loss}, **found)

    def encode_items(self, batch: Features) -> Tensor:
        """Vectors (B, N, D) of the candidates, before any slate is known."""
        return self.item_encoder(batch)[0]

    def _slate_items(self, batch: Features, slates: Tensor) -> Tensor:
        """Vectors (B, S, M, D) of the items of slates (B, S, M).

        Where the slates show fewer items than there are candidates, as in a log, only those are encoded.
        """
        candidates = ("candidate_categorical", "candidate_numeric")
        shown = slates.flatten(1)
        if shown.shape[1] >= cast(Tensor, batch["candidate_numeric"]).shape[1]:
            return gather_candidates(self.encode_items(batch), slates)
        picked = {key: gather_candidates(cast(Tensor, batch[key]), shown) for key in candidates}
        return self.encode_items({**batch, **picked}).view(*slates.shape, -1)

    def _read(self, items: Tensor, slates: Tensor) -> Tensor:
        """States (B, S, M, D) of the positions of slates (B, S, M) with these items, each from the items down to it."""
        length = slates.shape[-1]
        hidden = (items + self.positions(torch.arange(length, device=slates.device))).flatten(0, 1)  # (B * S, M, D)
        mask = causal_mask(length, slates.device)  # padding stands at the end: no real position looks at it
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, implementation=self.config._attn_implementation)
        return self.norm(hidden).unflatten(0, slates.shape[:2])

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities (..., T) from logits (..., T); of a conditional target, that it and all before it happen."""
        own = logits.sigmoid()
        if not self.config.conditional_targets:
            return own
        return torch.stack([own[..., chain].prod(-1) for chain in self.chains], dim=-1)

    def gains(self, states: Tensor, position: int, candidate_value: Tensor) -> Tensor:
        """What candidates add to the value of a prefix as its next item.

        Args:
            states: (..., D), the last layer's states, before the norm.
            position: Where they would stand.
            candidate_value: (..., T).

        Returns:
            (...).
        """
        predicted = self.value_head(self.norm(states))
        if not self.predicts_feedback:
            return predicted.squeeze(-1)
        discount = position_discount(predicted.new_tensor(position), self.schema)
        return candidate_utility(self.probabilities(predicted), candidate_value, self.schema) * discount

    def _possible(self, feedback: Tensor) -> Tensor | None:
        """Where a target could happen at all (B, S, M, T): where its parent did. `None`: everywhere."""
        if not self.config.conditional_targets:
            return None
        happened = feedback > 0
        every = torch.ones_like(happened[..., 0])
        parents = [chain[1] if len(chain) > 1 else None for chain in self.chains]
        return torch.stack([every if parent is None else happened[..., parent] for parent in parents], dim=-1)

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility of slates; see `rerankzoo.generation.SlateEvaluator`.

        Args:
            slates: (B, S, M), -100 pads.
            **batch: The batch by its keys; labels in it are ignored.

        Returns:
            (B, S).
        """
        return self(slates=slates, **inputs(batch)).utilities

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the value of each prefix extended by each candidate."""
        return DeGReEvaluatorScorer(self)


def _chains(targets: Sequence[str], parents: dict[str, str]) -> list[list[int]]:
    """For each target its own number, its parent's, its parent's parent's..."""
    chains = [[name] for name in targets]
    for chain in chains:
        while chain[-1] in parents:
            chain.append(parents[chain[-1]])
    return [[targets.index(name) for name in chain] for chain in chains]


class DeGReEvaluatorScorer(Scorer):
    """Values all extensions of all prefixes in one call, from cached keys and values of the prefixes.

    The candidates are the queries; each attends to its row's prefix, which is not copied, and to itself. A chosen
    candidate's keys and values were computed when it was scored, and are gathered into the cache. What the first layer
    computes of a candidate at a position does not depend on the prefix: once per request, whatever the beams.

    Args:
        model: The evaluator.
    """

    kind = "value"

    def __init__(self, model: DeGReEvaluator) -> None:
        self.model = model
        self.layers = cast(list[TransformerBlock], list(model.layers))

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        return {"candidate_states": self.model.encode_items(batch), "candidate_value": batch["candidate_value"]}

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        state = super().start(batch)
        items = state.memory["candidate_states"]
        state.cache = {"value": items.new_zeros(items.shape[0])}
        return state

    def score(self, state: ScorerState) -> Tensor:
        """See `Scorer.score`."""
        if not state.step:
            state.step = self._expand(state)
        values = state.cache["value"].unsqueeze(-1) + state.step["gains"]
        return values.masked_fill(~state.available, float("-inf"))

    def _expand(self, state: ScorerState) -> dict[str, Tensor]:
        """Gains (R, N) of all candidates, and their keys and values (R, N, 2 * D) in each layer."""
        position = _next_position(state, self.model.config.slate_size)
        items, request = state.memory["candidate_states"], state.request
        hidden = items + self.model.positions.weight[position]
        projected = self.layers[0].project(hidden)[request]
        hidden, size, step = hidden[request], items.shape[-1], {}
        for number, layer in enumerate(self.layers):
            if number > 0:
                projected = layer.project(hidden)
            step[f"key_value_{number}"] = projected[..., size:]
            hidden = layer.step(hidden, projected, state.cache.get(f"past_{number}"))
        step["gains"] = self.model.gains(hidden, position, state.memory["candidate_value"][request])
        return step

    def extend(self, state: ScorerState, parent: Tensor, index: Tensor) -> ScorerState:
        """See `Scorer.extend`."""
        if not state.step:
            state.step = self._expand(state)
        new, chosen = super().extend(state, parent, index), index.clamp_min(0)
        for number, layer in enumerate(self.layers):
            name = f"past_{number}"
            fresh = layer.attention.heads(state.step[f"key_value_{number}"][parent, chosen].unsqueeze(1))
            new.cache[name] = torch.cat([new.cache[name], fresh], dim=2) if name in new.cache else fresh
        new.cache["value"] = new.cache["value"] + state.step["gains"][parent, chosen]
        return new


class DeGReEvaluatorEnsemble(SlateGenerationMixin, nn.Module):
    """Several evaluators as one: the mean of their values, less a multiple of their spread.

    Takes the place of an evaluator wherever one is asked for: `generate`, `scorer`, `score_slates`.

    Args:
        members: Evaluators of the same schema, such as of several seeds.
        spread_penalty: k; a value is the members' mean minus k times their standard deviation. A little pessimism costs
            nothing, a lot hurts (docs/models/degre.md).

    Raises:
        ValueError: If there are no members, or k is negative.
        SchemaMismatchError: If the members were trained with different schemas.
    """

    def __init__(self, members: Sequence[DeGReEvaluator], spread_penalty: float = 0.0) -> None:
        super().__init__()
        if not members:
            raise ValueError("an ensemble needs at least one member")
        if spread_penalty < 0:
            raise ValueError(f"spread_penalty must not be negative, got {spread_penalty}")
        for member in members:
            member.check_schema(members[0].schema)
        self.members = nn.ModuleList(members)
        self.spread_penalty = spread_penalty
        self.config = members[0].config
        self.schema = members[0].schema
        self.generation_config = RerankingGenerationConfig()

    @property
    def device(self) -> torch.device:
        """Where the members are."""
        return self._evaluators()[0].device

    def combine(self, values: Tensor) -> Tensor:
        """One value (...) from the members' values (K, ...)."""
        mean = values.mean(0)
        if self.spread_penalty == 0:
            return mean
        return mean - self.spread_penalty * values.std(0, correction=0)

    @torch.no_grad()
    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Predicted utility (B, S) of slates (B, S, M); see `DeGReEvaluator.score_slates`."""
        return self.combine(torch.stack([member.score_slates(slates, **batch) for member in self._evaluators()]))

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`."""
        return EnsembleScorer(self, [member.scorer() for member in self._evaluators()])

    def _evaluators(self) -> list[DeGReEvaluator]:
        return [cast(DeGReEvaluator, member) for member in self.members]


@dataclass
class EnsembleState(ScorerState):
    """A state with those of the members.

    Attributes:
        members: One per member, for the same rows.
    """

    members: list[ScorerState] = field(default_factory=list)


class EnsembleScorer(Scorer):
    """Combines the scores of the members' scorers, which decode the same prefixes side by side.

    Args:
        ensemble: Tells how to combine.
        scorers: Of its members.
    """

    kind = "value"

    def __init__(self, ensemble: DeGReEvaluatorEnsemble, scorers: Sequence[Scorer]) -> None:
        self.ensemble = ensemble
        self.scorers = scorers

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`: nothing of its own."""
        return {}

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        members = [scorer.start(batch) for scorer in self.scorers]
        return EnsembleState(**vars(super().start(batch)), members=members)

    def score(self, state: ScorerState) -> Tensor:
        """See `Scorer.score`."""
        pairs = zip(self.scorers, cast(EnsembleState, state).members, strict=True)
        scores = torch.stack([scorer.score(member) for scorer, member in pairs])
        # The spread of -inf is not a number.
        combined = self.ensemble.combine(scores.masked_fill(~state.available, 0.0))
        return combined.masked_fill(~state.available, float("-inf"))

    def extend(self, state: ScorerState, parent: Tensor, index: Tensor) -> ScorerState:
        """See `Scorer.extend`."""
        pairs = zip(self.scorers, cast(EnsembleState, state).members, strict=True)
        members = [scorer.extend(member, parent, index) for scorer, member in pairs]
        return EnsembleState(**vars(super().extend(state, parent, index)), members=members)


# --- the generator --------------------------------------------------------------------------------------------------


class DeGReGenerator(SlateGenerationMixin, DeGRePreTrainedModel):
    """DeGRe-G, the online generator: candidate encoder, causal decoder, pointer over the candidates left.

    Trained on mined slates by hybrid distillation, or on plain logs by likelihood. Decodes greedily unless told
    otherwise.

    Example:
        >>> generator = DeGReGenerator.from_pretrained("outputs/degre-generator-simulator/best")  # doctest: +SKIP
        >>> slates = generator.generate(**extractor(rows))  # doctest: +SKIP
    """

    def __init__(self, config: DeGReConfig) -> None:
        super().__init__(config)
        self.item_encoder = DeGReItemEncoder(self.make_field_embedding(config.field_size), config)
        size = self.item_encoder.request_size
        self.user_projection = nn.Linear(size, config.hidden_size, bias=False) if size else None
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.encoder_layers = _blocks(config, config.num_hidden_layers)
        self.encoder_norm = nn.LayerNorm(config.hidden_size)
        self.decoder_layers = _blocks(config, config.num_decoder_layers, cross_attention=True)
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.pointer = PointerHead(config.hidden_size)
        self.post_init()

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        candidate_value: Tensor | None = None,
        slates: Tensor | None = None,
        feedback: Tensor | None = None,
        slate_weights: Tensor | None = None,
        soft_labels: Tensor | None = None,
        **other: Tensor,
    ) -> SlateModelOutput:
        """Scores every candidate at every position of given slates; with labels, also the loss.

        Mined slates (`slate_weights`) are distilled. Otherwise slates with feedback are learned by likelihood.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            candidate_mask: (B, N), True where a candidate is real.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            candidate_value: (B, N, T), value of each target for each candidate; needed for the likelihood.
            slates: (B, S, M'), mined or logged slates, M' at most the config's slate size; -100 pads. Without them
                only the first position is scored.
            feedback: (B, S, M', T), of logged slates.
            slate_weights: (B, S), of mined slates; a request's weights sum to 1.
            soft_labels: (B, S, M', N), of mined slates: per position a distribution over the candidates left. Without
                them only the slates themselves are learned.
            **other: Further keys of the batch, which this model does not use.

        Returns:
            `SlateModelOutput`; its logits (B, S, M', N) are the smallest finite number where a candidate is padding or
            stands further up in the slate.

        Raises:
            ValueError: If slates are longer than the config's slate size, no utility threshold is set for the
                likelihood, or the config asks for soft labels only and there are none.
        """
        features = {
            "request_categorical": request_categorical,
            "request_numeric": request_numeric,
            "candidate_categorical": candidate_categorical,
            "candidate_numeric": candidate_numeric,
            "history_categorical": history_categorical,
            "history_mask": history_mask,
        }
        states, user = self.encode(features, candidate_mask)
        prefix = candidate_mask.new_full((len(states), 1, 1), PADDING, dtype=torch.int64)
        prefix = prefix if slates is None else slates
        _check_length(prefix, self.config)
        logits = self._decode(states, user, prefix, candidate_mask)
        if slates is not None and slate_weights is not None:
            loss, terms = self._distill(logits, slates, slate_weights, soft_labels)
        elif slates is not None and feedback is not None and candidate_value is not None:
            loss, terms = self._imitate(logits, slates, slate_utility(feedback, slates, candidate_value, self.schema))
        else:
            return SlateModelOutput(logits=logits, candidate_states=states)
        return SlateModelOutput(loss=loss, loss_terms=terms, logits=logits, candidate_states=states)

    def encode(self, batch: Features, candidate_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Encoded candidates (B, N, D) and the projected user (B, D), zeros where the schema has no request fields."""
        states, request = self.item_encoder(batch)
        shared = {"mask": key_mask(candidate_mask), "implementation": self.config._attn_implementation}
        for layer in self.encoder_layers:
            states = layer(states, **shared)
        states = self.encoder_norm(states)
        user = torch.zeros_like(states[:, 0]) if self.user_projection is None else self.user_projection(request)
        return states, user

    def _decode(self, states: Tensor, user: Tensor, slates: Tensor, candidate_mask: Tensor) -> Tensor:
        """Logits (B, S, M, N) of each position, given the user and the items further up."""
        num_slates, length = slates.shape[1:]
        start = user[:, None, None].expand(-1, num_slates, 1, -1)
        hidden = torch.cat([start, gather_candidates(states, slates[..., :-1])], dim=2)
        hidden = (hidden + self.positions(torch.arange(length, device=slates.device))).flatten(0, 1)
        shared = {
            "mask": causal_mask(length, slates.device),
            "memory": states,  # one for all slates of a request
            "memory_mask": key_mask(candidate_mask),
            "implementation": self.config._attn_implementation,
        }
        for layer in self.decoder_layers:
            hidden = layer(hidden, **shared)
        hidden = self.decoder_norm(hidden).view(len(states), num_slates * length, -1)
        logits = self.pointer(hidden, states, candidate_mask).unflatten(1, (num_slates, length))
        return logits.masked_fill(_above(slates, states.shape[1]), torch.finfo(logits.dtype).min)

    def _distill(
        self, logits: Tensor, slates: Tensor, slate_weights: Tensor, soft_labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_probs, config = log_probabilities(logits), self.config
        if soft_labels is None and config.hard_label_weight == 0:
            raise ValueError("hard_label_weight is 0 and the batch has no soft_labels: nothing is left to learn")
        hard = (slate_weights * hard_label_loss(log_probs, slates)).sum(-1).mean()
        if soft_labels is None:
            return config.hard_label_weight * hard, {"hard_label": hard}
        soft = (slate_weights * soft_label_loss(log_probs, soft_labels, slates)).sum(-1).mean()
        loss = config.hard_label_weight * hard + config.soft_label_weight * soft
        return loss, {"hard_label": hard, "soft_label": soft}

    def _imitate(self, logits: Tensor, slates: Tensor, utility: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        threshold = self.config.utility_threshold
        if threshold is None:
            message = "it is not set, and logged slates are learned if they reach it; use a quantile of slate_utility()"
            raise RerankingDataError(f"{message} over the training split", field="utility_threshold")
        losses = hard_label_loss(log_probabilities(logits), slates)  # (B, S)
        loss = slate_mean((utility >= threshold) * losses, slates).mean()
        return loss, {"likelihood": loss}

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the decoder, one token at a time."""
        return DeGReGeneratorScorer(self)


def _above(slates: Tensor, num_candidates: int) -> Tensor:
    """(B, S, M, N), True where a candidate stands further up in the slate."""
    chosen = slates.unsqueeze(-1) == torch.arange(num_candidates, device=slates.device)
    return (chosen.cumsum(2) - chosen.long()) > 0


class DeGReGeneratorScorer(Scorer):
    """Decodes with cached keys and values; the rows of a request share the candidates' and never copy them.

    Args:
        model: The generator.
    """

    kind = "log_prob"

    def __init__(self, model: DeGReGenerator) -> None:
        self.model = model
        self.slate_size = model.config.slate_size
        implementation = model.config._attn_implementation
        # Looked up once: attributes of modules and configs are slow, and every position needs them.
        self.layers = cast(list[TransformerBlock], list(model.decoder_layers))
        self.blocks = [TokenBlock(layer, implementation) for layer in self.layers]
        self.norm, self.positions = norm_function(model.decoder_norm), model.positions.weight

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        mask = batch["candidate_mask"]
        states, user = self.model.encode(batch, mask)
        memory = {
            "candidate_states": states,
            "user": user,
            "first": torch.arange(mask.shape[0], device=mask.device) * mask.shape[1],
            "mask": additive_mask(key_mask(mask), states.dtype),
            "pointer": self.model.pointer.keys(states).transpose(1, 2),
        }
        for number, layer in enumerate(self.layers):
            # Contiguous: copied once, read at every position.
            key, value = layer.memory_key_value(states).chunk(2, dim=1)
            memory[f"key_{number}"], memory[f"value_{number}"] = key.contiguous(), value.contiguous()
        return memory

    def score(self, state: ScorerState) -> Tensor:
        """See `Scorer.score`."""
        if not state.step:
            state.step = self._advance(state)
        return state.step["log_probs"]

    def _advance(self, state: ScorerState) -> dict[str, Tensor]:
        """Log-probabilities (R, N) of the next item, and the cache with the newest token."""
        position, memory, step = _next_position(state, self.slate_size), state.memory, {}
        hidden = self._token(state) + self.positions[position]  # (R, D)
        for number, block in enumerate(self.blocks):
            past, known = state.cache.get(f"past_{number}"), (memory[f"key_{number}"], memory[f"value_{number}"])
            hidden, step[f"past_{number}"] = block(hidden, past, known, memory["mask"])
        pointer = memory["pointer"]
        grouped = self.norm(hidden).view(pointer.shape[0], -1, hidden.shape[-1])  # (B, W, D)
        step["log_probs"] = remaining_log_probs(torch.bmm(grouped, pointer).flatten(0, 1), state.available)
        return step

    def _token(self, state: ScorerState) -> Tensor:
        """What the decoder reads next (R, D): the item chosen last, at first the user."""
        if state.prefix.shape[1] == 0:
            return state.of_requests(state.memory["user"])
        last = state.of_requests(state.memory["first"]) + state.prefix[:, -1].clamp_min(0)
        return state.memory["candidate_states"].flatten(0, 1).index_select(0, last)

    def grown(self, state: ScorerState) -> dict[str, Tensor]:
        """See `Scorer.grown`: with the newest token."""
        if not state.step:
            state.step = self._advance(state)
        return {name: tensor for name, tensor in state.step.items() if name != "log_probs"}


__all__ = ["DeGReEvaluator", "DeGReEvaluatorEnsemble", "DeGReGenerator"]
