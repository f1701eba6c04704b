"""Mining equals brute force where the beam is as wide as the space, and its folder is whole however it was made."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rerankzoo.mining
from rerankzoo.cli.main import main
from rerankzoo.cli.mine import mine as mine_command
from rerankzoo.cli.options import parameters
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import read_metadata
from rerankzoo.errors import HubError, RerankingDataError, SchemaMismatchError
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import BeamStep, EvaluatorEnsemble, beam_search
from rerankzoo.mining import MinedSlates, mine_batch, mine_folder, plan_shards, value_spread
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.models.digest import weights_digest
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from rerankzoo.training import RerankingModule
from tests.generation.common import TableScorer

few = settings(max_examples=60, deadline=None, derandomize=True)

Slate = tuple[int, ...]


@st.composite
def scorers(draw: st.DrawFn) -> tuple[TableScorer, int]:
    """An evaluator over one to three requests with one to six candidates among N, and a number of positions."""
    num_requests, num_candidates = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    slate_size = draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=num_candidates, max_size=num_candidates).filter(any)
    mask = torch.tensor([draw(flags) for _ in range(num_requests)])
    return make_scorer(num_requests, slate_size, num_candidates, draw(st.integers(0, 2**31)), mask), slate_size


def make_scorer(
    num_requests: int, slate_size: int, num_candidates: int, seed: int = 0, mask: Tensor | None = None
) -> TableScorer:
    noise = torch.Generator().manual_seed(seed)
    base = torch.randn(num_requests, slate_size, num_candidates, generator=noise)
    pair = 2 * torch.randn(num_requests, num_candidates, num_candidates, generator=noise)
    mask = torch.ones(num_requests, num_candidates, dtype=torch.bool) if mask is None else mask
    return TableScorer(base, pair, mask, "value")


def mine(scorer: TableScorer, slate_size: int, **options: Any) -> MinedSlates:
    return mine_batch(scorer, scorer.batch, slate_size, **options)


class Valued:
    """What a table scorer says of whole slates."""

    def __init__(self, scorer: TableScorer) -> None:
        self.scorer = scorer

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        found = [
            [self.scorer.slate_score(row, tuple(item for item in slate if item >= 0)) for slate in group]
            for row, group in enumerate(slates.tolist())
        ]
        return torch.tensor(found)


@pytest.mark.parametrize("num_beams", [3, 0])
def test_the_best_of_search_and_proposals_are_kept(num_beams: int) -> None:
    torch.manual_seed(0)
    scorer = make_scorer(2, 3, 5, mask=torch.tensor([[True] * 5, [True] * 2 + [False] * 3]))
    options = {"num_beams": num_beams, "keep": 6, "soft_label": "none", "weights": "standardised"}
    found = mine_batch(
        scorer if num_beams else None, scorer.batch, 3, proposals="uniform=400", evaluator=Valued(scorer), **options
    )
    every = sorted(scorer.every_slate(0, 3).values(), reverse=True)
    assert found.values[0].tolist() == pytest.approx(every[:6], abs=1e-4)
    assert len({tuple(slate) for slate in found.slates[0].tolist()}) == 6
    assert (found.values[1] > -torch.inf).tolist() == [True, True] + [False] * 4  # two candidates, two slates
    assert found.slates[1, 2:].eq(-100).all()
    for values, weights in zip(found.values.tolist(), found.weights.tolist(), strict=True):
        real = [value for value in values if value > -math.inf]
        mean = sum(real) / len(real)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in real) / len(real))
        expected = softmax(dict(enumerate(real)), deviation)
        assert weights == pytest.approx([*expected.values(), *[0.0] * (6 - len(real))], abs=1e-4)
    uniform = mine_batch(scorer, scorer.batch, 3, num_beams=3, keep=3, soft_label="none", weights="uniform")
    assert uniform.weights.tolist() == [pytest.approx([1 / 3] * 3), [0.5, 0.5, 0.0]]


def softmax(values: dict[int, float], temperature: float) -> dict[int, float]:
    largest = max(values.values())
    powers = {key: math.exp((value - largest) / temperature) for key, value in values.items()}
    return {key: power / sum(powers.values()) for key, power in powers.items()}


def naive_spread(scorer: TableScorer, row: int, slate_size: int) -> float:
    """Of a beam that holds every prefix."""
    length, variance = min(slate_size, len(scorer.left(row, ()))), 0.0
    for position in range(length):
        prefixes = scorer.every_slate(row, position)
        for prefix in prefixes:
            values = torch.tensor([scorer.slate_score(row, (*prefix, item)) for item in scorer.left(row, prefix)])
            variance += float(values.var(unbiased=False)) / len(prefixes)
    return max(math.sqrt(variance), 1e-5)


# --- brute force ----------------------------------------------------------------------------------------------------


def check_against_brute_force(scorer: TableScorer, slate_size: int, row: int, found: MinedSlates, kind: str) -> None:
    """A beam as wide as the space: the best slates, their values and weights, and all soft labels."""
    every = scorer.every_slate(row, slate_size)
    best = sorted(every.values(), reverse=True)[: found.slates.shape[1]]
    assert found.values[row, : len(best)].tolist() == pytest.approx(best, abs=1e-4)
    assert (found.values[row, len(best) :] == -torch.inf).all()
    spread = naive_spread(scorer, row, slate_size)
    weights = softmax(dict(enumerate(best)), 0.5 * spread)
    assert found.weights[row].tolist() == pytest.approx(
        [weights.get(number, 0.0) for number in range(found.slates.shape[1])], abs=1e-3
    )
    assert found.soft_labels is not None
    for number in range(len(best)):
        slate = tuple(item for item in found.slates[row, number].tolist() if item >= 0)
        assert every[slate] == pytest.approx(best[number], abs=1e-4)
        for position in range(len(slate)):
            prefix = slate[:position]
            targets = {}
            for item in scorer.left(row, prefix):
                begun = (*prefix, item)
                ends = [value for other, value in every.items() if other[: len(begun)] == begun]
                targets[item] = max(ends) if kind == "look_ahead" else scorer.slate_score(row, begun)
            labels = softmax(targets, 0.2 * spread)
            expected = [labels.get(item, 0.0) for item in range(found.soft_labels.shape[-1])]
            assert found.soft_labels[row, number, position].tolist() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", ["look_ahead", "prefix_value"])
def test_six_candidates_three_positions_equal_brute_force(kind: str) -> None:
    scorer = make_scorer(4, 3, 6, seed=1)
    found = mine(scorer, 3, num_beams=120, keep=10, soft_label=kind, weight_temperature=0.5, label_temperature=0.2)
    assert found.slates.shape == (4, 10, 3)
    for row in range(4):
        check_against_brute_force(scorer, 3, row, found, kind)


@few
@given(scorers(), st.sampled_from(["look_ahead", "prefix_value"]), st.integers(1, 12))
def test_any_request_equals_brute_force(made: tuple[TableScorer, int], kind: str, keep: int) -> None:
    scorer, slate_size = made
    found = mine(
        scorer, slate_size, num_beams=360, keep=keep, soft_label=kind, weight_temperature=0.5, label_temperature=0.2
    )
    for row in range(len(found.slates)):
        check_against_brute_force(scorer, slate_size, row, found, kind)


# --- narrow beams ---------------------------------------------------------------------------------------------------


@few
@given(scorers(), st.integers(1, 6), st.data(), st.sampled_from(["look_ahead", "prefix_value"]))
def test_labels_are_distributions_over_the_candidates_left(
    made: tuple[TableScorer, int], width: int, data: st.DataObject, kind: str
) -> None:
    scorer, slate_size = made
    keep = data.draw(st.integers(1, width))
    found = mine(scorer, slate_size, num_beams=width, keep=keep, soft_label=kind)
    decoded = beam_search(scorer, scorer.batch, slate_size, width, keep)
    assert torch.equal(found.slates, decoded.slates)
    assert torch.equal(found.values, decoded.scores)
    assert torch.isfinite(found.weights).all()
    assert found.weights.sum(-1).tolist() == pytest.approx([1.0] * len(found.slates))
    assert (found.weights[found.values == -torch.inf] == 0).all()
    assert found.soft_labels is not None
    assert torch.isfinite(found.soft_labels).all()
    for row, slates in enumerate(found.slates.tolist()):
        for number, slate in enumerate(slates):
            for position, item in enumerate(slate):
                labels = found.soft_labels[row, number, position]
                left = scorer.left(row, tuple(slate[:position])) if item >= 0 else []
                assert labels.sum().item() == pytest.approx(1.0 if left else 0.0, abs=1e-5)
                assert set(labels.nonzero().flatten().tolist()) <= set(left)


@few
@given(scorers(), st.integers(1, 5), st.sampled_from(["look_ahead", "prefix_value"]))
def test_a_request_gets_alone_what_it_gets_in_a_batch(made: tuple[TableScorer, int], width: int, kind: str) -> None:
    scorer, slate_size = made
    whole = mine(scorer, slate_size, num_beams=width, keep=1, soft_label=kind)
    assert whole.soft_labels is not None
    for row in range(len(whole.slates)):
        place = slice(row, row + 1)
        single = TableScorer(scorer.base[place], scorer.pair[place], scorer.batch["candidate_mask"][place], "value")
        alone = mine(single, slate_size, num_beams=width, keep=1, soft_label=kind)
        assert torch.equal(alone.slates[0], whole.slates[row])
        torch.testing.assert_close(alone.soft_labels[0], whole.soft_labels[row])  # type: ignore[index]


def by_hand() -> TableScorer:
    """Three candidates, two positions: V(0) = 3, V(1) = 2, V(2) = 1; of the second step, 5 after 1 then 2 is best."""
    base = torch.tensor([[[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]]])
    pair = torch.tensor([[[0.0, 0.5, 1.0], [1.5, 0.0, 3.0], [4.0, 9.0, 0.0]]])
    return TableScorer(base, pair, torch.ones(1, 3, dtype=torch.bool), "value")


def test_look_ahead_of_a_narrow_beam_by_hand() -> None:
    # Two beams keep 0 and 1; below 0 the best is 4 (then 2), below 1 it is 5 (then 2). Candidate 2 fell out: its
    # estimate is 1 + mean(4 - 3, 5 - 2) = 3, less than the smallest completed value 4. Its truth, 10, stays unseen.
    scorer = by_hand()
    history: list[BeamStep] = []
    beam_search(scorer, scorer.batch, 2, 2, 2, history)
    spread = value_spread(history, 1).item()
    # variances: (3, 2, 1): 2/3; after 0, (3.5, 4): 1/16; after 1, (3.5, 5): 9/16
    assert spread == pytest.approx(math.sqrt(2 / 3 + (1 / 16 + 9 / 16) / 2))
    found = mine(scorer, 2, num_beams=2, keep=2, weight_temperature=2.0, label_temperature=0.5)
    assert found.slates.tolist() == [[[1, 2], [0, 2]]]
    assert found.values.tolist() == [[5.0, 4.0]]
    weights = softmax({0: 5.0, 1: 4.0}, 2.0 * spread)
    assert found.weights[0].tolist() == pytest.approx([weights[0], weights[1]])
    assert found.soft_labels is not None
    first = softmax({0: 4.0, 1: 5.0, 2: 3.0}, 0.5 * spread)
    for number in range(2):
        assert found.soft_labels[0, number, 0].tolist() == pytest.approx([first[0], first[1], first[2]])
    second = softmax({0: 3.5, 2: 5.0}, 0.5 * spread)
    assert found.soft_labels[0, 0, 1].tolist() == pytest.approx([second[0], 0.0, second[2]])


def test_an_estimate_is_at_most_the_smallest_completed_value() -> None:
    scorer = by_hand()
    scorer.base[0, 0, 2] = 1.9
    scorer.pair[0, 1, 2] = 4.0  # below 1 the best is now 6
    found = mine(scorer, 2, num_beams=2, keep=1, label_temperature=1.0)
    assert found.soft_labels is not None
    labels = found.soft_labels[0, 0, 0]
    assert labels[2].item() == pytest.approx(labels[0].item())  # 1.9 + mean(1, 4) = 4.4 is cut to 4
    assert labels[1] > labels[0]


def test_temperatures_are_in_units_of_the_request() -> None:
    # The same request in other money: ten times all values, plus a constant gain of each position.
    scorer, richer = make_scorer(3, 3, 5, seed=2), make_scorer(3, 3, 5, seed=2)
    richer.base = 10 * scorer.base + 7.0
    richer.pair = 10 * scorer.pair
    one, other = mine(scorer, 3), mine(richer, 3)
    assert torch.equal(one.slates, other.slates)
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(one.soft_labels, other.soft_labels, rtol=1e-3, atol=1e-4)


def test_equal_values_give_equal_weights_and_labels() -> None:
    scorer = TableScorer(torch.full((1, 2, 4), 0.1), torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.bool), "value")
    found = mine(scorer, 2, num_beams=3, keep=2)
    assert found.weights.tolist() == [[0.5, 0.5]]
    assert found.soft_labels is not None
    assert found.soft_labels[0, 0, 0].tolist() == pytest.approx([0.25] * 4)


def test_rounding_is_no_difference() -> None:
    noise = torch.Generator().manual_seed(0)
    base = 1000 + 2e-4 * torch.randn(1, 2, 4, generator=noise)  # single precision tells apart 6e-5 here
    scorer = TableScorer(base, torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.bool), "value")
    found = mine(scorer, 2, num_beams=12, keep=12)
    assert found.weights[0].tolist() == pytest.approx([1 / 12] * 12, rel=0.1)


def test_no_soft_labels() -> None:
    assert mine(make_scorer(2, 3, 5), 3, soft_label="none").soft_labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 9}, "keep 9 exceeds num_beams 8"),
        ({"keep": 10, "proposals": "uniform=1", "soft_label": "none"}, "exceeds num_beams 8 and the proposals, 9 in"),
        ({"weights": "best"}, "weights must be one of"),
        ({"proposals": "uniform=1"}, "slates that no search has found have no soft labels"),
        ({"num_beams": 0, "proposals": "perturbed=4"}, "no changed slates of none"),
        ({"num_beams": 0, "proposals": "uniform=4", "soft_label": "none"}, "choose other weights"),
        ({"num_beams": 0}, "keep 4 exceeds num_beams 0 and the proposals, 0 in all"),
        ({"soft_label": "myopic"}, "soft_label must be one of"),
        ({"label_temperature": 0.0}, "label_temperature must be a finite number above 0, got 0.0"),
        ({"weight_temperature": math.inf}, "weight_temperature must be"),
    ],
)
def test_wrong_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mine(make_scorer(1, 2, 3), 2, **options)


def test_a_generator_cannot_mine() -> None:
    scorer = TableScorer(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="kind 'value', got 'log_prob'"):
        mine(scorer, 2)


# --- a data folder --------------------------------------------------------------------------------------------------

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16, "slate_size": 4}
SETTINGS: dict[str, Any] = {"num_beams": 3, "keep": 2, "num_requests": 20, "num_validation": 7, "shard_size": 6}
SHARDS = [f"train-{i:05d}-of-00004.parquet" for i in range(4)] + [
    f"validation-{i:05d}-of-00002.parquet" for i in range(2)
]


def save_evaluator(extractor: RerankingFeatureExtractor, folder: Path, seed: int = 0) -> str:
    torch.manual_seed(seed)
    DeGReEvaluator(DeGReConfig(feature_schema=extractor.schema.to_dict(), **TINY)).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def evaluator(extractor: RerankingFeatureExtractor, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_evaluator(extractor, tmp_path_factory.mktemp("evaluator"))


@pytest.fixture(scope="module")
def mined(evaluator: str, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mine_folder([evaluator], data_folder, tmp_path_factory.mktemp("mined") / "folder", **SETTINGS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_every_request_once() -> None:
    for available, wanted, size in [(24, 20, 6), (24, None, 5), (24, 100, 7), (7, 7, 7), (10, 3, 1), (5, 5, 100)]:
        shards = plan_shards("train", "train", available, wanted, size)
        rows = np.concatenate([shard.rows for shard in shards]).tolist()
        assert len(rows) == min(wanted or available, available)
        assert rows == sorted(set(rows))
        assert all(0 <= row < available for row in rows)
        assert [len(shard.rows) for shard in shards[:-1]] == [size] * (len(shards) - 1)
        assert len({shard.name for shard in shards}) == len(shards)
    assert plan_shards("train", "train", 10, 5, 5)[0].rows.tolist() == [0, 2, 4, 6, 8]  # spread over the log


def test_folder_holds_what_mine_batch_finds(
    mined: Path, evaluator: str, extractor: RerankingFeatureExtractor, data_folder: Path
) -> None:
    assert sorted(path.name for path in mined.glob("*.parquet")) == sorted([*SHARDS, "test.parquet"])
    model = DeGReEvaluator.from_pretrained(evaluator)
    source = pq.read_table(data_folder / "train.parquet")
    for split, count in {"train": 20, "validation": 7}.items():
        table = pa.concat_tables([pq.read_table(mined / name) for name in SHARDS if name.startswith(split)])
        rows = source.take(np.arange(count) * 24 // count)
        kept = set(source.column_names) - {"slate", "click", "order"}
        assert set(table.column_names) == kept | {"slate", "slate_weights", "slate_values", "soft_labels"}
        assert all(table.column(name).equals(rows.column(name)) for name in kept)
        found = mine_batch(model.scorer(), extractor(rows), 4, num_beams=3, keep=2)
        batch = extractor(table)
        assert batch["slates"].shape == (count, 2, 4)
        assert torch.equal(batch["slates"], found.slates)
        torch.testing.assert_close(batch["slate_weights"], found.weights)
        torch.testing.assert_close(batch["soft_labels"], found.soft_labels, rtol=1e-3, atol=1e-3)
        exists = found.values > -torch.inf
        values = [value for row in table.column("slate_values").to_pylist() for value in row]
        assert values == pytest.approx(found.values[exists].tolist(), abs=1e-5)
        assert table.schema.field("soft_labels").type.value_type.value_type.value_type == pa.float16()


def test_mined_slates_are_as_long_as_their_pages(evaluator: str, data_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(data_folder, tmp_path / "log")
    rows = pq.read_table(data_folder / "train.parquet").to_pylist()
    for row in rows[::2]:
        row.update({name: row[name][:2] for name in ("slate", "click", "order")})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log" / "train.parquet")
    folder = mine_folder([evaluator], tmp_path / "log", tmp_path / "mined", **{**SETTINGS, "num_requests": None})
    mined = pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("train-*.parquet"))]).to_pylist()
    for number, (row, logged) in enumerate(zip(mined, rows, strict=True)):
        longest = min(4 if number % 2 else 2, len(logged["item_id"]))
        assert {len(slate) for slate in row["slate"]} == {longest}


def test_folder_tells_where_it_comes_from(mined: Path, data_folder: Path, evaluator: str) -> None:
    metadata = read_metadata(mined)
    assert metadata["source"] == "mined"
    assert metadata["evaluators"] == [evaluator]
    assert metadata["settings"]["num_beams"] == 3
    assert metadata["rows"] == {"train": 20, "validation": 7, "test": 8}
    assert metadata["origin"] == read_metadata(data_folder)
    assert (mined / "test.parquet").read_bytes() == (data_folder / "test.parquet").read_bytes()
    assert (mined / "schema.yaml").read_bytes() == (data_folder / "schema.yaml").read_bytes()


def test_folder_knows_what_the_log_earned(
    mined: Path, evaluator: str, data_folder: Path, extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    """A generator trained on it needs a threshold for logged slates, which the mined ones cannot tell."""
    log, data = (RerankingDataModule(str(path), extractor=evaluator) for path in (data_folder, mined))
    for each in (log, data):
        each.setup()
    for quantile in (0.0, 0.07, 0.5, 0.8, 1.0):
        assert data.utility_quantile(quantile) == pytest.approx(log.utility_quantile(quantile), rel=1e-6)
    again = mine_folder([evaluator], mined, tmp_path / "again", **SETTINGS)  # of mined requests: still the log's
    assert read_metadata(again)["utility_quantiles"] == read_metadata(mined)["utility_quantiles"]


def test_a_log_without_feedback_has_no_quantiles(evaluator: str, data_folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(data_folder, tmp_path / "requests")
    for path in source.glob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["slate", "click", "order"]), path)
    out = mine_folder([evaluator], source, tmp_path / "mined", **SETTINGS)
    assert read_metadata(out)["utility_quantiles"] is None
    data = RerankingDataModule(str(out), extractor=evaluator)
    data.setup()
    assert data.utility_quantile(0.5) is None
    (out / "dataset.json").unlink()  # a mined table of one's own
    assert data.utility_quantile(0.5) is None


def test_folder_trains_a_generator(mined: Path, extractor: RerankingFeatureExtractor, tmp_path: Path) -> None:
    data = RerankingDataModule(str(mined), batch_size=5, eval_batch_size=3, extractor=str(mined))
    data.setup()
    assert data.extractor.schema == extractor.schema
    assert data.metadata == read_metadata(mined)["origin"]
    seen = 0
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        requests, candidates = batch["candidate_mask"].shape
        assert batch["slate_weights"].shape == (requests, 2)
        assert batch["soft_labels"].shape == (*batch["slates"].shape, candidates)
        labels = batch["soft_labels"].sum(-1)
        torch.testing.assert_close(labels, (batch["slates"] >= 0).float(), rtol=0, atol=2e-3)
        seen += requests
    assert seen == 27
    L.seed_everything(0, verbose=False)
    module = RerankingModule("DeGReGenerator", TINY)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, datamodule=RerankingDataModule(str(mined), batch_size=5, extractor=str(mined)))
    assert math.isfinite(trainer.callback_metrics["val/loss"])


def test_loader_cuts_soft_labels_with_the_candidates(mined: Path, extractor: RerankingFeatureExtractor) -> None:
    data = RerankingDataModule(str(mined), eval_batch_size=1, extractor=str(mined))
    data.setup()
    for batch in data.val_dataloader():
        assert batch["soft_labels"].shape[-1] == batch["candidate_mask"].shape[1] == batch["candidate_mask"].sum()


class Killed(Exception):
    pass


def test_a_killed_run_continues_without_loss_or_duplicates(
    mined: Path, evaluator: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls, real = tmp_path / "folder", [], rerankzoo.mining.mine_batch

    def mine_some(*arguments: Any, **options: Any) -> MinedSlates:
        if len(calls) == 5:  # in the middle of the second shard
            raise Killed
        calls.append(1)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rerankzoo.mining, "mine_batch", mine_some)
        with pytest.raises(Killed):
            mine_folder([evaluator], data_folder, out, batch_size=2, **SETTINGS)
    assert [path.name for path in out.glob("*.parquet")] == SHARDS[:1]
    with pytest.raises(FileNotFoundError, match="mining has not ended"):  # nobody trains on half a folder
        RerankingDataModule(str(out)).setup()
    first = (out / SHARDS[0]).stat().st_mtime_ns
    left = out / f".{SHARDS[1]}.a1b2c3.tmp"
    left.mkdir()
    (left / SHARDS[1]).write_bytes(b"left by a kill")
    progress: list[tuple[int, int]] = []
    settings = {**SETTINGS, "batch_size": 2, "on_progress": lambda *counts: progress.append(counts)}
    mine_folder([evaluator], data_folder, out, **settings)
    assert (out / SHARDS[0]).stat().st_mtime_ns == first
    assert progress[0] == (2, 21)
    assert progress[-1] == (21, 21)
    other = mine_folder([evaluator], data_folder, tmp_path / "other", batch_size=2, **SETTINGS)
    assert contents(out) == contents(other)


def test_only_missing_shards_are_mined(
    mined: Path, evaluator: str, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "folder"
    shutil.copytree(mined, out)
    for name in (SHARDS[2], SHARDS[5]):
        (out / name).unlink()
    mine_folder([evaluator], data_folder, out, **SETTINGS)
    assert contents(out) == contents(mined)
    monkeypatch.setattr(rerankzoo.mining, "mine_batch", lambda *_: pytest.fail("nothing is missing"))
    mine_folder([evaluator], data_folder, out, **SETTINGS)


@pytest.mark.parametrize("how", ["cut off", "one bit", "fewer rows"])
def test_damaged_shards_are_named_and_mined_again(
    mined: Path, evaluator: str, data_folder: Path, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = shutil.copytree(mined, tmp_path / "folder")
    shard = out / SHARDS[1]
    content, column = bytearray(shard.read_bytes()), pq.read_metadata(shard).row_group(0).column(0)
    if how == "fewer rows":
        pq.write_table(pq.read_table(shard)[1:], shard)
    elif how == "cut off":
        shard.write_bytes(content[:-10])
    else:
        first_page = column.dictionary_page_offset or column.data_page_offset
        content[first_page + column.total_compressed_size - 2] ^= 1
        shard.write_bytes(content)
    mine_folder([evaluator], data_folder, out, **SETTINGS)
    assert str(shard) in caplog.text
    assert contents(out) == contents(mined)


def test_a_folder_whose_mining_has_not_ended_is_refused(mined: Path, tmp_path: Path) -> None:
    out = shutil.copytree(mined, tmp_path / "folder")
    (out / "dataset.json").unlink()  # killed before the last of its steps
    with pytest.raises(FileNotFoundError, match="mining has not ended"):
        RerankingDataModule(str(out)).setup()


def test_a_process_mines_its_own_shards_and_leaves_the_rest_to_the_first(
    mined: Path, evaluator: str, data_folder: Path, tmp_path: Path
) -> None:
    second: Any = SimpleNamespace(
        device=torch.device("cpu"), is_global_zero=False, global_rank=1, world_size=2, barrier=lambda: None
    )
    mine_folder([evaluator], data_folder, tmp_path, fabric=second, **SETTINGS)
    assert contents(tmp_path) == {name: (mined / name).read_bytes() for name in SHARDS[1::2]}


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"num_beams": 4}, "num_beams", ["3", "4"]),
        ({"num_requests": 19}, "num_requests", ["20", "19"]),
        ({"label_temperature": 0.5}, "label_temperature", ["0.5"]),
        ({"shard_size": 5}, "shard_size", ["6", "5"]),
        ({"soft_label": "prefix_value"}, "soft_label", ["look_ahead", "prefix_value"]),
    ],
)
def test_changed_settings_are_refused(
    mined: Path, evaluator: str, data_folder: Path, change: dict[str, Any], name: str, words: list[str]
) -> None:
    before = contents(mined)
    with pytest.raises(RerankingDataError, match="was begun with") as caught:
        mine_folder([evaluator], data_folder, mined, **{**SETTINGS, **change})
    assert caught.value.field == name
    assert all(word in str(caught.value) for word in words)
    assert contents(mined) == before


def test_another_evaluator_or_source_is_refused(
    mined: Path, extractor: RerankingFeatureExtractor, evaluator: str, data_folder: Path, tmp_path: Path
) -> None:
    other = save_evaluator(extractor, tmp_path / "evaluator", seed=1)
    with pytest.raises(RerankingDataError, match="was begun with") as caught:
        mine_folder([other], data_folder, mined, **SETTINGS)
    assert caught.value.field == "evaluator"
    shutil.copytree(data_folder, tmp_path / "data")
    pq.write_table(pq.read_table(data_folder / "train.parquet").slice(1), tmp_path / "data/train.parquet")
    with pytest.raises(RerankingDataError, match="was begun with") as caught:
        mine_folder([evaluator], tmp_path / "data", mined, **SETTINGS)
    assert caught.value.field == "source"


def test_a_log_is_never_overwritten(evaluator: str, data_folder: Path) -> None:
    with pytest.raises(RerankingDataError, match="holds a data set that was not mined"):
        mine_folder([evaluator], data_folder, data_folder, **SETTINGS)


def test_several_evaluators_are_an_ensemble(
    mined: Path, extractor: RerankingFeatureExtractor, evaluator: str, data_folder: Path, tmp_path: Path
) -> None:
    other = save_evaluator(extractor, tmp_path / "evaluator", seed=1)
    both = [evaluator, other]
    out = mine_folder(both, data_folder, tmp_path / "out", spread_penalty=0.5, **SETTINGS)
    ensemble = EvaluatorEnsemble([DeGReEvaluator.from_pretrained(path) for path in both], 0.5).eval()
    rows = pq.read_table(data_folder / "train.parquet").take(np.arange(20) * 24 // 20)
    found = mine_batch(ensemble.scorer(), extractor(rows), 4, num_beams=3, keep=2)
    table = pa.concat_tables([pq.read_table(out / name) for name in SHARDS[:4]])
    assert torch.equal(extractor(table)["slates"], found.slates)
    for part in (ensemble, extractor):  # the same as one folder
        part.save_pretrained(tmp_path / "ensemble")
    mine_folder([str(tmp_path / "ensemble")], data_folder, tmp_path / "again", **SETTINGS)
    assert [pq.read_table(tmp_path / "again" / name) for name in SHARDS] == [
        pq.read_table(out / name) for name in SHARDS
    ]
    with pytest.raises(RerankingDataError, match="was begun with"):
        mine_folder(both, data_folder, out, **SETTINGS)


def test_an_ensemble_has_the_digest_of_its_earlier_class(extractor: RerankingFeatureExtractor) -> None:
    """Folders that were begun with it are continued."""
    torch.manual_seed(0)
    ensemble = EvaluatorEnsemble([DeGReEvaluator(DeGReConfig(feature_schema=extractor.schema.to_dict(), **TINY))])
    earlier = type("DeGReEvaluatorEnsemble", (torch.nn.Module,), {})()
    earlier.members = ensemble.members
    assert weights_digest(earlier) == weights_digest(ensemble)


def test_an_evaluator_beside_its_generator_mines(
    mined: Path, extractor: RerankingFeatureExtractor, evaluator: str, data_folder: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    DeGReGenerator(DeGReConfig(feature_schema=extractor.schema.to_dict(), **TINY)).save_pretrained(whole)
    shutil.copytree(evaluator, whole / "evaluator")
    out = mine_folder([str(whole)], data_folder, tmp_path / "out", **SETTINGS)
    assert [pq.read_table(out / name) for name in SHARDS] == [pq.read_table(mined / name) for name in SHARDS]


def test_what_cannot_mine_is_named(
    extractor: RerankingFeatureExtractor, make_rows: Any, evaluator: str, data_folder: Path, tmp_path: Path
) -> None:
    generator = NAR4RecForReranking(NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **TINY))
    generator.save_pretrained(tmp_path / "generator")
    extractor.save_pretrained(tmp_path / "generator")
    out = tmp_path / "out"
    with pytest.raises(HubError, match=r"a NAR4RecForReranking, which is no evaluator, and none is beside it"):
        mine_folder([str(tmp_path / "generator")], data_folder, out)
    beside = tmp_path / "generator/evaluator"
    NAR4RecEvaluator(NAR4RecConfig(feature_schema=extractor.schema.to_dict(), **TINY)).save_pretrained(beside)
    extractor.save_pretrained(beside)
    with pytest.raises(RerankingDataError, match=r"NAR4RecEvaluator .* gives prefixes no value"):
        mine_folder([str(tmp_path / "generator")], data_folder, out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match=r"cannot load .*empty: it has no config\.json"):
        mine_folder([str(tmp_path / "empty")], data_folder, out)
    with pytest.raises(FileNotFoundError, match="a data folder holds a schema"):
        mine_folder([evaluator], tmp_path / "empty", out)
    with pytest.raises(FileNotFoundError, match=r"has no valid\*\.parquet"):
        mine_folder([evaluator], data_folder, out, split="valid")
    with pytest.raises(ValueError, match="cannot mine 0 requests"):
        mine_folder([evaluator], data_folder, out, num_requests=0)
    with pytest.raises(ValueError, match="shard_size must be at least 1, got 0"):
        mine_folder([evaluator], data_folder, out, shard_size=0)
    other = RerankingFeatureExtractor(extractor.schema).fit(make_rows(5))
    with pytest.raises(SchemaMismatchError):
        mine_folder([evaluator, save_evaluator(other, tmp_path / "other")], data_folder, out)
    assert not out.exists()


# --- the command ----------------------------------------------------------------------------------------------------


def command(evaluator: str, data: Path, out: Path) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    return ["mine", "--evaluator", evaluator, "--data", str(data), "--out", str(out), "--accelerator=cpu", *options]


def test_command(
    mined: Path, evaluator: str, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(evaluator, data_folder, tmp_path / "out"), "--devices=1"]) == 0
    assert contents(tmp_path / "out") == contents(mined)
    assert "20 train, 7 validation, 8 test requests" in capsys.readouterr().out
    assert main([*command(evaluator, data_folder, tmp_path / "out"), "--keep=4"]) == 2
    assert "keep 4 exceeds num_beams 3" in capsys.readouterr().err
    assert main([*command(evaluator, data_folder, tmp_path / "out"), "--num-beams=4", "--devices=1"]) == 2
    assert "field 'num_beams': " in capsys.readouterr().err


def test_docs_tell_every_option_and_its_default() -> None:
    page = (Path(__file__).parents[1] / "docs/mining.md").read_text(encoding="utf-8")
    rows = {name: line.split(" | ")[1] for line in page.splitlines() for name in re.findall(r"`(--[a-z-]+)`", line)
            if line.startswith("| `--") and len(line.split(" | ")) == 3}  # fmt: skip
    for parameter, _, _ in parameters(mine_command):
        option, default = f"--{parameter.name.replace('_', '-')}", parameter.default
        shown = rows[option]
        if isinstance(default, int | float):
            assert float(shown.split(", ")[-2] if option == "--num-nodes" else shown) == default, option
        elif default and isinstance(default, str):
            assert f"`{default}`" in shown, option
        else:
            assert (default is parameter.empty) == (shown == "required"), option
