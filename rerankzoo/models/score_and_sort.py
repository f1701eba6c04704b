"""Base of rankers that give every candidate one score and sort: pointwise and listwise.

B requests, N candidates, M positions, S slates, T targets, D hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from rerankzoo.batch import Batch, gather_candidates, inputs
from rerankzoo.generation import Scorer, StaticScorer
from rerankzoo.layers import FeedbackHead
from rerankzoo.models.base import RerankingConfig, SlateGenerator, SlateModelOutput


class ScoreAndSortModel(SlateGenerator):
    """Predicts the feedback of each candidate; greedy decoding sorts by expected utility.

    One feedback probability per target, fitted to the positions that the log has shown. A candidate's score is its
    expected utility, the sum over targets of weight x value x probability. A family implements `encode_candidates`.
    """

    def __init__(self, config: RerankingConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()

    @property
    def num_positions(self) -> None:
        """Any number: a score does not depend on the position."""
        return None

    def post_init(self) -> None:
        """Adds the heads, behind the family's own layers, and initialises all weights."""
        self.heads = FeedbackHead(self.config.hidden_size, self.schema)
        super().post_init()

    @abstractmethod
    def encode_candidates(self, batch: Batch) -> Tensor:
        """Representations (B, N, D) of the candidates."""

    def compute(self, batch: Batch) -> SlateModelOutput:
        """See `SlateGenerator.compute`; the logits are the scores, the same at every position."""
        if "candidate_value" not in batch:
            raise ValueError(
                f"{type(self).__name__} scores candidates by their value: the batch has no candidate_value"
            )
        states = self.encode_candidates(batch)
        logits = self.heads(states)  # (B, N, T)
        scores = self.heads.candidate_utility(logits, batch["candidate_value"])  # (B, N)
        scores = scores.masked_fill(~batch["candidate_mask"], torch.finfo(scores.dtype).min)
        matrix = scores.unsqueeze(1).expand(-1, self.config.slate_size, -1)  # (B, M, N)
        if not {"slates", "feedback"} <= batch.keys():
            return SlateModelOutput(logits=matrix, candidate_states=states)
        slates = batch["slates"]
        logged = self.heads.log_likelihood(gather_candidates(logits, slates), batch["feedback"], slates)
        loss = self.heads.loss(logged, slates)
        return SlateModelOutput(loss=loss, loss_terms={"feedback": loss}, logits=matrix, candidate_states=states)

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the scores, renormalised over the candidates left, at any position."""
        return StaticScorer(self._scores)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output: Any = self.compute(inputs(batch))
        return output.logits[:, 0], output.candidate_states
