"""CONGRATS: positions are vertices of a graph, and a slate is a path, so that slates of different kinds stay apart.

Paper: https://arxiv.org/abs/2510.10127. More: docs/models/congrats.md. Run: python examples/congrats.py
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
    """Returns the true utility of the logged slates and of two ways to decode."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    # The likelihood of the best fifth of the log, summed over all paths that make the slate.
    config = {"slate_size": 4, "num_graph_layers": 1, "initializer_range": 1.0, "utility_quantile": 0.8}
    model = train(RerankingModule("CongratsForReranking", config, learning_rate=0.002), data, max_epochs)

    batch = data.extractor(data.split("test"))  # a dictionary of tensors: candidate_mask (B, N), ...
    truth = SimulatorEvaluator.from_metadata(data.metadata, data.extractor.schema)  # what slates really earn
    slates = {"logged": batch["slates"][:, 0]}
    for path_decoding in (
        "look_ahead",
        "marginal",
    ):  # by the best next two vertices, the paper's; summed over all paths
        model.config.path_decoding = path_decoding
        slates[path_decoding] = model.generate(**batch)  # (B, M), indexes into the candidates
    utilities = {way: float(truth.score_slates(slate[:, None], **batch).mean()) for way, slate in slates.items()}
    for way, utility in utilities.items():
        print(f"{way:24} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
