from __future__ import annotations

import pytest
import torch

from rerankzoo.layers import PointerHead


def test_logits_are_scaled_dot_products() -> None:
    torch.manual_seed(0)
    head, positions, candidates = PointerHead(4), torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    logits = head(positions, candidates, torch.ones(2, 5, dtype=torch.bool))
    assert logits.shape == (2, 3, 5)
    expected = head.query.weight @ positions[1, 2] @ candidates[1, 4] / 2.0
    torch.testing.assert_close(logits[1, 2, 4], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_gets_no_probability_and_no_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head, mask = PointerHead(4).to(dtype), torch.tensor([[True, False, True], [False, False, False]])
    candidates = torch.randn(2, 3, 4, dtype=dtype, requires_grad=True)
    logits = head(torch.randn(2, 3, 4, dtype=dtype), candidates, mask)
    assert torch.isfinite(logits).all()
    p = logits.float().softmax(-1)
    assert (p[0, :, 1] == 0).all()
    assert torch.isfinite(p).all()  # also where nothing is real
    p[0, :, 0].sum().backward()
    assert (candidates.grad[~mask] == 0).all()
    assert (candidates.grad[0, [0, 2]] != 0).any()
