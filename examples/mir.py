"""MIR: candidates meet what the user did before, a list that fades. Any other family can read histories, too.

Paper: https://arxiv.org/abs/2204.09370. More: docs/models/classics.md. Run: python examples/mir.py
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
    """Returns the true utility of the logged slates and of three ways to read the history."""
    # Users whose interests drift: the log carries the items that each has clicked on earlier visits, and how long ago.
    data = SimulatorDataModule(
        "drift", num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root
    )

    config = {"slate_size": 4, "initializer_range": 0.3}
    modules = {
        "history averaged": RerankingModule("PointwiseForReranking", config, learning_rate=0.003),
        "history attended": RerankingModule("PointwiseForReranking", {**config, "pool_history": False}, 0.003),
        "MIR": RerankingModule("MIRForReranking", {**config, "num_hidden_layers": 1}, learning_rate=0.003),
    }
    models = {name: train(module, data, max_epochs) for name, module in modules.items()}

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        **{name: model.generate(**batch) for name, model in models.items()},
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
