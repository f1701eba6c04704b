"""Constraints: what a shop does not leave to the model. They need no training, and go with every model and strategy.

More: docs/decoding.md. Run: python examples/constraints.py
"""

from __future__ import annotations

import torch

from rerankzoo import (
    AtLeast,
    AtMost,
    Boost,
    Exclude,
    InfeasibleConstraintError,
    MinDistance,
    Pin,
    PointwiseConfig,
    PointwiseForReranking,
    RerankingFeatureExtractor,
    RerankingPipeline,
)
from rerankzoo.data.simulator import Simulator, SimulatorSettings


def main() -> list[list[int]]:
    """Returns the item ids of each slate that is shown."""
    torch.manual_seed(0)
    simulator = Simulator(SimulatorSettings.named("strong"))
    extractor = RerankingFeatureExtractor(simulator.schema).fit(simulator.requests("train", 200))
    model = PointwiseForReranking(PointwiseConfig(feature_schema=extractor.schema.to_dict(), slate_size=4))
    pipeline = RerankingPipeline(model, extractor)  # a trained one: RerankingPipeline.from_pretrained(folder)

    request = simulator.requests("test", 1).to_pylist()[0]
    items = request["item_id"]
    shown = []
    for constraints in (
        [],
        [Exclude(items[:2]), Pin(items[5], position=0)],  # items by their ids
        [AtMost(2, "category"), MinDistance(2, "category")],  # no category more than twice, none side by side
        [AtLeast(2, items[6:]), Boost(0.5, items[3])],
    ):
        answer = pipeline(request, constraints=constraints)
        shown.append([item["item_id"] for item in answer])
        print(shown[-1], *constraints)

    # Many requests: one collection of ids for all, or one per request; with beams, too.
    requests = simulator.requests("test", 8).to_pylist()
    first = [{request["item_id"][-1]} for request in requests]
    answers = pipeline(requests, constraints=[Pin(first, position=0), AtMost(1, "category", window=2)], num_beams=4)
    shown += [[item["item_id"] for item in answer] for answer in answers]

    # What cannot be kept is said before anything is decoded.
    try:
        pipeline(request, constraints=[Exclude(items[:1]), Pin(items[0], position=1)])
    except InfeasibleConstraintError as error:
        print(error)

    # Below the pipeline, generate() takes masks (B, N) or indexes (B, K) of candidates.
    batch = extractor(requests)
    mask = batch["candidate_mask"]  # (B, N)
    fresh = mask & (torch.arange(mask.shape[1]) % 3 == 0)  # whatever a shop knows of its items
    slates = model.generate(**batch, constraints=AtLeast(2, fresh), num_beams=4)  # (B, M)
    assert (fresh.gather(1, slates).sum(-1) >= 2).all()
    return shown


if __name__ == "__main__":
    main()
