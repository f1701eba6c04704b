from __future__ import annotations

import math

import pytest
import torch

from rerankzoo.layers import GatedFieldNorm


def layer() -> GatedFieldNorm:
    torch.manual_seed(0)
    made = GatedFieldNorm(num_fields=3, field_size=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_formula_by_hand() -> None:
    made = layer()
    x = [3.0, 1.0]  # mean 2, variance 1
    fields = torch.zeros(1, 3, 2)
    fields[0, 1] = torch.tensor(x)
    found = made(fields)[0, 1].tolist()
    for d in range(2):
        normed = (x[d] - 2.0) / math.sqrt(1.0 + 1e-5) * made.weight[1, d].item() + made.bias[1, d].item()
        gate = made.gate_bias[1, d].item() + sum(x[e] * made.gate_weight[1, e, d].item() for e in range(2))
        assert found[d] == pytest.approx(normed / (1 + math.exp(-gate)), rel=1e-5)


def test_fields_do_not_mix_and_have_their_own_parameters() -> None:
    made, fields = layer(), torch.randn(2, 5, 3, 2)
    changed = fields.clone()
    changed[..., 1, :] += 1.0
    same = (made(fields) == made(changed)).flatten(0, 1).all(0).all(-1)
    assert same.tolist() == [True, False, True]
    alike = torch.tensor([0.3, -1.0]).expand(3, 2)
    first, second, third = made(alike)
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(second, third).any()


def test_the_gate_sees_the_size_that_the_norm_takes_away() -> None:
    made, fields = layer(), torch.tensor([[0.3, -1.0]] * 3)
    assert not torch.isclose(made(fields), made(10 * fields)).any()
