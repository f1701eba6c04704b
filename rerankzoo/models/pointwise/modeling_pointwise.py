"""Pointwise: the yardstick. One score per candidate, whatever is shown around it.

No paper: it is what ranking stages do. A network reads the joined features of candidate, user and context. What a
slate's items do to one another, and at which position they stand, is averaged out: the best possible slate of such a
model is the limit of sorting.

B requests, N candidates, M positions, S slates, T targets, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from rerankzoo.batch import Batch
from rerankzoo.models.pointwise.configuration_pointwise import PointwiseConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel


@register_model
class PointwiseForReranking(ScoreAndSortModel):
    """Predicts the feedback of each candidate on its own; greedy decoding sorts by expected utility."""

    config: PointwiseConfig
    config_class = PointwiseConfig
    supports_gradient_checkpointing = False  # it has no blocks

    def __init__(self, config: PointwiseConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_hidden_layers))
        self.activation = nn.GELU()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: each candidate by itself."""
        states = self.features(batch)
        for layer in self.layers:
            states = layer(self.dropout(self.activation(states)))
        return self.activation(states)


__all__ = ["PointwiseForReranking"]
