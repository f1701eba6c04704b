"""Base of pointer generators whose decoder may be an LSTM, as that of the older papers is.

B requests, N candidates, M positions, S slates, D hidden; R rows being decoded.
"""

from __future__ import annotations

from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn

from rerankzoo.batch import Batch, gather_candidates
from rerankzoo.generation import Cache, ModelScorer, Scorer, ScorerState
from rerankzoo.generation.scorer import check_positions, remaining_log_probs
from rerankzoo.models.pointer_generator import Encoded, PointerConfig, PointerGenerator


@strict
class RecurrentPointerConfig(PointerConfig):
    """Sizes and supervised losses of a `RecurrentPointerGenerator`; see also `PointerConfig`.

    Args:
        decoder: What reads the slate so far: a causal Transformer that looks at the candidates, too, or an LSTM, for
            which `num_decoder_layers` counts nothing.
    """

    decoder: Literal["transformer", "lstm"] = "transformer"


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


class RecurrentPointerGenerator(PointerGenerator):
    """A `PointerGenerator` whose decoder is the config's; an LSTM starts with the mean candidate."""

    def make_layers(self) -> None:
        """See `PointerGenerator.make_layers`."""
        super().make_layers()
        if self.config.decoder == "lstm":
            del self.decoder_layers, self.positions
            self.lstm = LSTMDecoder(self.config.hidden_size)

    def encode(self, batch: Batch) -> Encoded:
        """See `PointerGenerator.encode`."""
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
        return self.decoder_norm(torch.stack(states, dim=2))

    def scorer(self) -> Scorer:
        """See `SlateGenerationMixin.scorer`."""
        return super().scorer() if self.config.decoder == "transformer" else LSTMScorer(self)


class LSTMScorer(ModelScorer):
    """Keeps the LSTM's states (R, D)."""

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
