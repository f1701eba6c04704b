from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from rerankzoo import (
    AtLeast,
    AtMost,
    Boost,
    Exclude,
    InfeasibleConstraintError,
    NAR4RecConfig,
    NAR4RecEvaluator,
    NAR4RecForReranking,
    Pin,
    RerankingPipeline,
)
from rerankzoo import pipeline as pipeline_module
from rerankzoo.errors import HubError, RerankingDataError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.hub.push import Push

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 16,
    "embedding_size": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "utility_threshold": 1.0,
}
LABELS = ("slate", "click", "order", "candidate_click")


@pytest.fixture(scope="module")
def folder(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its evaluator in a subfolder."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("checkpoint")
    config = {"feature_schema": extractor.schema.to_dict(), **TINY}
    NAR4RecForReranking(NAR4RecConfig(**config)).save_pretrained(root)
    NAR4RecEvaluator(NAR4RecConfig(**config)).save_pretrained(root / "evaluator")
    extractor.save_pretrained(root)
    extractor.save_pretrained(root / "evaluator")
    return root


@pytest.fixture
def requests(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raw requests as they come online, without labels."""
    # Copies: a test spoils a value, and the rows are those of the whole session.
    return [{key: copy.deepcopy(value) for key, value in row.items() if key not in LABELS} for row in rows]


def assert_same(found: Any, expected: Any) -> None:
    """The same items in the same order, scores up to rounding (which depends on where tensors lie in memory)."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert [(item["item_id"], item["index"]) for item in one] == [
            (item["item_id"], item["index"]) for item in other
        ]
        assert [item["score"] for item in one] == pytest.approx([item["score"] for item in other], abs=1e-5)


@pytest.mark.parametrize("parameters", [{}, {"num_beams": 4}, {"penalty_alpha": 0.3}, {"slate_size": 2}])
def test_is_extraction_generation_and_decoding(
    folder: Path, requests: list[dict[str, Any]], parameters: dict[str, Any]
) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    found = pipeline(requests, **parameters)
    output = pipeline.model.generate(**pipeline.extractor(requests), **parameters, return_dict_in_generate=True)
    for request, items, slate, scores in zip(
        requests, found, output.slates.tolist(), output.step_scores.tolist(), strict=True
    ):
        real = [index for index in slate if index >= 0]
        assert [item["index"] for item in items] == real
        assert [item["item_id"] for item in items] == [request["item_id"][index] for index in real]
        assert [item["score"] for item in items] == pytest.approx(scores[: len(real)], abs=1e-5)
        assert len(items) == min(parameters.get("slate_size", 4), len(request["item_id"]))


def test_one_request_is_a_row_of_many(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    together = pipeline(requests)
    assert_same([pipeline(request) for request in requests], together)


def test_takes_tables(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    expected = pipeline(requests)
    assert_same(pipeline(pd.DataFrame(requests)), expected)
    assert_same(pipeline({key: [request[key] for request in requests] for key in requests[0]}), expected)
    assert_same(pipeline(pd.DataFrame(requests[:1])), expected[:1])


def test_chunks_make_no_difference(
    folder: Path, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    whole = pipeline(requests)
    monkeypatch.setattr(pipeline_module, "_CHUNK", 3)
    assert_same(pipeline(requests), whole)


def test_evaluator_chooses(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder), evaluator=str(folder / "evaluator"))
    chosen = pipeline(requests, num_beams=6, num_return_sequences=6)
    batch = pipeline.extractor(requests)
    slates = pipeline.model.generate(**batch, num_beams=6, num_return_sequences=6)
    best = NAR4RecEvaluator.from_pretrained(folder / "evaluator").score_slates(slates, **batch)
    real = (slates >= 0).any(-1)
    favourite = best.masked_fill(~real, float("-inf")).argmax(-1)
    for row, items in enumerate(chosen):
        expected = slates[row, favourite[row]].tolist()
        assert [item["index"] for item in items] == [index for index in expected if index >= 0]


def test_evaluator_beside_the_model(folder: Path, requests: list[dict[str, Any]], tmp_path: Path) -> None:
    parameters = {"num_beams": 6, "num_return_sequences": 6}
    expected = RerankingPipeline.from_pretrained(str(folder), evaluator=str(folder / "evaluator"))
    assert RerankingPipeline.from_pretrained(str(folder)).evaluator is None
    beside = RerankingPipeline.from_pretrained(str(folder), evaluator=True)
    assert_same(beside(requests, **parameters), expected(requests, **parameters))
    beside.save_pretrained(tmp_path / "root" / "copy")
    nested = RerankingPipeline.from_pretrained(str(tmp_path / "root"), evaluator=True, subfolder="copy")
    assert_same(nested(requests, **parameters), expected(requests, **parameters))
    elsewhere = str(folder / "evaluator")  # a subfolder is of the checkpoint alone
    mixed = RerankingPipeline.from_pretrained(str(tmp_path / "root"), evaluator=elsewhere, subfolder="copy")
    assert_same(mixed(requests, **parameters), expected(requests, **parameters))


def test_saves_the_whole(folder: Path, tmp_path: Path) -> None:
    RerankingPipeline.from_pretrained(str(folder), evaluator=True).save_pretrained(tmp_path)
    model = {"config.json", "model.safetensors", "modeling_rerankzoo.py", "SHA256SUMS"}
    extractor = {"preprocessor_config.json", "vocabularies.safetensors"}
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    whole = model | extractor | {"generation_config.json", "README.md"}
    assert found == whole | {f"evaluator/{name}" for name in model | extractor}
    (tmp_path / "README.md").write_text("by hand", encoding="utf-8")
    RerankingPipeline.from_pretrained(str(folder)).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "by hand"


def test_failed_push_keeps_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(push: Push, token: Any) -> Any:
        raise HubError(f"{push.folder} was not pushed")

    monkeypatch.setattr(pipeline_module, "push_folder", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(HubError, match="was not pushed") as refused:
        RerankingPipeline.from_pretrained(str(folder)).push_to_hub("org/a")
    kept = Path(str(refused.value).split(" was ")[0])
    assert kept.parent == tmp_path
    assert RerankingPipeline.from_pretrained(str(kept)).evaluator is None


def test_several_slates_need_an_evaluator(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    with pytest.raises(ValueError, match="needs an evaluator"):
        pipeline(requests, num_beams=3, num_return_sequences=3)


def shown(found: Any) -> list[list[Any]]:
    return [[item["item_id"] for item in items] for items in found]


@pytest.mark.parametrize("chunk", [3, 256])
def test_constraints_name_items_by_their_ids(
    folder: Path, requests: list[dict[str, Any]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_CHUNK", chunk)
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    last = [[request["item_id"][-1]] for request in requests]
    best = shown(pipeline(requests))
    assert [items[0] for items in shown(pipeline(requests, constraints=[Pin(last, 0)]))] == [item for (item,) in last]
    assert all(
        item in items
        for items, (item,) in zip(shown(pipeline(requests, constraints=[AtLeast(1, last)])), last, strict=True)
    )
    boosted = shown(pipeline(requests, constraints=[Boost(50.0, last)]))
    assert [items[0] for items in boosted] == [item for (item,) in last]
    hidden = best[0][0]  # the same id for all requests: wherever it is a candidate
    for request, items in zip(requests, shown(pipeline(requests, constraints=[Exclude([hidden])])), strict=True):
        assert items
        assert set(items) <= set(request["item_id"]) - {hidden}
    apart = [*last[:4], [], *last[5:]]  # an empty list pins nothing
    assert shown(pipeline(requests, constraints=[Pin(apart, 1)]))[4] == best[4]
    assert shown([pipeline(requests[0], constraints=[Pin(last[0], 1)])])[0][1] == last[0][0]


def test_constraints_that_cannot_be_kept_name_the_request(
    folder: Path, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_CHUNK", 3)
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    own = [[request["item_id"][0]] for request in requests]
    with pytest.raises(InfeasibleConstraintError, match=r"row 4: .*\[0\] Pin.* and .*\[2\] Exclude") as caught:
        pipeline(requests, constraints=[Pin(own, 0), AtMost(9, "brand"), Exclude([[]] * 4 + [own[4]] + [[]] * 3)])
    assert caught.value.row == 4
    with pytest.raises(InfeasibleConstraintError, match=r"row 0: Pin\(items=\[999\], position=0\) names no candidate"):
        pipeline(requests, constraints=[Pin([999], 0)])
    with pytest.raises(InfeasibleConstraintError, match="row 2: Pin"):
        pipeline(requests, constraints=[Pin([[], own[1], [999], *[[]] * 5], 0)])
    for wrong, message in (([["x"]], "one list for each of the 8 rows"), (["x"], "item ids are int, got 'x'")):
        with pytest.raises(RerankingDataError, match=message):
            pipeline(requests, constraints=[Exclude(wrong)])
    for nothing in (Exclude([3]), ["Exclude"]):
        with pytest.raises(ValueError, match="constraints must be"):
            pipeline(requests, constraints=nothing)  # type: ignore[arg-type]


def test_refuses_another_extractor(folder: Path, rows: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    other = RerankingFeatureExtractor(pipeline.extractor.schema).fit(rows[:2])
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        RerankingPipeline(pipeline.model, other)


def test_names_the_bad_request(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(str(folder))
    price = requests[2]["price"]
    requests[2]["price"] = [price[0], float("nan"), *price[2:]]  # not in place: other tests have the same rows
    with pytest.raises(RerankingDataError, match=r"field 'price', row 2: .*nan"):
        pipeline(requests)
