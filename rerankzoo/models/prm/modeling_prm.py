"""PRM: listwise self-attention over the upstream list.

Personalized Re-ranking for Recommendation (RecSys 2019, arXiv 1904.06813, Alibaba). A Transformer encoder over the
candidates, each with a learned embedding of its rank in the upstream order, scores them all in one pass; the slate is
the candidates sorted by their score.

B requests, N candidates, M positions, S slates, T targets, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract and summaries) do not state:

- No personalised vectors: the paper joins every item with the last hidden layer of a click model that was trained
  before on more data than the lists, PV. We have none; candidate, user and context fields (and the averaged embeddings
  of the user's history, where the schema has one) are joined and learned end to end instead.
- The rank is the number of candidates with a higher upstream score, not the number of the row: the order in which
  candidates arrive changes nothing, and candidates with the same score have the same rank.
- Loss: binary cross-entropy on the positions that the log has shown, one probability per feedback target. The paper
  has one label, a softmax over the list and -sum y log P, for lists that were shown as a whole; ours show a few of the
  candidates and weigh several targets by value, for which probabilities are needed. A candidate's score is its expected
  utility, the sum over targets of weight x value x probability.
- Pre-norm Transformer blocks with GELU, and the rank's embedding added after the linear map of the features; our
  sources are not that exact.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from rerankzoo.batch import gather_candidates, inputs
from rerankzoo.errors import SchemaError
from rerankzoo.features.utility import candidate_utility
from rerankzoo.generation import Batch, Scorer, SlateGenerationMixin, StaticScorer
from rerankzoo.layers import TransformerBlock, key_mask
from rerankzoo.losses import feedback_loss, slate_mean
from rerankzoo.models.base import RerankingPreTrainedModel, SlateModelOutput
from rerankzoo.models.prm.configuration_prm import PRMConfig


def upstream_rank(scores: Tensor, mask: Tensor) -> Tensor:
    """Ranks candidates by their upstream score, the best first; equal scores share the best rank of theirs.

    Args:
        scores: (B, N).
        mask: (B, N), True where a candidate is real.

    Returns:
        (B, N) int64, the number of real candidates with a higher score.

    Example:
        >>> upstream_rank(torch.tensor([[0.2, 0.9, 0.2, 0.1]]), torch.tensor([[True, True, True, True]]))
        tensor([[1, 0, 1, 3]])
    """
    higher = (scores.unsqueeze(1) > scores.unsqueeze(2)) & mask.unsqueeze(1)  # (B, N, N): is k above i?
    return higher.sum(-1)


class PRMForReranking(SlateGenerationMixin, RerankingPreTrainedModel):
    """Predicts the feedback of each candidate in the context of all; greedy decoding sorts by expected utility.

    Args:
        config: Its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.

    Example:
        >>> model = PRMForReranking(PRMConfig(feature_schema=extractor.schema.to_dict()))  # doctest: +SKIP
        >>> slates = model.generate(**extractor(rows), slate_size=10)  # doctest: +SKIP
    """

    config: PRMConfig
    config_class = PRMConfig
    _no_split_modules: ClassVar[list[str]] = ["TransformerBlock"]

    def __init__(self, config: PRMConfig) -> None:
        super().__init__(config)
        if self.schema.upstream_score is None:
            raise SchemaError(
                f"PRM reranks the upstream list, but schema {self.schema.name!r} has no upstream_score; "
                "name the numeric candidate field that holds the first stage's score"
            )
        self.upstream_column = self.schema.position(self.schema.upstream_score)
        self.features = self.make_feature_embedding()
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(
            TransformerBlock(
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                config.hidden_dropout_prob,
                config.attention_probs_dropout_prob,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.heads = nn.Linear(config.hidden_size, len(self.schema.targets))
        self.post_init()

    def forward(
        self,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        candidate_mask: Tensor,
        candidate_value: Tensor,
        request_categorical: Tensor,
        request_numeric: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
        slates: Tensor | None = None,
        feedback: Tensor | None = None,
        **other: Tensor,
    ) -> SlateModelOutput:
        """Scores every candidate by its expected utility; with slates and feedback, also the loss.

        Args:
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F); holds the upstream score.
            candidate_mask: (B, N), True where a candidate is real.
            candidate_value: (B, N, T), value of each target for each candidate.
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            history_categorical: (B, L, F) int64, where the schema has history fields.
            history_mask: (B, L).
            slates: (B, S, M'), logged slates, M' at most the config's slate size; -100 pads.
            feedback: (B, S, M', T) in [0, 1], their feedback.
            **other: Further keys of the batch, which this model does not use.

        Returns:
            `SlateModelOutput`; its logits are the scores, the same at every position.

        Raises:
            ValueError: If slates are longer than the config's slate size, or feedback lies outside [0, 1].
        """
        candidates = self.features(
            request_categorical,
            request_numeric,
            candidate_categorical,
            candidate_numeric,
            history_categorical,
            history_mask,
        )
        rank = upstream_rank(candidate_numeric[..., self.upstream_column], candidate_mask)
        states = self._encode(candidates, rank, candidate_mask)  # (B, N, D)
        logits = self.heads(states)  # (B, N, T)
        scores = candidate_utility(logits.sigmoid(), candidate_value, self.schema)  # (B, N)
        scores = scores.masked_fill(~candidate_mask, torch.finfo(scores.dtype).min)
        matrix = scores.unsqueeze(1).expand(-1, self.config.slate_size, -1)  # (B, M, N)
        if slates is None or feedback is None:
            return SlateModelOutput(logits=matrix, candidate_states=states)
        if slates.shape[-1] > self.config.slate_size:
            message = f"slates have {slates.shape[-1]} positions, the model has slate_size {self.config.slate_size}"
            raise ValueError(message)
        loss = slate_mean(feedback_loss(gather_candidates(logits, slates), feedback, slates >= 0), slates).mean()
        return SlateModelOutput(loss=loss, loss_terms={"feedback": loss}, logits=matrix, candidate_states=states)

    def _encode(self, candidates: Tensor, rank: Tensor, candidate_mask: Tensor) -> Tensor:
        """Encodes candidates (B, N, D) with upstream ranks (B, N) to (B, N, D)."""
        hidden = candidates + self.positions(rank.clamp_max(self.config.max_position_embeddings - 1))
        mask = key_mask(candidate_mask)
        for layer in self.layers:
            hidden = layer(hidden, mask=mask, implementation=self.config._attn_implementation)
        return self.norm(hidden)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the scores, renormalised over the candidates left, at any position."""
        return StaticScorer(self._scores)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output = self(**inputs(batch))
        return output.logits[:, 0], output.candidate_states


__all__ = ["PRMForReranking"]
