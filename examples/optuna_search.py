"""Optuna searches for the settings of a model. `rerankzoo tune` does it for a recipe, can go on, and runs on Ray.

Needs the extra "tune". More: docs/training.md. Run: python examples/optuna_search.py
"""

from __future__ import annotations

import lightning as L
import optuna

from rerankzoo import RerankingModule, SimulatorDataModule


def main(
    num_train: int = 5_000, trials: int = 10, max_epochs: int = 3, root: str = "outputs/examples"
) -> dict[str, float | int]:
    """Returns the best settings."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, batch_size=128, root=root)

    def validation_loss(trial: optuna.Trial) -> float:
        L.seed_everything(0)
        config = {
            "slate_size": 4,
            "hidden_size": trial.suggest_categorical("hidden_size", [16, 32, 64]),
            "initializer_range": trial.suggest_float("initializer_range", 0.1, 1.0, log=True),
        }
        rate = trial.suggest_float("learning_rate", 3e-4, 3e-2, log=True)
        module = RerankingModule("PointwiseForReranking", config, learning_rate=rate)
        trainer = L.Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False)
        trainer.fit(module, datamodule=data)
        return float(trainer.callback_metrics["val/loss"])  # any other that the run logs would do

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(validation_loss, n_trials=trials)
    # The best of many trials looks better than it is: its metric chose it. Compare on the test split.
    print(f"validation loss {study.best_value:.4f} by {study.best_params}")
    return dict(study.best_params)


if __name__ == "__main__":
    main()
