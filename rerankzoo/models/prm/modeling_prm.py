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
- Loss: by default binary cross-entropy on the positions that the log has shown, one probability per feedback target.
  The paper has one label, a softmax over the list and -sum y log P, for lists that were shown as a whole; ours show a
  few of the candidates and weigh several targets by value, for which probabilities are needed. A candidate's score is
  its expected utility, the sum over targets of weight x value x probability. `loss: softmax` is the paper's.
- Pre-norm Transformer blocks with GELU, and the rank's embedding added after the linear map of the features; our
  sources are not that exact.
"""

from __future__ import annotations

from torch import Tensor, nn

from rerankzoo.batch import Batch
from rerankzoo.layers import UpstreamRankEmbedding, key_mask
from rerankzoo.models.prm.configuration_prm import PRMConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel


@register_model
class PRMForReranking(ScoreAndSortModel):
    """Predicts the feedback of each candidate in the context of all; greedy decoding sorts by expected utility.

    Args:
        config: Its schema must name an upstream score.

    Raises:
        SchemaError: If it does not.
    """

    config: PRMConfig
    config_class = PRMConfig
    paper = ("PRM", "Personalized Re-ranking for Recommendation, RecSys 2019, <https://arxiv.org/abs/1904.06813>.")

    def __init__(self, config: PRMConfig) -> None:
        super().__init__(config)
        self.upstream_column = self.upstream_score_column()
        self.positions = UpstreamRankEmbedding(config.max_position_embeddings, config.hidden_size)
        self.layers = self.make_blocks(config.num_hidden_layers)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`: attention among the candidates, each with its upstream rank."""
        mask = batch["candidate_mask"]
        ranks = self.positions.of_scores(batch["candidate_numeric"][..., self.upstream_column], mask)
        hidden = self.features(batch) + ranks
        attended = key_mask(mask)
        for layer in self.layers:
            hidden = layer(hidden, mask=attended, implementation=self.config._attn_implementation)
        return self.norm(hidden)


__all__ = ["PRMForReranking"]
