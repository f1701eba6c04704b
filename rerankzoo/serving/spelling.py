"""Operators of torch in parts that a compiler joins with what is computed beside them: what AOTInductor compiles."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from rerankzoo.layers import additive_mask

_FEW_KEYS = 100  # up to which attention in parts is as fast as torch's kernel, or faster
_FEW_TERMS = 16  # up to which a softmax has no loop


def spell_out(program: ExportedProgram) -> ExportedProgram:
    """A program with some operators in parts, which a compiler joins with what is computed beside them.

    Biases are added after the products: torch's product with a bias first copies the bias into every row, for one
    request another call, for many the memory traffic of another activation. Attention to few keys is two products and
    a softmax: torch's kernel is made for long sequences, and starts anew for each head of each request. A softmax of a
    few terms, such as an item's fields, has no loop over them. Batched products keep their biases, which mask attention
    to the candidates: beams are slower with the two apart.
    """
    aten = torch.ops.aten
    parts: dict[Any, Callable[..., Tensor]] = {
        aten.linear.default: _product_and_bias,
        aten.addmm.default: _bias_last,
        aten.scaled_dot_product_attention.default: _attention_to_few,
        aten.softmax.int: _softmax_of_few,
    }
    return program.run_decompositions(parts)


def _product_and_bias(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product = torch.mm(hidden.reshape(-1, hidden.shape[-1]), weight.t()).view(*hidden.shape[:-1], -1)
    return product if bias is None else product + bias


def _bias_last(bias: Tensor, hidden: Tensor, weight: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return torch.mm(hidden, weight) * alpha + bias * beta


def _attention_to_few(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention with the keys above one another: what is summed over them vectorises across the queries."""
    if key.shape[-2] > _FEW_KEYS:
        return NotImplemented  # memory traffic of all weights at once; the kernel has a block of them
    weights = key @ (query * query.shape[-1] ** -0.5).transpose(-1, -2)
    if mask is not None:
        weights = weights + (additive_mask(mask, weights.dtype) if mask.dtype == torch.bool else mask).transpose(-1, -2)
    weights = (weights - weights.amax(-2, keepdim=True)).exp()
    return weights.transpose(-1, -2) @ value / weights.sum(-2).unsqueeze(-1)


def _softmax_of_few(logits: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    """A softmax without loops along its axis: one pass over the rest, whose partial results stay in registers."""
    if dtype is not None or logits.shape[axis] > _FEW_TERMS:
        return NotImplemented
    terms = logits.unbind(axis)
    top = reduce(torch.maximum, terms)
    terms = tuple((term - top).exp() for term in terms)
    total = reduce(torch.add, terms)
    return torch.stack([term / total for term in terms], axis)
