"""The interaction evaluator: how people read a page is told by which behaviour predicts held-out feedback.

More: docs/models/interaction.md. Run: python examples/interaction.py
"""

from __future__ import annotations

import lightning as L
import torch
from transformers import PreTrainedModel

from rerankzoo import ExhaustiveSearch, RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator
from rerankzoo.metrics import within_one_error


def train(module: RerankingModule, data: SimulatorDataModule, max_epochs: int) -> PreTrainedModel:
    """Trains a module on a log."""
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return module.model.eval()


def main(num_train: int = 10_000, max_epochs: int = 4, root: str = "outputs/examples") -> dict[str, float]:
    """Returns the true utility of the logged slates and of two searches by the evaluator."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # Each behaviour has an exact likelihood, so that they can be compared; of those that cannot be told apart the first
    # is kept, so they are named from the simplest to the richest. On the command line: rerankzoo fit --try.
    evaluators, likelihoods = {}, {}
    for behaviour in ("independent", "choice", "cascade", "satisfaction", "memory"):
        config = {"slate_size": 4, "behaviour": behaviour}
        module = RerankingModule("InteractionEvaluator", config, learning_rate=0.005, weight_decay=0.1)
        evaluators[behaviour] = train(module, data, max_epochs)
        held_out = data.extractor(data.split("validation"))
        with torch.no_grad():
            likelihoods[behaviour] = evaluators[behaviour](**held_out).log_likelihoods[:, 0]  # (B,), in nats
        print(f"{behaviour:24} {likelihoods[behaviour].mean():.3f}")
    evaluator = evaluators[within_one_error(likelihoods)]

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "8 beams": evaluator.generate(**batch, num_beams=8),  # searched by the values of prefixes
        "best of 5,040": ExhaustiveSearch([evaluator]).generate(**batch),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
