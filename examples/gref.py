"""GReF: first a generator learns what was shown, then which of two slates is the better one (DPO).

Paper: https://arxiv.org/abs/2510.25220. More: docs/models/gref.md. Run: python examples/gref.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.training import Preference

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
    """Returns the true utility of the logged slates and of the generator's after each stage."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # 1. An evaluator learns from logged feedback what a slate is worth.
    module = RerankingModule("InteractionEvaluator", {"slate_size": 4, "behaviour": "cascade"}, 0.005, weight_decay=0.1)
    train(module, data, 2 * max_epochs, f"{root}/gref-evaluator")

    # 2. The first stage imitates the log, two positions a pass.
    config = {**SIZES, "num_heads": 2}
    first = train(
        RerankingModule("GReFForReranking", config, learning_rate=0.003), data, max_epochs, f"{root}/gref-first"
    )

    # 3. The second prefers what the evaluator finds the best of some draws to what it finds the worst. Without an
    # evaluator: Preference(pairs="resorted"), what was shown in the order of its clicks against what was shown.
    objective = Preference(pairs="evaluator", evaluator=f"{root}/gref-evaluator")
    module = RerankingModule(
        "GReFForReranking", config, learning_rate=0.001, pretrained=f"{root}/gref-first", objective=objective
    )
    second = train(module, data, max_epochs, f"{root}/gref")

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "after the first stage": first.generate(**batch),  # (B, M), indexes into the candidates
        "after the second": second.generate(**batch),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
