"""UniRank: slates are filled in any order, the surest slot first, by a network that restores hidden slots.

UniRank: Unified List-wise Reranking via Confidence-Ordered Denoising (arXiv 2605.10527, Kuaishou and City University of
Hong Kong, 2026): masked discrete diffusion over the slots of a slate. Slots are read in both directions; hidden ones
are restored from those that are not. Filled from the top it is autoregressive, in one step non-autoregressive.

B requests, N candidates, M positions, S slates, K ways to hide slots, D hidden; R rows being decoded.

Where this differs from the paper, or fills in what our sources (its abstract, a detailed note) do not state:

- Candidates do not see the slate: they are encoded once, and a step reads M slots only. In the paper history,
  candidates and slots are one sequence, read anew in every step.
- An item is its feature vector, not an aggregate of semantic tokens; the history is averaged, as in this zoo's others.
- The number of hidden slots and which they are is not drawn: the loss is the exact mean over all windows of slots that
  go round at the end (`rerankzoo.losses.hidden_slots`). Training has no noise of its own, and every slot counts alike.
- Of logged slates the positions with any positive feedback are learned (the paper's weights); of mined ones
  (`slate_weights`) all, which is ours.
- Candidates that stand in a slot that is not hidden are left out of the softmax, in training as in decoding.
- The paper's re-masking of unsure slots is not part of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import PADDING, Batch, gather_candidates
from rerankzoo.generation import Cache, Decoded, ModelScorer, Scorer, ScorerState, SlateRules
from rerankzoo.generation.scorer import check_positions, remaining_log_probs
from rerankzoo.layers import CandidateEncoder, PointerHead, key_mask
from rerankzoo.losses import hidden_slots, log_probabilities, masked_slot_loss, slate_mean
from rerankzoo.models.base import SlateGenerator, SlateModelOutput
from rerankzoo.models.registry import register_model
from rerankzoo.models.unirank.configuration_unirank import UniRankConfig
from rerankzoo.models.unirank.generation_unirank import UniRankGenerationConfig


@register_model
class UniRankForReranking(SlateGenerator):
    """UniRank's generator: candidate encoder, slots in both directions, pointer."""

    config: UniRankConfig
    config_class = UniRankConfig
    generation_config_class = UniRankGenerationConfig
    strategies = ("greedy", "beam", "contrastive", "sample", "confident")
    paper = (
        "UniRank",
        "UniRank: Unified List-wise Reranking via Confidence-Ordered Denoising, 2026, "
        "<https://arxiv.org/abs/2605.10527>.",
    )

    def __init__(self, config: UniRankConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.candidate_encoder = CandidateEncoder(self.make_blocks(config.num_hidden_layers), config.hidden_size)
        self.hidden_slot = nn.Parameter(torch.empty(config.hidden_size))
        self.positions = nn.Embedding(config.slate_size, config.hidden_size)
        self.slot_layers = self.make_blocks(config.num_slot_layers, cross_attention=True)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.pointer = PointerHead(config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UniRankForReranking):
            init.normal_(module.hidden_slot, mean=0.0, std=1.0)

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`; learns from mined slates, or from logged ones with feedback.

        Returns:
            Logits (B, M, N) are those of a slate whose slots are all hidden.
        """
        mask, states = batch["candidate_mask"], self.encode(batch)
        length = mask.sum(-1, keepdim=True).clamp_max(self.config.slate_size)
        nothing = torch.full((len(mask), 1, self.config.slate_size), PADDING, device=mask.device)
        output = SlateModelOutput(logits=self.slot_logits(states, nothing, length, mask)[:, 0], candidate_states=states)
        slates, weights = batch.get("slates"), batch.get("slate_weights")
        if slates is None or (weights is None and "feedback" not in batch):
            return output
        losses = self._slot_losses(states, slates, self._learned(batch), mask)  # (B, S)
        loss = (slate_mean(losses, slates) if weights is None else (weights * losses).sum(-1)).mean()
        return SlateModelOutput(loss=loss, loss_terms={"slots": loss}, **output)

    @staticmethod
    def _learned(batch: Batch) -> Tensor:
        """The weight (B, S, M) of each position."""
        real = batch["slates"] >= 0
        if "slate_weights" in batch:
            return real.float()
        return (batch["feedback"].masked_fill(~real.unsqueeze(-1), 0) > 0).any(-1).float()

    def _slot_losses(self, states: Tensor, slates: Tensor, weights: Tensor, candidate_mask: Tensor) -> Tensor:
        hidden = hidden_slots(slates)  # (B, S, K, M)
        seen = slates.unsqueeze(2).masked_fill(hidden, PADDING).flatten(1, 2)
        length = (slates >= 0).sum(-1).repeat_interleave(hidden.shape[2], dim=1)
        logits = self.slot_logits(states, seen, length, candidate_mask)
        return masked_slot_loss(log_probabilities(logits).unflatten(1, hidden.shape[1:3]), slates, hidden, weights)

    def encode(self, batch: Batch) -> Tensor:
        """States (B, N, D) of the candidates."""
        embedded = self.features(batch)
        return self.candidate_encoder(embedded, batch["candidate_mask"], self.config._attn_implementation)

    def slot_logits(self, states: Tensor, slates: Tensor, length: Tensor, candidate_mask: Tensor) -> Tensor:
        """Logits of all candidates at all slots of slates that are partly hidden.

        Args:
            states: (B, N, D).
            slates: (B, S, M), -100 where a slot is hidden, or behind the end.
            length: (B, S), how many slots the slate has.
            candidate_mask: (B, N).

        Returns:
            (B, S, M, N), the smallest finite number for padding and for candidates that stand in a slot.
        """
        size = slates.shape[-1]
        place = torch.arange(size, device=slates.device)
        hidden = torch.where((slates < 0).unsqueeze(-1), self.hidden_slot, gather_candidates(states, slates))
        hidden = (hidden + self.positions(place)).flatten(0, 1)  # (B * S, M, D)
        exists = key_mask((place < length.unsqueeze(-1)).flatten(0, 1))
        known = {"memory": states, "memory_mask": key_mask(candidate_mask)}
        for layer in self.slot_layers:
            hidden = layer(hidden, mask=exists, implementation=self.config._attn_implementation, **known)
        grouped = self.norm(hidden).view(states.shape[0], -1, states.shape[-1])  # (B, S * M, D)
        logits = self.pointer(grouped, states, candidate_mask).unflatten(1, (-1, size))
        stands = (slates.unsqueeze(-1) == torch.arange(states.shape[1], device=slates.device)).any(2, keepdim=True)
        return logits.masked_fill(stands, torch.finfo(logits.dtype).min)

    def decode(self, batch: Batch, config: UniRankGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`.

        Raises:
            ValueError: If there are constraints, for filling in the order of confidence: they are kept from the top.
        """
        if config.strategy != "confident":
            return super().decode(batch, config, rules)
        if rules is not None:
            raise ValueError("constraints are kept from the top; decode without fill_per_step")
        check_positions(config.slate_size, self.config.slate_size)
        return self._fill(batch, config.slate_size, config.fill_per_step)

    def _fill(self, batch: Batch, slate_size: int, per_step: int) -> Decoded:
        """Fills the most probable pairs of slot and candidate, so many after each look at the slate."""
        mask, states = batch["candidate_mask"], self.encode(batch)
        place = torch.arange(slate_size, device=mask.device)
        candidate = torch.arange(mask.shape[1], device=mask.device)
        length = mask.sum(-1, keepdim=True).clamp_max(slate_size)  # (B, 1)
        slates = torch.full((mask.shape[0], slate_size), PADDING, device=mask.device)
        steps, left = torch.zeros(slates.shape, device=mask.device), mask
        for number in range(slate_size):
            if number % per_step == 0:
                logits = self.slot_logits(states, slates.unsqueeze(1), length, mask)[:, 0]
                chances = remaining_log_probs(logits, left.unsqueeze(1).expand(-1, slate_size, -1))
            is_open = (slates < 0) & (place < length)
            pairs = chances.masked_fill(~(is_open.unsqueeze(-1) & left.unsqueeze(1)), float("-inf"))
            best, index = pairs.flatten(1).max(-1, keepdim=True)
            chosen, filled = index % mask.shape[1], is_open & (place == index // mask.shape[1])
            slates, steps = torch.where(filled, chosen, slates), torch.where(filled, best, steps)
            left = left & ((candidate != chosen) | ~filled.any(-1, keepdim=True))
        return Decoded(slates.unsqueeze(1), steps.sum(-1, keepdim=True), steps.unsqueeze(1))

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the next slot, those below it hidden."""
        return UniRankScorer(self)


class UniRankScorer(ModelScorer):
    """Fills slates from the top."""

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        mask = batch["candidate_mask"]
        length = mask.sum(-1).clamp_max(self.model.config.slate_size)
        return {"candidate_states": self.model.encode(batch), "candidate_mask": mask, "length": length}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`."""
        position, size, memory = state.prefix.shape[1], self.model.config.slate_size, state.memory
        check_positions(position + 1, size)
        hidden = state.prefix.new_full((state.prefix.shape[0], size - position), PADDING)
        slates = torch.cat([state.prefix, hidden], dim=1).view(memory["length"].shape[0], -1, size)  # (B, R / B, M)
        length = memory["length"].unsqueeze(-1).expand(slates.shape[:2])
        logits = self.model.slot_logits(memory["candidate_states"], slates, length, memory["candidate_mask"])
        return remaining_log_probs(logits[:, :, position].flatten(0, 1), state.available), {}


__all__ = ["UniRankForReranking"]
