"""CLIG: of several generators each learns to find good slates that those before it do not find; an evaluator chooses.

Paper: https://arxiv.org/abs/2504.15625. More: docs/models/clig.md. Run: python examples/clig.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import GeneratorPool, RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.training import Comprehensive, GroupRelative

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
    """Returns the true utility of the logged slates, of one generator's and of the pool's."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # 1. An evaluator learns from logged feedback what a slate is worth.
    module = RerankingModule("InteractionEvaluator", {"slate_size": 4, "behaviour": "cascade"}, 0.005, weight_decay=0.1)
    evaluator = train(module, data, 2 * max_epochs, f"{root}/clig-evaluator")

    # 2. The first generator learns as in examples/goalrank.py; to the second a slate is worth more if the first would
    # have ordered it differently.
    objectives = (
        GroupRelative(evaluator=f"{root}/clig-evaluator"),
        Comprehensive(evaluator=f"{root}/clig-evaluator", beside=f"{root}/clig-0"),
    )
    first, second = (
        train(
            RerankingModule("GoalRankForReranking", SIZES, learning_rate=0.005, objective=objective),
            data,
            max_epochs,
            f"{root}/clig-{number}",
        )
        for number, objective in enumerate(objectives)
    )
    pool = GeneratorPool([first, second])  # saved and loaded as one folder
    draws = {"do_sample": True, "evaluator": evaluator}

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "16 draws of the first": first.generate(**batch, num_return_sequences=16, **draws),  # (B, M), the best of them
        "8 draws of each": pool.generate(**batch, num_return_sequences=8, **draws),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
