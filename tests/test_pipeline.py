from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from qa.request_calls import count_calls, make_call
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
from rerankzoo.generation import EvaluatorEnsemble, GeneratorPool, RerankingGenerationConfig
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


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> RerankingPipeline:
    return RerankingPipeline.from_pretrained(folder)


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
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], parameters: dict[str, Any]
) -> None:
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


def test_one_request_is_a_row_of_many(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    together = pipeline(requests)
    assert_same([pipeline(request) for request in requests], together)


def test_takes_tables(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    expected = pipeline(requests)
    assert_same(pipeline(pd.DataFrame(requests)), expected)
    assert_same(pipeline({key: [request[key] for request in requests] for key in requests[0]}), expected)
    assert_same(pipeline(pd.DataFrame(requests[:1])), expected[:1])


def test_chunks_make_no_difference(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline(requests)
    monkeypatch.setattr(pipeline_module, "_CHUNK", 3)
    assert_same(pipeline(requests), whole)


def test_evaluator_chooses(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(folder, evaluator=folder / "evaluator")
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
    expected = RerankingPipeline.from_pretrained(folder, evaluator=folder / "evaluator")
    assert RerankingPipeline.from_pretrained(folder).evaluator is None
    beside = RerankingPipeline.from_pretrained(folder, evaluator=True)
    assert_same(beside(requests, **parameters), expected(requests, **parameters))
    named = RerankingPipeline.from_pretrained(folder, evaluator=folder)  # the generator's name will do
    assert_same(named(requests, **parameters), expected(requests, **parameters))
    beside.save_pretrained(tmp_path / "root" / "copy")
    nested = RerankingPipeline.from_pretrained(tmp_path / "root", evaluator=True, subfolder="copy")
    assert_same(nested(requests, **parameters), expected(requests, **parameters))
    elsewhere = folder / "evaluator"  # a subfolder is of the checkpoint alone
    mixed = RerankingPipeline.from_pretrained(tmp_path / "root", evaluator=elsewhere, subfolder="copy")
    assert_same(mixed(requests, **parameters), expected(requests, **parameters))


def test_saves_the_whole(folder: Path, tmp_path: Path) -> None:
    RerankingPipeline.from_pretrained(folder, evaluator=True).save_pretrained(tmp_path)
    model = {"config.json", "model.safetensors", "modeling_rerankzoo.py", "SHA256SUMS"}
    extractor = {"preprocessor_config.json", "vocabularies.safetensors"}
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    whole = model | extractor | {"generation_config.json", "README.md"}
    assert found == whole | {f"evaluator/{name}" for name in model | extractor}


def test_saving_over_a_folder_leaves_nothing_of_what_was_there(
    folder: Path, pipeline: RerankingPipeline, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "fresh")
    RerankingPipeline.from_pretrained(folder, evaluator=True).save_pretrained(tmp_path / "used")
    own = {"README.md": "by hand", "notes.txt": "mine"}
    earlier = ("export.json", "model.onnx", "model.onnx.data", "ensemble.json", "model-00001-of-00002.safetensors")
    for name in (*own, *earlier, "evaluator/member-0/config.json", "member-1/config.json"):
        (tmp_path / "used" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "used" / name).write_text(own.get(name, ""), encoding="utf-8")
    pipeline.save_pretrained(tmp_path / "used")
    fresh, used = ({path.relative_to(root) for path in root.rglob("*")} for root in tmp_path.iterdir())
    assert fresh ^ used == {Path("notes.txt")}
    assert {name: (tmp_path / "used" / name).read_text(encoding="utf-8") for name in own} == own


def test_failed_push_keeps_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(push: Push, token: Any) -> Any:
        raise HubError(f"{push.folder} was not pushed")

    monkeypatch.setattr(pipeline_module, "push_folder", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(HubError, match="was not pushed") as refused:
        RerankingPipeline.from_pretrained(folder).push_to_hub("org/a")
    kept = Path(str(refused.value).split(" was ")[0])
    assert kept.parent == tmp_path
    assert RerankingPipeline.from_pretrained(kept).evaluator is None


def test_several_slates_need_an_evaluator(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="needs an evaluator"):
        pipeline(requests, num_beams=3, num_return_sequences=3)


def shown(found: Any) -> list[list[Any]]:
    return [[item["item_id"] for item in items] for items in found]


@pytest.mark.parametrize("chunk", [3, 256])
def test_constraints_name_items_by_their_ids(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_CHUNK", chunk)
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
    several = [Pin(map(iter, last), 0), Exclude({hidden} - {item for (item,) in last})]
    expected = shown(pipeline(requests, constraints=[Pin(last, 0), Exclude(several[1].items)]))
    assert shown(pipeline(requests, constraints=iter(several))) == expected
    assert shown([pipeline(requests[0], constraints=Pin(np.array(last[0])[0], 1))])[0][1] == last[0][0]


def test_constraints_that_cannot_be_kept_name_the_request(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_CHUNK", 3)
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
    for nothing in ({"constraints": Exclude([3])}, ["Exclude"], "Exclude", 3):
        with pytest.raises(ValueError, match="constraints must be"):
            pipeline(requests, constraints=nothing)  # type: ignore[arg-type]


# --- options, casts, copies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.bfloat16},
        {"dtype": "float16"},
        {"attn_implementation": "eager"},
        {"device_map": "cpu"},
        {"device": "cpu", "local_files_only": True},
    ],
    ids=str,
)
def test_takes_the_options_of_a_model(folder: Path, requests: list[dict[str, Any]], options: dict[str, Any]) -> None:
    pipeline = RerankingPipeline.from_pretrained(folder, evaluator=True, **options)
    dtypes = {"float16": torch.float16, torch.bfloat16: torch.bfloat16}
    assert (pipeline.device, pipeline.dtype) == (torch.device("cpu"), dtypes.get(options.get("dtype"), torch.float32))
    assert pipeline.evaluator.dtype == pipeline.dtype
    for items, request in zip(pipeline(requests, num_beams=3, num_return_sequences=3), requests, strict=True):
        assert len(items) == min(4, len(request["item_id"])) == len({item["item_id"] for item in items})
        assert all(type(item["score"]) is float for item in items)


def test_refuses_unknown_options(folder: Path) -> None:
    with pytest.raises(HubError, match="unexpected keyword argument 'datatype'"):
        RerankingPipeline.from_pretrained(folder, datatype="float16")


def test_moves_and_casts_model_and_evaluator(folder: Path, requests: list[dict[str, Any]]) -> None:
    pipeline = RerankingPipeline.from_pretrained(folder, evaluator=True)
    assert pipeline.to(torch.float16) is pipeline
    assert pipeline.dtype == pipeline.evaluator.dtype == torch.float16
    assert len(pipeline(requests, num_beams=2, num_return_sequences=2)) == 8
    pipeline.model.float()
    assert len(pipeline(requests)) == 8
    assert pipeline.to("meta").device == pipeline.evaluator.device == torch.device("meta")


@pytest.mark.filterwarnings("ignore:.*quantize.*", "ignore:.*quantization.*")
def test_serves_a_model_whose_linear_layers_are_quantised(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]]
) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(pipeline.model, {torch.nn.Linear}, dtype=torch.qint8)
    assert [len(items) for items in RerankingPipeline(quantised, pipeline.extractor)(requests)] == [
        4,
        3,
        4,
        4,
        2,
        4,
        4,
        4,
    ]


def test_decodes_as_its_generation_config_says(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    config = RerankingGenerationConfig(slate_size=2, penalty_alpha=0.3)
    expected = pipeline(requests, slate_size=2, penalty_alpha=0.3)
    assert_same(pipeline(requests, generation_config=config), expected)
    assert_same(pipeline(requests, generation_config=config.parameters()), expected)
    configured = RerankingPipeline(pipeline.model, pipeline.extractor, generation_config=config)
    assert_same(configured(requests), expected)
    assert_same(configured(requests, num_beams=2), pipeline(requests, slate_size=2, num_beams=2))
    assert_same(configured(requests, generation_config=RerankingGenerationConfig()), pipeline(requests))
    configured.save_pretrained(tmp_path)
    assert_same(RerankingPipeline.from_pretrained(tmp_path)(requests), expected)
    assert pipeline.model.generation_config.strategy == "greedy"
    loaded = RerankingPipeline.from_pretrained(tmp_path, generation_config={"num_beams": 3})
    assert_same(loaded(requests), pipeline(requests, num_beams=3))


@pytest.mark.parametrize("config", [{"slatesize": 2}, "beam", 3], ids=str)
def test_refuses_what_is_no_generation_config(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], config: Any
) -> None:
    with pytest.raises(ValueError, match=r"slatesize|generation_config"):
        pipeline(requests, generation_config=config)
    with pytest.raises(ValueError, match=r"slatesize|generation_config"):
        RerankingPipeline(pipeline.model, pipeline.extractor, generation_config=config)


def test_no_requests_have_no_answers(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    frame = pd.DataFrame(requests)
    for nothing in ([], (), frame[:0], pa.Table.from_pandas(frame)[:0], Dataset.from_list(requests).select([])):
        assert pipeline(nothing) == pipeline(nothing, on_error="report") == []
    for other in ("", iter(requests), None):
        with pytest.raises(RerankingDataError, match="cannot read"):
            pipeline(other)


def test_an_ensemble_chooses(folder: Path, pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    evaluators = [NAR4RecEvaluator.from_pretrained(folder / "evaluator") for _ in range(2)]
    parameters = {"num_beams": 6, "num_return_sequences": 6}
    expected = RerankingPipeline(pipeline.model, pipeline.extractor, evaluators[0])(requests, **parameters)
    both = RerankingPipeline(pipeline.model, pipeline.extractor, EvaluatorEnsemble(evaluators))
    assert_same(both(requests, **parameters), expected)


def test_a_pool_proposes(folder: Path, requests: list[dict[str, Any]], tmp_path: Path) -> None:
    one = RerankingPipeline.from_pretrained(folder, evaluator=True)
    pool = GeneratorPool([one.model, copy.deepcopy(one.model)])
    pooled = RerankingPipeline(pool, one.extractor, EvaluatorEnsemble([one.evaluator]))
    parameters = {"num_beams": 3, "num_return_sequences": 3}
    assert_same(pooled(requests, **parameters), one(requests, **parameters))
    pooled.save_pretrained(tmp_path)
    loaded = RerankingPipeline.from_pretrained(tmp_path, evaluator=True)
    assert_same(loaded(requests, **parameters), one(requests, **parameters))


def test_is_shown_on_a_screen(folder: Path) -> None:
    shown = repr(RerankingPipeline.from_pretrained(folder, evaluator=True))
    assert shown == (
        "RerankingPipeline(NAR4RecForReranking, schema='tiny', evaluator=NAR4RecEvaluator, device='cpu', "
        "dtype=torch.float32)"
    )


@pytest.mark.parametrize("send", [copy.deepcopy, lambda value: pickle.loads(ForkingPickler.dumps(value))])  # noqa: S301
def test_goes_to_other_processes(folder: Path, requests: list[dict[str, Any]], send: Callable[[Any], Any]) -> None:
    """By the pickler of multiprocessing; joblib's extends pickle's own in the same way."""
    pipeline = RerankingPipeline.from_pretrained(folder, evaluator=True)
    spoiled = spoil(requests, {2: ("item_id", [])})
    parameters = {"num_beams": 3, "num_return_sequences": 3, "constraints": [Pin([[], [999], *[[]] * 6], 0)]}
    answer = pipeline(spoiled, on_error="report", **parameters)
    received = send(pipeline)(spoiled, on_error="report", **parameters)
    assert [str(received[row]) for row in (1, 2)] == [str(answer[row]) for row in (1, 2)]
    assert_same([received[0], *received[3:]], [answer[0], *answer[3:]])
    for error in map(send, answer[1:3]):
        assert (error.row, str(error)) in [(row, str(answer[row])) for row in (1, 2)]


def test_a_request_takes_few_steps() -> None:
    files, _ = count_calls(*make_call())
    assert len(files) <= 15
    assert files.total() <= 350


# --- what is refused ------------------------------------------------------------------------------------------------


def test_refuses_another_extractor(pipeline: RerankingPipeline, rows: list[dict[str, Any]]) -> None:
    other = RerankingFeatureExtractor(pipeline.extractor.schema).fit(rows[:2])
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        RerankingPipeline(pipeline.model, other)


def test_names_the_bad_request(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    price = requests[2]["price"]
    requests[2]["price"] = [price[0], float("nan"), *price[2:]]  # not in place: other tests have the same rows
    with pytest.raises(RerankingDataError, match=r"field 'price', row 2: .*nan"):
        pipeline(requests)


# --- on_error -------------------------------------------------------------------------------------------------------

Convert = Callable[[list[dict[str, Any]]], Any]
CONVERT: dict[str, Convert] = {
    "dict rows": lambda rows: rows,
    "columns": lambda rows: {key: [row[key] for row in rows] for key in rows[0]},
    "pandas": pd.DataFrame,
    "arrow": pa.Table.from_pylist,
    "datasets": lambda rows: Dataset.from_list(rows),
}


def spoil(requests: list[dict[str, Any]], changes: dict[int, tuple[str, Any]]) -> list[dict[str, Any]]:
    """Copies in which single fields are replaced."""
    return [{**row, **dict([changes[index]])} if index in changes else row for index, row in enumerate(requests)]


@pytest.mark.parametrize("name", CONVERT)
@pytest.mark.parametrize("bad", [{2}, {0, 7}, {1, 2, 3}, set(range(8)), set()])
def test_bad_requests_do_not_cost_the_others(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], name: str, bad: set[int]
) -> None:
    expected = pipeline(requests)
    spoiled = CONVERT[name](spoil(requests, dict.fromkeys(bad, ("item_id", []))))
    reported = pipeline(spoiled, on_error="report")
    skipped = pipeline(spoiled, on_error="skip")
    assert len(reported) == len(skipped) == len(requests)
    for row, (outcome, other) in enumerate(zip(reported, skipped, strict=True)):
        if row in bad:
            assert isinstance(outcome, RerankingDataError)
            assert (outcome.field, outcome.row) == ("item_id", row)
            assert str(outcome) == f"field 'item_id', row {row}: an empty candidate set"
            assert outcome.__traceback__ is None  # it would keep the failed batch in memory
            assert other is None
        else:
            assert_same([outcome, other], [expected[row]] * 2)
    if bad:
        with pytest.raises(RerankingDataError, match=rf"row {min(bad)}: an empty candidate set"):
            pipeline(spoiled)


def test_each_request_is_judged_alone(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    """A first request of a wrong type makes all others look wrong, if they are read together."""
    expected = pipeline(requests)
    strings = [f"{item}" for item in requests[0]["item_id"]]
    lacking = {key: value for key, value in requests[3].items() if key != "price"}
    spoiled = [*spoil(requests, {0: ("item_id", strings), 5: ("hour", float("inf"))}), 7, "item_id", None]
    spoiled[3] = lacking
    found = pipeline(spoiled, on_error="report")
    wrong = {0: "item_id", 3: "price", 5: "hour", 8: "item_id", 9: "item_id", 10: "item_id"}
    assert {row: item.field for row, item in enumerate(found) if isinstance(item, Exception)} == wrong
    assert all(found[row].row == row for row in wrong)
    good = [row for row in range(8) if row not in wrong]
    assert_same([found[row] for row in good], [expected[row] for row in good])


def test_one_request_gets_its_own_error(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    [lacking] = spoil(requests[:1], {})
    lacking = {key: value for key, value in lacking.items() if key != "price"}
    error = pipeline(lacking, on_error="report")
    assert isinstance(error, RerankingDataError)
    assert (error.field, error.row) == ("price", 0)
    assert pipeline(lacking, on_error="skip") is None
    assert_same([pipeline(requests[0], on_error="report")], [pipeline(requests[0])])


def test_skipping_is_logged(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    pipeline(spoil(requests, {4: ("hour", "noon"), 6: ("hour", "noon")}), on_error="skip")
    assert "2 of 8 requests were skipped; the first: field 'hour', row 4" in caplog.text


@pytest.mark.parametrize("chunk", [3, 256])
@pytest.mark.parametrize("name", CONVERT)
def test_a_request_without_a_slate_does_not_cost_the_others(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "_CHUNK", chunk)
    last = [[request["item_id"][-1]] for request in requests]
    expected = pipeline(requests, constraints=[Pin(last, 0)])
    pinned = [*last[:1], [999], *last[2:4], [999], *last[5:]]  # 1 and 4 ask for what is no candidate
    excluded = Exclude([[]] * 6 + [last[6]] + [[]])  # and 6 for what is excluded
    found = pipeline(
        CONVERT[name](spoil(requests, {3: ("item_id", [])})),
        constraints=[Pin(pinned, 0), excluded],
        on_error="report",
    )
    for row, outcome in enumerate(found):
        if row in (1, 4, 6):
            assert isinstance(outcome, InfeasibleConstraintError)
            assert outcome.row == row
            assert str(outcome).startswith(f"row {row}: ")
        elif row == 3:
            assert isinstance(outcome, RerankingDataError)
        else:
            assert_same([outcome], [expected[row]])


def test_tensors_of_constraints_follow_their_requests(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]]
) -> None:
    widest = max(len(request["item_id"]) for request in requests)
    hidden = torch.zeros(8, widest, dtype=torch.bool)
    hidden[:, 0] = True
    first = torch.zeros(8, 1, dtype=torch.long)
    last = torch.tensor([[len(request["item_id"]) - 1] for request in requests])
    rules = [Exclude(hidden), Pin(last, 0), AtMost(1, torch.arange(widest).expand(8, -1)), Boost(hidden.float())]
    expected = pipeline(requests, constraints=rules)
    found = pipeline(spoil(requests, {2: ("price", [1.0])}), constraints=rules, on_error="report")
    assert isinstance(found[2], RerankingDataError)
    others = [row for row in range(8) if row != 2]
    assert_same([found[row] for row in others], [expected[row] for row in others])
    for wrong in (Exclude(hidden[:7]), Exclude(hidden[:, :3]), Pin(first[:3], 0)):
        with pytest.raises(ValueError, match="has shape"):
            pipeline(requests, constraints=[wrong])


@pytest.mark.parametrize("on_error", ["report", "skip"])
def test_what_is_wrong_with_the_call_is_raised_in_any_case(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], on_error: Any
) -> None:
    frame = pd.DataFrame(requests)
    calls: list[tuple[Any, dict[str, Any], str]] = [
        (frame.drop(columns="price"), {}, "'price': missing column"),
        (pa.Table.from_pandas(frame).drop_columns("price"), {}, "'price': missing column"),
        (3, {}, "cannot read"),
        (requests, {"slate_size": 0}, "slate_size must be"),
        (requests, {"slatesize": 2}, "slatesize"),
        (requests, {"constraints": [Exclude([[1]])]}, "one list for each of the 8 rows"),
        (requests, {"constraints": [Exclude(["x"])]}, "item ids are int, got 'x'"),
        (requests, {"num_beams": 2, "num_return_sequences": 2}, "needs an evaluator"),
    ]
    for data, parameters, message in calls:
        with pytest.raises(ValueError, match=message):
            pipeline(data, on_error=on_error, **parameters)
    with pytest.raises(ValueError, match="on_error must be one of raise, skip, report, got 'ignore'"):
        pipeline(requests, on_error="ignore")


def test_the_good_path_reads_once(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"encode": 0, "generate": 0}
    encode, generate = pipeline.extractor._encode, pipeline.model.generate

    def counted(name: str, function: Any) -> Any:
        def count(*arguments: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **keywords)

        return count

    monkeypatch.setattr(pipeline.extractor, "_encode", counted("encode", encode))
    monkeypatch.setattr(pipeline.model, "generate", counted("generate", generate))
    pipeline(requests, on_error="report")
    assert calls == {"encode": 1, "generate": 1}
    pipeline(spoil(requests, {5: ("item_id", [])}), on_error="report")
    assert calls["encode"] == 1 + 1 + 6  # all, and at each of three levels two halves


def test_an_enormous_request_does_not_widen_the_others(
    pipeline: RerankingPipeline, requests: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = pipeline(requests)
    many = 2_000
    enormous = {
        **requests[0],
        "item_id": list(range(many)),
        "brand": ["b"] * many,
        "price": [1.0] * many,
        "picture": [[0.0, 0.0, 0.0]] * many,
        "upstream_score": [0.0] * many,
    }
    widths: list[tuple[int, ...]] = []
    generate = pipeline.model.generate

    def watched(**inputs: Any) -> Any:
        widths.append(tuple(inputs["candidate_mask"].shape))
        return generate(**inputs)

    monkeypatch.setattr(pipeline.model, "generate", watched)
    monkeypatch.setattr(pipeline_module, "_CHUNK_CANDIDATES", 2_000)
    found = pipeline([*requests[:3], enormous, *requests[3:]])
    assert widths == [(3, 7), (1, many), (5, 7)]
    assert_same([*found[:3], *found[4:]], expected)
    assert len(found[3]) == 4


def test_requests_say_how_many_items_they_want(pipeline: RerankingPipeline, requests: list[dict[str, Any]]) -> None:
    wanted = [1, 3, 2, 4, 1, 4, 4, 2]
    found = pipeline([{**row, "slate_length": size} for row, size in zip(requests, wanted, strict=True)])
    assert [len(items) for items in found] == [min(wanted[i], len(row["item_id"])) for i, row in enumerate(requests)]
    for row, size, items in zip(requests, wanted, found, strict=True):
        assert_same([items], [pipeline(row, slate_size=size)])
    with pytest.raises(ValueError, match="slate_size must be at most 4, the number of positions of the model"):
        pipeline({**requests[0], "slate_length": 5})
