"""From a trained model to answers: a pipeline, the same model as one ONNX graph, and a batch of which a request is bad.

Needs the extra "serve". More: docs/use.md, docs/export.md. Run: python examples/serve.py
"""

from __future__ import annotations

import json
from typing import Any

import lightning as L

from rerankzoo import RerankingModule, RerankingPipeline, SimulatorDataModule
from rerankzoo.serving.export import export_model


def answer(pipeline: RerankingPipeline, body: str) -> str:
    """What an HTTP handler does: JSON in, JSON out. A pipeline may be called from any number of threads."""
    outcomes = pipeline(json.loads(body), slate_size=4, on_error="report")
    return json.dumps([{"error": str(o)} if isinstance(o, Exception) else o for o in outcomes])


def main(num_train: int = 5_000, max_epochs: int = 2, root: str = "outputs/examples") -> list[dict[str, Any]]:
    """Returns the answers to three requests."""
    L.seed_everything(0)
    data = SimulatorDataModule(num_train=num_train, num_validation=500, num_test=500, root=root)
    module = RerankingModule("PointwiseForReranking", {"slate_size": 4})
    trainer = L.Trainer(max_epochs=max_epochs, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=data)

    # A folder for from_pretrained, with what turns raw requests into tensors; then the same as a graph.
    folder = f"{root}/serve"
    module.model.save_pretrained(folder)
    data.extractor.save_pretrained(folder)
    export_model(module.model, data.extractor, f"{root}/serve-onnx", "onnx")

    requests = data.split("test").select_columns(
        ["user_embedding", "item_id", "category", "item_embedding", "affinity", "value", "upstream_score"]
    )
    good, bad, other = (dict(requests[row]) for row in range(3))
    bad["category"] = bad["category"][:-1]
    body = json.dumps([good, bad, other])

    eager = answer(RerankingPipeline.from_pretrained(folder), body)
    graph = answer(RerankingPipeline.from_pretrained(f"{root}/serve-onnx", backend="onnx"), body)
    answers: list[dict[str, Any]] = json.loads(eager)
    slates, same = ([[item["item_id"] for item in items] for items in json.loads(text)[::2]] for text in (eager, graph))
    assert slates == same
    print(*answers, sep="\n")
    return answers


if __name__ == "__main__":
    main()
