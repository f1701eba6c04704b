from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from rerankzoo.layers import (
    TokenBlock,
    TransformerBlock,
    causal_mask,
    key_mask,
    linear_function,
    norm_function,
)

HIDDEN, HEADS, WIDE, LENGTH = 16, 4, 24, 4
REAL = torch.tensor([[True] * 7, [True, True, False, True, False, True, True]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(cross_attention: bool) -> list[TransformerBlock]:
    torch.manual_seed(0)
    made = nn.ModuleList(TransformerBlock(HIDDEN, HEADS, WIDE, cross_attention=cross_attention) for _ in range(2))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return list(made)


def forward(layers: list[TransformerBlock], tokens: Tensor, memory: Tensor | None, real: Tensor = REAL) -> Tensor:
    shared = {} if memory is None else {"memory": memory, "memory_mask": key_mask(real)}
    for layer in layers:
        tokens = layer(tokens, mask=causal_mask(tokens.shape[1], tokens.device), **shared)
    return tokens


def token_by_token(
    layers: list[TransformerBlock],
    tokens: Tensor,
    memory: Tensor | None,
    implementation: str = "eager",
    real: Tensor = REAL,
) -> Iterator[Tensor]:
    ready = [TokenBlock(layer, implementation) for layer in layers]
    known = [None if memory is None else block.remember(memory, key_mask(real)) for block in ready]
    past: list[Tensor | None] = [None] * len(layers)
    for position in range(tokens.shape[1]):
        hidden = tokens[:, position]
        for number, block in enumerate(ready):
            hidden, past[number] = block(hidden, past[number], known[number])
        yield hidden


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "onnx"])
@pytest.mark.parametrize("cross", [True, False])
def test_is_forward_token_by_token(cross: bool, implementation: str) -> None:
    """Two requests, three rows each."""
    layers, tokens = blocks(cross), random(6, LENGTH, HIDDEN)
    memory = random(2, 7, HIDDEN, seed=2) if cross else None
    expected = forward(layers, tokens, memory)
    for position, found in enumerate(token_by_token(layers, tokens, memory, implementation)):
        torch.testing.assert_close(found, expected[:, position], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "onnx"])
def test_is_forward_where_nothing_is_padding(implementation: str) -> None:
    layers, tokens, memory, full = blocks(True), random(6, LENGTH, HIDDEN), random(2, 7, HIDDEN, seed=2), REAL | True
    assert "mask" not in TokenBlock(layers[0], implementation).remember(memory, key_mask(full))
    found = torch.stack(list(token_by_token(layers, tokens, memory, implementation, full)), dim=1)
    torch.testing.assert_close(found, forward(layers, tokens, memory, full), rtol=1e-5, atol=1e-5)


class Adapted(nn.Linear):
    """A linear layer that does more, as adapters do."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (torch's own name)
        return super().forward(input) * 2.0 + 1.0


@pytest.mark.parametrize("name", ["attention.query_key_value", "cross_attention.query", "feed_forward.0"])
def test_calls_what_is_more_than_a_linear_layer(name: str) -> None:
    layers, tokens, memory = blocks(True), random(6, LENGTH, HIDDEN), random(2, 7, HIDDEN, seed=2)
    plain = forward(layers, tokens, memory)
    parent, _, child = name.rpartition(".")
    old = layers[0].get_submodule(name)
    adapted = Adapted(old.in_features, old.out_features)
    adapted.load_state_dict(old.state_dict())
    setattr(layers[0].get_submodule(parent), child, adapted)
    expected = forward(layers, tokens, memory)
    assert not torch.isclose(plain, expected).all()
    found = torch.stack(list(token_by_token(layers, tokens, memory)), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_calls_what_has_hooks() -> None:
    for module, function in ((nn.Linear(4, 4), linear_function), (nn.LayerNorm(4), norm_function)):
        assert function(module) is not module
        module.register_forward_hook(lambda *_: None)
        assert function(module) is module


@pytest.mark.parametrize("bias", [True, False])
def test_functions_are_the_modules(bias: bool) -> None:
    linear, norm, rows = nn.Linear(4, 3, bias=bias), nn.LayerNorm(4, eps=0.1, bias=bias), random(5, 4)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(linear_function(linear)(rows), linear(rows))
    torch.testing.assert_close(norm_function(norm)(rows), norm(rows))
