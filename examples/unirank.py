"""UniRank: slots are filled in any order, one by one, some at a time, or all after one look.

Paper: https://arxiv.org/abs/2605.10527. More: docs/models/unirank.md. Run: python examples/unirank.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator


def train(module: RerankingModule, data: SimulatorDataModule, max_epochs: int) -> PreTrainedModel:
    """Trains a module on a log."""
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return module.model.eval()


def main(num_train: int = 10_000, max_epochs: int = 4, root: str = "outputs/examples") -> dict[str, float]:
    """Returns the true utility of the logged slates and of fewer and fewer looks."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # Some slots of a logged slate are hidden, and what was clicked there is learned from the others.
    config = {"slate_size": 4, "num_slot_layers": 1, "initializer_range": 1.0}
    model = train(RerankingModule("UniRankForReranking", config, learning_rate=0.002), data, max_epochs)

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "from the top": model.generate(**batch),
        "the surest first": model.generate(**batch, fill_per_step=1),  # four looks
        "two at a time": model.generate(**batch, fill_per_step=2),
        "all at once": model.generate(**batch, fill_per_step=4),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
