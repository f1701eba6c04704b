"""GFN4Rec: slates become as probable as they are good, so that several draws are several good slates.

Paper: https://arxiv.org/abs/2306.02239. More: docs/models/gfn4rec.md. Run: python examples/gfn4rec.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.training import FlowBalance

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
    """Returns the true utility of the logged slates and of two ways to decode."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # 1. An evaluator learns from logged feedback what a slate is worth.
    module = RerankingModule("InteractionEvaluator", {"slate_size": 4, "behaviour": "cascade"}, 0.005, weight_decay=0.1)
    evaluator = train(module, data, 2 * max_epochs, f"{root}/gfn4rec-evaluator")

    # 2. The log-probability of a slate follows its value, the more steeply the higher the sharpness.
    objective = FlowBalance(evaluator=f"{root}/gfn4rec-evaluator", proposals="own=6,perturbed=2", sharpness=4.0)
    module = RerankingModule("GFN4RecForReranking", {**SIZES, "balance": "group"}, 0.003, objective=objective)
    generator = train(module, data, max_epochs, f"{root}/gfn4rec")

    # 3. Greedily it is alone; of several draws the evaluator takes the best.
    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "greedy": generator.generate(**batch),  # (B, M), indexes into the candidates
        "best of 16 draws": generator.generate(**batch, do_sample=True, num_return_sequences=16, evaluator=evaluator),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
