"""Seq2Slate: a pointer network that learns from the labels of items which of them comes next.

Seq2Slate: Re-ranking and Slate Optimization with RNNs (arXiv 1810.02019, Google). An encoder reads the candidates, a
recurrent decoder what was chosen so far, and a pointer chooses the next item. At every step the distribution over the
items left is to meet their labels; the first steps weigh most.

| loss of the paper | here |
|---|---|
| cross-entropy, hinge | `loss: cross_entropy`, `loss: hinge` |
| REINFORCE on what a slate earns | `rerankzoo.training.OffPolicyReinforce` of a log with propensities |
| | `rerankzoo.training.EvaluatorReward` of slates that an evaluator values |

B requests, N candidates, M positions, S slates, K items of a list to learn from.

Where this differs from the paper, or fills in what our sources (its abstract, the public code of LibRerank and ReAgent,
notes) do not state:

- Candidates attend to one another before they are pointed at, with embeddings of their upstream ranks
  (`max_position_embeddings`); the published encoder is an LSTM over the upstream list.
- The pointer is the scaled product of `PointerGenerator`, the published one an additive attention.
- The steps' weights are 1/log2(t + 1), those of LibRerank; targets are the relevance over its sum (LibRerank: a softmax
  of the labels), less their entropy, which changes no gradient.
- What stands above a step in training is the model's own greedy choice; the published code draws it. Teacher forcing is
  `prefix: shown`.
- All items of a list are labelled in the paper. Of a log that has shown some of the candidates, `negatives: labelled`
  leaves the others out of every step's softmax or maximum, and `negatives: all` takes them for irrelevant.
- Relevance is utility, by the schema's weights and values, and not a click; of the hinge, the highest left is relevant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch, gather_candidates, inputs
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import candidate_utility
from rerankzoo.generation import greedy_search
from rerankzoo.generation.scorer import chosen_above
from rerankzoo.layers import UpstreamRankEmbedding
from rerankzoo.losses import slate_mean, step_cross_entropy, step_hinge
from rerankzoo.models.pointer_generator import Encoded
from rerankzoo.models.recurrent_pointer import RecurrentPointerGenerator
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import check_ranks, learned_lists
from rerankzoo.models.seq2slate.configuration_seq2slate import Seq2SlateConfig

_STEP_LOSSES = {"cross_entropy": step_cross_entropy, "hinge": step_hinge}


@register_model
class Seq2SlateForReranking(RecurrentPointerGenerator):
    """Seq2Slate: candidate encoder, LSTM, pointer. Decodes greedily unless told otherwise.

    Args:
        config: With `max_position_embeddings`, its schema must name an upstream score.

    Raises:
        SchemaError: If it does not, or a loss of labels is to rank by a utility that can be negative.
    """

    config: Seq2SlateConfig
    config_class = Seq2SlateConfig
    learns_from = frozenset({"slates", "candidates"})
    paper = (
        "Seq2Slate",
        "Seq2Slate: Re-ranking and Slate Optimization with RNNs, <https://arxiv.org/abs/1810.02019>.",
    )

    def __init__(self, config: Seq2SlateConfig) -> None:
        super().__init__(config)
        if config.loss != "likelihood":
            check_ranks(config.loss, self.schema)
        self.features = self.make_feature_embedding()
        self.ranks = None
        if config.max_position_embeddings:
            self.upstream_column = self.upstream_score_column()
            self.ranks = UpstreamRankEmbedding(config.max_position_embeddings, config.hidden_size)
        self.make_layers()
        self.post_init()

    def embed(self, batch: Batch) -> Tensor:
        """See `PointerGenerator.embed`; with the upstream rank, where it is read."""
        vectors = super().embed(batch)
        if self.ranks is None:
            return vectors
        return vectors + self.ranks.of_scores(
            batch["candidate_numeric"][..., self.upstream_column], batch["candidate_mask"]
        )

    def learn(
        self, batch: Batch, encoded: Encoded, hidden: Tensor, logits: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """See `PointerGenerator.learn`; mined slates are distilled, logged ones learned by the config's loss.

        Raises:
            RerankingDataError: If what was shown is to stand above the steps, and nothing was.
        """
        if self.config.loss == "likelihood" or "slate_weights" in batch:
            return super().learn(batch, encoded, hidden, logits)
        lists = learned_lists(self.config.labels, batch, self.schema) if "candidate_value" in batch else None
        if lists is None:
            return None, {}
        if self.config.prefix == "own":
            above = self._own_slates(batch)
            logits = self.point(self.read(encoded, above), encoded, above)
        elif "slates" in batch:
            above = batch["slates"]
        else:
            raise RerankingDataError("expected slates to stand above the steps (prefix: shown)", field="slates")
        relevance, known = self._relevance(*lists, batch["candidate_value"])
        left = encoded.mask[:, None, None] & ~chosen_above(above, encoded.mask.shape[1]) & (above >= 0).unsqueeze(-1)
        if self.config.negatives == "labelled":
            left = left & known.unsqueeze(2)
        losses = _STEP_LOSSES[self.config.loss](logits.expand(left.shape), relevance, left)  # (B, S)
        loss = slate_mean(losses, lists[0]).mean()
        return loss, {self.config.loss: loss}

    def _own_slates(self, batch: Batch) -> Tensor:
        """What the model would choose (B, 1, M) as it is."""
        with torch.no_grad():
            slates = greedy_search(self.scorer(), inputs(batch), self.config.slate_size).slates
        torch.clear_autocast_cache()  # it holds the weights without their gradients
        return slates

    def _relevance(self, items: Tensor, feedback: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Utility (B, S, N) of the candidates by lists of items (B, S, K) and their feedback; where it is known."""
        utility = candidate_utility(feedback, gather_candidates(value, items), self.schema)
        size = value.shape[1]
        place = items.where(items != PADDING, size)  # one more, for what stands nowhere
        relevance = utility.new_zeros(*items.shape[:2], size + 1).scatter(2, place, utility)
        known = torch.zeros_like(relevance, dtype=torch.bool).scatter(2, place, True)
        return relevance[..., :-1], known[..., :-1]


__all__ = ["Seq2SlateForReranking"]
