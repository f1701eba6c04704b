"""What people would use instead, with the same weights: slates are the same, only the way to them differs.

B requests, N candidates, M positions, W beams, R rows being decoded, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from rerankzoo.generation.scorer import remaining_log_probs
from rerankzoo.layers import TransformerBlock, causal_mask, key_mask, split_heads
from rerankzoo.models.degre import DeGReEvaluator, DeGReGenerator
from rerankzoo.models.pointer_generator import Encoded

Batch = Mapping[str, Tensor]

# --- transformers' generate -----------------------------------------------------------------------------------------


class NoRepeat(LogitsProcessor):
    """No candidate twice."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(-1, input_ids, float("-inf"))


class TransformersGenerator(PreTrainedModel, GenerationMixin):
    """A `DeGReGenerator` decoded by transformers: its beam search, its cache, tokens 0..N-1 and N for the start."""

    config_class = PreTrainedConfig
    main_input_name = "encoded"
    _supports_sdpa = True

    def __init__(self, model: DeGReGenerator, num_candidates: int) -> None:
        config = PreTrainedConfig(is_encoder_decoder=True, num_hidden_layers=len(model.decoder_layers))
        config.vocab_size, config.num_attention_heads = num_candidates + 1, model.config.num_attention_heads
        config.hidden_size, config.decoder_start_token_id = model.config.hidden_size, num_candidates
        super().__init__(config)
        self.model = model
        self.layers = cast(list[TransformerBlock], list(model.decoder_layers))
        self.generation_config = GenerationConfig(decoder_start_token_id=num_candidates, use_cache=True)

    def get_encoder(self, *args: Any, **kwargs: Any) -> nn.Module:
        return self.model

    def forward(
        self,
        decoder_input_ids: Tensor,
        encoder_outputs: BaseModelOutput,
        user: Tensor,
        candidate_mask: Tensor,
        cache: Any = None,
        past_key_values: Any = None,
        encoded: Tensor | None = None,
        **other: Any,
    ) -> Seq2SeqLMOutput:
        cache = past_key_values if cache is None else cache  # its name before transformers 5.24
        states, position = encoder_outputs.last_hidden_state, cache.get_seq_length()
        token, start = decoder_input_ids[:, -1], self.config.decoder_start_token_id
        rows = torch.arange(len(token))
        chosen = states[rows, token.clamp_max(start - 1)]
        hidden = torch.where((token == start).unsqueeze(-1), user, chosen) + self.model.positions.weight[position]
        hidden, mask = hidden.unsqueeze(1), key_mask(candidate_mask)
        for number, layer in enumerate(self.layers):
            hidden = self._block(layer, number, hidden, states, mask, cache)
        logits = self.model.pointer(self.model.decoder_norm(hidden), states, candidate_mask)
        logits = F.pad(logits, (0, 1), value=float("-inf"))
        return Seq2SeqLMOutput(logits=logits)  # the cache changes in place

    def _block(
        self, layer: TransformerBlock, number: int, hidden: Tensor, states: Tensor, mask: Tensor, cache: Any
    ) -> Tensor:
        attention, cross = layer.attention, layer.cross_attention
        heads = attention.num_attention_heads
        query, key, value = split_heads(layer.project(hidden), 3 * heads).chunk(3, dim=1)
        key, value = cache.self_attention_cache.update(key, value, number)
        mixed = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + attention.output(mixed.transpose(1, 2).flatten(2))
        if cache.is_updated.get(number):
            known = cache.cross_attention_cache.layers[number]
            key, value = known.keys, known.values
        else:
            key, value = split_heads(cross.key_value(states), 2 * heads).chunk(2, dim=1)
            key, value = cache.cross_attention_cache.update(key, value, number)
            cache.is_updated[number] = True
        query = split_heads(cross.query(layer.cross_attention_norm(hidden)), heads)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + cross.output(mixed.transpose(1, 2).flatten(2))
        return hidden + layer.feed_forward(layer.feed_forward_norm(hidden))

    @torch.no_grad()
    def slates(self, encoded: Encoded, mask: Tensor, slate_size: int, num_beams: int = 1) -> Tensor:
        """Slates (B, M) from what the model's encoder returned."""
        found = self.generate(
            encoded=encoded.states,
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded.states),
            user=encoded.start,
            candidate_mask=mask,
            max_new_tokens=slate_size,
            num_beams=num_beams,
            do_sample=False,
            renormalize_logits=num_beams > 1,  # a beam's score is the log-probability over the candidates left
            logits_processor=LogitsProcessorList([NoRepeat()]),
        )
        return found[:, 1:]


# --- the whole prefix again at every step ---------------------------------------------------------------------------


def next_logits(model: DeGReGenerator, states: Tensor, user: Tensor, prefix: Tensor, mask: Tensor) -> Tensor:
    """Logits (R, N) after prefixes (R, t) of rows with encoded candidates (R, N, D) each."""
    rows = torch.arange(len(prefix)).unsqueeze(-1)
    hidden = torch.cat([user.unsqueeze(1), states[rows, prefix]], dim=1)
    hidden = hidden + model.positions.weight[: hidden.shape[1]]
    causal, keys = causal_mask(hidden.shape[1], hidden.device), key_mask(mask)
    for layer in model.decoder_layers:
        hidden = layer(hidden, mask=causal, memory=states, memory_mask=keys)
    return model.pointer(model.decoder_norm(hidden[:, -1:]), states, mask).squeeze(1)


@torch.no_grad()
def naive_greedy(model: DeGReGenerator, encoded: Encoded, mask: Tensor, slate_size: int) -> Tensor:
    """Greedy slates (B, M)."""
    prefix = mask.new_empty(len(mask), 0, dtype=torch.int64)
    left = mask.clone()
    for _ in range(slate_size):
        logits = next_logits(model, encoded.states, encoded.start, prefix, mask)
        chosen = logits.masked_fill(~left, float("-inf")).argmax(-1, keepdim=True)
        left.scatter_(1, chosen, False)
        prefix = torch.cat([prefix, chosen], dim=1)
    return prefix


@torch.no_grad()
def naive_beam(model: DeGReGenerator, encoded: Encoded, mask: Tensor, slate_size: int, num_beams: int) -> Tensor:
    """The best slates (B, M) of a beam search; each beam is a row with encoded candidates of its own."""
    size, num_candidates = mask.shape
    states, user, width = encoded.states, encoded.start, 1
    prefix, total, left = mask.new_empty(size, 0, dtype=torch.int64), torch.zeros(size), mask
    for _ in range(slate_size):
        repeated = [x.repeat_interleave(width, 0) for x in (states, user)]
        logits = next_logits(model, *repeated, prefix, mask.repeat_interleave(width, 0))
        totals = (total.unsqueeze(-1) + remaining_log_probs(logits, left)).view(size, -1)
        best, flat = totals.topk(min(num_beams, totals.shape[1]))
        parent = (torch.arange(size).unsqueeze(-1) * width + flat // num_candidates).flatten()
        chosen, total, width = (flat % num_candidates).view(-1, 1), best.flatten(), best.shape[1]
        prefix = torch.cat([prefix[parent], chosen], dim=1)
        left = left[parent].scatter(1, chosen, False)
    return prefix.view(size, width, -1)[:, 0]


# --- contrastive selection, request by request ----------------------------------------------------------------------


def python_contrastive(
    logits: Tensor, states: Tensor, mask: Tensor, slate_size: int, penalty_alpha: float
) -> tuple[Tensor, Tensor]:
    """Contrastive slates (B, M) and the log-probabilities of their choices (B, M), request by request.

    From a matching matrix (B, M, N), representations (B, N, D) and a padding mask (B, N).
    """
    slates, scores = [], []
    for matching, vectors, real in zip(logits, states, mask, strict=True):
        slate: list[int] = []
        steps: list[float] = []
        left = real.clone()
        for position in range(slate_size):
            log_probs = matching[position].masked_fill(~left, float("-inf")).log_softmax(-1)
            worth = log_probs.exp()
            if slate:
                similarity = F.cosine_similarity(vectors.unsqueeze(1), vectors[slate].unsqueeze(0), dim=-1)
                worth = (1 - penalty_alpha) * worth - penalty_alpha * similarity.amax(-1)
            chosen = int(worth.masked_fill(~left, float("-inf")).argmax())
            left[chosen] = False
            slate.append(chosen)
            steps.append(float(log_probs[chosen]))
        slates.append(slate)
        scores.append(steps)
    return torch.tensor(slates), torch.tensor(scores)


# --- mining by scoring every extension as a slate of its own --------------------------------------------------------


@torch.no_grad()
def naive_mining(model: DeGReEvaluator, batch: Batch, slate_size: int, num_beams: int) -> tuple[Tensor, Tensor]:
    """The best slates (B, W, M) and their values (B, W): every prefix with every candidate goes through the model."""
    mask = batch["candidate_mask"]
    size, num_candidates = mask.shape
    items, candidates = model.encode_items(batch), torch.arange(num_candidates)
    prefix = mask.new_empty(size, 1, 0, dtype=torch.int64)
    for _ in range(slate_size):
        width = prefix.shape[1]
        extended = torch.cat(
            [
                prefix.unsqueeze(2).expand(-1, -1, num_candidates, -1),
                candidates.view(1, 1, -1, 1).expand(size, width, -1, -1),
            ],
            dim=-1,
        ).flatten(1, 2)  # (B, W * N, t)
        values = _values(model, items, extended, batch["candidate_value"])
        repeated = (extended[..., :-1] == extended[..., -1:]).any(-1)
        best, flat = values.masked_fill(repeated, float("-inf")).topk(min(num_beams, values.shape[1]))
        prefix = extended.gather(1, flat.unsqueeze(-1).expand(-1, -1, extended.shape[-1]))
    return prefix, best


def _values(model: DeGReEvaluator, items: Tensor, slates: Tensor, candidate_value: Tensor) -> Tensor:
    """Values (B, S) of slates (B, S, t) of encoded items, all positions again."""
    rows = torch.arange(len(slates)).view(-1, 1, 1)
    hidden = (items[rows, slates] + model.positions.weight[: slates.shape[-1]]).flatten(0, 1)
    for layer in model.layers:
        hidden = layer(hidden, mask=causal_mask(slates.shape[-1], hidden.device))
    states, own = hidden.unflatten(0, slates.shape[:2]), candidate_value[rows, slates]
    return torch.stack([model.gains(states[..., t, :], t, own[..., t, :])[0] for t in range(slates.shape[-1])]).sum(0)


# --- training -------------------------------------------------------------------------------------------------------


class PlainListwise(nn.Module):
    """PRM as a tutorial writes it: one `nn.Embedding` per field, `nn.TransformerEncoder`, `nn.Linear`."""

    def __init__(self, tables: list[int], embedding_size: int, num_numeric: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, embedding_size, padding_idx=0) for size in tables)
        hidden = sizes["hidden_size"]
        self.projection = nn.Linear(len(tables) * embedding_size + num_numeric, hidden)
        self.positions = nn.Embedding(64, hidden)
        layer = nn.TransformerEncoderLayer(
            hidden,
            sizes["num_attention_heads"],
            sizes["intermediate_size"],
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, sizes["num_hidden_layers"], nn.LayerNorm(hidden), enable_nested_tensor=False
        )
        self.head = nn.Linear(hidden, 1)

    def forward(self, ids: Tensor, numbers: Tensor, rank: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, N) from ids (B, N, F), numbers (B, N, F'), upstream ranks (B, N) and a mask (B, N)."""
        parts = [table(ids[..., number]) for number, table in enumerate(self.tables)]
        hidden = self.projection(torch.cat([*parts, numbers], dim=-1)) + self.positions(rank)
        return self.head(self.encoder(hidden, src_key_padding_mask=~mask)).squeeze(-1)
