"""Base of generators that point at one candidate after the other: encoder, causal decoder, pointer.

Candidates attend to one another, without positions. A causal decoder reads the encoded items of the slate so far,
looks at all candidates, and points at the next item; candidates that stand further up are left out of the softmax, in
training too. Many papers have this network and differ in what they teach it: their families are configs and objectives.

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from rerankzoo.batch import PADDING, Batch, gather_candidates, inputs
from rerankzoo.generation import Cache, ModelScorer, Scorer, ScorerState
from rerankzoo.generation.scorer import check_positions, chosen_above, of_choices, remaining_log_probs
from rerankzoo.layers import (
    PointerHead,
    TokenBlock,
    TransformerBlock,
    causal_mask,
    key_mask,
    norm_function,
)
from rerankzoo.losses import hard_label_loss, log_probabilities, slate_mean, soft_label_loss
from rerankzoo.models.base import (
    ImitationConfig,
    SlateGenerator,
    SlateModelOutput,
    size_field,
    weight_field,
    worth_imitating,
)


@strict
class PointerConfig(ImitationConfig):
    """Sizes and supervised losses of a `PointerGenerator`; from plain logs it imitates, see `ImitationConfig`.

    Args:
        num_hidden_layers: Layers of the candidate encoder.
        num_decoder_layers: Layers of the decoder.
        hard_label_weight: From mined slates: weight of the cross-entropy of the slates.
        soft_label_weight: From mined slates: weight of the divergence from the soft labels.

    Raises:
        ValueError: If a name is unknown, or both weights are 0.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    training_fields = ImitationConfig.training_fields | {"hard_label_weight", "soft_label_weight"}

    num_hidden_layers: int = size_field(default=2)
    num_decoder_layers: int = size_field(default=2)
    hard_label_weight: float | int = weight_field(default=1.0)
    soft_label_weight: float | int = weight_field(default=1.0)

    def validate_labels(self) -> None:
        """Checks that something is left to learn; called by the strict dataclass."""
        if self.hard_label_weight == 0 and self.soft_label_weight == 0:
            raise ValueError("hard_label_weight and soft_label_weight are both 0: nothing is left to learn")


@dataclass
class Encoded:
    """Requests as the decoder reads them.

    Attributes:
        states: (B, N, D), the candidates.
        start: (B, D), what stands before the first item.
        mask: (B, N), True where a candidate is real.
        further: What a family's own parts have read.
    """

    states: Tensor
    start: Tensor
    mask: Tensor
    further: Any = None


class PointerGenerator(SlateGenerator):
    """Candidate encoder, causal decoder, pointer over the candidates left.

    Mined slates are distilled; without them, logged slates with feedback are learned by likelihood if their utility
    reaches the threshold. A family makes what it reads fields with, then calls `make_layers`; it may override `embed`,
    `encode`, `read`, `point`, `learn` and `scorer`.
    """

    config: Any

    def make_layers(self) -> None:
        """Encoder, decoder and pointer, of the config's sizes."""
        config = self.config
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.encoder_layers = self.make_blocks(config.num_hidden_layers)
        self.encoder_norm = nn.LayerNorm(config.hidden_size)
        self.decoder_layers = self.make_blocks(config.num_decoder_layers, cross_attention=True)
        self.decoder_norm = nn.LayerNorm(config.hidden_size)
        self.pointer = PointerHead(config.hidden_size)

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
        encoded, slates = self.encode(batch), batch.get("slates")
        if slates is None:
            slates = torch.full((len(encoded.mask), 1, 1), PADDING, device=encoded.mask.device)
        hidden = self.read(encoded, slates)
        logits = self.point(hidden, encoded, slates)
        loss, terms = self.learn(batch, encoded, hidden, logits)
        if loss is None:
            return SlateModelOutput(logits=logits, candidate_states=encoded.states)
        return SlateModelOutput(loss=loss, loss_terms=terms, logits=logits, candidate_states=encoded.states)

    def learn(
        self, batch: Batch, encoded: Encoded, hidden: Tensor, logits: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The loss and its terms; `None` without labels.

        Args:
            batch: With its labels.
            encoded: What `encode` has made of it.
            hidden: (B, S, M, D), of `read`.
            logits: (B, S, M, N), of `point`.
        """
        if {"slates", "slate_weights"} <= batch.keys():
            return self.distil(logits, batch)
        if {"slates", "feedback", "candidate_value"} <= batch.keys():
            return self._imitate(logits, batch)
        return None, {}

    def embed(self, batch: Batch) -> Tensor:
        """One vector per candidate (B, N, D), by itself: a family's `features` of its fields and the request's."""
        return self.features(batch)

    def encode(self, batch: Batch) -> Encoded:
        """Encodes requests."""
        states = self.encode_items(self.embed(batch), batch["candidate_mask"])
        return Encoded(states, torch.zeros_like(states[:, 0]), batch["candidate_mask"])

    def encode_items(self, items: Tensor, mask: Tensor) -> Tensor:
        """Candidates (B, N, D) in the context of one another: (B, N, D)."""
        shared = {"mask": key_mask(mask), "implementation": self.config._attn_implementation}
        for layer in self.encoder_layers:
            items = layer(items, **shared)
        return self.encoder_norm(items)

    def read(self, encoded: Encoded, slates: Tensor) -> Tensor:
        """What the decoder has read (B, S, M, D) above each position of slates (B, S, M)."""
        states, length = encoded.states, slates.shape[-1]
        start = encoded.start[:, None, None].expand(-1, slates.shape[1], 1, -1)
        hidden = torch.cat([start, gather_candidates(states, slates[..., :-1])], dim=2)
        hidden = (hidden + self.positions(torch.arange(length, device=slates.device))).flatten(0, 1)
        shared = {
            "mask": causal_mask(length, slates.device),
            "memory": states,  # one for all slates of a request
            "memory_mask": key_mask(encoded.mask),
            "implementation": self.config._attn_implementation,
        }
        for layer in self.decoder_layers:
            hidden = layer(hidden, **shared)
        return self.decoder_norm(hidden).unflatten(0, slates.shape[:2])

    def point(self, hidden: Tensor, encoded: Encoded, slates: Tensor) -> Tensor:
        """Logits (B, S, M, N) of each position of slates (B, S, M), from what was read (B, S, M, D)."""
        logits = self.pointer(hidden.flatten(1, 2), encoded.states, encoded.mask).unflatten(1, hidden.shape[1:3])
        return logits.masked_fill(chosen_above(slates, encoded.mask.shape[1]), torch.finfo(logits.dtype).min)

    def log_distributions(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """See `SlateGenerationMixin.log_distributions`; all positions in one pass, with dropout in training mode."""
        self._check_length(slates)
        encoded = self.encode(inputs(batch))
        logits = self.point(self.read(encoded, slates), encoded, slates)
        return remaining_log_probs(logits, _left(encoded.mask, slates))

    def distil(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of mined slates and its terms, from the logits (B, S, M, N) of `point`."""
        slates, weights, soft_labels = batch["slates"], batch["slate_weights"], batch.get("soft_labels")
        log_probs, config = log_probabilities(logits), self.config
        if soft_labels is None and config.hard_label_weight == 0:
            raise ValueError("hard_label_weight is 0 and the batch has no soft_labels: nothing is left to learn")
        hard = (weights * hard_label_loss(log_probs, slates)).sum(-1).mean()
        if soft_labels is None:
            return config.hard_label_weight * hard, {"hard_label": hard}
        soft = (weights * soft_label_loss(log_probs, soft_labels, slates)).sum(-1).mean()
        loss = config.hard_label_weight * hard + config.soft_label_weight * soft
        return loss, {"hard_label": hard, "soft_label": soft}

    def _imitate(self, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        slates = batch["slates"]
        losses = worth_imitating(self, batch) * hard_label_loss(log_probabilities(logits), slates)  # (B, S)
        loss = slate_mean(losses, slates).mean()
        return loss, {"likelihood": loss}

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the decoder, one token at a time."""
        return PointerScorer(self)


def choice_log_probs(logits: Tensor, mask: Tensor, slates: Tensor) -> Tensor:
    """Log-probability (B, S, M) of each choice of slates (B, S, M), by logits (B, S, M, N) and the candidates' mask."""
    return of_choices(remaining_log_probs(logits, _left(mask, slates)), slates)


def _left(mask: Tensor, slates: Tensor) -> Tensor:
    """(B, S, M, N), True where a candidate is real and stands nowhere further up."""
    return mask[:, None, None] & ~chosen_above(slates, mask.shape[1])


class PointerScorer(ModelScorer):
    """Decodes with cached keys and values; the rows of a request share the candidates' and never copy them."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.slate_size = model.config.slate_size
        implementation = model.config._attn_implementation
        if implementation == "sdpa" and model.device.type == "cpu":
            implementation = "eager"
        # Looked up once: attributes of modules and configs are slow, and every position needs them.
        layers = cast(list[TransformerBlock], list(model.decoder_layers))
        self.blocks = [TokenBlock(layer, implementation) for layer in layers]
        self.norm, self.positions = norm_function(model.decoder_norm), model.positions.weight

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        return self.remember(self.model.encode(batch))

    def remember(self, encoded: Encoded) -> dict[str, Tensor]:
        """What every step needs of the requests."""
        mask, states = encoded.mask, encoded.states
        memory = {
            "candidate_states": states,
            "start": encoded.start,
            "first": torch.arange(mask.shape[0], device=mask.device) * mask.shape[1],
            "pointer": self.model.pointer.keys(states).transpose(1, 2),
        }
        attended = key_mask(mask)
        for number, block in enumerate(self.blocks):
            memory |= {f"{name}_{number}": part for name, part in block.remember(states, attended).items()}
        return memory

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`; the cache gets the newest token."""
        logits, cache = self.logits(state)
        return remaining_log_probs(logits, state.available), cache

    def logits(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """The pointer's logits (R, N), and the cache with the newest token."""
        position, memory, cache = state.prefix.shape[1], state.memory, {}
        check_positions(position + 1, self.slate_size)
        hidden = self.token(state) + self.positions[position]  # (R, D)
        for number, block in enumerate(self.blocks):
            names = {name: f"{name}_{number}" for name in ("key", "value", "mask")}
            known = {name: memory[of_block] for name, of_block in names.items() if of_block in memory}
            hidden, cache[f"past_{number}"] = block(hidden, state.cache.get(f"past_{number}"), known)
        pointer = memory["pointer"]
        grouped = self.norm(hidden).view(pointer.shape[0], -1, hidden.shape[-1])  # (B, W, D)
        return torch.bmm(grouped, pointer).flatten(0, 1), cache

    def select(self, cache: Cache, parent: Tensor | None, index: Tensor) -> Cache:
        """See `Scorer.select`."""
        if parent is None:
            return cache
        axis = self.blocks[0].row_axis
        return {name: past.index_select(axis, parent) for name, past in cache.items()}

    def token(self, state: ScorerState) -> Tensor:
        """What the decoder reads next (R, D): the item chosen last, at first what stands before it."""
        if state.prefix.shape[1] == 0:
            return state.of_requests(state.memory["start"])
        last = state.of_requests(state.memory["first"]) + state.prefix[:, -1].clamp_min(0)
        return state.memory["candidate_states"].flatten(0, 1).index_select(0, last)
