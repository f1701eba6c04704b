"""SetRank, DLCM, GSF, miDNN: rankers that read the whole list, give every candidate one score, and sort.

More: docs/models/classics.md. Run: python examples/classics.py
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
    """Returns the true utility of the logged slates and of each ranker's."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # One base, one loss: the feedback of every shown item. Losses of lists go by their names, too, such as "lambda".
    names = ("SetRankForReranking", "DLCMForReranking", "GSFForReranking", "MiDNNForReranking")
    config = {"slate_size": 4, "initializer_range": 0.3, "loss": "bce"}
    models = {name: train(RerankingModule(name, config, learning_rate=0.003), data, max_epochs) for name in names}

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        **{name: model.generate(**batch) for name, model in models.items()},  # (B, M), indexes into the candidates
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
