"""GSF: a network that scores the candidates of a group together; a candidate's score is that of all its groups.

Learning Groupwise Multivariate Scoring Functions Using Deep Neural Networks (ICTIR 2019, arXiv 1811.04415). With groups
of two, `s_i = 1/N sum_j [f_1(x_i, x_j) + f_2(x_j, x_i)]`: one network reads the pair and returns one score for each of
its members.

B requests, N candidates, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract and public implementations) do not state:

- All pairs, a candidate with itself included, are read exactly, in training too; the paper draws groups of any size
  from shuffles of the list. That makes it invariant to the order of the candidates, and its cost N squared.
- The mean over groups instead of the sum, so that requests of any size have scores of one scale.
- Loss: as chosen in the config. Candidates that the log has not shown have no label and no part in it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.batch import Batch
from rerankzoo.models.gsf.configuration_gsf import GSFConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel


@register_model
class GSFForReranking(ScoreAndSortModel):
    """Scores each candidate by its groups with all others; greedy decoding sorts."""

    config: GSFConfig
    config_class = GSFConfig
    supports_gradient_checkpointing = False  # it has no blocks
    paper = (
        "GSF",
        "Learning Groupwise Multivariate Scoring Functions Using Deep Neural Networks, ICTIR 2019, "
        "<https://arxiv.org/abs/1811.04415>.",
    )

    def __init__(self, config: GSFConfig) -> None:
        super().__init__(config)
        size, grouped = config.hidden_size, config.group_size == 2
        self.members = nn.ModuleList(nn.Linear(size, size, bias=number == 0) for number in range(config.group_size))
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(config.num_hidden_layers - 1))
        self.outputs = nn.ModuleList(nn.Linear(size, size) for _ in range(config.group_size)) if grouped else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: the mean over the groups of what each says of its member."""
        hidden = self.features(batch)
        if self.outputs is None:
            return self.read(self.members[0](hidden))
        first, second = (member(hidden) for member in self.members)
        mask = batch["candidate_mask"].unsqueeze(-1).to(hidden.dtype)
        weights = mask / mask.sum(1, keepdim=True).clamp_min(1)  # (B, N, 1)
        read = self.read(first.unsqueeze(2) + second.unsqueeze(1))  # (B, N, N, D): of the pair (i, j)
        as_first = (read * weights.unsqueeze(1)).sum(2)
        as_second = (read * weights.unsqueeze(2)).sum(1)
        return self.outputs[0](as_first) + self.outputs[1](as_second)

    def read(self, group: Tensor) -> Tensor:
        """The network of a group, behind its first linear map: (..., D) to (..., D)."""
        group = F.gelu(group)
        for layer in self.layers:
            group = F.gelu(layer(self.dropout(group)))
        return group


__all__ = ["GSFForReranking"]
