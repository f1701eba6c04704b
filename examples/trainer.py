"""transformers' own Trainer: a model of rerankzoo is a PreTrainedModel, and its feature extractor collates the rows.

Lightning's is faster here, for our loader encodes whole batches: docs/training.md. Needs accelerate.
Run: python examples/trainer.py
"""

from __future__ import annotations

from transformers import Trainer, TrainingArguments

from rerankzoo import NAR4RecConfig, NAR4RecForReranking, SimulatorDataModule


def main(num_train: int = 4_000, max_epochs: int = 2, root: str = "outputs/examples") -> dict[str, float]:
    """Returns what the Trainer says of the validation split."""
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)
    data.prepare_data()
    data.setup("fit")

    # What Lightning's module reads off the data stands here: the fitted schema, and what counts as a good slate.
    schema = data.extractor.schema
    config = NAR4RecConfig(feature_schema=schema.to_dict(), slate_size=4, initializer_range=1.0, utility_threshold=1.0)
    model = NAR4RecForReranking(config)
    arguments = TrainingArguments(
        output_dir=f"{root}/trainer",
        num_train_epochs=max_epochs,
        per_device_train_batch_size=128,
        per_device_eval_batch_size=128,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        remove_unused_columns=False,  # the extractor picks the columns
        label_names=["slates", "feedback"],
        report_to=[],
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=data.extractor,
        train_dataset=data.split("train"),
        eval_dataset=data.split("validation"),
    )
    trainer.train()
    scores: dict[str, float] = trainer.evaluate()
    trainer.save_model(f"{root}/trainer/best")  # for AutoModelForReranking.from_pretrained
    data.extractor.save_pretrained(f"{root}/trainer/best")
    print("slates", model.cpu().generate(**data.extractor(data.split("test")[:2])).tolist())
    return scores


if __name__ == "__main__":
    main()
