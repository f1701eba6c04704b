"""MIR: candidates as a set meet the user's history as a list, whose items fade with a half-life of the user's own.

Multi-Level Interaction Reranking with User Behavior History (SIGIR 2022, arXiv 2204.09370). Candidates see one another
(intra-set), so do past items (intra-list); *set-to-list attention* then lets both read each other by an affinity that
fades with time:

    C_li = 2^(-age_l / T) q_l W v_i / sqrt(D)                  T = exp(8 network(user))
    h_i  = tanh(W_v v_i + sum_l C_li W_q q_l / (1 + sum_l 2^(-age_l / T)))
    g_l  = tanh(W_q q_l + sum_i C_li W_v v_i / N)
    score_i = network(LN([x_i, h_i, sum_j a_j v_j, sum_l b_l q_l])),  a = softmax_j(w . h_j),  b = softmax_l(u . g_l)

B requests, N candidates, L past items, D hidden.

Where this differs from the paper, or fills in what our sources (its abstract and two public implementations) do not
state:

- Both implementations give every candidate attention rows of its own, one by weights as wide as the list, which breaks
  the invariance that the paper claims. Here the rows are shared, and a candidate's own reading h_i stands beside them;
  sums over the history and over the candidates are divided, so that their lengths do not matter. This is our proposal.
- A pair has one affinity for each attention head, of that part of both vectors, which reads the same part of `W_q q_l`;
  in the implementations it has one, and one more of pairs of fields, by a convolution, which is left out.
- The decay is exponential in time, `2^(-age / T)`, and multiplies the affinity, so that T is a half-life in the data's
  own unit (`half_lives`). The implementations have `exp(theta * position)` and `exp(-theta * log2(gap + 1))`, and add
  the affinity without decay. Where nobody knows times, an item's age is the number of later ones.
- Past items know one another by Transformer blocks that are told their ages, and not by a BiLSTM: recurrence over a
  history of any length is not exported. Where the data tell pages, they also know the others of their page.
- x_i also has the mean history, as in all families here (or reads it by attention, with `pool_history: false`).
- Loss: as chosen in the config; cross-entropy in the paper.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from rerankzoo.batch import Batch
from rerankzoo.errors import SchemaError
from rerankzoo.layers import CandidateEncoder, HistoryEncoder, SetToListAttention, ages, recency
from rerankzoo.layers.history import FIRST_COUNT, FIRST_TIME
from rerankzoo.models.mir.configuration_mir import MIRConfig
from rerankzoo.models.registry import register_model
from rerankzoo.models.score_and_sort import ScoreAndSortModel

_STEP = 8.0  # by which a parameter moves the logarithm of a half-life: far, in as few steps as other parameters need
_FARTHEST = 8.0  # of the logarithm of a half-life from 0


@register_model
class MIRForReranking(ScoreAndSortModel):
    """Scores each candidate by the set that it stands in and by the user's history; greedy decoding sorts.

    Args:
        config: Its schema must have history fields.

    Raises:
        SchemaError: If it has none.
    """

    config: MIRConfig
    config_class = MIRConfig
    paper = (
        "MIR",
        "Multi-Level Interaction Reranking with User Behavior History, SIGIR 2022, <https://arxiv.org/abs/2204.09370>.",
    )

    def __init__(self, config: MIRConfig) -> None:
        super().__init__(config)
        if not self.schema.has_history:
            raise SchemaError(f"MIRForReranking reads histories; schema {self.schema.name!r} has no history field")
        size, time = config.hidden_size, self.schema.history_time
        self.timed, self.time_unit = time is not None, (time and time.time_unit) or 1.0
        self.intra_set = CandidateEncoder(self.make_blocks(config.num_hidden_layers), size)
        self.intra_list = HistoryEncoder(
            self.make_blocks(config.num_history_layers), size, paged=self.schema.history_page is not None
        )
        self.decay = HalfLife(self.features.widths["request"], config.decay_size, self.timed)
        self.attention = SetToListAttention(size, config.num_attention_heads)
        self.norm = nn.LayerNorm(4 * size)
        self.network = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, HalfLife):
            init.constant_(module.logarithm, module.first())
            if module.weight is not None:
                init.constant_(module.weight, 0.001)  # about the same for all users

    def half_lives(self, **batch: Tensor) -> Tensor:
        """How long it takes until a past item counts half, for each user (B,), in the unit of the data's times.

        Where the data has no times, in past items.
        """
        with torch.no_grad():
            return self._half_lives(batch).squeeze(-1) * self.time_unit

    def _half_lives(self, batch: Batch) -> Tensor:
        """(B, 1), in the batch's unit."""
        half_lives: Tensor = self.decay(self.features.join("request", batch))
        return half_lives

    def encode_candidates(self, batch: Batch) -> Tensor:
        """See `ScoreAndSortModel.encode_candidates`."""
        vectors, past_mask, mask = self.features(batch), batch["history_mask"], batch["candidate_mask"]
        past = self.features.past_items(batch)
        age = ages(past_mask, batch["history_time"] if self.timed else None)
        implementation = self.config._attn_implementation
        candidates = self.intra_set(vectors, mask, implementation)
        past = self.intra_list(past, past_mask, age, batch.get("history_page"), implementation)
        left = recency(age, self._half_lives(batch), past_mask).to(past.dtype)
        read, of_set, of_list = self.attention(candidates, mask, past, past_mask, left)
        shared = torch.cat([of_set, of_list], dim=-1).unsqueeze(1).expand(-1, vectors.shape[1], -1)
        return F.gelu(self.network(self.dropout(self.norm(torch.cat([vectors, read, shared], dim=-1)))))


class HalfLife(nn.Module):
    """How long a user remembers, told by a small network from what is known of her.

    Args:
        user_size: Width of what is known; with 0 all users remember equally long.
        hidden_size: Of the network.
        timed: Whether ages are times, in their mean over the training rows; else they are numbers of items.
    """

    def __init__(self, user_size: int, hidden_size: int, timed: bool) -> None:
        super().__init__()
        self.timed = timed
        self.logarithm = nn.Parameter(torch.empty(()))
        # Nothing without fields of the request: a parameter that can get no gradient stops distributed training.
        self.network = nn.Linear(user_size, hidden_size) if user_size else None
        self.weight = nn.Parameter(torch.empty(hidden_size)) if user_size else None

    def first(self) -> float:
        """Where the logarithm starts, in steps: where the newest items count most."""
        return math.log((FIRST_TIME if self.timed else FIRST_COUNT) / 4) / _STEP

    def forward(self, user: Tensor) -> Tensor:
        """Half-lives (B, 1), positive, of users (B, `user_size`)."""
        told = self.logarithm.expand(user.shape[0])
        if self.network is not None and self.weight is not None:
            told = told + F.gelu(self.network(user)) @ self.weight
        return (_STEP * told.float()).clamp(-_FARTHEST, _FARTHEST).exp().unsqueeze(-1)


__all__ = ["MIRForReranking"]
