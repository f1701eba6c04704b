"""SetRank: self-attention over the candidates as a set.

SetRank: Learning a Permutation-Invariant Ranking Model for Information Retrieval (SIGIR 2020, arXiv 1912.05891). A
Transformer encoder without positions scores every candidate in the context of all; with induced attention the
candidates see one another through a few learned points.

B requests, N candidates, P inducing points, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract and public implementations) do not state:

- Pre-norm blocks with GELU; the paper's are post-norm.
- The ordinal embeddings of the upstream rank, optional there too, are off by default and added after the linear map of
  the features. Equal scores share a rank.
- Loss: as chosen in the config. Candidates that the log has not shown have no label and no part in it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from rerankzoo.batch import Batch
from rerankzoo.layers import InducedBlock, UpstreamRankEmbedding, key_mask
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel
from rerankzoo.models.setrank.configuration_setrank import SetRankConfig


@register_model
class SetRankForReranking(ScoreAndSortModel):
    """Scores each candidate in the context of the set of all; greedy decoding sorts.

    Args:
        config: With `max_position_embeddings`, its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.
    """

    config: SetRankConfig
    config_class = SetRankConfig
    paper = (
        "SetRank",
        "SetRank: Learning a Permutation-Invariant Ranking Model for Information Retrieval, SIGIR 2020, "
        "<https://arxiv.org/abs/1912.05891>.",
    )

    def __init__(self, config: SetRankConfig) -> None:
        super().__init__(config)
        self.ranks = None
        if config.max_position_embeddings:
            self.upstream_column = self.upstream_score_column()
            self.ranks = UpstreamRankEmbedding(config.max_position_embeddings, config.hidden_size)
        if config.num_inducing_points:
            self.layers = nn.ModuleList(self._make_induced_block() for _ in range(config.num_hidden_layers))
        else:
            self.layers = self.make_blocks(config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def _make_induced_block(self) -> InducedBlock:
        config = self.config
        return InducedBlock(
            config.num_inducing_points,
            config.hidden_size,
            config.num_attention_heads,
            config.intermediate_size,
            config.hidden_dropout_prob,
            config.attention_probs_dropout_prob,
        )

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, InducedBlock):
            init.normal_(module.points, mean=0.0, std=1.0)

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: attention among the candidates."""
        mask = batch["candidate_mask"]
        hidden = self.features(batch)
        if self.ranks is not None:
            hidden = hidden + self.ranks.of_scores(batch["candidate_numeric"][..., self.upstream_column], mask)
        attended = key_mask(mask)
        for layer in self.layers:
            hidden = layer(hidden, mask=attended, implementation=self.config._attn_implementation)
        return self.norm(hidden)


__all__ = ["SetRankForReranking"]
