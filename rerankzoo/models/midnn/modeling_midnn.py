"""miDNN: a network that reads every number of a candidate twice, as it is and relative to the other candidates.

Globally Optimized Mutual Influence Aware Ranking in E-Commerce Search (IJCAI 2018, Alibaba). Beside a candidate's
features stand its *global* ones: each number min-max-normalised over the candidates, so that the cheapest one has price
0 and the dearest 1.

B requests, N candidates, F numbers of a candidate, D hidden.

Where this differs from the paper, which we know by its abstract and a public implementation:

- Only numeric fields have a global feature; of a number that all candidates share it is 0.5.
- The inputs are the linear map of all features, and another of the global ones; no batch normalisation.
- The order-aware recurrent model and its beam search over the expected value, the second half of the paper, are not
  part of it: an evaluator with beam search is that idea (docs/models/interaction.md).
- Loss: as chosen in the config. Candidates that the log has not shown have no label and no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch
from rerankzoo.layers.embedding import bounded
from rerankzoo.models.midnn.configuration_midnn import MiDNNConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel


def place_in_list(numeric: Tensor, mask: Tensor) -> Tensor:
    """Where each number stands between the least and the largest of the request's candidates.

    Args:
        numeric: (B, N, F).
        mask: (B, N), True where a candidate is real.

    Returns:
        (B, N, F) in [0, 1], 0.5 where all candidates share the number; 0 at padding.

    Example:
        >>> place_in_list(torch.tensor([[[1.0], [5.0], [2.0]]]), torch.ones(1, 3, dtype=torch.bool)).flatten()
        tensor([0.0000, 1.0000, 0.2500])
    """
    real = mask.unsqueeze(-1)
    low = numeric.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    high = numeric.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    differs = high > low
    place = (numeric - low.masked_fill(~differs, 0.0)) / (high - low).masked_fill(~differs, 1.0)
    return torch.where(differs, place, 0.5).masked_fill(~real, 0.0)


@register_model
class MiDNNForReranking(ScoreAndSortModel):
    """Scores each candidate by its features and its place among the others; greedy decoding sorts."""

    config: MiDNNConfig
    config_class = MiDNNConfig
    supports_gradient_checkpointing = False  # it has no blocks
    paper = (
        "miDNN",
        "Globally Optimized Mutual Influence Aware Ranking in E-Commerce Search, IJCAI 2018, "
        "<https://arxiv.org/abs/1805.08524>.",
    )

    def __init__(self, config: MiDNNConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.places = nn.Linear(max(1, self.schema.numeric_size("candidate")), size)
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: each candidate by itself, and by its place among the others."""
        hidden = self.features(batch)
        numeric = bounded(batch["candidate_numeric"], torch.float32)
        if numeric.shape[-1]:
            hidden = hidden + self.places(place_in_list(numeric, batch["candidate_mask"]).to(hidden.dtype))
        for layer in self.layers:
            hidden = layer(self.dropout(F.gelu(hidden)))
        return F.gelu(hidden)


__all__ = ["MiDNNForReranking"]
