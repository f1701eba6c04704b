from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qa.scale.service import Call, serve
from rerankzoo import RerankingPipeline
from rerankzoo.backends import ExportedModel, GraphMetadata, GraphSizes
from rerankzoo.batch import ENTRIES, inputs
from rerankzoo.errors import ExportError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.layers import additive_mask, attend
from rerankzoo.models.pointwise import PointwiseForReranking
from rerankzoo.serving import export_model
from rerankzoo.serving.export import SlateGraph, check_graph
from rerankzoo.serving.spelling import spell_out
from tests.serving.conftest import make_model

LABELS = ("slate", "click", "order", "candidate_click")
FILES = ["config.json", "export.json", "generation_config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def requests(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raw requests as they come online, without labels."""
    return [{key: value for key, value in row.items() if key not in LABELS} for row in rows]


def assert_same(found: Any, expected: Any) -> None:
    """The same items in the same order, scores up to rounding."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [(item["item_id"], item["index"]) for item in one] == [
            (item["item_id"], item["index"]) for item in other
        ]
        assert [item["score"] for item in one] == pytest.approx([item["score"] for item in other], abs=1e-4)


# --- exporting and serving ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_folder_holds_graph_and_checkpoint(onnx_folder: Path) -> None:
    more = [
        "SHA256SUMS",
        "graph_client.py",
        "model.onnx",
        "model_with_features.onnx",
        "modeling_rerankzoo.py",
        "vocabularies.safetensors",
    ]
    assert sorted(path.name for path in onnx_folder.iterdir()) == sorted([*FILES, *more])
    assert sorted(path.name for path in onnx_folder.parent.iterdir()) == ["model", "onnx"]  # nothing temporary is left
    metadata = GraphMetadata.load(onnx_folder / "export.json")
    assert (metadata.format, metadata.decoding, metadata.sizes) == ("onnx", {"slate_size": 3}, None)
    assert "candidate_mask" in metadata.inputs


@pytest.mark.slow
def test_a_graph_serves_many_threads(onnx_folder: Path, requests: list[dict[str, Any]]) -> None:
    onnx = RerankingPipeline.from_pretrained(onnx_folder, backend="onnx")
    calls = [Call(one, {}, onnx(one)) for one in (*requests, requests, requests[:3])]
    service = serve(onnx, calls, requests=1_000, threads=8)
    assert service.requests >= 1_000
    assert service.wrong == 0


@pytest.mark.slow
def test_pipeline_serves_what_the_model_decodes(onnx_folder: Path, requests: list[dict[str, Any]]) -> None:
    eager, onnx = (RerankingPipeline.from_pretrained(onnx_folder, backend=backend) for backend in ("eager", "onnx"))
    expected = eager(requests)
    assert [len(items) for items in expected] == [3, 3, 3, 3, 2, 3, 3, 3]  # the slate size that was asked for
    assert_same(onnx(requests), expected)
    assert_same([onnx(request) for request in requests], expected)
    assert_same(onnx(requests, slate_size=3), expected)
    with pytest.raises(ValueError, match="the graph decodes with"):
        onnx(requests, num_beams=2)


@pytest.mark.slow
@pytest.mark.parametrize("send", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])  # noqa: S301
def test_an_exported_pipeline_goes_to_other_processes(
    onnx_folder: Path, requests: list[dict[str, Any]], send: Callable[[Any], Any]
) -> None:
    onnx = RerankingPipeline.from_pretrained(onnx_folder, backend="onnx")
    expected = onnx(requests)
    assert_same(send(onnx)(requests), expected)


def test_a_graph_of_an_earlier_version_answers_the_same() -> None:
    kept = Path(__file__).parents[1] / "checkpoints" / "613eba1"
    requests, answers = (json.loads((kept / name).read_text()) for name in ("requests.json", "answers.json"))
    onnx = RerankingPipeline.from_pretrained(kept / "pointwise-onnx", backend="onnx")
    assert_same(onnx(requests), answers["pointwise"]["slates"]["greedy"])


@pytest.mark.slow
def test_pipeline_refuses_what_a_graph_cannot_do(onnx_folder: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="evaluator needs backend='eager'"):
        RerankingPipeline.from_pretrained(onnx_folder, evaluator=onnx_folder, backend="onnx")
    with pytest.raises(ValueError, match="was exported as 'onnx', not 'aoti'"):
        RerankingPipeline.from_pretrained(onnx_folder, backend="aoti")
    other = RerankingFeatureExtractor(RerankingFeatureExtractor.from_pretrained(onnx_folder).schema).fit(rows[:2])
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        RerankingPipeline(ExportedModel.from_pretrained(onnx_folder, "onnx"), other)
    with pytest.raises(ValueError, match=r"stays torch\.float32 on the CPU"):
        RerankingPipeline.from_pretrained(onnx_folder, backend="onnx", device="meta")
    with pytest.raises(TypeError, match="unknown arguments: dtype"):
        RerankingPipeline.from_pretrained(onnx_folder, backend="onnx", dtype="float16")


@pytest.mark.slow
def test_every_axis_of_the_graph_is_named(onnx_folder: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(onnx_folder / "model.onnx", providers=["CPUExecutionProvider"])
    for entry in session.get_inputs():
        names = {"B": "requests", "N": "candidates", "L": "history"}
        expected = [names[axis] for axis in ENTRIES[entry.name].axes if axis in names]
        assert [size for size in entry.shape if isinstance(size, str)] == expected, entry.name
    assert [entry.name for entry in session.get_outputs()] == ["slates", "scores", "step_scores"]


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [{"num_beams": 5}, {"penalty_alpha": 0.4, "top_k": 2}], ids=str)
def test_exports_every_strategy(
    extractor: RerankingFeatureExtractor, requests: list[dict[str, Any]], tmp_path: Path, decoding: dict[str, Any]
) -> None:
    model = make_model(extractor).bfloat16()  # graphs are of single precision
    export_model(model, extractor, tmp_path / "graph", "onnx", RerankingGenerationConfig(slate_size=3, **decoding))
    model.float()
    pipeline = RerankingPipeline.from_pretrained(str(tmp_path / "graph"), backend="onnx")
    expected = RerankingPipeline(model, extractor)(requests, slate_size=3, **decoding)
    assert_same(pipeline(requests), expected)
    # Fewer candidates than beams, or than the top k.
    assert_same([pipeline(request) for request in requests], expected)
    assert model.generation_config.strategy == "greedy"  # the model itself is left as it was


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler, and there is no g++")
def test_exports_to_aotinductor(
    extractor: RerankingFeatureExtractor, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    model, config = make_model(extractor), RerankingGenerationConfig(slate_size=2)
    export_model(model, extractor, tmp_path / "graph", "aoti", config, GraphSizes(3, 9, 4))
    pipeline = RerankingPipeline.from_pretrained(str(tmp_path / "graph"), backend="aoti")
    assert_same(pipeline(requests), RerankingPipeline(model, extractor)(requests, slate_size=2))


class Attention(torch.nn.Module):
    """What `attend` does, as a graph."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        return attend(query, key, value, mask)


@pytest.mark.parametrize("masked", ["not", "by booleans", "by numbers"])
@pytest.mark.parametrize(("num_keys", "fused"), [(1, False), (100, False), (101, True)])
def test_a_compiled_graph_spells_out_attention_to_few_keys(num_keys: int, fused: bool, masked: str) -> None:
    seeded = torch.Generator().manual_seed(0)
    query, key, value = (10 * torch.randn(2, 3, size, 4, generator=seeded) for size in (5, num_keys, num_keys))
    real = torch.rand(2, 1, 1, num_keys, generator=seeded) < 0.5
    real[..., 0] = True
    mask = {"not": None, "by booleans": real, "by numbers": additive_mask(real, query.dtype)}[masked]
    given = (query, key, value, mask)
    program = spell_out(torch.export.export(Attention(), given))
    assert any("dot_product" in str(node.target) for node in program.graph.nodes) == fused
    torch.testing.assert_close(program.module()(*given), attend(*given), rtol=1e-3, atol=1e-3)


class Softmax(torch.nn.Module):
    """A softmax along the last axis but one."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.softmax(-2)


@pytest.mark.parametrize(("num_terms", "looped"), [(1, False), (16, False), (17, True)])
def test_a_compiled_graph_has_no_loop_over_few_terms(num_terms: int, looped: bool) -> None:
    logits = 50 * torch.randn(3, num_terms, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 1:, 0] = float("-inf")
    program = spell_out(torch.export.export(Softmax(), (logits,)))
    assert any("softmax" in str(node.target) for node in program.graph.nodes) == looped
    torch.testing.assert_close(program.module()(logits), logits.softmax(-2))


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generation_config": {"do_sample": True}}, "sampling cannot be exported"),
        ({"generation_config": {"num_beams": 3, "num_return_sequences": 2}}, "one slate per request, not 2"),
        ({"sizes": GraphSizes(1, 9, 4)}, "an ONNX graph takes any sizes"),
        ({"format": "aoti"}, "needs fixed sizes"),
        ({"format": "aoti", "sizes": GraphSizes(1, 9)}, "history_length None: schema 'tiny' needs one"),
    ],
)
def test_refuses_what_cannot_be_exported(
    extractor: RerankingFeatureExtractor, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    config = RerankingGenerationConfig(**arguments.pop("generation_config", {}))
    arguments = {"format": "onnx", "generation_config": config, **arguments}
    with pytest.raises(ExportError, match=message):
        export_model(make_model(extractor), extractor, tmp_path / "graph", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_keeps_a_folder_that_is_there(extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="is there already"):
        export_model(make_model(extractor), extractor, tmp_path, "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_says_that_there_is_no_compiler(
    extractor: RerankingFeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import cpp_builder, exc

    def none_found() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_found)
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler: install"):
        export_model(make_model(extractor), extractor, tmp_path / "graph", "aoti", sizes=GraphSizes(1, 9, 4))


def test_frozen_axis_fails(
    extractor: RerankingFeatureExtractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PointwiseForReranking._scores

    def frozen(self: PointwiseForReranking, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        scores, states = plain(self, batch)
        return scores + torch.zeros(int(scores.shape[1])), states

    monkeypatch.setattr(PointwiseForReranking, "_scores", frozen)
    with pytest.raises(ExportError, match="an axis of PointwiseForReranking's graph is frozen"):
        export_model(make_model(extractor), extractor, tmp_path / "graph", "onnx")
    assert list(tmp_path.iterdir()) == []


# --- the check ------------------------------------------------------------------------------------------------------


class Graph:
    """Stands in for a compiled graph: a model, whose slates and scores are then changed by `spoil`."""

    def __init__(self, model: Any, decoding: dict[str, Any], spoil: Any = None) -> None:
        self.graph, self.spoil = SlateGraph(model, RerankingGenerationConfig(**decoding)), spoil

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        found = self.graph(batch)
        return found if self.spoil is None else self.spoil(*found)


def exported(extractor: RerankingFeatureExtractor, batch: Mapping[str, Tensor], graph: Graph) -> ExportedModel:
    config = graph.graph.config
    decoding = {"slate_size": config.slate_size, **({"num_beams": config.num_beams} if config.num_beams else {})}
    names = tuple(inputs(batch))
    metadata = GraphMetadata("onnx", names, decoding, str(extractor.schema.fingerprint))
    return ExportedModel(metadata, graph, graph.graph.model.config)


@pytest.fixture(params=[{"slate_size": 3}, {"slate_size": 3, "num_beams": 2}], ids=["greedy", "beam"])
def decoding(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def test_check_accepts_the_model_itself(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], decoding: dict[str, Any]
) -> None:
    model = make_model(extractor)
    check_graph(exported(extractor, batch, Graph(model, decoding)), model, extractor)


def test_check_refuses_another_model(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], decoding: dict[str, Any]
) -> None:
    graph = exported(extractor, batch, Graph(make_model(extractor, seed=1), decoding))
    with pytest.raises(ExportError, match=r"\d+ slates differ: of request \d+ the graph decodes \["):
        check_graph(graph, make_model(extractor), extractor)


@pytest.mark.parametrize("part", [1, 2])
def test_check_refuses_other_scores(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], part: int) -> None:
    def spoil(*found: Tensor) -> tuple[Tensor, ...]:
        return tuple(value + 0.01 * (number == part) for number, value in enumerate(found))

    model = make_model(extractor)
    graph = exported(extractor, batch, Graph(model, {"slate_size": 3}, spoil))
    with pytest.raises(ExportError, match="the slates are the same, but"):
        check_graph(graph, model, extractor)


def test_check_refuses_a_graph_of_one_size(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    def spoil(slates: Tensor, *scores: Tensor) -> tuple[Tensor, ...]:
        return (slates.view(3, 3), *scores)

    model = make_model(extractor)
    graph = exported(extractor, batch, Graph(model, {"slate_size": 3}, spoil))
    with pytest.raises(ExportError, match="the graph cannot run on 1 requests with 53 candidates: shape"):
        check_graph(graph, model, extractor)


def test_check_accepts_ties(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], decoding: dict[str, Any]
) -> None:
    model = make_model(extractor)
    with torch.no_grad():  # every candidate is as good as any other
        model.heads.weight.zero_()
        model.heads.bias.fill_(-100.0)

    def last_first(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        turned = {key: value.flip(1) if "N" in ENTRIES[key].axes else value for key, value in batch.items()}
        slates, *scores = graph(turned)
        last = batch["candidate_mask"].shape[1] - 1
        return (torch.where(slates < 0, slates, last - slates), *scores)

    graph = Graph(model, decoding)
    tied = ExportedModel(exported(extractor, batch, graph).metadata, last_first, model.config)
    assert not torch.equal(tied.generate(**batch), model.generate(**batch, **decoding))
    check_graph(tied, model, extractor)
