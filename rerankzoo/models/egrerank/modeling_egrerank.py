"""EG-Rerank and its kin: a generator taught by policy gradients from an evaluator's word.

AliExpress Learning-To-Rank: Maximizing Online Model Performance without Going Online (arXiv 2003.11941, Alibaba). A
frozen evaluator predicts the feedback of slates, a generator draws several slates per request, and each choice is
reinforced by how much more it earned than the same position of the request's other slates. That is a group-normalised
policy gradient (GRPO) years before its name; GRN and Dual-Rerank differ in the advantage. All are cases of
`rerankzoo.training.EvaluatorReward`:

| method | `advantage` | and |
|---|---|---|
| EG-Rerank (PPO) | `position` | `normalise`, `discount` 0.01, `clip` 0.1, `entropy_weight` 0.001, `num_slates` 5 |
| GRPO | `slate` | `normalise` |
| GRN (arXiv 2104.00860, Taobao) | `self_plus_difference` | |
| Dual-Rerank's LDRO (arXiv 2604.07420, Kuaishou) | `decoupled` | |

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.

Where this differs from the papers, or fills in what our sources (abstracts, public TensorFlow code of LibRerank, notes)
do not state:

- Candidates attend to one another before they are pointed at; the published encoder is an MLP per item, its pointer an
  MLP of item and decoder state. The default decoder is a causal Transformer; the published LSTM is `decoder: lstm`,
  here with the mean candidate as its first input and the encoded item chosen last as every other.
- `discount` is 1 by default. The published 0.01 makes every choice answer for its own gain only.
- A position's gain is what it adds to the value of the slate down to it, by any evaluator; the published one is the
  predicted click of the position, which later items may still change.
- Entropy is drawn, not computed: `-entropy_weight log pi` is earned besides, whose gradient is the entropy's.
- One step is made with each draw, as in the public code: the ratio to the policy that drew is 1 but for dropout.
- The discriminator between logged and generated slates (EG-Rerank+) is not there; `supervised_weight` keeps the policy
  near the log.
- GRN: self and differential reward count the same (our sources do not tell their weights), their sum is
  `V(l) - V(l without the item)`. GRN's own network, GRU and attention, is not there.
- Dual-Rerank: the formulas of the decoupled normalisation are our reading; its student of one pass and the distillation
  are not there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.batch import Batch, gather_candidates
from rerankzoo.generation import Cache, Scorer, ScorerState
from rerankzoo.generation.scorer import check_positions, remaining_log_probs
from rerankzoo.models.egrerank.configuration_egrerank import EGRerankConfig
from rerankzoo.models.pointer_generator import Encoded, PointerGenerator
from rerankzoo.models.registry import register_model


class LSTMDecoder(nn.Module):
    """An LSTM that reads the items of a slate one by one.

    Args:
        hidden_size: D.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.input = nn.Linear(hidden_size, 4 * hidden_size)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, item: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """The states (..., D) after an item (..., D)."""
        write, keep, show, new = (self.input(item) + self.recurrent(hidden)).chunk(4, dim=-1)
        cell = keep.sigmoid() * cell + write.sigmoid() * new.tanh()
        return show.sigmoid() * cell.tanh(), cell


@register_model
class EGRerankForReranking(PointerGenerator):
    """EG-Rerank's generator: candidate encoder, decoder, pointer. Decodes greedily unless told otherwise."""

    config: EGRerankConfig
    config_class = EGRerankConfig
    paper = (
        "EG-Rerank",
        "AliExpress Learning-To-Rank: Maximizing Online Model Performance without Going Online, "
        "<https://arxiv.org/abs/2003.11941>.",
    )

    def __init__(self, config: EGRerankConfig) -> None:
        super().__init__(config)
        self.features = self.make_feature_embedding()
        self.make_layers()
        if config.decoder == "lstm":
            del self.decoder_layers, self.positions
            self.lstm = LSTMDecoder(config.hidden_size)
        self.post_init()

    def encode(self, batch: Batch) -> Encoded:
        """See `PointerGenerator.encode`; an LSTM starts with the mean candidate."""
        encoded = super().encode(batch)
        if self.config.decoder == "lstm":
            real = encoded.mask.unsqueeze(-1)
            encoded.start = encoded.states.masked_fill(~real, 0.0).sum(1) / real.sum(1).clamp_min(1)
        return encoded

    def read(self, encoded: Encoded, slates: Tensor) -> Tensor:
        """See `PointerGenerator.read`."""
        if self.config.decoder == "transformer":
            return super().read(encoded, slates)
        item = encoded.start.unsqueeze(1).expand(-1, slates.shape[1], -1)
        hidden, cell, states = torch.zeros_like(item), torch.zeros_like(item), []
        for index in slates.unbind(-1):
            hidden, cell = self.lstm(item, hidden, cell)
            states.append(hidden)
            item = gather_candidates(encoded.states, index)
        normed: Tensor = self.decoder_norm(torch.stack(states, dim=2))
        return normed

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`."""
        return super().scorer() if self.config.decoder == "transformer" else LSTMScorer(self)


class LSTMScorer(Scorer):
    """Keeps the LSTM's states (R, D).

    Args:
        model: The generator.
    """

    kind = "log_prob"

    def __init__(self, model: EGRerankForReranking) -> None:
        self.model = model

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """See `Scorer.encode`."""
        encoded = self.model.encode(batch)
        keys = self.model.pointer.keys(encoded.states).transpose(1, 2)
        return {"candidate_states": encoded.states, "start": encoded.start, "pointer": keys}

    def step(self, state: ScorerState) -> tuple[Tensor, Cache]:
        """See `Scorer.step`."""
        check_positions(state.prefix.shape[1] + 1, self.model.config.slate_size)
        if state.prefix.shape[1] == 0:
            item = state.of_requests(state.memory["start"])
            hidden, cell = torch.zeros_like(item), torch.zeros_like(item)
        else:
            states = state.memory["candidate_states"]
            chosen = state.request * states.shape[1] + state.prefix[:, -1].clamp_min(0)
            item, hidden, cell = states.flatten(0, 1)[chosen], state.cache["hidden"], state.cache["cell"]
        hidden, cell = self.model.lstm(item, hidden, cell)
        pointer = state.memory["pointer"]
        grouped = self.model.decoder_norm(hidden).view(pointer.shape[0], -1, hidden.shape[-1])  # (B, W, D)
        logits = torch.bmm(grouped, pointer).flatten(0, 1)
        return remaining_log_probs(logits, state.available), {"hidden": hidden, "cell": cell}


__all__ = ["EGRerankForReranking"]
