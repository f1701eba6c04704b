"""Dual-Rerank: a generator that scores all positions at once learns from one that reads what it has chosen.

Paper: https://arxiv.org/abs/2604.07420. More: docs/models/nar4rec.md. Run: python examples/dual_rerank.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.training import GroupRelative, SequenceDistillation

SIZES = {
    "slate_size": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 1.0,
}


def train(module: RerankingModule, data: SimulatorDataModule, max_epochs: int, folder: str) -> PreTrainedModel:
    """Trains a module, and saves its model with the feature extractor."""
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    module.model.save_pretrained(folder)
    data.extractor.save_pretrained(folder)
    return module.model.eval()


def main(num_train: int = 10_000, max_epochs: int = 4, root: str = "outputs/examples") -> dict[str, float]:
    """Returns the true utility of the logged slates, of the teacher's and of its student's."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # 1. An evaluator learns from logged feedback what a slate is worth.
    module = RerankingModule("InteractionEvaluator", {"slate_size": 4, "behaviour": "cascade"}, 0.005, weight_decay=0.1)
    train(module, data, 2 * max_epochs, f"{root}/dual-rerank-evaluator")

    # 2. The teacher, of any family, learns by any objective; here as in examples/goalrank.py.
    taught = GroupRelative(evaluator=f"{root}/dual-rerank-evaluator", proposals="own=6,perturbed=2")
    module = RerankingModule("GoalRankForReranking", SIZES, learning_rate=0.005, objective=taught)
    teacher = train(module, data, max_epochs, f"{root}/dual-rerank-teacher")

    # 3. The student learns what the teacher draws, and what it thinks of every candidate at every position.
    distilled = SequenceDistillation(generator=f"{root}/dual-rerank-teacher")
    config = {"slate_size": 4, "num_position_layers": 1, "initializer_range": 1.0}
    module = RerankingModule("NAR4RecForReranking", config, learning_rate=0.002, objective=distilled)
    student = train(module, data, max_epochs, f"{root}/dual-rerank")

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "teacher, four steps": teacher.generate(**batch),  # (B, M), indexes into the candidates
        "student, one pass": student.generate(**batch),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
