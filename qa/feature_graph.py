"""A graph with features beside the pipeline it was made from: the slates of 1,000 requests, and what a request costs.

    npm install --ignore-scripts --prefix FOLDER onnxruntime-node
    python qa/feature_graph.py --node FOLDER

Slates: requests with unknown ids, missing values and unicode, of 1 to 50 and of 500 candidates, through the eager
pipeline; through the graph in a process that cannot import torch or rerankzoo; and through the graph in Node.

Cost: JSON to JSON, the request of `qa/request_time.py` (50 candidates and 10 fields, DeGRe of D = 64, greedy, six
positions), on one thread. Beside them NAR4Rec of the same size, which scores all positions at once, and a
ranker of 100 trees, LightGBM's LambdaMART, that scores the candidates of the same JSON. The sides take turns in one
process, so that other work on the machine slows down all alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from request_calls import ROOT, make_pipeline, make_requests
from request_time import FIELDS, SIZES

WITHOUT_TORCH = """
import runpy, sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "rerankzoo"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
runpy.run_path(sys.argv[1], run_name="__main__")
"""
WORDS = ["é", "e\u0301", "наличие", "🦊", "", " ", "A", "a", "0", *map(str, range(300))]


def shop_requests(count: int, seed: int) -> list[dict[str, Any]]:
    """Raw requests with text ids, of which a twentieth are known to nobody, and a tenth of whose values are missing."""
    rng = np.random.default_rng(seed)

    def some(values: list[Any], odd: Any) -> list[Any]:
        kinds = rng.random(len(values))
        return [
            None if kind < 0.1 else odd if kind < 0.15 else value for kind, value in zip(kinds, values, strict=True)
        ]

    requests = []
    for number in range(count):
        size = 500 if number % 50 == 0 else 1 if number % 50 == 1 else int(rng.integers(1, 51))
        past = int(rng.integers(0, 9))
        requests.append(
            {
                "user": str(rng.integers(900)),
                "hour": None if number % 9 == 0 else float(rng.integers(24)),
                "sku": [f"{WORDS[at % len(WORDS)]}-{at}" for at in rng.permutation(3 * size)[:size]],
                "category": some(rng.choice(WORDS[:40], size).tolist(), "新しい"),
                "brand": some(rng.choice(WORDS, size).tolist(), "новый"),
                "shop": some(rng.integers(0, 1 << 40, size).tolist(), 7),
                "price": some((10 ** rng.uniform(-1, 4, size)).tolist(), 0.0),
                "score": rng.normal(size=size).tolist(),
                "picture": rng.normal(size=(size, 4)).tolist(),
                "past": some(rng.choice(WORDS, past).tolist(), "never"),
            }
        )
    return requests


def shop_pipeline() -> Any:
    """A DeGRe pipeline over all kinds of fields, with random weights."""
    import torch

    from rerankzoo import DeGReConfig, DeGReGenerator, RerankingFeatureExtractor, RerankingPipeline
    from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec

    schema = FeatureSchema(
        name="shop",
        item_id="sku",
        fields=(
            FieldSpec(name="user", group="request", kind="categorical"),
            FieldSpec(name="hour", group="request", kind="numeric", transforms=("standardize",)),
            FieldSpec(name="sku", group="candidate", kind="categorical"),
            FieldSpec(name="category", group="candidate", kind="categorical"),
            FieldSpec(name="brand", group="candidate", kind="categorical", hash_size=50),
            FieldSpec(name="shop", group="candidate", kind="categorical", hash_size=50),
            FieldSpec(
                name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize"), clip=(0, 999)
            ),
            FieldSpec(name="score", group="candidate", kind="numeric"),
            FieldSpec(name="picture", group="candidate", kind="dense", size=4),
            FieldSpec(name="past", group="history", kind="categorical", shares="category"),
        ),
        targets=(TargetSpec(name="click"),),
        upstream_score="score",
    )
    torch.manual_seed(0)
    extractor = RerankingFeatureExtractor(schema).fit(shop_requests(300, seed=1))
    config = DeGReConfig(feature_schema=extractor.schema.to_dict(), hidden_size=32, intermediate_size=64, slate_size=6)
    return RerankingPipeline(DeGReGenerator(config), extractor)


def compare_slates(count: int, folder: Path, node: Path | None) -> None:
    """Prints how many requests get the pipeline's slates.

    Raises:
        SystemExit: If any gets another one.
    """
    from rerankzoo.serving import FeatureOptions, export_model

    pipeline, requests = shop_pipeline(), shop_requests(count, seed=2)
    export_model(pipeline.model, pipeline.extractor, folder, "onnx", features=FeatureOptions())
    expected = [[item["item_id"] for item in pipeline(request)] for request in requests]
    commands = {"onnxruntime, no torch": [sys.executable, "-I", "-c", WITHOUT_TORCH, str(folder / "graph_client.py")]}
    if node is not None:
        example = folder.with_name("node")
        shutil.copytree(ROOT / "examples" / "node", example)
        (example / "node_modules").symlink_to((node / "node_modules").resolve())
        commands["Node"] = ["node", str(example / "rerank.mjs"), str(folder)]
    wrong = 0
    for name, command in commands.items():
        found: list[Any] = []
        for part in (requests[:10], requests[10:]):  # a few alone, most together
            for sent in [[one] for one in part] if len(part) == 10 else [part]:
                told = subprocess.run(
                    command, input=json.dumps(sent), capture_output=True, check=True, encoding="utf-8"
                )
                found += json.loads(told.stdout)
        same = sum([item["item_id"] for item in items] == slate for items, slate in zip(found, expected, strict=True))
        print(f"{name}: {same} of {count} slates are the eager pipeline's", flush=True)
        wrong += count - same
    if wrong:
        raise SystemExit(1)


def make_trees() -> Callable[[str], str]:
    """From the JSON of a request to that of its six best items, by LambdaMART: 100 trees of 31 leaves each."""
    import lightgbm

    names = ("item_id", *FIELDS[0], *FIELDS[1])

    def columns(request: dict[str, Any]) -> np.ndarray:
        items = [request[name] for name in names]
        return np.array([[request["user_id"]] * len(items[0]), *items], dtype=np.float64).T

    requests = make_requests(200, 50, *FIELDS)
    rows = np.concatenate([columns(request) for request in requests])
    labels = np.random.default_rng(0).integers(0, 2, len(rows))
    data = lightgbm.Dataset(rows, labels, group=[50] * len(requests))
    booster = lightgbm.train({"objective": "lambdarank", "num_threads": 1, "verbose": -1}, data, num_boost_round=100)

    def answer(text: str) -> str:
        request = json.loads(text)
        scores = booster.predict(columns(request), num_threads=1)
        best = np.argsort(-scores)[: SIZES["slate_size"]].tolist()
        return json.dumps(
            [{"item_id": request["item_id"][index], "index": index, "score": scores[index]} for index in best]
        )

    return answer


def compare_cost(turns: int, calls: int, folder: Path) -> None:
    """Prints the CPU time of a request, and the ratios to the eager pipeline and to the trees."""
    from rerankzoo import NAR4RecConfig, NAR4RecForReranking, RerankingPipeline
    from rerankzoo.serving import FeatureOptions, export_model
    from rerankzoo.serving.graph_client import GraphClient

    pipeline = make_pipeline(*FIELDS, **SIZES)
    sizes = {name: size for name, size in SIZES.items() if name != "num_decoder_layers"}
    selector = NAR4RecForReranking(NAR4RecConfig(feature_schema=pipeline.extractor.schema.to_dict(), **sizes))
    for name, model in {"degre": pipeline.model, "nar4rec": selector}.items():
        export_model(model, pipeline.extractor, folder / name, "onnx", features=FeatureOptions())
    onnx = RerankingPipeline.from_pretrained(folder / "degre", backend="onnx")
    degre, nar4rec = GraphClient(folder / "degre"), GraphClient(folder / "nar4rec")
    text, trees = json.dumps(make_requests(1, 50, *FIELDS)[0]), make_trees()
    sides = {
        "eager pipeline": lambda: json.dumps(pipeline(json.loads(text))),
        "pipeline, backend onnx": lambda: json.dumps(onnx(json.loads(text))),
        "graph with features": lambda: json.dumps(degre([json.loads(text)])[0]),
        "the same of NAR4Rec": lambda: json.dumps(nar4rec([json.loads(text)])[0]),
        "LambdaMART, 100 trees": lambda: trees(text),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, call in sides.items():
            spent = []
            for _ in range(calls):
                start = time.process_time()
                call()
                spent.append(1e3 * (time.process_time() - start))
            if turn:  # the first warms up
                times[name].append(statistics.median(spent))
    first, last = times["eager pipeline"], times["LambdaMART, 100 trees"]
    for name, spent in times.items():
        ratios = f"eager / this {_ratio(first, spent)}, this / LambdaMART {_ratio(spent, last)}"
        print(f"{name}: {statistics.median(spent):.2f} ms of CPU time; {ratios}")


def _ratio(above: list[float], below: list[float]) -> str:
    ratios = sorted(one / other for one, other in zip(above, below, strict=True))
    tenth = len(ratios) // 10
    return f"{statistics.median(ratios):.2f} ({ratios[tenth]:.2f} to {ratios[-1 - tenth]:.2f})"


def main() -> None:
    """Compares slates, then cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000, help="whose slates are compared (default: 1000); 0: none")
    parser.add_argument("--node", type=Path, help="folder with onnxruntime-node in its node_modules")
    parser.add_argument("--turns", type=int, default=50, help="of each side (default: 50); 0: no measurement")
    parser.add_argument("--calls", type=int, default=10, help="in a turn (default: 10)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.requests:
            compare_slates(options.requests, Path(folder, "shop"), options.node)
        if options.turns:
            compare_cost(options.turns, options.calls, Path(folder, "cost"))


if __name__ == "__main__":
    main()
