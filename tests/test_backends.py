from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.backends import ExportedModel, GraphMetadata, GraphSizes
from rerankzoo.batch import inputs, pad, take
from rerankzoo.errors import RerankingDataError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Exclude, RerankingGenerationConfig
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.serving.export import SlateGraph

Batch = dict[str, Tensor]

SIZES = GraphSizes(batch_size=3, num_candidates=9, history_length=4)


class Recorder:
    """Stands in for a compiled graph: the model itself, which remembers the shapes that it was called with."""

    def __init__(self, extractor: RerankingFeatureExtractor, **decoding: Any) -> None:
        torch.manual_seed(0)
        self.config = PointwiseConfig(feature_schema=extractor.schema.to_dict(), hidden_size=8, embedding_size=4)
        self.model = PointwiseForReranking(self.config).eval()
        self.graph = SlateGraph(self.model, RerankingGenerationConfig(**decoding))
        self.shapes: list[dict[str, tuple[int, ...]]] = []

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        self.shapes.append({key: tuple(value.shape) for key, value in batch.items()})
        return self.graph(batch)


def exported(
    extractor: RerankingFeatureExtractor, batch: Batch, sizes: GraphSizes | None = None, **decoding: Any
) -> ExportedModel:
    decoding = {"slate_size": 4, **decoding}
    names = tuple(inputs(batch))
    metadata = GraphMetadata("aoti" if sizes else "onnx", names, decoding, str(extractor.schema.fingerprint), sizes)
    recorder = Recorder(extractor, **decoding)
    return ExportedModel(metadata, recorder, recorder.config)


def test_fixed_sizes_are_padded_and_chunked(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    free, fixed = exported(extractor, batch), exported(extractor, batch, SIZES)
    expected = free.generate(**batch, return_dict_in_generate=True)
    found = fixed.generate(**batch, return_dict_in_generate=True)
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.step_scores, expected.step_scores)
    shapes = fixed._run.shapes  # type: ignore[attr-defined]
    assert len(shapes) == 3  # 8 requests in chunks of 3
    assert all(shape == shapes[0] for shape in shapes)
    assert shapes[0]["candidate_mask"] == (3, 9)
    assert shapes[0]["candidate_numeric"] == (3, 9, 5)
    assert shapes[0]["history_categorical"] == (3, 4, 1)
    assert shapes[0]["request_numeric"] == (3, 1)
    assert len(fixed.generate(**take(batch, slice(0, 1)))) == 1


def test_padding_beyond_the_fixed_width_is_cut(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    fixed = exported(extractor, batch, SIZES)
    wide = pad(batch, N=14, L=9)
    assert torch.equal(fixed.generate(**wide), fixed.generate(**batch))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (GraphSizes(3, 6, 4), "field 'candidate_mask', row 2: 7 entries, the graph was exported for at most 6"),
        (GraphSizes(3, 9, 1), r"field 'history_mask', row \d: [23] entries, the graph was exported for at most 1"),
    ],
)
def test_refuses_what_does_not_fit(
    extractor: RerankingFeatureExtractor, batch: Batch, sizes: GraphSizes, message: str
) -> None:
    with pytest.raises(RerankingDataError, match=message):
        exported(extractor, batch, sizes).generate(**batch)


@pytest.mark.parametrize("name", ["batch_size", "num_candidates", "history_length"])
def test_sizes_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        GraphSizes(**{"batch_size": 1, "num_candidates": 1, "history_length": 1, name: 0})


def test_repeats_its_own_decoding_and_no_other(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = exported(extractor, batch, num_beams=3)
    expected = model.generate(**batch)
    assert torch.equal(model.generate(**batch, num_beams=3, slate_size=4), expected)
    for other in ({"num_beams": 2}, {"slate_size": 3}, {"penalty_alpha": 0.1}, {"do_sample": True}):
        with pytest.raises(ValueError, match=r"the graph decodes with .*'num_beams': 3.*, not with"):
            model.generate(**batch, **other)


def test_contrastive_without_a_penalty_is_not_greedy(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = exported(extractor, batch, penalty_alpha=0.0, top_k=2)
    assert torch.equal(model.generate(**batch, penalty_alpha=0.0, top_k=2), model.generate(**batch))
    with pytest.raises(ValueError, match="not with"):
        model.generate(**batch, num_beams=1)


def test_refuses_what_a_graph_cannot_do(extractor: RerankingFeatureExtractor, batch: Batch) -> None:
    model = exported(extractor, batch)
    with pytest.raises(ValueError, match="constraints; they need backend='eager'"):
        model.generate(**batch, constraints=[Exclude(torch.zeros(8, 7, dtype=torch.bool))])
    with pytest.raises(ValueError, match="num_beam'"):
        model.generate(**batch, num_beam=3)
    for other in (torch.float16, "meta"):
        with pytest.raises(ValueError, match=r"stays torch\.float32 on the CPU"):
            model.to(other)
    assert model.to("cpu", torch.float32) is model
    del batch["history_mask"]
    with pytest.raises(ValueError, match=r"needs \['history_mask'\], which the batch lacks"):
        model.generate(**batch)


def test_refuses_another_schema(extractor: RerankingFeatureExtractor, batch: Batch, make_rows: Any) -> None:
    model = exported(extractor, batch)
    model.check_schema(extractor.schema)
    other = RerankingFeatureExtractor(extractor.schema).fit(make_rows(seed=7))
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        model.check_schema(other.schema)
    with pytest.raises(SchemaMismatchError, match="the graph was exported for a schema with fingerprint"):
        ExportedModel(model.metadata, model._run, Recorder(other).config)


@pytest.mark.parametrize("sizes", [None, SIZES])
def test_metadata_round_trip(tmp_path: Path, sizes: GraphSizes | None) -> None:
    metadata = GraphMetadata("aoti", ("candidate_mask",), {"slate_size": 4, "num_beams": 8}, "abc", sizes)
    metadata.save(tmp_path)
    assert GraphMetadata.load(tmp_path / "export.json") == metadata


def test_folder_without_a_graph(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no export\.json"):
        ExportedModel.from_pretrained(tmp_path, "onnx")
    with pytest.raises(FileNotFoundError, match="not loaded from the Hub"):
        ExportedModel.from_pretrained(str(tmp_path / "org/model"), "aoti")
    with pytest.raises(ValueError, match=r"must be one of \['eager', 'onnx', 'aoti'\], got 'tensorrt'"):
        ExportedModel.from_pretrained(tmp_path, "tensorrt")  # type: ignore[arg-type]
    GraphMetadata("onnx", (), {"slate_size": 4}, "abc").save(tmp_path)
    with pytest.raises(ValueError, match="was exported as 'onnx', not 'aoti'"):
        ExportedModel.from_pretrained(tmp_path, "aoti")
