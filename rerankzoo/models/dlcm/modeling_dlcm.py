"""DLCM: a recurrent reading of the upstream list, and every candidate compared with what it has read.

Learning a Deep Listwise Context Model for Ranking Refinement (SIGIR 2018, arXiv 1804.05936). A GRU reads the best of
the upstream list from the worst to the best; candidate i is scored by its output and the last state,
`phi(h_i, s) = a . tanh(W h_i + V s)`.

B requests, N candidates, K candidates that are read, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract and public implementations) do not state:

- Candidates below the first K are read by themselves, from the empty state, and scored like the others.
- The order is that of the upstream score, whatever the order of the rows; of candidates with equal scores it is any.
- phi is one layer as wide as the hidden size, instead of the mean of three.
- The GRU reads the linear map of all features, not the raw features themselves.
- Loss: as chosen in the config. Candidates that the log has not shown have no label and no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from rerankzoo.batch import Batch
from rerankzoo.layers.embedding import bounded
from rerankzoo.models.dlcm.configuration_dlcm import DLCMConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel


@register_model
class DLCMForReranking(ScoreAndSortModel):
    """Scores each candidate by a recurrent reading of the upstream list; greedy decoding sorts.

    Args:
        config: Its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.
    """

    config: DLCMConfig
    config_class = DLCMConfig
    supports_gradient_checkpointing = False  # it has no blocks
    paper = (
        "DLCM",
        "Learning a Deep Listwise Context Model for Ranking Refinement, SIGIR 2018, <https://arxiv.org/abs/1804.05936>.",
    )

    def __init__(self, config: DLCMConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.upstream_column = self.upstream_score_column()
        self.reader = nn.GRUCell(size, size)
        self.of_candidate = nn.Linear(size, size)
        self.of_list = nn.Linear(size, size, bias=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.GRUCell):
            for weight in module.parameters():
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: `tanh(W h_i + V s)`."""
        hidden, mask = self.dropout(self.features(batch)), batch["candidate_mask"]
        order, length = self.reading_order(batch["candidate_numeric"][..., self.upstream_column], mask)
        outputs = self.read(hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])))
        last = (length - 1).clamp_min(0).view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
        context = outputs.gather(1, last)  # (B, 1, D)
        alone = self.reader(hidden.flatten(0, 1)).view(hidden.shape)
        return torch.tanh(self.of_candidate(_put(alone, outputs, order, length)) + self.of_list(context))

    def read(self, vectors: Tensor) -> Tensor:
        """The states (B, K, D) after each of K vectors (B, K, D). A loop: `nn.GRU` is not exported."""
        state, states = torch.zeros_like(vectors[:, 0]), []
        for vector in vectors.unbind(1):
            state = self.reader(vector, state)
            states.append(state)
        return torch.stack(states, dim=1)

    def reading_order(self, scores: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Which candidates are read, from the worst to the best, and how many; behind them any.

        Args:
            scores: (B, N), of the upstream ranker.
            mask: (B, N), True where a candidate is real.

        Returns:
            (B, K) and (B).
        """
        size = self.config.list_size
        known = bounded(scores, torch.float32).masked_fill(~mask, float("-inf"))
        best = F.pad(known, (0, size), value=float("-inf")).topk(size).indices  # however few candidates there are
        best = best.clamp_max(mask.shape[1] - 1)
        length = mask.sum(1).clamp_max(size)
        place = (length.unsqueeze(1) - 1 - torch.arange(size, device=mask.device)).clamp_min(0)
        return best.gather(1, place), length


def _put(states: Tensor, outputs: Tensor, order: Tensor, length: Tensor) -> Tensor:
    """States (B, N, D) with the outputs (B, K, D) of those that were read in the places that `order` tells."""
    number = torch.arange(order.shape[1], device=order.device)
    place = order.masked_fill(number >= length.unsqueeze(1), states.shape[1])  # one more, for what is behind them
    place = place.unsqueeze(-1).expand(-1, -1, states.shape[-1])
    return F.pad(states, (0, 0, 0, 1)).scatter(1, place, outputs)[:, :-1]


__all__ = ["DLCMForReranking"]
