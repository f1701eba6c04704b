"""Seq2Slate: a pointer network. An LSTM reads what was chosen, and points at the next candidate.

Paper: https://arxiv.org/abs/1810.02019. More: docs/models/seq2slate.md. Run: python examples/seq2slate.py
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
    """Returns the true utility of the logged slates and of the generator's."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # It imitates the better half of the logged slates. With objective=rerankzoo.training.OffPolicyReinforce() it learns
    # from what they earned, weighed by the probability that the policy which logged them gave to each.
    config = {"slate_size": 4, "num_hidden_layers": 1, "max_position_embeddings": 10, "initializer_range": 0.3}
    model = train(RerankingModule("Seq2SlateForReranking", config, learning_rate=0.003), data, max_epochs)

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "greedy": model.generate(**batch),  # (B, M), indexes into the candidates
        "8 beams": model.generate(**batch, num_beams=8),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
