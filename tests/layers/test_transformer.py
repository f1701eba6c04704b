from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rerankzoo.layers import (
    MultiHeadAttention,
    TransformerBlock,
    additive_mask,
    attend,
    causal_mask,
    key_mask,
    split_heads,
)

HIDDEN, HEADS, WIDE = 16, 4, 24


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """One query, head and request at a time."""
    result = torch.zeros_like(query)
    mask = mask.expand(*query.shape[:3], key.shape[2])
    for place in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])):
        b, h, q = place.tolist()
        kept = mask[b, h, q]
        weights = (key[b, h, kept] @ query[b, h, q] / query.shape[-1] ** 0.5).softmax(-1)
        result[b, h, q] = weights @ value[b, h, kept]
    return result


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["padding", "causal"])
def test_attention_is_a_masked_average(implementation: str, kind: str) -> None:
    query, key, value = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    real = torch.tensor([[True, True, False, True, False], [True] * 5])
    mask = key_mask(real) if kind == "padding" else causal_mask(5, query.device)
    found = attend(query, key, value, mask, implementation=implementation)
    torch.testing.assert_close(found, naive_attention(query, key, value, mask))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_without_a_mask(implementation: str) -> None:
    query, key, value = random(2, 3, 2, 4), random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    every = torch.ones(1, 1, 1, 5, dtype=torch.bool)
    torch.testing.assert_close(
        attend(query, key, value, None, implementation=implementation), naive_attention(query, key, value, every)
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_drops_weights(implementation: str) -> None:
    query, value = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 4000, 4)
    torch.manual_seed(0)
    found = attend(query, torch.zeros(1, 1, 4000, 4), value, dropout=0.5, implementation=implementation)
    assert found.mean().item() == pytest.approx(1.0, abs=0.1)  # rescaled
    assert not torch.equal(found, torch.ones_like(found))


def test_attention_refuses_other_implementations() -> None:
    with pytest.raises(ValueError, match="'flash' is not one of"):
        attend(random(1, 1, 1, 4), random(1, 1, 1, 4), random(1, 1, 1, 4), implementation="flash")


def test_heads_must_divide_the_hidden_size() -> None:
    with pytest.raises(ValueError, match="hidden_size 10 is not a multiple of num_attention_heads 4"):
        MultiHeadAttention(10, 4)


def test_key_mask_is_none_where_nothing_is_padding() -> None:
    full = torch.ones(2, 3, dtype=torch.bool)
    assert key_mask(full) is None
    assert key_mask(full.to("meta")) is not None  # not on the CPU: asking would wait for it


def test_key_mask() -> None:
    mask = key_mask(torch.tensor([[True, False], [False, False]]))
    assert mask.shape == (2, 1, 1, 2)
    assert mask[:, 0, 0].tolist() == [[True, False], [True, True]]  # nothing real: all, rather than a division by zero


def test_causal_mask() -> None:
    assert causal_mask(3, torch.device("cpu"))[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def copy_linear(target: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    target.load_state_dict({"weight": weight, "bias": bias})


def copy_self_attention(target: MultiHeadAttention, source: nn.MultiheadAttention) -> None:
    copy_linear(target.query_key_value, source.in_proj_weight, source.in_proj_bias)
    target.output.load_state_dict(source.out_proj.state_dict())


def copy_block(target: TransformerBlock, source: nn.Module, last_norm: str) -> None:
    """The parts that torch's encoder and decoder layers have in common."""
    copy_self_attention(target.attention, source.self_attn)
    target.attention_norm.load_state_dict(source.norm1.state_dict())
    target.feed_forward_norm.load_state_dict(getattr(source, last_norm).state_dict())
    target.feed_forward[0].load_state_dict(source.linear1.state_dict())
    target.feed_forward[2].load_state_dict(source.linear2.state_dict())


def randomise(module: nn.Module) -> nn.Module:
    """Norms and biases start at 0 and 1, where a mix-up of them would not show."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("train", [True, False])
def test_block_is_torchs_encoder_layer(implementation: str, train: bool) -> None:
    layer = nn.TransformerEncoderLayer(HIDDEN, HEADS, WIDE, 0.0, F.gelu, batch_first=True, norm_first=True)
    block = TransformerBlock(HIDDEN, HEADS, WIDE)
    copy_block(block, randomise(layer), last_norm="norm2")
    hidden, mask = random(2, 5, HIDDEN), torch.tensor([[True] * 5, [True, True, True, False, False]])
    expected = layer.train(train)(hidden, src_key_padding_mask=~mask)
    found = block.train(train)(hidden, mask=key_mask(mask), implementation=implementation)
    torch.testing.assert_close(found[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "onnx"])
def test_block_is_torchs_decoder_layer(implementation: str) -> None:
    layer = nn.TransformerDecoderLayer(HIDDEN, HEADS, WIDE, 0.0, F.gelu, batch_first=True, norm_first=True)
    block = TransformerBlock(HIDDEN, HEADS, WIDE, cross_attention=True)
    copy_block(block, randomise(layer), last_norm="norm3")
    source, target = layer.multihead_attn, block.cross_attention
    block.cross_attention_norm.load_state_dict(layer.norm2.state_dict())
    copy_linear(target.query, source.in_proj_weight[:HIDDEN], source.in_proj_bias[:HIDDEN])
    copy_linear(target.key_value, source.in_proj_weight[HIDDEN:], source.in_proj_bias[HIDDEN:])
    target.output.load_state_dict(source.out_proj.state_dict())
    hidden, memory = random(2, 3, HIDDEN), random(2, 5, HIDDEN, seed=1)
    mask, causal = torch.tensor([[True] * 5, [True, True, False, False, False]]), causal_mask(3, hidden.device)
    expected = layer(hidden, memory, tgt_mask=~causal[0, 0], memory_key_padding_mask=~mask)
    found = block(hidden, mask=causal, memory=memory, memory_mask=key_mask(mask), implementation=implementation)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_dropout_is_for_training_only() -> None:
    block, hidden = TransformerBlock(HIDDEN, HEADS, WIDE, dropout=0.5, attention_dropout=0.5), random(2, 5, HIDDEN)
    torch.manual_seed(0)
    assert not torch.equal(block.train()(hidden), block(hidden))
    assert torch.equal(block.eval()(hidden), block(hidden))


def blocks(cross_attention: bool = False) -> list[TransformerBlock]:
    made = nn.ModuleList(TransformerBlock(HIDDEN, HEADS, WIDE, cross_attention=cross_attention) for _ in range(2))
    return list(randomise(made))


@pytest.mark.parametrize(("past", "groups"), [(0, 6), (1, 6), (3, 6), (1, 2), (3, 2), (3, 1)])
def test_step_is_forward_on_every_extended_sequence(past: int, groups: int) -> None:
    """Six rows and five alternatives for each, or for each group of rows: a causal pass over past + alternative."""
    layers, rows, alternatives = blocks(False), random(6, past, HIDDEN), random(groups, 5, HIDDEN, seed=1)
    each = alternatives.repeat_interleave(6 // groups, dim=0)
    extended = torch.cat([rows[:, None].expand(-1, 5, -1, -1), each.unsqueeze(2)], dim=2).flatten(0, 1)
    mask = causal_mask(past + 1, rows.device)
    expected, cached, found = extended, rows, alternatives
    for layer in layers:
        projected, known = layer.project(found), split_heads(layer.project(cached)[..., HIDDEN:], 2 * HEADS)
        found = layer.step(found, projected, known if past else None)
        if past:
            cached = layer(cached, mask=causal_mask(past, rows.device))
        expected = layer(expected, mask=mask)
    torch.testing.assert_close(found, expected[:, -1].view(6, 5, HIDDEN), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_additive_masks_are_boolean_ones(implementation: str) -> None:
    query, key, value = random(2, 3, 5, 4), random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    mask = key_mask(torch.tensor([[True, True, False, True, False], [True] * 5]))
    expected = attend(query, key, value, mask, implementation=implementation)
    torch.testing.assert_close(
        attend(query, key, value, additive_mask(mask, query.dtype), implementation=implementation), expected
    )


def test_rows_share_a_memory() -> None:
    layer, hidden, memory = blocks(cross_attention=True)[0], random(6, 3, HIDDEN), random(2, 7, HIDDEN, seed=2)
    real = torch.tensor([[True] * 7, [True, True, False, True, False, True, True]])
    found = layer(hidden, memory=memory, memory_mask=key_mask(real))
    copied = layer(
        hidden, memory=memory.repeat_interleave(3, dim=0), memory_mask=key_mask(real.repeat_interleave(3, dim=0))
    )
    torch.testing.assert_close(found, copied)
