"""Pointwise: the yardstick. One score per candidate, whatever is shown around it.

No paper: it is what ranking stages do. A network on the joined features of candidate, user and context gives one
feedback probability per target, fitted to the positions that the log has shown; a candidate's score is its expected
utility, the sum over targets of weight x value x probability. What a slate's items do to one another, and at which
position they stand, is averaged out: the best possible slate of such a model is the limit of sorting.

B requests, N candidates, M positions, S slates, T targets, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.batch import gather_candidates, inputs
from rerankzoo.features.utility import candidate_utility
from rerankzoo.generation import Batch, Scorer, SlateGenerationMixin, StaticScorer
from rerankzoo.losses import feedback_loss, slate_mean
from rerankzoo.models.base import RerankingPreTrainedModel, SlateModelOutput
from rerankzoo.models.pointwise.configuration_pointwise import PointwiseConfig


class PointwiseForReranking(SlateGenerationMixin, RerankingPreTrainedModel):
    """Predicts the feedback of each candidate on its own; greedy decoding sorts by expected utility.

    Example:
        >>> model = PointwiseForReranking(PointwiseConfig(feature_schema=extractor.schema.to_dict()))  # doctest: +SKIP
        >>> slates = model.generate(**extractor(rows), slate_size=10)  # doctest: +SKIP
    """

    config: PointwiseConfig
    config_class = PointwiseConfig

    def __init__(self, config: PointwiseConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        size = config.hidden_size
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_hidden_layers))
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.heads = nn.Linear(size, len(self.schema.targets))
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
            candidate_numeric: (B, N, F).
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
        states = self.features(
            request_categorical,
            request_numeric,
            candidate_categorical,
            candidate_numeric,
            history_categorical,
            history_mask,
        )
        for layer in self.layers:
            states = layer(self.dropout(self.activation(states)))
        states = self.activation(states)  # (B, N, D)
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

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`: the scores, renormalised over the candidates left, at any position."""
        return StaticScorer(self._scores)

    def _scores(self, batch: Batch) -> tuple[Tensor, Tensor]:
        output = self(**inputs(batch))
        return output.logits[:, 0], output.candidate_states


__all__ = ["PointwiseForReranking"]
