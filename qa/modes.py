"""Two equally good slates per request that share no position: which generators mix them, and which students of them?

Every request has candidates of two brands, numbered from 0, and two more of other brands. Its log shows the numbered
ones of one of the two brands in their order, of either as often. A slate that is neither of the two mixes them.

python -m qa.modes [--steps 500] [--seeds 1]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from rerankzoo.batch import take
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.models.congrats import CongratsConfig, CongratsForReranking
from rerankzoo.models.goalrank import GoalRankConfig, GoalRankForReranking
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.training import SequenceDistillation, Supervised
from rerankzoo.training.objectives import Companions

SIZE, BRANDS = 4, 4
TEACHER = "a pointer generator"
SCHEMA = FeatureSchema(
    name="modes",
    item_id="item_id",
    fields=(
        FieldSpec(name="item_id", group="candidate", kind="categorical"),
        FieldSpec(name="brand", group="candidate", kind="categorical"),
        FieldSpec(name="number", group="candidate", kind="categorical"),
    ),
    targets=(TargetSpec(name="click", weight=1.0),),
)
SIZES = {
    "slate_size": SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "initializer_range": 1.0,
    "utility_threshold": 0.0,
}


def requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests with their logged slates, in which every item was clicked."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        brands = rng.choice(BRANDS, 4, replace=False)
        brand = np.concatenate([np.repeat(brands[:2], SIZE), brands[2:]])
        number = np.concatenate([np.tile(np.arange(SIZE), 2), rng.integers(SIZE, size=2)])
        order = rng.permutation(len(brand))
        brand, number = brand[order], number[order]
        slate = [int(np.flatnonzero((brand == brands[rng.integers(2)]) & (number == 0))[0])]
        shown = brand[slate[0]]
        slate += [int(np.flatnonzero((brand == shown) & (number == place))[0]) for place in range(1, SIZE)]
        item = (brand * SIZE + number).tolist()
        rows.append({"item_id": item, "brand": brand.tolist(), "number": number.tolist(), "slate": slate})
        rows[-1] |= {"click": [1.0] * SIZE, "brands": brands[:2].tolist()}
    return rows


def share_of_modes(slates: torch.Tensor, rows: list[dict[str, Any]]) -> float:
    """How many slates (B, S, M) are one of the two of their request."""
    found = []
    for row, drawn in zip(rows, slates.tolist(), strict=True):
        good = [[row["item_id"].index(brand * SIZE + place) for place in range(SIZE)] for brand in row["brands"]]
        found += [slate in good for slate in drawn]
    return sum(found) / len(found)


def train(model: Any, batch: dict[str, torch.Tensor], steps: int, seed: int, teacher: Any = None) -> Any:
    """The model, after so many steps of Adam; with a teacher, of distillation."""
    objective = Supervised() if teacher is None else SequenceDistillation("teacher")
    objective.companions = Companions(generator=teacher)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.train().parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    for _ in range(steps):
        rows = torch.randint(len(batch["candidate_mask"]), (64,), generator=generator)
        optimizer.zero_grad()
        objective.loss(model, take(batch, rows)).loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    kinds: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "NAR4Rec": (NAR4RecForReranking, NAR4RecConfig, {"contrastive_weight": 0.0}),
        "CONGRATS": (CongratsForReranking, CongratsConfig, {}),
        "CONGRATS, items at ends": (CongratsForReranking, CongratsConfig, {"items_at_ends": True}),
        TEACHER: (GoalRankForReranking, GoalRankConfig, {}),
        f"NAR4Rec, student of {TEACHER}": (NAR4RecForReranking, NAR4RecConfig, {"contrastive_weight": 0.0}),
    }
    print("| model | seed | paths | greedy | drawn | CPU s |\n|---|---:|---|---:|---:|---:|")
    for seed in range(arguments.seeds):
        rows, fresh = requests(4000, seed), requests(500, seed + 1000)
        extractor = RerankingFeatureExtractor(SCHEMA).fit(rows)
        batch, test, teacher = extractor(rows), extractor(fresh), None
        for name, (kind, config, values) in kinds.items():
            torch.manual_seed(seed)
            start, model = (
                time.process_time(),
                kind(config(feature_schema=extractor.schema.to_dict(), **SIZES, **values)),
            )
            train(model, batch, arguments.steps, seed, teacher if name.endswith(TEACHER) else None)
            teacher = model if name == TEACHER else teacher
            spent = time.process_time() - start
            for paths in ("look_ahead", "marginal") if kind is CongratsForReranking else ("",):
                model.config.path_decoding = paths
                greedy = share_of_modes(model.generate(**test).unsqueeze(1), fresh)
                drawn = share_of_modes(model.generate(**test, do_sample=True, num_return_sequences=4), fresh)
                print(f"| {name} | {seed} | {paths} | {greedy:.1%} | {drawn:.1%} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
