"""NAR4Rec: a generator scores all positions at once, and an evaluator picks the best of several of its slates.

Paper: https://arxiv.org/abs/2402.06871. More: docs/models/nar4rec.md. Run: python examples/nar4rec.py
"""

from __future__ import annotations

import lightning as L
import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator import Simulator


def train(architecture: str, data: L.LightningDataModule, max_epochs: int, **config: float) -> PreTrainedModel:
    """Trains a model of this class on logged slates and what was clicked."""
    L.seed_everything(0)
    module = RerankingModule(architecture, {"slate_size": 4, "initializer_range": 1.0, **config}, learning_rate=0.002)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return module.model.eval()


def true_utility(data: SimulatorDataModule, slates: Tensor) -> float:
    """What test slates (B, M) really earn: the simulator knows."""
    rows = data.split("test")
    users, items = np.array(rows["user_id"]), np.array(rows["item_id"])
    return float(Simulator.from_metadata(data.metadata).expected_utility(users, items, slates[:, None].numpy()).mean())


def main(num_train: int = 10_000, max_epochs: int = 4, root: str = "outputs/examples") -> dict[str, float]:
    """Returns the true utility of three ways to decode."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)
    generator = train("NAR4RecForReranking", data, max_epochs, utility_quantile=0.8, contrastive_weight=0.3)
    evaluator = train("NAR4RecEvaluator", data, max_epochs)

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    slates = {
        "greedy": generator.generate(**batch),  # (B, M), indexes into the candidates
        "contrastive": generator.generate(**batch, penalty_alpha=0.1),
        "best of 16 beams": generator.generate(**batch, num_beams=16, num_return_sequences=16, evaluator=evaluator),
    }
    utilities = {name: true_utility(data, chosen) for name, chosen in slates.items()}
    for name, utility in utilities.items():
        print(f"{name:17} {utility:.3f}")

    folder = (
        f"{root}/nar4rec"  # for AutoModelForReranking and RerankingPipeline.from_pretrained(folder, evaluator=True)
    )
    generator.save_pretrained(folder)
    evaluator.save_pretrained(f"{folder}/evaluator")
    for place in (folder, f"{folder}/evaluator"):
        data.extractor.save_pretrained(place)
    return utilities


if __name__ == "__main__":
    main()
