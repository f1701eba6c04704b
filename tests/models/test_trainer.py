"""transformers' own Trainer takes a model and, as its collator, the feature extractor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from tests.models.test_nar4rec import TINY

HEADS = [NAR4RecForReranking, NAR4RecEvaluator]


def make_trainer(model: Any, extractor: RerankingFeatureExtractor, rows: Any, folder: Path, **values: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["slates", "feedback"],
        **values,
    )
    return Trainer(model, arguments, data_collator=extractor, train_dataset=rows, eval_dataset=rows)


def make_model(head: Any, extractor: RerankingFeatureExtractor) -> Any:
    torch.manual_seed(0)
    return head(NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **TINY))


@pytest.mark.parametrize("head", HEADS)
def test_trains_two_steps_and_evaluates(
    head: Any, extractor: RerankingFeatureExtractor, rows: Any, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = make_model(head, extractor)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = make_trainer(
        model,
        extractor,
        rows,
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    result = trainer.train()
    assert result.global_step == 2
    assert all(not torch.equal(value, before[name]) for name, value in model.named_parameters())
    evaluated = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        assert evaluated == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-4)


def test_accumulated_gradients_are_those_of_the_whole_batch(
    extractor: RerankingFeatureExtractor, rows: Any, tmp_path: Path
) -> None:
    trained = []
    for size, steps in ((8, 1), (4, 2)):
        model = make_model(NAR4RecForReranking, extractor)
        values = {"optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "learning_rate": 0.1}
        make_trainer(
            model,
            extractor,
            rows,
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            **values,
        ).train()
        trained.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", HEADS)
def test_predicts_logits_only(
    head: Any, extractor: RerankingFeatureExtractor, rows: Any, batch: dict[str, Tensor], tmp_path: Path, dtype: Any
) -> None:
    model = make_model(head, extractor).to(dtype).eval()
    found = make_trainer(model, extractor, rows, tmp_path).predict(rows).predictions
    with torch.no_grad():
        expected = model(**batch).logits
    assert found.shape == expected.shape
    assert found.tolist() == expected.float().tolist()
