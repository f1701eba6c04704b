"""PRM: a transformer encoder rescores the upstream list; a slate is the candidates sorted by their new scores.

Paper: https://arxiv.org/abs/1904.06813. More: docs/models/prm.md. Run: python examples/prm.py
"""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from rerankzoo import AutoModelForReranking, RerankingModule, SimulatorDataModule
from rerankzoo.training.callbacks import PretrainedExport


def main(num_train: int = 10_000, max_epochs: int = 8, root: str = "outputs/examples") -> float:
    """Returns the validation loss of the best epoch."""
    L.seed_everything(0)
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)
    config = {"slate_size": 4, "num_hidden_layers": 1, "initializer_range": 0.3}  # see PRMConfig
    module = RerankingModule("PRMForReranking", config, learning_rate=0.003)
    trainer = L.Trainer(
        max_epochs=max_epochs,
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=f"{root}/prm",
        callbacks=[
            ModelCheckpoint(f"{root}/prm/checkpoints", "best", monitor="val/loss", enable_version_counter=False),
            EarlyStopping("val/loss", patience=2),
            PretrainedExport(),  # the best epoch as a folder for from_pretrained: {root}/prm/best
        ],
    )
    trainer.fit(module, datamodule=data)

    model = AutoModelForReranking.from_pretrained(f"{root}/prm/best")
    batch = data.extractor(data.split("test")[:2])
    print("greedy     ", model.generate(**batch).tolist())
    print("contrastive", model.generate(**batch, penalty_alpha=0.3).tolist())
    output = model.generate(**batch, num_beams=4, num_return_sequences=4, return_dict_in_generate=True)
    print("4 beams    ", output.slates.shape, "log-probabilities", output.scores.tolist())
    return float(trainer.checkpoint_callback.best_model_score)


if __name__ == "__main__":
    main()
