"""Attention, Transformer blocks (pre-norm, with padding masks) and the pointer. Plain modules, no config.

B batch, R rows being decoded, Q queries, K keys, M positions, N candidates,
D hidden, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

Module = TypeVar("Module", bound=nn.Module)


def softmax_of_few(scores: Tensor) -> Tensor:
    """The softmax along a short last axis, such as a row's few fields or positions; torch's own is for long ones.

    On a CPU that vectorises along the axis: 12 numbers take it several times as long as 16. Along the first axis it
    vectorises across the rows.
    """
    return scores.movedim(-1, 0).softmax(0).movedim(0, -1)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    implementation: str = "sdpa",
) -> Tensor:
    """Scaled dot-product attention.

    Args:
        query: (B, H, Q, D/H).
        key: (B, H, K, D/H).
        value: (B, H, K, D/H).
        mask: Broadcastable to (B, H, Q, K): boolean, True where a key may be attended to, or numbers that are added to
            the logits (see `additive_mask`). Every query needs at least one key.
        dropout: Probability of dropping an attention weight.
        implementation: `"sdpa"` (torch's fused kernels) or `"eager"` (spelled out, for inspection and parity tests).

    Returns:
        (B, H, Q, D/H).

    Raises:
        ValueError: If `implementation` is neither of the two.
    """
    if implementation == "sdpa":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    if implementation != "eager":
        raise ValueError(f"attention implementation {implementation!r} is not one of 'sdpa', 'eager'")
    weights = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if mask is not None:
        weights = weights + (additive_mask(mask, weights.dtype) if mask.dtype == torch.bool else mask)
    return F.dropout(weights.softmax(-1), dropout) @ value


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """A view of tokens (B, L, D) by their heads: (B, H, L, D/H)."""
    rows, length, width = tokens.shape
    return tokens.view(rows, length, num_heads, width // num_heads).transpose(1, 2)


def attend_by_heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    implementation: str = "sdpa",
) -> Tensor:
    """Attention in H heads, from tokens to tokens: `attend`, and what splits and joins its heads.

    Args:
        query: (B, Q, D).
        key: (B, K, D).
        value: (B, K, D).
        num_heads: H; divides D.
        mask: See `attend`.
        dropout: See `attend`.
        implementation: That of `attend`, or `"onnx"`: the operator of ONNX, one node of a graph instead of a dozen;
            without dropout.

    Returns:
        (B, Q, D).
    """
    if implementation == "onnx":  # the runtime wants a mask for every query
        mask = None if mask is None else mask.expand(-1, -1, query.shape[1], -1)
        mixed: Tensor = torch.onnx.ops.attention(
            query, key, value, mask, q_num_heads=num_heads, kv_num_heads=num_heads
        )[0]
        return mixed
    query, key, value = split_heads(query, num_heads), split_heads(key, num_heads), split_heads(value, num_heads)
    return attend(query, key, value, mask, dropout, implementation).transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Multi-head attention; one fused projection for queries, keys and values where they come from the same input.

    Args:
        hidden_size: D.
        num_attention_heads: H; divides D.
        dropout: Probability of dropping an attention weight while training.
        cross: Whether keys and values come from another sequence (`memory`) than the queries.
    """

    def __init__(self, hidden_size: int, num_attention_heads: int, dropout: float = 0.0, cross: bool = False) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ValueError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
            )
        self.num_attention_heads = num_attention_heads
        self.head_size = hidden_size // num_attention_heads
        self.dropout = dropout
        self.cross = cross
        if cross:
            self.query = nn.Linear(hidden_size, hidden_size)
            self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        else:
            self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.output = nn.Linear(hidden_size, hidden_size)

    def forward(
        self, hidden: Tensor, memory: Tensor | None = None, mask: Tensor | None = None, implementation: str = "sdpa"
    ) -> Tensor:
        """Attends from `hidden` (B, Q, D) to itself, or to `memory` (B, K, D) where the module was made with `cross`.

        Args:
            hidden: (B, Q, D); for cross-attention also (R, Q, D), the R / B rows of a request being neighbours.
            memory: (B, K, D), for cross-attention only; not copied for the rows of a request.
            mask: See `attend`.
            implementation: See `attend_by_heads`.

        Returns:
            As `hidden`.
        """
        if self.cross:
            query, (key, value) = self.query(hidden), self.key_value(memory).chunk(2, dim=-1)
            query = query.reshape(key.shape[0], -1, hidden.shape[-1])  # the rows of a request share its memory
            return self._mix(query, key, value, mask, implementation).view(hidden.shape)
        # Cut before it is split into heads: the gradients are then joined along the last axis, without another copy.
        query, key, value = self.query_key_value(hidden).chunk(3, dim=-1)
        return self._mix(query, key, value, mask, implementation)

    def branch(self, projected: Tensor, past: Tensor | None) -> Tensor:
        """Self-attention of alternative next tokens, each to the tokens before it and to itself.

        The alternatives do not see one another, so that all of them are tried in one call, and the keys and values of
        the past are shared by them and not copied. Without dropout: this is for decoding.

        Args:
            projected: (G, A, 3 * D), `self.query_key_value` of A alternatives for each of R rows, or for each of G
                groups of R / G neighbours that have the same ones.
            past: (R, 2 * H, t, D/H), the keys and values of the rows' tokens so far; `None` if there are none.

        Returns:
            (G, R / G, A, D).
        """
        if past is None:  # the first token sees itself alone
            return self.output(projected.chunk(3, dim=-1)[2]).unsqueeze(1)
        query, key, value = split_heads(projected, 3 * self.num_attention_heads).unsqueeze(1).chunk(3, dim=2)
        past = past.view(query.shape[0], -1, *past.shape[1:])
        past_key, past_value = past.chunk(2, dim=2)  # (G, R / G, H, t, D/H)
        own = (query * key).sum(-1, keepdim=True).expand(-1, past.shape[1], -1, -1, -1)
        weights = torch.cat([query @ past_key.transpose(-1, -2), own], dim=-1) / math.sqrt(query.shape[-1])
        weights = softmax_of_few(weights)
        mixed = weights[..., :-1] @ past_value + weights[..., -1:] * value
        return self.output(mixed.transpose(2, 3).flatten(3))

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, implementation: str) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return self.output(attend_by_heads(query, key, value, self.num_attention_heads, mask, dropout, implementation))


class TransformerBlock(GradientCheckpointingLayer):
    """A pre-norm Transformer block: self-attention, optionally cross-attention, feed-forward; each with a residual.

    Args:
        hidden_size: D.
        num_attention_heads: H; divides D.
        intermediate_size: Width of the feed-forward layer.
        dropout: Probability of dropping a unit of a residual branch while training.
        attention_dropout: Probability of dropping an attention weight while training.
        cross_attention: Whether the block also attends to a second sequence.

    References:
        Vaswani et al., Attention is all you need (2017); pre-norm after Xiong et al. (2020).
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, num_attention_heads, attention_dropout)
        self.has_cross_attention = cross_attention
        if cross_attention:
            self.cross_attention_norm = nn.LayerNorm(hidden_size)
            self.cross_attention = MultiHeadAttention(hidden_size, num_attention_heads, attention_dropout, cross=True)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, intermediate_size), nn.GELU(), nn.Linear(intermediate_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        implementation: str = "sdpa",
    ) -> Tensor:
        """Runs the block.

        Args:
            hidden: (B, Q, D).
            mask: See `attend`.
            memory: (B, K, D), required where the block was made with `cross_attention`. There may be several rows of
                `hidden` for each of `memory`, as neighbours.
            memory_mask: See `attend`.
            implementation: See `attend`.

        Returns:
            (B, Q, D).
        """
        mixed = self.attention(self.attention_norm(hidden), mask=mask, implementation=implementation)
        hidden = hidden + (self.dropout(mixed) if self.training else mixed)
        if memory is not None:
            query = self.cross_attention_norm(hidden)
            mixed = self.cross_attention(query, memory, memory_mask, implementation)
            hidden = hidden + (self.dropout(mixed) if self.training else mixed)
        return self._feed(hidden)

    def project(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values (..., 3 * D) of tokens (..., D), for `step`."""
        return self.attention.query_key_value(self.attention_norm(hidden))

    def step(self, hidden: Tensor, projected: Tensor, past: Tensor | None) -> Tensor:
        """Runs a block without cross-attention on alternative next tokens of sequences whose keys are known.

        The same numbers as `forward` with a causal mask on each sequence extended by each alternative.

        Args:
            hidden: (G, A, D), A alternatives for the next token of each of R sequences, or of each group of R / G
                neighbours.
            projected: (G, A, 3 * D), their `project`.
            past: (R, 2 * H, t, D/H), the keys and values of each sequence; `None` if they are empty.

        Returns:
            (R, A, D).
        """
        return self._feed((hidden.unsqueeze(1) + self.attention.branch(projected, past)).flatten(0, 1))

    def _feed(self, hidden: Tensor) -> Tensor:
        wide = self.feed_forward(self.feed_forward_norm(hidden))
        return hidden + (self.dropout(wide) if self.training else wide)


def key_mask(mask: Tensor) -> Tensor | None:
    """Turns a padding mask (B, K), True where a key is real, into an attention mask (B, 1, 1, K).

    A row without any real key attends to all of them instead of dividing by zero; its output is never used. `None`
    where nothing is padding, as in any batch of one request; an accelerator is not asked, for it would be waited for,
    nor is a graph, which is made for any requests.
    """
    if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask.all()):
        return None
    return (mask | ~mask.any(-1, keepdim=True))[:, None, None, :]


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to attention logits: 0 where it is True, the smallest number elsewhere.

    For a mask that is used many times: torch makes one of these of every boolean mask in every call.
    """
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """An attention mask (1, 1, M, M), True where a position may look: at itself and at those before it."""
    position = torch.arange(length, device=device)
    return (position[:, None] >= position)[None, None]


class TokenBlock:
    """A block made ready to take sequences on by one token each, many times.

    The same numbers as the block's `forward` with a causal mask on each sequence extended by its token. For a single
    request the time goes into calls, not arithmetic: tokens are rows of a matrix here, and weights are looked up once.
    Submodules that are more than a plain `nn.Linear` or `nn.LayerNorm` (adapters, hooks) are called as they are.
    Without dropout: this is for decoding.

    Args:
        block: The block; a change of its weights' values shows here, new tensors in their place do not.
        implementation: `"eager"` spells attention out; `"sdpa"` and `"onnx"` are those of `attend_by_heads`, one call
            or one node. For accelerators and graphs: on a CPU torch's kernels handle each head of each sequence by
            itself, and spelled out, one query of many sequences takes half the time.

    Attributes:
        row_axis: The axis of the sequences in their keys and values: 1, or 0 where attention is not spelled out.
    """

    def __init__(self, block: TransformerBlock, implementation: str = "eager") -> None:
        self.num_attention_heads, self.head_size = block.attention.num_attention_heads, block.attention.head_size
        self.implementation, self.fused = implementation, implementation != "eager"
        self.row_axis = int(not self.fused)
        self.scale = self.head_size**-0.5
        # (H, D), 1 where a number is of a head: a product with it sums by heads, faster than sums of short rows.
        weight = block.attention_norm.weight
        self._spread = torch.eye(self.num_attention_heads, dtype=weight.dtype, device=weight.device)
        self._spread = self._spread.repeat_interleave(self.head_size, dim=1)
        self._gather = self._spread.T * self.scale
        self._attention_norm = norm_function(block.attention_norm)
        self._query_key_value = linear_function(block.attention.query_key_value)
        self._attention_output = linear_function(block.attention.output)
        if block.has_cross_attention:
            self._cross_key_value = block.cross_attention.key_value
            self._cross_norm = norm_function(block.cross_attention_norm)
            self._cross_query = linear_function(block.cross_attention.query)
            self._cross_output = linear_function(block.cross_attention.output)
        self._feed_forward_norm = norm_function(block.feed_forward_norm)
        first, activation, last = block.feed_forward
        self._widen, self._narrow = linear_function(first), linear_function(last)
        self._activation = activation if activation._forward_hooks else activation.forward

    def remember(self, memory: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """What every token reads of a second sequence, where the block has cross-attention: computed once.

        Args:
            memory: (B, K, D).
            mask: (B, 1, 1, K), see `attend`.

        Returns:
            Keys, values and the mask if there is one, in the form that the block reads: B rows each, or B * H.
        """
        key, value = self._cross_key_value(memory).chunk(2, dim=-1)
        known = {} if mask is None else {"mask": additive_mask(mask, memory.dtype)}
        if self.fused:
            return {"key": key, "value": value, **known}
        key, value = (split_heads(part, self.num_attention_heads) for part in (key, value))
        parts = {"key": (key * self.scale).transpose(2, 3), "value": value}
        parts |= {name: part.expand(-1, self.num_attention_heads, -1, -1) for name, part in known.items()}
        return {name: part.flatten(0, 1).contiguous() for name, part in parts.items()}

    def __call__(
        self, hidden: Tensor, past: Tensor | None, memory: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the block.

        Args:
            hidden: (R, D), the next token of each of R sequences.
            past: (t, R, 2 * D), keys and values of the tokens before it, or (R, t, 2 * D), see `row_axis`; `None` for
                the first token.
            memory: What `remember` has made of a second sequence, where the block has cross-attention; R is a multiple
                of B, and the R / B rows of a request are neighbours: they share it without a copy.

        Returns:
            (R, D), and the keys and values with the token's own.
        """
        mixed, key_value = self._attend_to_past(self._query_key_value(self._attention_norm(hidden)), past)
        hidden = hidden + self._attention_output(mixed)
        if memory is not None:
            mixed = self._attend_to_memory(self._cross_query(self._cross_norm(hidden)), memory)
            hidden = hidden + self._cross_output(mixed)
        wide = self._activation(self._widen(self._feed_forward_norm(hidden)))
        return hidden + self._narrow(wide), key_value

    def _attend_to_past(self, projected: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the tokens read (R, D), and the keys and values with their own."""
        size = self.num_attention_heads * self.head_size
        query, fresh = projected.split([size, 2 * size], dim=-1)
        fresh = fresh.unsqueeze(1 - self.row_axis)
        if past is None:  # the first token sees itself alone
            return projected[:, 2 * size :], fresh
        key_value = torch.cat([past, fresh], dim=1 - self.row_axis)
        if self.fused:
            key, value = key_value.chunk(2, dim=-1)
            mixed = attend_by_heads(
                query.unsqueeze(1), key, value, self.num_attention_heads, implementation=self.implementation
            )
            return mixed.squeeze(1), key_value
        key, value = key_value.chunk(2, dim=-1)
        weights = ((query * key) @ self._gather).softmax(0)  # (t + 1, R, H)
        return (weights @ self._spread * value).sum(0), key_value

    def _attend_to_memory(self, query: Tensor, memory: Mapping[str, Tensor]) -> Tensor:
        """What the rows (R, D) of each request read from its memory: (R, D)."""
        key, value, mask, heads = memory["key"], memory["value"], memory.get("mask"), self.num_attention_heads
        if self.fused:
            grouped = query.view(key.shape[0], -1, query.shape[-1])
            return attend_by_heads(grouped, key, value, heads, mask, implementation=self.implementation).flatten(0, 1)
        split = query.view(key.shape[0] // heads, -1, heads, self.head_size).transpose(1, 2)
        rows = split.flatten(0, 1)
        logits = torch.bmm(rows, key) if mask is None else torch.baddbmm(mask, rows, key)
        mixed = torch.bmm(logits.softmax(-1), value).view(split.shape)
        return mixed.transpose(1, 2).reshape(query.shape)


def is_plain(module: nn.Module, kind: type[Module]) -> TypeGuard[Module]:
    """Whether a module does what its class does and no more: it is not quantised, adapted or watched by hooks."""
    return type(module) is kind and not module._forward_hooks and not module._forward_pre_hooks


def linear_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a linear layer does to a matrix (R, K): one call of torch where it is plain, the module itself elsewhere."""
    if not is_plain(module, nn.Linear):
        return module
    if module.bias is None:
        return partial(torch.matmul, other=module.weight.t())
    return partial(torch.addmm, module.bias, mat2=module.weight.t())


def norm_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm does: one call of torch where it is a plain `nn.LayerNorm`, the module itself elsewhere."""
    if not is_plain(module, nn.LayerNorm):
        return module
    shape, weight, bias = list(module.normalized_shape), module.weight, module.bias
    return partial(torch.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=module.eps)


class PointerHead(nn.Module):
    """Matches position states with candidate states by a scaled dot product.

    The vocabulary is the request's candidate set, so any number of candidates, seen before or not, can be scored.

    Args:
        hidden_size: D.

    References:
        Vinyals et al., Pointer networks (2015).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.scale = 1.0 / math.sqrt(hidden_size)

    def forward(self, positions: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """Scores every candidate for every position.

        Args:
            positions: (B, M, D).
            candidates: (B, N, D).
            mask: (B, N), True where a candidate is real.

        Returns:
            Logits (B, M, N), the smallest finite number where a candidate is padding.
        """
        logits = self.query(positions) @ candidates.transpose(-1, -2) * self.scale
        return logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min)

    def keys(self, candidates: Tensor) -> Tensor:
        """What positions are matched with, computed once where they come one by one.

        `positions @ keys.transpose(-1, -2)` are the logits (B, M, N) of `forward`, without a mask.

        Args:
            candidates: (B, N, D).

        Returns:
            (B, N, D).
        """
        if type(self.query) is nn.Linear:
            return candidates @ (self.query.weight * self.scale)
        # Quantised or adapted: what it does to the unit vectors is its matrix.
        unit = torch.eye(candidates.shape[-1], dtype=candidates.dtype, device=candidates.device)
        return candidates @ (self.query(unit).T * self.scale)
