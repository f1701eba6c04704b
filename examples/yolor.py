"""YOLOR and PIER: evaluators whose contexts are sets of items, so that all slates of a request are valued at once.

Papers: https://arxiv.org/abs/2508.14420 and https://arxiv.org/abs/2302.03487. More: docs/models/yolor.md.
Run: python examples/yolor.py
"""

from __future__ import annotations

import lightning as L
from transformers import PreTrainedModel

from rerankzoo import ExhaustiveSearch, RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator.evaluator import SimulatorEvaluator


def train(module: RerankingModule, data: SimulatorDataModule, max_epochs: int) -> PreTrainedModel:
    """Trains a module on a log."""
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    return module.model.eval()


def main(
    num_train: int = 10_000, num_test: int = 200, max_epochs: int = 4, root: str = "outputs/examples"
) -> dict[str, float]:
    """Returns the true utility of the logged slates and of the best slate in each evaluator's eyes."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=num_test, batch_size=128, root=root)

    # A tree of sets for YOLOR; the page's items at once for PIER. Both learn from logged slates and their feedback.
    yolor, pier = (
        train(
            RerankingModule(
                "YOLOREvaluator", {"slate_size": 4, "initializer_range": 1.0, "context": context}, learning_rate=0.002
            ),
            data,
            max_epochs,
        )
        for context in ("tree", "page")
    )

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {
        "logged": batch["slates"][:, 0],
        "best of 5,040 by YOLOR": ExhaustiveSearch([yolor]).generate(**batch),  # no generator: all slates are looked at
        "best of 5,040 by PIER": ExhaustiveSearch([pier]).generate(**batch),
    }
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
