"""EG-Rerank, GRPO: policy gradients. The generator draws slates, and an evaluator says what each is worth.

Paper: https://arxiv.org/abs/2003.11941. More: docs/models/egrerank.md. Run: python examples/egrerank.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.training import EvaluatorReward

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
    """Returns the true utility of the logged slates and of the generator's."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # 1. An evaluator learns from logged feedback what a slate is worth.
    module = RerankingModule("InteractionEvaluator", {"slate_size": 4, "behaviour": "cascade"}, 0.005, weight_decay=0.1)
    train(module, data, 2 * max_epochs, f"{root}/egrerank-evaluator")

    # 2. Slates that are worth more than their request's others become more probable; entropy keeps draws different.
    # GRPO: normalise=True, entropy_weight=0. EG-Rerank's own credit: advantage="position", clip=0.1, normalise=True.
    objective = EvaluatorReward(evaluator=f"{root}/egrerank-evaluator", num_slates=8, entropy_weight=0.05)
    module = RerankingModule("EGRerankForReranking", SIZES, learning_rate=0.005, objective=objective)
    generator = train(module, data, max_epochs, f"{root}/egrerank")

    # 3. At serving the generator is alone.
    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "greedy": generator.generate(**batch),  # (B, M), indexes into the candidates
        "drawn": generator.generate(**batch, do_sample=True),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
