"""Building blocks of all models: plain modules with flat arguments; they know no config and no model."""

from __future__ import annotations

from rerankzoo.layers.behaviour import BEHAVIOURS, Behaviour
from rerankzoo.layers.embedding import (
    FeatureEmbedding,
    FieldEmbedding,
    GatedFieldNorm,
    InterFieldAttention,
    PackedEmbedding,
)
from rerankzoo.layers.feedback import FeedbackHead
from rerankzoo.layers.history import HistoryEncoder, PageContext, SetToListAttention, TargetAttention, ages, recency
from rerankzoo.layers.induced_block import InducedBlock
from rerankzoo.layers.interactions import PairInteractions
from rerankzoo.layers.prefix_value import (
    ExitValueHead,
    FeedbackValueHead,
    OrderedValueHead,
    PrefixHead,
    RegressionValueHead,
)
from rerankzoo.layers.query_encoder import CandidateEncoder, QueryEncoder
from rerankzoo.layers.relaxation import gumbel_choices
from rerankzoo.layers.transformer import (
    MultiHeadAttention,
    PointerHead,
    TokenBlock,
    TransformerBlock,
    additive_mask,
    attend,
    attend_by_heads,
    causal_mask,
    key_mask,
    linear_function,
    norm_function,
    split_heads,
)
from rerankzoo.layers.upstream import UpstreamModel, UpstreamRankEmbedding, upstream_rank

__all__ = [
    "BEHAVIOURS",
    "Behaviour",
    "CandidateEncoder",
    "ExitValueHead",
    "FeatureEmbedding",
    "FeedbackHead",
    "FeedbackValueHead",
    "FieldEmbedding",
    "GatedFieldNorm",
    "HistoryEncoder",
    "InducedBlock",
    "InterFieldAttention",
    "MultiHeadAttention",
    "OrderedValueHead",
    "PackedEmbedding",
    "PageContext",
    "PairInteractions",
    "PointerHead",
    "PrefixHead",
    "QueryEncoder",
    "RegressionValueHead",
    "SetToListAttention",
    "TargetAttention",
    "TokenBlock",
    "TransformerBlock",
    "UpstreamModel",
    "UpstreamRankEmbedding",
    "additive_mask",
    "ages",
    "attend",
    "attend_by_heads",
    "causal_mask",
    "gumbel_choices",
    "key_mask",
    "linear_function",
    "norm_function",
    "recency",
    "split_heads",
    "upstream_rank",
]
