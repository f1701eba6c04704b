"""Graphs that take raw columns: their features beside the extractor's, their slates beside the pipeline's."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rerankzoo import RerankingPipeline
from rerankzoo.batch import PADDING, entry_of, inputs
from rerankzoo.errors import ExportError, RerankingDataError
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.features.schema import Transform
from rerankzoo.generation import AtMost, Exclude, Pin
from rerankzoo.serving import FeatureOptions, export_model
from rerankzoo.serving.feature_graph import with_features
from rerankzoo.serving.graph_client import GraphClient, string_hash
from rerankzoo.serving.graph_rules import GraphRules
from rerankzoo.serving.random_inputs import random_requests, spoil_requests
from tests.serving.conftest import make_model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERS = ("signed_log1p", "standardize", "log1p")

#: What the tiny schema of all tests lacks: text ids, hashed integers, clips, transforms in other orders, columns.
RICH = FeatureSchema(
    name="rich",
    item_id="sku",
    fields=(
        FieldSpec(name="city", group="request", kind="categorical"),
        FieldSpec(name="mood", group="request", kind="dense", size=2, transforms=("quantile", "standardize")),
        FieldSpec(name="sku", group="candidate", kind="categorical"),
        FieldSpec(name="shop", group="candidate", kind="categorical", hash_size=7),
        FieldSpec(name="stock", group="candidate", kind="numeric", transforms=NUMBERS, clip=(1.0, 50.0)),
        FieldSpec(name="margin", group="candidate", kind="numeric", transforms=("signed_log1p", "quantile")),
        FieldSpec(name="rare", group="candidate", kind="numeric", transforms=("log1p",)),
        FieldSpec(name="size", group="candidate", kind="dense", columns=("width", "height"), transforms=("log1p",)),
        FieldSpec(name="seen", group="history", kind="categorical", shares="sku"),
        FieldSpec(name="seen_shops", group="history", kind="categorical", shares="shop"),
        FieldSpec(name="paid", group="history", kind="numeric", transforms=("log1p",)),
        FieldSpec(name="ago", group="history", kind="time"),
        FieldSpec(name="page", group="history", kind="page"),
    ),
    targets=(TargetSpec(name="click"), TargetSpec(name="order", value="margin")),
)
PAST: dict[str, Any] = {"seen": ["a"], "seen_shops": [1], "paid": [1], "ago": [1], "page": [1]}
WORDS = ["", " ", "é", "e\u0301", "наличие", "🦊", "A", "a", "0", "null", "x" * 300]


def rich_row(rng: np.random.Generator, size: int) -> dict[str, Any]:
    def numbers(low: float, high: float) -> list[float]:
        return rng.uniform(low, high, size).tolist()

    past = int(rng.integers(0, 4))
    return {
        "city": str(rng.choice(WORDS)),
        "mood": rng.normal(size=2).tolist(),
        "sku": rng.choice(WORDS, size).tolist(),
        "shop": rng.integers(-(1 << 63), 1 << 62, size).tolist(),
        "stock": rng.choice([-9.0, 1.5, 99.0], size, p=[0.6, 0.3, 0.1]).tolist(),
        "margin": numbers(-9, 99),
        "rare": (10.0 ** rng.uniform(-18, 3, size)).tolist(),
        "width": numbers(0, 1),
        "height": numbers(0, 1),
        "seen": rng.choice([*WORDS, "never"], past).tolist(),
        "seen_shops": rng.integers(-9, 9, past).tolist(),
        "paid": rng.uniform(0, 9, past).tolist(),
        "ago": rng.uniform(0, 9, past).tolist(),
        "page": rng.integers(0, 3, past).tolist(),
    }


@pytest.fixture(scope="module")
def rich() -> RerankingFeatureExtractor:
    rng = np.random.default_rng(0)
    return RerankingFeatureExtractor(RICH).fit([rich_row(rng, 6) for _ in range(30)])


def mirror(extractor: RerankingFeatureExtractor, folder: Path) -> GraphClient:
    """The client of a graph whose outputs are the tensors that features make: as if a model returned its batch."""
    batch = inputs(extractor(random_requests(extractor, 2, 3, 2)))
    graph = onnx.helper.make_graph([], "mirror", [], [])
    for name, tensor in batch.items():
        kind = {torch.bool: 9, torch.int64: 7, torch.float32: 1}[tensor.dtype]
        for entries, end in ((graph.input, name), (graph.output, f"{name}_")):
            entries.append(onnx.helper.make_tensor_value_info(end, kind, list(entry_of(name).axes)))
        graph.node.append(onnx.helper.make_node("Identity", [name], [f"{name}_"]))
    folder.mkdir()
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "graph.onnx")
    described = with_features(folder / "graph.onnx", folder / "graph.onnx", extractor, 3)
    item_id = extractor.schema.item_id
    features = {"graph": "graph.onnx", "item_id": item_id, "slate_size": 3, "inputs": described}
    (folder / "export.json").write_text(json.dumps({"features": features}), encoding="utf-8")
    return GraphClient(folder)


def run_mirror(client: GraphClient, requests: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    names = [entry.name for entry in client.session.get_outputs()]
    arrays = client.session.run(names, client.arrays(requests))
    return {name[:-1]: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}


# --- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["tiny", "rich"])
def test_the_tensors_are_the_extractors(
    which: str, extractor: RerankingFeatureExtractor, rich: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    own = extractor if which == "tiny" else rich
    client = mirror(own, tmp_path / "graph")
    rng = np.random.default_rng(1)
    for sizes in ((1,), (500,), (1, 9, 4, 30)):
        if which == "tiny":
            drawn = [random_requests(own, 1, size, size % 7 + 1, seed=size)[0] for size in sizes]
        else:
            drawn = [rich_row(rng, size) for size in sizes]
        for requests in (drawn, spoil_requests(own, drawn, seed=len(sizes))):
            expected, found = inputs(own(requests)), run_mirror(client, requests)
            assert found.keys() == expected.keys()
            for name, tensor in expected.items():
                assert found[name].dtype == tensor.dtype, name
                if tensor.is_floating_point():
                    torch.testing.assert_close(
                        found[name], tensor, rtol=2e-7, atol=1e-37, msg=lambda m, n=name: f"{n}: {m}"
                    )
                else:
                    assert torch.equal(found[name], tensor), name


def test_groups_without_fields_are_no_inputs(tmp_path: Path) -> None:
    fields = (FieldSpec(name="price", group="candidate", kind="numeric"),)
    schema = FeatureSchema(name="bare", item_id="id", fields=fields, targets=(TargetSpec(name="click"),))
    rows = [{"id": [1, 2], "price": [1.0, None]}, {"id": [3], "price": [2]}]
    extractor = RerankingFeatureExtractor(schema).fit(rows)
    client = mirror(extractor, tmp_path / "graph")
    assert [entry["name"] for entry in client.inputs] == ["candidate.price", "num_candidates"]
    expected, found = inputs(extractor(rows)), run_mirror(client, rows)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    assert torch.equal(found["candidate_value"], expected["candidate_value"])


def test_every_input_is_described(rich: RerankingFeatureExtractor, tmp_path: Path) -> None:
    client = mirror(rich, tmp_path / "graph")
    opened = {entry.name: entry for entry in client.session.get_inputs()}
    assert [entry["name"] for entry in client.inputs] == list(opened)
    dtypes = {"double": np.float64, "int64": np.int64, "string": object}
    feeds = {}
    for entry in client.inputs:
        assert entry["shape"] == opened[entry["name"]].shape
        assert opened[entry["name"]].type == f"tensor({entry['type']})"
        assert entry["meaning"]
        feeds[entry["name"]] = np.array(entry["example"], dtype=dtypes[entry["type"]])
        assert feeds[entry["name"]].ndim == len(entry["shape"])
    assert {axis for entry in client.inputs for axis in entry["shape"]} == {"requests", "candidates", "history", 2}
    client.session.run(None, feeds)  # the examples together are a request
    bounds = {entry["name"]: entry["greater_than"] for entry in client.inputs if "greater_than" in entry}
    # Of "stock" the clip is above what log1p of the standardised number could not take.
    assert bounds == {
        name: [-1.0] for name in ("candidate.rare", "candidate.width", "candidate.height", "history.paid")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sku": None}, "field 'sku', row 1: a list is required, got None"),
        ({"sku": ["a", None]}, "field 'sku', row 1: an item id is required, got None"),
        ({"margin": [1, None]}, "field 'margin', row 1: a number is required, got None"),
        ({**PAST, "ago": [-1]}, "field 'ago', row 1: a finite float32 number of at least 0 is"),
        ({**PAST, "ago": [None]}, "field 'ago', row 1: a number is required, got None"),
        ({**PAST, "page": [-1]}, "field 'page', row 1: an int of at least 0 is required, got -1"),
        ({**PAST, "page": [None]}, "field 'page', row 1: a number is required, got None"),
        ({**PAST, "page": [1.5]}, "field 'page', row 1: an int is required, got 1.5"),
        ({"sku": []}, "field 'sku', row 1: an empty candidate set"),
        ({"sku": ["a", 7]}, "field 'sku', row 1: a string is required, got 7"),
        ({"city": 3}, "field 'city', row 1: a string is required, got 3"),
        ({"shop": [1, 2.5]}, "field 'shop', row 1: an int is required, got 2.5"),
        ({"shop": [1, 1 << 63]}, "field 'shop', row 1: 9223372036854775808 is too large"),
        ({"shop": [1]}, "field 'shop', row 1: a list of 2 entries is required, got 1"),
        ({"shop": None}, "field 'shop', row 1: a list of 2 entries is required, got None"),
        ({"margin": [1.0, "2"]}, "field 'margin', row 1: a number is required, got '2'"),
        ({"margin": [1.0, float("nan")]}, "field 'margin', row 1: a finite float32 number is required, got nan"),
        ({"margin": [1e39, 1.0]}, "field 'margin', row 1: a finite float32 number is required, got 1e+39"),
        ({"rare": [1.0, -1]}, "field 'rare', row 1: a finite float32 number greater than [-1.0] is required, got -1"),
        ({"width": [-2.0, 1.0]}, "field 'width', row 1: a finite float32 number greater than [-1.0]"),
        ({"mood": [1.0]}, "field 'mood', row 1: a vector of length 2 is required"),
        (
            {"seen": ["a", "b"], "paid": [1, 2], "ago": [1, 2], "page": [1, 2], "seen_shops": [1]},
            "field 'seen_shops', row 1: a list of 2 entries is required, got 1",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_the_extractor_refuses_the_client_refuses(
    rich: RerankingFeatureExtractor, rich_client: GraphClient, change: dict[str, Any], message: str
) -> None:
    rng = np.random.default_rng(3)
    requests = [rich_row(rng, 3), {**rich_row(rng, 2), **change}]
    field = message.split("'")[1]
    with pytest.raises(RerankingDataError, match=f"field '{field if field != 'width' else 'size|width'}"):
        rich(requests)
    with pytest.raises(ValueError, match=re.escape(message)):
        rich_client.arrays(requests)


@pytest.fixture(scope="module")
def rich_client(rich: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> GraphClient:
    return mirror(rich, tmp_path_factory.mktemp("rich") / "graph")


def test_what_lacks_or_is_too_much_is_named(rich_client: GraphClient) -> None:
    row = rich_row(np.random.default_rng(3), 2)
    del row["margin"]
    with pytest.raises(ValueError, match="field 'margin', row 0: missing column; there are \\['ago', 'city'"):
        rich_client.arrays([row])
    with pytest.raises(ValueError, match="there are no requests"):
        rich_client.arrays([])
    with pytest.raises(ValueError, match="the graph was exported without \\['exclude'\\]"):
        rich_client.arrays([rich_row(np.random.default_rng(3), 2)], exclude=[[]])


@pytest.mark.parametrize(
    ("values", "shown"), [(["\uffff", "b"], r"'\\uffff'"), ([-(1 << 63), 2], "-9223372036854775808")]
)
def test_a_value_that_means_missing_is_refused(values: list[Any], shown: str, tmp_path: Path) -> None:
    fields = (FieldSpec(name="id", group="candidate", kind="categorical"),)
    schema = FeatureSchema(name="odd", item_id="id", fields=fields, targets=(TargetSpec(name="click"),))
    with pytest.raises(ExportError, match=f"field 'id' has the value {shown}, which means a missing one"):
        mirror(RerankingFeatureExtractor(schema).fit([{"id": values}]), tmp_path / "graph")


# --- hashed strings -------------------------------------------------------------------------------------------------

VECTORS = {
    "": -5426141060434712860,
    "abc": 6455300059550759896,
    "наличие-🦊": -2587062093389947965,
    "x" * 128: 154496675747142800,
    "x" * 300: 1533152188014638354,
}


def test_vectors_of_the_hash_in_python() -> None:
    assert {text: string_hash(text) for text in VECTORS} == VECTORS


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_vectors_of_the_hash_in_javascript() -> None:
    script = "import { blake2b64 } from './blake2b.mjs'; for (const text of JSON.parse(process.argv[1]))"
    command = ["node", "--input-type=module", "-e", f"{script} console.log(String(blake2b64(text)))"]
    told = subprocess.run([*command, json.dumps(list(VECTORS))], cwd=EXAMPLES / "node", capture_output=True, check=True)
    assert list(map(int, told.stdout.split())) == list(VECTORS.values())


@pytest.mark.skipif(shutil.which("java") is None, reason="there is no java")
def test_vectors_of_the_hash_in_java() -> None:
    command = ["java", "-Dfile.encoding=UTF-8", "-Dsun.jnu.encoding=UTF-8", str(EXAMPLES / "java" / "Blake2b64.java")]
    told = subprocess.run(command, input="\n".join(VECTORS) + "\n", capture_output=True, check=True, encoding="utf-8")
    assert list(map(int, told.stdout.split())) == list(VECTORS.values())


# --- slates ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def odd_requests(extractor: RerankingFeatureExtractor) -> list[dict[str, Any]]:
    """Of 1, 500 and other numbers of candidates, with unknown ids and missing values."""
    drawn = [random_requests(extractor, 1, size, size % 5, seed=size)[0] for size in (1, 500, 2, 7, 30, 50)]
    return spoil_requests(extractor, drawn)


def ids_and_scores(answers: Any) -> list[Any]:
    return [
        [(item["item_id"], item["index"], pytest.approx(item["score"], abs=1e-4)) for item in one] for one in answers
    ]


def assert_same_slates(found: Any, expected: Any) -> None:
    assert [[(item["item_id"], item["index"], item["score"]) for item in one] for one in found] == ids_and_scores(
        expected
    )


@pytest.mark.slow
def test_the_slates_are_the_pipelines(onnx_folder: Path, odd_requests: list[dict[str, Any]]) -> None:
    client, pipeline = GraphClient(onnx_folder), RerankingPipeline.from_pretrained(onnx_folder)
    expected = pipeline(odd_requests)
    assert [len(one) for one in expected] == [1, 3, 2, 3, 3, 3]
    assert_same_slates(client(odd_requests), expected)
    assert_same_slates([client([one])[0] for one in odd_requests], expected)


@pytest.mark.slow
def test_without_torch_and_rerankzoo(onnx_folder: Path, odd_requests: list[dict[str, Any]]) -> None:
    """In a process that cannot import them, by the file that lies in the folder."""
    script = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "rerankzoo", "transformers"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
import runpy
runpy.run_path(sys.argv[1], run_name="__main__")
assert "onnxruntime" in sys.modules
"""
    told = subprocess.run(
        [sys.executable, "-I", "-c", script, str(onnx_folder / "graph_client.py")],
        input=json.dumps(odd_requests), capture_output=True, check=True, encoding="utf-8",
    )  # fmt: skip
    assert_same_slates(json.loads(told.stdout), RerankingPipeline.from_pretrained(onnx_folder)(odd_requests))


def node_modules() -> Path | None:
    """Where onnxruntime-node is installed: `npm install --ignore-scripts onnxruntime-node`, and its folder named."""
    folder = Path(os.environ.get("ONNXRUNTIME_NODE_MODULES", EXAMPLES / "node" / "node_modules"))
    return folder if shutil.which("node") and (folder / "onnxruntime-node").is_dir() else None


@pytest.mark.slow
@pytest.mark.skipif(node_modules() is None, reason="no node, or ONNXRUNTIME_NODE_MODULES has no onnxruntime-node")
def test_from_node(onnx_folder: Path, odd_requests: list[dict[str, Any]], tmp_path: Path) -> None:
    example = tmp_path / "node"
    shutil.copytree(EXAMPLES / "node", example, ignore=shutil.ignore_patterns("node_modules"))
    (example / "node_modules").symlink_to(node_modules().resolve())  # type: ignore[union-attr]
    command = ["node", str(example / "rerank.mjs"), str(onnx_folder)]
    safe = json.loads(
        json.dumps(odd_requests), parse_int=lambda text: int(text) % (1 << 53)
    )  # as JavaScript reads them
    told = subprocess.run(command, input=json.dumps(safe), capture_output=True, check=True, encoding="utf-8")
    assert_same_slates(json.loads(told.stdout), RerankingPipeline.from_pretrained(onnx_folder)(safe))
    safe[1]["price"][7] = "dear"
    told = subprocess.run(command, input=json.dumps(safe), capture_output=True, encoding="utf-8")
    assert told.returncode != 0
    assert "field 'price', row 1: a number is required, got \"dear\"" in told.stderr


# --- demands --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demands_are_the_pipelines_constraints(onnx_folder: Path, make_rows: Callable[..., Any]) -> None:
    client, pipeline = GraphClient(onnx_folder), RerankingPipeline.from_pretrained(onnx_folder)
    rows = make_rows(5, sizes=(12, 9, 15, 20, 8, 18))
    free = pipeline(rows)
    exclude = [[one[0]["item_id"], one[2]["item_id"], 10**9] for one in free]
    assert_same_slates(client(rows, exclude=exclude), pipeline(rows, constraints=Exclude(exclude)))
    assert_same_slates(client(rows, at_most=[1] * 6), pipeline(rows, constraints=AtMost(1, "brand")))
    pin = [{1: row["item_id"][number]} for number, row in enumerate(rows)]
    together = [Exclude([[one[0]["item_id"]] for one in free]), AtMost(2, "brand")]
    pinned = Pin([[items[1]] for items in pin], 1)
    usable = [row for row, one in enumerate(free) if one[0]["item_id"] != pin[row][1]]
    part = [[items[row] for row in usable] for items in (rows, [[one[0]["item_id"]] for one in free], pin)]
    assert_same_slates(
        client(part[0], exclude=part[1], pin=part[2], at_most=[2] * len(usable)),
        pipeline(part[0], constraints=[Exclude(part[1]), together[1], Pin([[pins[1]] for pins in part[2]], 1)]),
    )
    assert_same_slates(client(rows, pin=pin), pipeline(rows, constraints=pinned))
    with pytest.raises(ValueError, match="field 'pin', row 0: -7 is no candidate"):
        client(rows[:1], pin=[{0: -7}])
    with pytest.raises(ValueError, match="field 'at_most': 1 entries, there are 6 requests"):
        client(rows, at_most=[1])


def greedy(scores: list[float], rules: GraphRules, size: int) -> list[int]:
    """The best candidate that may stand at each position, as decoding asks the rules."""
    prefix = torch.empty(1, 0, dtype=torch.int64)
    for position in range(size):
        best = rules.adjust(torch.tensor([scores]), torch.tensor([0]), prefix, []).argmax(-1, keepdim=True)
        finished = rules.length.unsqueeze(-1) <= position
        prefix = torch.cat([prefix, best.masked_fill(finished, PADDING)], -1)
    return prefix[0].tolist()


@pytest.mark.parametrize(
    ("demands", "slate"),
    [
        ({}, [0, 1, 2, 3]),
        ({"exclude": [0, 2]}, [1, 3, 4, PADDING]),
        ({"pin": {1: 4}}, [0, 4, 1, 2]),
        ({"pin": {0: 3, 3: 0}}, [3, 1, 2, 0]),
        ({"at_most": 1}, [0, 3, PADDING, PADDING]),  # kinds 1 1 1 2 2: shorter, where a pipeline refuses
        ({"at_most": 2}, [0, 1, 3, 4]),
        ({"at_most": 2, "pin": {3: 2}}, [0, 3, 4, 2]),  # room is kept for what is pinned
        ({"at_most": 1, "pin": {0: 0, 1: 1}}, [0, 1, PADDING, PADDING]),  # pins come before limits
        ({"at_most": 1, "pin": {2: 1}}, [0, 3, PADDING, PADDING]),  # a pin beyond the slate's end is let go
        ({"exclude": [4], "pin": {0: 4}}, [0, 1, 2, 3]),  # so is that of an excluded item,
        ({"pin": {0: 4, 2: 4}}, [4, 0, 1, 2]),  # the second of one item,
        ({"pin": {0: 9}}, [0, 1, 2, 3]),  # and that of none
    ],
    ids=str,
)
def test_demands_by_hand(demands: dict[str, Any], slate: list[int]) -> None:
    mask = torch.ones(1, 5, dtype=torch.bool)
    exclude = torch.tensor([[place in demands.get("exclude", []) for place in range(5)]])
    pins = torch.tensor([[demands.get("pin", {}).get(place, PADDING) for place in range(4)]])
    batch = {
        "candidate_mask": mask,
        "exclude": exclude,
        "pin": pins,
        "at_most": torch.tensor([demands.get("at_most", 9)]),
    }
    labels = torch.tensor([[1, 1, 1, 2, 2]])
    assert greedy([5.0, 4.0, 3.0, 2.0, 1.0], GraphRules(batch, labels), 4) == slate
    if "at_most" not in demands:
        assert greedy([5.0, 4.0, 3.0, 2.0, 1.0], GraphRules(batch, None), 4) == slate


def test_candidates_of_no_category_are_not_limited() -> None:
    batch = {"candidate_mask": torch.ones(1, 4, dtype=torch.bool), "exclude": torch.zeros(1, 4, dtype=torch.bool)}
    batch |= {"pin": torch.full((1, 3), PADDING), "at_most": torch.tensor([1])}
    assert greedy([4.0, 3.0, 2.0, 1.0], GraphRules(batch, torch.tensor([[1, 1, 0, 0]])), 3) == [0, 2, 3]


def ranked(*transforms: Transform) -> RerankingFeatureExtractor:
    """An extractor of the rich schema with other transforms of `margin`, half of whose values are ties."""
    kept = [field for field in RICH.fields if field.name != "margin"]
    margin = FieldSpec(name="margin", group="candidate", kind="numeric", transforms=transforms)
    rng = np.random.default_rng(0)
    row = rich_row(rng, 1200)
    row["margin"] = [*rng.lognormal(size=600).tolist(), *[0.0] * 400, *[3.5] * 200]
    return RerankingFeatureExtractor(replace(RICH, fields=(*kept, margin))).fit([row])


def test_places_among_quantiles_with_ties_and_beyond_the_ends(tmp_path: Path) -> None:
    extractor = ranked("quantile")
    known = extractor._fitted_state().quantiles["margin"][:, 0]
    margins = [*known, *(known[1:] + known[:-1]) / 2, -1.0, 0.0, 3.5, 1e30, -1e30, 1e-30, 4.0]
    row = rich_row(np.random.default_rng(1), len(margins)) | {"margin": [float(margin) for margin in margins]}
    made = run_mirror(mirror(extractor, tmp_path / "graph"), [row])["candidate_numeric"]
    torch.testing.assert_close(made, extractor([row])["candidate_numeric"], rtol=1e-6, atol=1e-6)
    assert 2.8 < made[..., -1].max() < 2.9


def test_a_bound_behind_quantiles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="field 'margin': log1p after quantile"):
        mirror(ranked("quantile", "log1p"), tmp_path / "graph")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FeatureOptions(True, "colour"), r"must be one of the categorical fields \['item_id', 'brand'\]"),
        (FeatureOptions(False, "brand"), "limit_field 'brand' needs constraints"),
    ],
)  # fmt: skip
def test_refuses_other_features(
    extractor: RerankingFeatureExtractor, tmp_path: Path, features: FeatureOptions, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        export_model(make_model(extractor), extractor, tmp_path / "graph", "onnx", features=features)
    assert list(tmp_path.iterdir()) == []
