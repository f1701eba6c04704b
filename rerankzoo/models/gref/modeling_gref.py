"""GReF: a generator pre-trained on what was shown, then on preferences; several items per decoder pass.

GReF: A Unified Generative Framework for Efficient Reranking via Ordered Multi-token Prediction (CIKM 2025, arXiv
2510.25220, Kuaishou and others). Pre-training is the likelihood of what was shown; the second stage is direct
preference optimisation with the shown slate re-sorted by clicks as the better one (`rerankzoo.training.Preference`).
One pass of the decoder points at `num_heads` items (ordered multi-token prediction), of which the clicked ones are
preferred further up.

B requests, N candidates, M positions, S slates, H heads, D hidden; R rows being decoded.

Where this differs from the paper, or fills in what our sources (its abstract, third-party notes) do not state:

- The encoder's input is the candidate plus an embedding of its upstream rank, the decoder is `PointerGenerator`'s.
  Slates are always full, so that there is no end token.
- A head is a linear map of the decoder's state before one pointer for all. The heads learn at the positions where
  decoding starts a pass; in the paper every position predicts the next H.
- The ordered loss compares, in every pass of a logged slate, its items sorted by what they earned with the same items
  as shown: `-log sigmoid((log P(sorted) - log P(shown)) / H)`. Which permutations the paper compares, whether P is a
  logarithm and the losses' weights are not known to us; 0.1 is our proposal.
- A pass reads the whole prefix anew, without a cache: M / H passes over at most M tokens.
- The utility stands in the place of the click, in both stages.
- `Preference` also takes pairs that an evaluator chose, or two logged slates. Re-sorting never proposes another set of
  items, and inherits the bias of positions: what was clicked because it stood first stays first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch
from rerankzoo.features.utility import position_utility
from rerankzoo.generation import Cache, ModelScorer, Scorer, ScorerState
from rerankzoo.generation.scorer import check_positions, remaining_log_probs
from rerankzoo.layers import UpstreamRankEmbedding
from rerankzoo.losses import dpo_loss, slate_mean
from rerankzoo.models.gref.configuration_gref import GReFConfig
from rerankzoo.models.pointer_generator import Encoded, PointerGenerator, choice_log_probs
from rerankzoo.models.registry import register_model


@register_model
class GReFForReranking(PointerGenerator):
    """GReF's generator: candidates with their upstream rank, causal decoder, several heads before one pointer.

    Args:
        config: Its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.
    """

    config: GReFConfig
    config_class = GReFConfig
    paper = (
        "GReF",
        "GReF: A Unified Generative Framework for Efficient Reranking via Ordered Multi-token Prediction, CIKM 2025, "
        "<https://arxiv.org/abs/2510.25220>.",
    )

    def __init__(self, config: GReFConfig) -> None:
        super().__init__(config)
        self.upstream_column = self.upstream_score_column()
        self.features = self.make_feature_embedding()
        self.ranks = UpstreamRankEmbedding(config.max_position_embeddings, config.hidden_size)
        self.make_layers()
        self.heads = nn.Linear(config.hidden_size, config.num_heads * config.hidden_size)
        self.post_init()

    def embed(self, batch: Batch) -> Tensor:
        """See `PointerGenerator.embed`; with the upstream rank."""
        scores = batch["candidate_numeric"][..., self.upstream_column]
        return super().embed(batch) + self.ranks.of_scores(scores, batch["candidate_mask"])

    def point(self, hidden: Tensor, encoded: Encoded, slates: Tensor) -> Tensor:
        """See `PointerGenerator.point`: every H-th position is read for itself and the H - 1 below it."""
        return super().point(self.queries(hidden[:, :, :: self.config.num_heads], slates.shape[-1]), encoded, slates)

    def queries(self, starts: Tensor, length: int) -> Tensor:
        """What the pointer is asked (..., length, D), by what was read where passes start (..., P, D)."""
        asked: Tensor = self.heads(starts).unflatten(-1, (self.config.num_heads, -1)).flatten(-3, -2)
        return asked[..., :length, :]

    def learn(
        self, batch: Batch, encoded: Encoded, hidden: Tensor, logits: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `PointerGenerator.learn`; with the ordered loss of logged slates."""
        loss, terms = super().learn(batch, encoded, hidden, logits)
        if loss is None or "likelihood" not in terms or self.config.num_heads == 1 or not self.config.ordered_weight:
            return loss, terms
        slates = batch["slates"]
        utility = position_utility(batch["feedback"], slates, batch["candidate_value"], self.schema)
        ordered = sorted_in_passes(slates, utility, self.config.num_heads)
        better = choice_log_probs(self.point(hidden, encoded, ordered), encoded.mask, ordered)
        gained = in_passes(better - choice_log_probs(logits, encoded.mask, slates), self.config.num_heads).mean(-1)
        moved = in_passes((ordered != slates).float(), self.config.num_heads).sum(-1) > 0  # (B, S, P)
        each = dpo_loss(gained, torch.zeros_like(gained), moved, beta=1.0).sum(-1)
        term = slate_mean(each, slates).mean()
        return loss + self.config.ordered_weight * term, {**terms, "ordered": term}

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: a pass of the decoder at every H-th position."""
        return GReFScorer(self)


def in_passes(values: Tensor, num_heads: int) -> Tensor:
    """(..., M) as (..., P, H), 0 where the last pass is cut."""
    missing = -values.shape[-1] % num_heads
    return F.pad(values, (0, missing)).unflatten(-1, (-1, num_heads))


def sorted_in_passes(slates: Tensor, utility: Tensor, num_heads: int) -> Tensor:
    """Slates (B, S, M) with the items of each pass by what they earned (B, S, M), the most first.

    Example:
        >>> sorted_in_passes(torch.tensor([[[7, 5, 6]]]), torch.tensor([[[0.0, 1.0, 2.0]]]), num_heads=2)
        tensor([[[5, 7, 6]]])
    """
    missing = -slates.shape[-1] % num_heads
    items = F.pad(slates, (0, missing), value=PADDING).unflatten(-1, (-1, num_heads))
    earned = in_passes(utility, num_heads).masked_fill(items == PADDING, float("-inf"))
    ordered = items.gather(-1, earned.argsort(dim=-1, descending=True, stable=True))
    return ordered.flatten(-2)[..., : slates.shape[-1]]


class GReFScorer(ModelScorer):
    """Keeps what the pointer is asked (R, H, D) until the next pass."""

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        encoded = self.model.encode(batch)
        keys = self.model.pointer.keys(encoded.states).transpose(1, 2)
        return {"candidate_states": encoded.states, "start": encoded.start, "mask": encoded.mask, "pointer": keys}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`."""
        position, memory, num_heads = state.prefix.shape[1], state.memory, self.model.config.num_heads
        check_positions(position + 1, self.model.config.slate_size)
        requests, size = memory["start"].shape
        queries = state.cache.get("queries")
        if queries is None or position % num_heads == 0:
            encoded = Encoded(memory["candidate_states"], memory["start"], memory["mask"])
            known = F.pad(state.prefix, (0, 1), value=PADDING).view(requests, -1, position + 1)  # (B, W, t + 1)
            last = self.model.read(encoded, known)[:, :, -1:].flatten(0, 1)  # (R, 1, D)
            queries = self.model.queries(last, num_heads)
        asked = queries[:, position % num_heads].view(requests, -1, size)
        logits = torch.bmm(asked, memory["pointer"]).flatten(0, 1)
        return remaining_log_probs(logits, state.available), {"queries": queries}


__all__ = ["GReFForReranking"]
