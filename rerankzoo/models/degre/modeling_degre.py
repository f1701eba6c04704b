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

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import PADDING, Batch, gather_candidates, shown, widened
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import position_utility, slate_utility
from rerankzoo.generation import Cache, EvaluatorEnsemble, Scorer, ScorerState, SlateGenerationMixin
from rerankzoo.generation.scorer import check_positions, chosen_above, remaining_log_probs
from rerankzoo.layers import (
    FeedbackHead,
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
    hard_label_loss,
    log_probabilities,
    slate_mean,
    soft_label_loss,
)
from rerankzoo.models.base import (
    EvaluatorOutput,
    RerankingPreTrainedModel,
    SlateEvaluator,
    SlateGenerator,
    SlateModelOutput,
    features_of,
)
from rerankzoo.models.causal_trunk import keep_chosen, read_slates, step_candidates
from rerankzoo.models.degre.configuration_degre import DeGReConfig
from rerankzoo.models.degre.guide import Guide, Guided, is_guides, make_evaluator
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
        candidates, request = self.fields(*features_of(batch))
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
        self.predicts_feedback = config.value_head == "feedback"
        self.value_head: Any = (
            FeedbackHead(config.hidden_size, self.schema, config.conditional_targets)
            if self.predicts_feedback
            else nn.Linear(config.hidden_size, 1)
        )
        self.post_init()

    def compute(self, batch: Batch) -> EvaluatorOutput:
        """See `SlateEvaluator.compute`; logits only with the feedback head."""
        slates, value, feedback = batch["slates"], batch["candidate_value"], batch.get("feedback")
        predicted = self.value_head(self._read(self._slate_items(batch, slates)))  # (B, S, M, T or 1)
        if self.predicts_feedback:
            gains = self.value_head.position_utility(predicted, slates, value)
        else:
            gains = widened(predicted).squeeze(-1).masked_fill(~shown(slates), 0.0)
        values = gains.cumsum(-1)  # padding adds nothing: the last one is the whole slate's
        output = EvaluatorOutput(
            logits=predicted if self.predicts_feedback else None,
            utilities=values[..., -1],
            prefix_values=values,
            probabilities=self.value_head.probabilities(predicted) if self.predicts_feedback else None,
        )
        if feedback is None:
            return output
        if self.predicts_feedback:
            logged = self.value_head.log_likelihood(predicted, feedback, slates)
            output["log_likelihoods"], loss = logged.sum(-1), self.value_head.loss(logged, slates)
        else:
            rewards = position_utility(feedback, slates, value, self.schema)
            loss = slate_mean(cumulative_regression_loss(values, rewards, slates >= 0), slates).mean()
        return EvaluatorOutput(loss=loss, loss_terms={self.config.value_head: loss}, **output)

    @property
    def reading_size(self) -> int:
        """Numbers that the scorer's memory holds of an item."""
        return self.config.hidden_size + len(self.schema.targets)

    def encode_items(self, batch: Batch) -> Tensor:
        """Vectors (B, N, D) of the candidates, before any slate is known."""
        return self.item_encoder(batch)[0]

    def _slate_items(self, batch: Batch, slates: Tensor) -> Tensor:
        """Vectors (B, S, M, D) of the items of slates (B, S, M).

        Where the slates show fewer items than there are candidates, as in a log, only those are encoded.
        """
        items = slates.flatten(1)
        if slates.is_floating_point() or items.shape[1] >= batch["candidate_numeric"].shape[1]:
            return gather_candidates(self.encode_items(batch), slates)
        picked = {
            name: gather_candidates(batch[name], items) for name in ("candidate_categorical", "candidate_numeric")
        }
        return self.encode_items({**batch, **picked}).view(*slates.shape, -1)

    def _read(self, items: Tensor) -> Tensor:
        """States (B, S, M, D) of the positions of slates with these items, each from the items down to it."""
        return self.norm(read_slates(self.layers, self.positions, items, self.config._attn_implementation))

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
            return widened(predicted).squeeze(-1)
        return self.value_head.candidate_utility(predicted, candidate_value, position)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the value of each prefix extended by each candidate."""
        return DeGReEvaluatorScorer(self)


class DeGReEvaluatorScorer(Scorer):
    """Values all extensions of all prefixes in one call, from cached keys and values (see `step_candidates`).

    Args:
        model: The evaluator.
    """

    kind = "value"

    def __init__(self, model: DeGReEvaluator) -> None:
        self.model = model
        self.layers = model.layers

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
        hidden, cache = step_candidates(self.layers, self.model.positions, state.memory["candidate_states"], state)
        gains = self.model.gains(hidden, position, state.of_requests(state.memory["candidate_value"]))
        values = cache["values"] = state.cache["value"].unsqueeze(-1) + gains
        return values.masked_fill(~state.available, float("-inf")), cache

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`: the prefixes' keys and values, and of the candidates only the chosen one's."""
        chosen = index.clamp_min(0)
        rows = torch.arange(index.shape[0], device=index.device) if parent is None else parent
        return {"value": cache["values"][rows, chosen], **keep_chosen(self.layers, cache, parent, rows, chosen)}


# --- the generator --------------------------------------------------------------------------------------------------


@register_model
class DeGReGenerator(DeGRePreTrainedModel, SlateGenerator):
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
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.encoder_layers = self.make_blocks(config.num_hidden_layers)
        self.encoder_norm = nn.LayerNorm(config.hidden_size)
        self.decoder_layers = self.make_blocks(config.num_decoder_layers, cross_attention=True)
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.pointer = PointerHead(config.hidden_size)
        self.post_init()

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`.

        Mined slates (`slate_weights`) are distilled, their soft labels where they have some. Otherwise slates with
        feedback are learned by likelihood. Without slates only the first position is scored.

        Returns:
            Logits (B, S, M', N) are the smallest finite number where a candidate is padding or stands further up in
            the slate.

        Raises:
            ValueError: If no utility threshold is set for the likelihood, or the config asks for soft labels only and
                there are none.
        """
        mask = batch["candidate_mask"]
        guided = None if self.guide is None else self.guide.read(batch)
        states, user = self.encode(batch, guided)
        slates = batch.get("slates")
        prefix = torch.full((mask.shape[0], 1, 1), PADDING, device=mask.device) if slates is None else slates
        logits = self._teach(states, user, prefix, mask, guided)
        if slates is not None and "slate_weights" in batch:
            loss, terms = self._distill(logits, slates, batch["slate_weights"], batch.get("soft_labels"))
        elif {"slates", "feedback", "candidate_value"} <= batch.keys():
            utility = slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], self.schema)
            loss, terms = self._imitate(logits, batch["slates"], utility)
        else:
            return SlateModelOutput(logits=logits, candidate_states=states)
        return SlateModelOutput(loss=loss, loss_terms=terms, logits=logits, candidate_states=states)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Guide):
            init.zeros_(module.sharpness)

    def encode(self, batch: Batch, guided: Guided | None = None) -> tuple[Tensor, Tensor]:
        """Encoded candidates (B, N, D) and the projected user (B, D), zeros where nothing is read of the request.

        Args:
            batch: The requests.
            guided: What the guide has read, where there is one.
        """
        if self.guide is None:
            states, request = self.item_encoder(batch)
        else:
            states, request = self.guide.items(guided), None
        shared = {"mask": key_mask(batch["candidate_mask"]), "implementation": self.config._attn_implementation}
        for layer in self.encoder_layers:
            states = layer(states, **shared)
        states = self.encoder_norm(states)
        user = torch.zeros_like(states[:, 0]) if self.user_projection is None else self.user_projection(request)
        return states, user

    def _teach(
        self, states: Tensor, user: Tensor, slates: Tensor, candidate_mask: Tensor, guided: Guided | None
    ) -> Tensor:
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
        if self.guide is not None:
            logits = logits + self.guide.along(guided, slates)
        return logits.masked_fill(chosen_above(slates, states.shape[1]), torch.finfo(logits.dtype).min)

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
        self.guide = model.guide
        self.norm, self.positions = norm_function(model.decoder_norm), model.positions.weight

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        mask = batch["candidate_mask"]
        guided = None if self.guide is None else self.guide.read(batch)
        states, user = self.model.encode(batch, guided)
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
        return memory if guided is None else memory | Guide.pack(guided)

    def start(self, batch: Batch) -> ScorerState:
        """See `Scorer.start`."""
        state = super().start(batch)
        if self.guide is not None:
            state.cache = Guide.first_cache(state.memory)
        return state

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the newest token."""
        position, memory, cache = state.prefix.shape[1], state.memory, {}
        check_positions(position + 1, self.slate_size)
        hidden = self._token(state) + self.positions[position]  # (R, D)
        for number, block in enumerate(self.blocks):
            past, known = state.cache.get(f"past_{number}"), (memory[f"key_{number}"], memory[f"value_{number}"])
            hidden, cache[f"past_{number}"] = block(hidden, past, known, memory["mask"])
        pointer = memory["pointer"]
        grouped = self.norm(hidden).view(pointer.shape[0], -1, hidden.shape[-1])  # (B, W, D)
        logits = torch.bmm(grouped, pointer).flatten(0, 1)
        if self.guide is not None:
            preferences, further = self.guide.step(state)
            logits, cache = logits + preferences, cache | further
        return remaining_log_probs(logits, state.available), cache

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        if self.guide is None:
            return super().select(cache, parent, index)
        own = {name: part for name, part in cache.items() if not is_guides(name)}
        return super().select(own, parent, index) | self.guide.select(cache, parent, index)

    def _token(self, state: ScorerState) -> Tensor:
        """What the decoder reads next (R, D): the item chosen last, at first the user."""
        if state.prefix.shape[1] == 0:
            return state.of_requests(state.memory["user"])
        last = state.of_requests(state.memory["first"]) + state.prefix[:, -1].clamp_min(0)
        return state.memory["candidate_states"].flatten(0, 1).index_select(0, last)


__all__ = ["DeGReEvaluator", "DeGReEvaluatorEnsemble", "DeGReGenerator"]
