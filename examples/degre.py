"""DeGRe: an evaluator of prefixes searches the log for better slates, and a generator learns what it found.

Paper: https://arxiv.org/abs/2605.25749. More: docs/models/degre.md, docs/mining.md. Run: python examples/degre.py
"""

from __future__ import annotations

import lightning as L
import numpy as np
from torch import Tensor

from rerankzoo import DeGReGenerator, RerankingDataModule, RerankingModule, SimulatorDataModule
from rerankzoo.data.simulator import Simulator
from rerankzoo.mining import mine_folder


def train(architecture: str, data: RerankingDataModule, max_epochs: int, folder: str) -> None:
    """Trains a model of this class, and saves it with its feature extractor."""
    L.seed_everything(0)
    config = {"slate_size": 4, "hidden_size": 32, "num_attention_heads": 2, "initializer_range": 1.0}
    module = RerankingModule(architecture, config, learning_rate=0.003)
    trainer = L.Trainer(max_epochs=max_epochs, gradient_clip_val=1.0, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)
    module.model.save_pretrained(folder)
    data.extractor.save_pretrained(folder)


def true_utility(data: SimulatorDataModule, slates: Tensor) -> float:
    """What test slates (B, M) really earn: the simulator knows."""
    rows = data.split("test")
    users, items = np.array(rows["user_id"]), np.array(rows["item_id"])
    return float(Simulator.from_metadata(data.metadata).expected_utility(users, items, slates[:, None].numpy()).mean())


def main(
    num_train: int = 10_000, num_mined: int = 4_000, max_epochs: int = 4, root: str = "outputs/examples"
) -> dict[str, float]:
    """Returns the true utility of the logged slates and of the generator's."""
    log = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)

    # 1. An evaluator learns from logged feedback what the next item adds to the value of a prefix.
    train("DeGReEvaluator", log, max_epochs, f"{root}/degre-evaluator")

    # 2. Beam search by its values finds better slates than those that were shown; the labels of the log are not used.
    mined = mine_folder(
        [f"{root}/degre-evaluator"], log.path, f"{root}/degre-mined", num_requests=num_mined, num_validation=200
    )

    # 3. A generator imitates them. It has the evaluator's vocabularies, which mining has left in the folder.
    data = RerankingDataModule(str(mined), batch_size=128, extractor=str(mined))
    train("DeGReGenerator", data, 2 * max_epochs, f"{root}/degre")

    # 4. Online, one greedy pass is enough.
    generator = DeGReGenerator.from_pretrained(f"{root}/degre")
    batch = log.extractor(log.split("test"))
    utilities = {
        "logged": true_utility(log, batch["slates"][:, 0]),
        "greedy": true_utility(log, generator.generate(**batch)),
    }
    for name, utility in utilities.items():
        print(f"{name:8} {utility:.3f}")
    return utilities


if __name__ == "__main__":
    main()
