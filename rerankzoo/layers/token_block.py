"""A Transformer block for decoding: one token of each sequence at a time. Plain: flat arguments, no config.

B requests, R rows being decoded, K keys, D hidden, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from rerankzoo.layers.transformer import TransformerBlock, attend


class TokenBlock:
    """A block made ready to take sequences on by one token each, many times.

    The same numbers as the block's `forward` with a causal mask on each sequence extended by its token. For a single
    request the time goes into calls, not arithmetic: tokens are rows of a matrix here, and weights are looked up once.
    Submodules that are more than a plain `nn.Linear` or `nn.LayerNorm` (adapters, hooks) are called as they are.
    Without dropout: this is for decoding.

    Args:
        block: The block; a change of its weights' values shows here, new tensors in their place do not.
        implementation: See `attend`.
    """

    def __init__(self, block: TransformerBlock, implementation: str = "sdpa") -> None:
        self.num_attention_heads, self.head_size = block.attention.num_attention_heads, block.attention.head_size
        self.implementation = implementation
        self._attention_norm = norm_function(block.attention_norm)
        self._query_key_value = linear_function(block.attention.query_key_value)
        self._attention_output = linear_function(block.attention.output)
        if block.has_cross_attention:
            self._cross_norm = norm_function(block.cross_attention_norm)
            self._cross_query = linear_function(block.cross_attention.query)
            self._cross_output = linear_function(block.cross_attention.output)
        self._feed_forward_norm = norm_function(block.feed_forward_norm)
        first, activation, last = block.feed_forward
        self._widen, self._narrow = linear_function(first), linear_function(last)
        self._activation = activation if has_hooks(activation) else activation.forward

    def __call__(
        self,
        hidden: Tensor,
        past: Tensor | None,
        memory: tuple[Tensor, Tensor] | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs the block.

        Args:
            hidden: (R, D), the next token of each of R sequences.
            past: (R, 2 * H, t, D/H), keys and values of the tokens before it; `None` for the first token.
            memory: The keys and the values (B, H, K, D/H) of a second sequence, where the block has cross-attention; R
                is a multiple of B, and the R / B rows of a request are neighbours: they share them without a copy.
            memory_mask: See `attend`.

        Returns:
            (R, D), and the keys and values (R, 2 * H, t + 1, D/H) with the token's own.
        """
        mixed, key_value = self._attend_to_past(self._query_key_value(self._attention_norm(hidden)), past)
        hidden = hidden + self._attention_output(mixed)
        if memory is not None:
            mixed = self._attend_to_memory(self._cross_query(self._cross_norm(hidden)), memory, memory_mask)
            hidden = hidden + self._cross_output(mixed)
        wide = self._activation(self._widen(self._feed_forward_norm(hidden)))
        return hidden + self._narrow(wide), key_value

    def _attend_to_past(self, projected: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the tokens read (R, D), and the keys and values with their own."""
        heads = self.num_attention_heads
        split = projected.view(-1, 3 * heads, 1, self.head_size)
        fresh = split[:, heads:]
        if past is None:  # the first token sees itself alone
            return projected[:, 2 * heads * self.head_size :], fresh
        key_value = torch.cat([past, fresh], dim=2)
        key, value = key_value.chunk(2, dim=1)
        mixed = attend(split[:, :heads], key, value, None, self.implementation)
        return mixed.reshape(-1, heads * self.head_size), key_value

    def _attend_to_memory(self, query: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """What the rows (R, D) of each request read from its memory: (R, D)."""
        key, value = memory
        split = query.view(key.shape[0], -1, self.num_attention_heads, self.head_size).transpose(1, 2)
        return attend(split, key, value, mask, self.implementation).transpose(1, 2).reshape(query.shape)


def linear_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a linear layer does to a matrix (R, K): one call of torch where it is plain, the module itself elsewhere."""
    if type(module) is not nn.Linear or has_hooks(module):
        return module
    if module.bias is None:
        return partial(torch.matmul, other=module.weight.t())
    return partial(torch.addmm, module.bias, mat2=module.weight.t())


def norm_function(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """What a norm does: one call of torch where it is a plain `nn.LayerNorm`, the module itself elsewhere."""
    if type(module) is not nn.LayerNorm or has_hooks(module):
        return module
    shape, weight, bias = list(module.normalized_shape), module.weight, module.bias
    return partial(torch.layer_norm, normalized_shape=shape, weight=weight, bias=bias, eps=module.eps)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
