"""Histories with numbers, times and pages, read by attention: in every family, by the shared embedding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim

from rerankzoo.backends import ExportedModel
from rerankzoo.batch import ENTRIES, take
from rerankzoo.errors import SchemaError
from rerankzoo.features import FieldSpec, RerankingFeatureExtractor
from rerankzoo.layers import PageContext, TargetAttention
from rerankzoo.models.degre import DeGReGenerator
from rerankzoo.models.mir import MIRConfig, MIRForReranking
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.serving import FeatureOptions, export_model, random_batch
from tests.conftest import TINY_SCHEMA, Rows
from tests.families import HEADS
from tests.models.common import (
    GeneratorVariantTestSuite,
    ModelTestSuite,
    ScorerTestSuite,
    assert_close,
    losses,
    real_entries,
    with_padding,
)
from tests.models.test_auto import suites

Batch = dict[str, Tensor]
TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 32,
    "embedding_size": 8,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TIMED = replace(
    TINY_SCHEMA,
    name="timed",
    fields=(
        *TINY_SCHEMA.fields,
        FieldSpec(name="past_prices", group="history", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="past_hours", group="history", kind="time"),
        FieldSpec(name="past_pages", group="history", kind="page"),
    ),
)


def timed_rows(rows: Rows) -> Rows:
    rng = np.random.default_rng(0)
    lengths = [len(row["past_items"]) for row in rows]
    return [
        {
            **row,
            "past_prices": rng.uniform(1, 9, length).tolist(),
            "past_hours": np.sort(rng.exponential(20, length))[::-1].tolist(),
            "past_pages": np.sort(rng.integers(1, 3, length))[::-1].tolist(),
        }
        for row, length in zip(rows, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def timed(make_rows: Any) -> RerankingFeatureExtractor:
    return RerankingFeatureExtractor(TIMED).fit(timed_rows(make_rows(seed=0) + make_rows(seed=1)))


@pytest.fixture
def timed_batch(timed: RerankingFeatureExtractor, make_rows: Any) -> Batch:
    return timed(timed_rows(make_rows(seed=2, num_slates=(1, 3, 2, 1, 2, 3, 1, 2))))


class TestMIRForReranking(ScorerTestSuite):
    model_class = MIRForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "num_hidden_layers": 1, "decay_size": 4}


class TestMIRWithTimes(GeneratorVariantTestSuite):
    model_class = MIRForReranking
    config_values: ClassVar[dict[str, Any]] = {**TINY, "decay_size": 4, "num_history_layers": 0, "pool_history": False}

    @pytest.fixture
    def extractor(self, timed: RerankingFeatureExtractor) -> RerankingFeatureExtractor:
        return timed

    @pytest.fixture
    def mined_batch(self, timed_batch: Batch) -> Batch:
        return timed_batch

    @pytest.fixture
    def batch(self, timed: RerankingFeatureExtractor, make_rows: Any) -> Batch:
        return timed(timed_rows(make_rows()))


# --- every family ----------------------------------------------------------------------------------------------------


def make(head: Any, extractor: RerankingFeatureExtractor, **values: Any) -> Any:
    torch.manual_seed(0)
    known = next(suite for suite in suites(ModelTestSuite) if getattr(suite, "model_class", None) is head)
    config = {**known.config_values, "pool_history": False, **values}
    return head(head.config_class(feature_schema=extractor.schema.to_dict(), **config)).eval()


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
def test_every_family_reads_histories_by_attention(
    head: Any, timed: RerankingFeatureExtractor, timed_batch: Batch
) -> None:
    model = make(head, timed)
    output = model(**timed_batch)
    output.loss.backward()
    reading = [part for part in model.modules() if isinstance(part, TargetAttention)]
    assert reading
    for part in reading:
        assert all(parameter.grad.abs().max() > 0 for parameter in part.parameters())
    padded = with_padding(timed_batch, L=2)
    with torch.no_grad():
        found = model(**padded)
    assert_close(real_entries(found, padded), real_entries(output, timed_batch))
    assert_close(losses(found), losses(output))


@pytest.mark.parametrize("head", [PointwiseForReranking, DeGReGenerator])
def test_what_a_candidate_reads_depends_on_it_and_on_the_time(
    head: Any, timed: RerankingFeatureExtractor, timed_batch: Batch
) -> None:
    def states(batch: Batch, pool: bool) -> Tensor:
        with torch.no_grad():
            return make(head, timed, pool_history=pool)(**take(batch, rows)).candidate_states

    rows = timed_batch["history_mask"].any(1).nonzero().squeeze(-1)
    later = {**timed_batch, "history_time": timed_batch["history_time"] + 1.0}
    assert torch.equal(states(timed_batch, pool=True), states(later, pool=True))
    real = timed_batch["candidate_mask"][rows]
    moved = (states(timed_batch, pool=False) - states(later, pool=False)).abs().amax(-1)[real]
    assert (moved > 1e-7).all()


@pytest.mark.parametrize("head", [PointwiseForReranking, DeGReGenerator, MIRForReranking])
def test_what_is_read_of_a_past_item_depends_on_its_page(
    head: Any, timed: RerankingFeatureExtractor, timed_batch: Batch
) -> None:
    model = make(head, timed)

    def moved() -> Tensor:
        apart = {**timed_batch, "history_page": torch.arange(timed_batch["history_mask"].shape[1]).expand(8, -1)}
        together = {**timed_batch, "history_page": torch.ones_like(timed_batch["history_page"])}
        with torch.no_grad():
            return (model(**apart).candidate_states - model(**together).candidate_states).abs().amax((1, 2))

    assert (moved() == 0).all()  # at the start
    for part in model.modules():
        if isinstance(part, PageContext):
            torch.nn.init.normal_(part.weight)
    several = timed_batch["history_mask"].sum(1) > 1
    assert several.any()
    assert not several.all()
    assert torch.equal(moved() > 1e-7, several)


def test_a_graph_takes_numbers_times_and_pages(timed: RerankingFeatureExtractor, tmp_path: Path) -> None:
    model = make(MIRForReranking, timed)
    torch.nn.init.normal_(model.intra_list.page.weight)
    # Which compares slates and scores at other sizes, and of raw columns.
    export_model(model, timed, tmp_path / "graph", "onnx", features=FeatureOptions())
    exported = ExportedModel.from_pretrained(tmp_path / "graph", "onnx")
    assert {"history_numeric", "history_time", "history_page"} <= set(exported.metadata.inputs)


def test_fields_that_read_histories_are_traced(timed: RerankingFeatureExtractor) -> None:
    encoder = make(DeGReGenerator, timed).item_encoder
    batch = random_batch(timed, num_requests=3, num_candidates=7, history_length=4)
    axes = {name: [Dim.DYNAMIC if axis in "BNL" else None for axis in ENTRIES[name].axes] for name in batch}
    program = torch.export.export(encoder, (batch,), dynamic_shapes=(axes,), strict=False)
    fresh = random_batch(timed, num_requests=5, num_candidates=23, history_length=7, seed=99)
    torch.testing.assert_close(program.module()(fresh)[0], encoder(fresh)[0])


def test_a_pooled_history_has_the_weights_and_the_answers_that_it_had(
    timed: RerankingFeatureExtractor, extractor: RerankingFeatureExtractor
) -> None:
    pooled = PointwiseForReranking(PointwiseConfig(feature_schema=extractor.schema.to_dict(), **TINY))
    assert not [name for name, _ in pooled.named_parameters() if "history_attention" in name]
    assert pooled.features.history_projection.weight.shape[-1] == 8  # one field
    with_numbers = PointwiseForReranking(PointwiseConfig(feature_schema=timed.schema.to_dict(), **TINY))
    assert with_numbers.features.history_projection.weight.shape[-1] == 9  # and a price


# --- MIR -------------------------------------------------------------------------------------------------------------


def test_mir_s_set_to_list_attention_by_hand(timed: RerankingFeatureExtractor, timed_batch: Batch) -> None:
    torch.manual_seed(0)
    config = MIRConfig(feature_schema=timed.schema.to_dict(), **TINY)
    layer = MIRForReranking(config).attention
    mask, past_mask = timed_batch["candidate_mask"], timed_batch["history_mask"]
    candidates, past = torch.randn(*mask.shape, 32), torch.randn(*past_mask.shape, 32)
    left = torch.rand(past_mask.shape).masked_fill(~past_mask, 0.0)
    with torch.no_grad():
        read, of_set, of_list = layer(candidates, mask, past, past_mask, left)
        for row in range(len(mask)):
            set_, list_, fresh = candidates[row, mask[row]], past[row, past_mask[row]], left[row, past_mask[row]]
            own, other = layer.of_set(set_), layer.of_list(list_)
            one, two = own.clone(), other.clone()
            for part in (slice(0, 16), slice(16, 32)):  # of two heads
                for at, left_of_it in enumerate(fresh):
                    affinity = left_of_it * (set_[:, part] @ layer.affinity(list_[at])[part]) / 4.0  # (N,)
                    one[:, part] += affinity.unsqueeze(-1) * other[at, part] / (1 + fresh.sum())
                    two[at, part] += affinity @ own[:, part] / len(set_)
            own, other = torch.tanh(one), torch.tanh(two)
            torch.testing.assert_close(read[row, mask[row]], own, rtol=1e-5, atol=1e-5)
            expected = layer.set_weight(own).softmax(0).T @ set_
            torch.testing.assert_close(of_set[row], expected[0], rtol=1e-5, atol=1e-5)
            expected = layer.list_weight(other).softmax(0).T @ list_ if len(list_) else torch.zeros(1, 32)
            torch.testing.assert_close(of_list[row], expected[0], rtol=1e-5, atol=1e-5)


def test_mir_tells_half_lives_in_the_unit_of_the_data(timed: RerankingFeatureExtractor, timed_batch: Batch) -> None:
    model = MIRForReranking(MIRConfig(feature_schema=timed.schema.to_dict(), **TINY))
    unit = timed.schema.history_time.time_unit
    torch.nn.init.zeros_(model.decay.weight)
    torch.nn.init.constant_(model.decay.logarithm, float(np.log(3.0)) / 8)
    torch.testing.assert_close(model.half_lives(**timed_batch), torch.full((8,), 3.0 * unit))


def test_mir_needs_a_history(extractor: RerankingFeatureExtractor) -> None:
    schema = extractor.schema
    schema = replace(schema, fields=tuple(field for field in schema.fields if field.group != "history"))
    with pytest.raises(SchemaError, match="reads histories; schema 'tiny' has no history field"):
        MIRForReranking(MIRConfig(feature_schema=schema.to_dict(), **TINY))
