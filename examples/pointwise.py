"""Pointwise ranking, the yardstick: one score per item, whatever stands beside it. Trained without Lightning.

More: docs/models/pointwise.md. Run: python examples/pointwise.py
"""

from __future__ import annotations

import torch

from rerankzoo import PointwiseConfig, PointwiseForReranking, SimulatorDataModule


def main(num_train: int = 10_000, max_epochs: int = 4, root: str = "outputs/examples") -> list[float]:
    """Returns the validation loss before training and after each epoch."""
    torch.manual_seed(0)
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)
    data.prepare_data()
    data.setup("fit")

    config = PointwiseConfig(feature_schema=data.extractor.schema.to_dict(), slate_size=4, initializer_range=1.0)
    model = PointwiseForReranking(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)

    def validation_loss() -> float:
        model.eval()
        with torch.no_grad():
            losses = [float(model(**batch).loss) for batch in data.val_dataloader()]
        return sum(losses) / len(losses)

    losses = [validation_loss()]
    for _ in range(max_epochs):
        model.train()
        for batch in data.train_dataloader():  # features, logged slates and their feedback: the loss needs no more
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(validation_loss())
        print(f"validation loss {losses[-1]:.4f}")

    model.eval().save_pretrained(f"{root}/pointwise")
    data.extractor.save_pretrained(f"{root}/pointwise")
    print("slates", model.generate(**data.extractor(data.split("test")[:2])).tolist())
    return losses


if __name__ == "__main__":
    main()
