"""Makes a tiny checkpoint of every model class, with what it answers, for `test_checkpoints.py`.

What a commit wrote must load with every later one and answer the same. Run it with the commit that is to be kept (its
folder is named after it), never to make a failing test pass:

    PYTHONPATH=<checkout of the commit> OMP_NUM_THREADS=1 python tests/checkpoints/make.py tests/checkpoints/<commit>
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel

import rerankzoo as rz

Row = dict[str, Any]

ATTENTION = {"num_attention_heads": 2, "intermediate_size": 12, "hidden_dropout_prob": 0.0}
SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "slate_size": 4, **ATTENTION}
DEGRE = {**SIZES, "num_decoder_layers": 1, "field_size": 4, "utility_threshold": 0.4}
NAR4REC = {**SIZES, "utility_threshold": 0.4}
#: Folder -> (class, class of its config, values of the config); a folder in another is the evaluator beside it.
MODELS: dict[str, tuple[str, str, Row]] = {
    "degre": ("DeGReGenerator", "DeGReConfig", DEGRE),
    "degre/evaluator": ("DeGReEvaluator", "DeGReConfig", {**DEGRE, "conditional_targets": {"order": "click"}}),
    "nar4rec": ("NAR4RecForReranking", "NAR4RecConfig", NAR4REC),
    "nar4rec/evaluator": ("NAR4RecEvaluator", "NAR4RecConfig", NAR4REC),
    "pointwise": ("PointwiseForReranking", "PointwiseConfig", SIZES),
    "prm": ("PRMForReranking", "PRMConfig", {**SIZES, "max_position_embeddings": 5}),
}
CONSTRAINTS = (rz.Exclude(["item-3", "item-8"]), rz.AtMost(2, "kind"), rz.Boost(0.5, ["item-5"]))
#: Name -> arguments of a pipeline's call.
CALLS: dict[str, Row] = {
    "default": {},
    "greedy": {"num_beams": 1, "slate_size": 2},
    "beam": {"num_beams": 3},
    "contrastive": {"num_beams": 1, "penalty_alpha": 0.4, "top_k": 3},
    "constrained": {"num_beams": 2, "slate_size": 3, "constraints": CONSTRAINTS},
}


def schema() -> rz.FeatureSchema:
    """All groups and kinds of fields: vocabularies of strings and integers, hashed, numeric, dense, history."""
    fields = (
        rz.FieldSpec(name="user_id", group="request", kind="categorical", min_count=2),
        rz.FieldSpec(name="day", group="request", kind="categorical", hash_size=4),
        rz.FieldSpec(name="hour", group="request", kind="numeric", transforms=("standardize",)),
        rz.FieldSpec(name="item_id", group="candidate", kind="categorical"),
        rz.FieldSpec(name="kind", group="candidate", kind="categorical"),
        rz.FieldSpec(name="brand", group="candidate", kind="categorical", hash_size=5),
        rz.FieldSpec(
            name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize"), clip=(0, 50)
        ),
        rz.FieldSpec(name="picture", group="candidate", kind="dense", size=3, transforms=("standardize",)),
        rz.FieldSpec(name="upstream_score", group="candidate", kind="numeric"),
        rz.FieldSpec(name="past_items", group="history", kind="categorical", shares="item_id"),
        rz.FieldSpec(name="past_kinds", group="history", kind="categorical", shares="kind"),
    )
    click = rz.TargetSpec(name="click", weight=0.5, candidate_feedback="candidate_click")
    order = rz.TargetSpec(name="order", weight=0.1, value="price")
    return rz.FeatureSchema(
        name="kept",
        item_id="item_id",
        fields=fields,
        targets=(click, order),
        upstream_score="upstream_score",
        position_discount="log2",
    )


def row(rng: np.random.Generator, size: int) -> Row:
    """One logged request. Cheap items and those of kind 2 are clicked, if they stand near the top."""
    items = rng.choice(12, size, replace=False)
    prices, slate = rng.uniform(0.5, 9.0, size), rng.permutation(size)[:3]
    clicks = [float(prices[index] < 4 or items[index] % 4 == 2) for index in range(size)]
    shown = [clicks[index] * float(rng.random() < 0.9**position) for position, index in enumerate(slate)]
    past = rng.choice(12, rng.integers(0, 4))
    return {
        "user_id": int(rng.integers(8)),
        "day": int(rng.integers(7)),
        "hour": float(rng.integers(24)),
        "item_id": [f"item-{item}" for item in items],
        "kind": [int(item % 4) for item in items],
        "brand": [f"brand-{item % 7}" for item in items],
        "price": prices.round(2).tolist(),
        "picture": rng.normal(size=(size, 3)).round(3).tolist(),
        "upstream_score": rng.normal(size=size).round(3).tolist(),
        "past_items": [f"item-{item}" for item in past],
        "past_kinds": [int(item % 4) for item in past],
        "slate": slate.tolist(),
        "click": shown,
        "order": [click * float(rng.random() < 0.5) for click in shown],
        "candidate_click": clicks,
    }


def requests(rng: np.random.Generator) -> list[Row]:
    """Logged requests of 1 to 7 candidates; one with missing and one with unknown values."""
    rows = [row(rng, size) for size in (6, 4, 7, 1, 2, 5)]
    rows[0].update(user_id=None, day=None, hour=None, past_items=[], past_kinds=[])
    rows[0]["upstream_score"][2] = rows[0]["kind"][1] = rows[0]["brand"][0] = None
    rows[2].update(user_id=999, item_id=["new", *rows[2]["item_id"][1:]], price=[1000.0, *rows[2]["price"][1:]])
    return rows


def make_model(folder: Path, name: str, extractor: rz.RerankingFeatureExtractor, rows: list[Row]) -> None:
    """Trains a little, so that no two scores are nearly the same, and saves."""
    class_name, config_name, values = MODELS[name]
    torch.manual_seed(0)
    config = getattr(rz, config_name)(feature_schema=extractor.schema.to_dict(), **values)
    model = getattr(rz, class_name)(config)
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=0.01), extractor(rows)
    for _ in range(100):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    if name == "degre":
        model.generation_config.num_beams = 2
    model.eval().save_pretrained(folder / name)
    extractor.save_pretrained(folder / name)


def answers(folder: Path, name: str, rows: list[Row]) -> Row:
    """What a checkpoint answers: loss, utilities of slates, and the items (index, score) of every kind of call."""
    model = AutoModel.from_pretrained(folder / name).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder / name)
    batch = extractor(rows)
    with torch.no_grad():
        answer: Row = {"class": type(model).__name__, "loss": float(model(**batch).loss)}
        if hasattr(model, "score_slates"):
            slates = torch.tensor(list(permutations(range(4), 3)))
            wide = batch["candidate_mask"].sum(-1) >= 4
            inputs = {key: value[wide] for key, value in batch.items()}
            utilities = model.score_slates(slates.expand(int(wide.sum()), -1, -1), **inputs)
            answer["utilities"] = utilities.tolist()
    beside = None if name.endswith("evaluator") else f"{name}/evaluator" in MODELS
    if model.can_generate():
        pipeline = rz.RerankingPipeline.from_pretrained(str(folder / name), evaluator=beside or None)
        calls = {**CALLS, **({"chosen": {"num_beams": 4, "num_return_sequences": 4}} if beside else {})}
        answer["slates"] = {key: pipeline(rows, **call) for key, call in calls.items()}
    return answer


def main(folder: Path) -> None:
    """Makes checkpoints, requests and answers."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    logged = [row(rng, int(size)) for size in rng.integers(3, 8, 60)]
    extractor = rz.RerankingFeatureExtractor(schema()).fit(logged)
    for name in MODELS:
        make_model(folder, name, extractor, logged)
    asked = requests(rng)
    expected = {name: answers(folder, name, asked) for name in MODELS}
    (folder / "requests.json").write_text(json.dumps(asked) + "\n", encoding="utf-8")
    (folder / "answers.json").write_text(json.dumps(expected) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
