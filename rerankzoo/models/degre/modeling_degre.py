"""DeGRe: an evaluator that values every prefix of every slate, and the generator distilled from its search.

DeGRe (KDD 2026, arXiv 2605.25749, Zhejiang University and Alibaba). Exploration is offline: beam search over the
requests with the evaluator's prefix values finds slates that nobody was shown. Online, the generator needs one greedy
pass.

B requests, N candidates, M positions, S slates, T targets, D hidden; R rows being decoded, each a prefix, L layers.

Where this differs from the paper, or fills in what our sources (summaries and the method figure) do not state:

- The evaluator's default head predicts feedback: one probability per target and position, and V of a prefix is the
  expected utility of its positions, weights and known values applied. The paper regresses the accumulated reward; that
  head is there too, and much worse in truth from the same logs. It predicts each position's increment of the value.
- Two heads are other papers': SORT-Gen's ordered regression (arXiv 2505.07197) and an exit model after CAVE (arXiv
  2508.02242); what differs from them is told in `rerankzoo.layers.prefix_value`.
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

from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import Batch, gather_candidates, shown
from rerankzoo.generation import Cache, EvaluatorEnsemble, ModelScorer, Scorer, ScorerState, SlateGenerationMixin
from rerankzoo.generation.scorer import check_positions, chosen_above
from rerankzoo.layers import (
    ExitValueHead,
    FeedbackHead,
    FeedbackValueHead,
    FieldEmbedding,
    GatedFieldNorm,
    InterFieldAttention,
    OrderedValueHead,
    PrefixHead,
    RegressionValueHead,
)
from rerankzoo.models.base import EvaluatorOutput, RerankingPreTrainedModel, SlateEvaluator
from rerankzoo.models.causal_trunk import keep_chosen, read_slates, shown_alone, step_candidates
from rerankzoo.models.degre.configuration_degre import DeGReConfig
from rerankzoo.models.degre.guide import Guide, is_guides, make_evaluator
from rerankzoo.models.pointer_generator import Encoded, PointerGenerator, PointerScorer
from rerankzoo.models.registry import register_model

#: The ensemble of evaluators knows no family; the name is kept.
DeGReEvaluatorEnsemble = EvaluatorEnsemble


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

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encodes a batch.

        Args:
            batch: The features of the model's schema.

        Returns:
            The candidates (B, N, D), and the request's own fields (B, `request_size`), side by side.
        """
        candidates, request = self.fields(batch)
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
    paper = ("DeGRe", "DeGRe, KDD 2026, <https://arxiv.org/abs/2605.25749>.")


# --- the evaluator --------------------------------------------------------------------------------------------------


@register_model
class DeGReEvaluator(SlateGenerationMixin, DeGRePreTrainedModel, SlateEvaluator):
    """DeGRe-E, the look-ahead evaluator: V(l_1..l_t) for every prefix of every slate.

    Trained on logged slates. `generate` searches by the values themselves: with `num_beams=8` it is the search that
    mining runs.
    """

    def __init__(self, config: DeGReConfig) -> None:
        super().__init__(config)
        self.item_encoder = DeGReItemEncoder(self.make_field_embedding(config.field_size), config)
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.layers = self.make_blocks(config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.value_head: Any = self._make_value_head(config)
        self.post_init()

    def _make_value_head(self, config: DeGReConfig) -> PrefixHead:
        size, schema, parents = config.hidden_size, self.schema, config.conditional_targets
        if config.value_head == "exit":
            return ExitValueHead(size, schema, parents or {}, config.slate_size)
        if config.value_head == "ordered_regression":
            return OrderedValueHead(size, schema, config.slate_size)
        if config.value_head == "cumulative_regression":
            return RegressionValueHead(size, schema)
        return FeedbackValueHead(size, schema, parents)

    def compute(self, batch: Batch) -> EvaluatorOutput:
        """See `SlateEvaluator.compute`; logits only with the feedback head."""
        slates, head = batch["slates"], self.value_head
        predicted = head(self._read(self._slate_items(batch, slates)))  # (B, S, M, K)
        positions = torch.arange(slates.shape[2], dtype=torch.float32, device=slates.device)
        before = head.carried(predicted, positions)
        gains = head.gains(predicted, gather_candidates(batch["candidate_value"], slates), before, positions)
        values = gains.masked_fill(~shown(slates), 0.0).cumsum(-1)  # the last one is the whole slate's
        output = EvaluatorOutput(
            logits=predicted if isinstance(head, FeedbackHead) else None,
            utilities=values[..., -1],
            prefix_values=values,
            probabilities=head.probabilities_after(predicted, before),
        )
        if "feedback" not in batch:
            return output
        loss, output["log_likelihoods"] = head.learn(predicted, values, batch)
        return EvaluatorOutput(loss=loss, loss_terms={self.config.value_head: loss}, **output)

    @property
    def reading_size(self) -> int:
        """Numbers that the scorer's memory holds of an item."""
        return self.config.hidden_size + len(self.schema.targets)

    def encode_items(self, batch: Batch) -> Tensor:
        """Vectors (B, N, D) of the candidates, before any slate is known."""
        return self.item_encoder(batch)[0]

    def _slate_items(self, batch: Batch, slates: Tensor) -> Tensor:
        """Vectors (B, S, M, D) of the items of slates (B, S, M)."""
        alone = shown_alone(batch, slates)
        if alone is None:
            return gather_candidates(self.encode_items(batch), slates)
        return self.encode_items(alone).view(*slates.shape, -1)

    def _read(self, items: Tensor) -> Tensor:
        """States (B, S, M, D) of the positions of slates with these items, each from the items down to it."""
        return self.norm(read_slates(self.layers, self.positions, items, self.config._attn_implementation))

    def gains(
        self, states: Tensor, position: int, candidate_value: Tensor, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What candidates add to the value of a prefix as its next item.

        Args:
            states: (..., D), the last layer's states, before the norm.
            position: Where they would stand.
            candidate_value: (..., T).
            before: (..., C), what the head carries from the items above; `None`: there are none.

        Returns:
            The gains (...), and what the head carries on (..., C).
        """
        head, predicted = self.value_head, self.value_head(self.norm(states))
        place = torch.tensor(float(position), device=states.device)
        if before is None:
            before = predicted.new_zeros(*predicted.shape[:-1], head.num_carried)
        return head.gains(predicted, candidate_value, before, place), head.carry(predicted, before, place)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the value of each prefix extended by each candidate."""
        return DeGReEvaluatorScorer(self)


class DeGReEvaluatorScorer(ModelScorer):
    """Values all extensions of all prefixes in one call, from cached keys and values (see `step_candidates`)."""

    kind = "value"

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        return {"candidate_states": self.model.encode_items(batch), "candidate_value": batch["candidate_value"]}

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        state = super().start(batch)
        state.cache = {"value": torch.zeros(state.request.shape, device=state.request.device)}
        return state

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the keys and values (R, N, 2 * D) of all candidates in each layer."""
        position = state.prefix.shape[1]
        check_positions(position + 1, self.model.config.slate_size)
        hidden, cache = step_candidates(
            self.model.layers, self.model.positions, state.memory["candidate_states"], state
        )
        above = state.cache.get("carried")
        before = None if above is None else above.unsqueeze(1).expand(-1, hidden.shape[1], -1)
        value = state.of_requests(state.memory["candidate_value"])
        gains, cache["carries"] = self.model.gains(hidden, position, value, before)
        values = cache["values"] = state.cache["value"].unsqueeze(-1) + gains
        return values.masked_fill(~state.available, float("-inf")), cache

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`: the prefixes' keys and values, and of the candidates only the chosen one's."""
        chosen = index.clamp_min(0)
        rows = torch.arange(index.shape[0], device=index.device) if parent is None else parent
        kept = {"value": cache["values"][rows, chosen], "carried": cache["carries"][rows, chosen]}
        return {**kept, **keep_chosen(self.model.layers, cache, parent, rows, chosen)}


# --- the generator --------------------------------------------------------------------------------------------------


@register_model
class DeGReGenerator(DeGRePreTrainedModel, PointerGenerator):
    """DeGRe-G, the online generator: candidate encoder, causal decoder, pointer over the candidates left.

    Trained on mined slates by hybrid distillation, or on plain logs by likelihood. Decodes greedily unless told
    otherwise. With a guide (`config.guide`) it carries the evaluator with it, reads what that knows of items instead of
    their fields, and adds to the pointer's scores what it thinks of each next item.
    """

    def __init__(self, config: DeGReConfig) -> None:
        super().__init__(config)
        self.guide: Any = None
        size = 0
        if config.guide is None:
            self.item_encoder = DeGReItemEncoder(self.make_field_embedding(config.field_size), config)
            size = self.item_encoder.request_size
        else:
            evaluator = make_evaluator(config.guide, config.feature_schema)
            self.guide = Guide(evaluator, config.slate_size, config.hidden_size)
        self.user_projection = nn.Linear(size, config.hidden_size, bias=False) if size else None
        self.make_layers()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Guide):
            init.zeros_(module.sharpness)

    def encode(self, batch: Batch) -> Encoded:
        """See `PointerGenerator.encode`; the decoder starts with the user, or zeros where nothing is read of one."""
        guided = None if self.guide is None else self.guide.read(batch)
        items, request = self.item_encoder(batch) if guided is None else (self.guide.items(guided), None)
        states = self.encode_items(items, batch["candidate_mask"])
        user = torch.zeros_like(states[:, 0]) if self.user_projection is None else self.user_projection(request)
        return Encoded(states, user, batch["candidate_mask"], guided)

    def point(self, hidden: Tensor, encoded: Encoded, slates: Tensor) -> Tensor:
        """See `PointerGenerator.point`; with a guide, its preferences are added."""
        logits = super().point(hidden, encoded, slates)
        if self.guide is None:
            return logits
        logits = logits + self.guide.along(encoded.further, slates)
        return logits.masked_fill(chosen_above(slates, encoded.mask.shape[1]), torch.finfo(logits.dtype).min)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the decoder, one token at a time."""
        return PointerScorer(self) if self.guide is None else GuidedScorer(self)


class GuidedScorer(PointerScorer):
    """Decodes side by side with the guide's own scorer."""

    def remember(self, encoded: Encoded) -> dict[str, Tensor]:
        """See `PointerScorer.remember`."""
        return super().remember(encoded) | Guide.pack(encoded.further)

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        state = super().start(batch)
        state.cache = Guide.first_cache(state.memory)
        return state

    def logits(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `PointerScorer.logits`."""
        logits, cache = super().logits(state)
        preferences, further = self.model.guide.step(state)
        return logits + preferences, cache | further

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        own = {name: part for name, part in cache.items() if not is_guides(name)}
        return super().select(own, parent, index) | self.model.guide.select(cache, parent, index)


__all__ = ["DeGReEvaluator", "DeGReEvaluatorEnsemble", "DeGReGenerator"]
