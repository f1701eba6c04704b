from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.layers import PackedEmbedding
from rerankzoo.training import RerankingModule, optimizer
from rerankzoo.training.optimizer import MixedAdamW, make_optimizer, make_scheduler
from tests.training.test_module import TINY, trainer


class Model(nn.Module):
    """A table and a matrix."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = PackedEmbedding([6, 4], {"candidate": [0, 1]}, 3)
        self.linear = nn.Linear(6, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.linear(self.embedding(ids, "candidate").flatten(-2)).square().mean()


EVERY_ROW = torch.tensor([[1, 1], [2, 2], [3, 3], [4, 1], [5, 2]])


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "SPARSE_ROWS", 10)


def train(model: Model, batches: list[Tensor]) -> torch.optim.Optimizer:
    made = make_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    for ids in batches:
        made.zero_grad()
        model(ids).backward()
        made.step()
    return made


def test_small_tables_stay_dense() -> None:
    model = Model()
    assert type(train(model, [EVERY_ROW])) is torch.optim.AdamW
    assert not model.embedding.table.sparse


@pytest.mark.usefixtures("everything_is_large")
def test_where_every_row_is_used_it_is_dense_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = Model()
    assert isinstance(train(sparse, [EVERY_ROW] * 5), MixedAdamW)
    assert sparse.embedding.table.weight.grad.is_sparse
    monkeypatch.setattr(optimizer, "SPARSE_ROWS", 11)
    dense = Model()
    train(dense, [EVERY_ROW] * 5)
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(sparse.state_dict()[name], value, rtol=1e-3, atol=1e-4)  # epsilons differ


@pytest.mark.usefixtures("everything_is_large")
def test_rows_out_of_use_stay() -> None:
    model = Model()
    before = model.embedding.table.weight.detach().clone()
    train(model, [EVERY_ROW[:2], EVERY_ROW[2:3], EVERY_ROW[2:3]])
    moved = (model.embedding.table.weight != before).any(-1)
    assert moved.tolist() == [False, True, True, True, False, False, False, True, True, True]


@pytest.mark.usefixtures("everything_is_large")
def test_continues_from_its_state() -> None:
    through, resumed = Model(), Model()
    train(through, [EVERY_ROW] * 4)
    state = train(resumed, [EVERY_ROW] * 2).state_dict()
    made = make_optimizer(resumed, learning_rate=9.0, weight_decay=0.0)
    made.load_state_dict(state)
    for _ in range(2):
        made.zero_grad()
        resumed(EVERY_ROW).backward()
        made.step()
    for name, value in through.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)


@pytest.mark.usefixtures("everything_is_large")
def test_a_schedule_reaches_both_parts() -> None:
    made = make_optimizer(Model(), learning_rate=0.4, weight_decay=0.0)
    make_scheduler(made, "constant_with_warmup", warmup_steps=4, total_steps=10)
    assert [group["lr"] for part in made.parts for group in part.param_groups] == [0.0, 0.0, 0.0]


class Watched(RerankingModule):
    """Keeps the norm of the dense gradients that the optimiser gets."""

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        super().optimizer_step(*arguments, **options)
        gradients = [parameter.grad for parameter in self.parameters()]
        assert any(gradient.is_sparse for gradient in gradients)
        self.norm = torch.stack([gradient.norm() for gradient in gradients if not gradient.is_sparse]).norm()


@pytest.mark.usefixtures("everything_is_large")
def test_lightning_clips_what_is_dense(data_folder: Path, tmp_path: Path) -> None:
    module = Watched("NAR4RecForReranking", dict(TINY))
    data = RerankingDataModule(str(data_folder), batch_size=8)
    trainer(tmp_path, max_epochs=1, gradient_clip_val=1e-3).fit(module, datamodule=data)
    assert isinstance(module.optimizers().optimizer, MixedAdamW)
    assert float(module.norm) == pytest.approx(1e-3, rel=0.01)
