from __future__ import annotations

import pytest
import torch

from rerankzoo.generation import MatrixScorer, StaticScorer
from rerankzoo.generation.scorer import remaining_log_probs
from rerankzoo.generation.search import filled_positions, greedy_search, keep_top_k
from tests.generation.common import TableScorer

LOGITS = torch.tensor([[[0.6, 0.3, 0.1], [0.2, 0.3, 0.5]]]).log()
BATCH = {"candidate_mask": torch.ones(1, 3, dtype=torch.bool)}


def test_remaining_log_probs() -> None:
    available = torch.tensor([[True, False, True], [False, False, False]])
    logits = torch.tensor([[0.6, 0.3, 0.2], [1.0, 2.0, 3.0]]).log().requires_grad_()
    found = remaining_log_probs(logits, available)
    assert found[0].exp().tolist() == pytest.approx([0.75, 0.0, 0.25])
    assert (found[1] == -torch.inf).all()
    found[available].sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_remaining_log_probs_in_any_precision(dtype: torch.dtype) -> None:
    available = torch.tensor([[True, True, False]])
    found = remaining_log_probs(torch.tensor([[3.0, 3.0, 9.0]], dtype=dtype), available)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found[0].exp().tolist() == pytest.approx([0.5, 0.5, 0.0], rel=1e-2)


def test_matrix_scorer_takes_one_row_per_position() -> None:
    scorer = MatrixScorer(lambda batch: (LOGITS, torch.zeros(1, 3, 2)))
    state = scorer.start(BATCH)
    assert scorer.step(state)[0][0].exp().tolist() == pytest.approx([0.6, 0.3, 0.1])
    state = scorer.extend(state, scorer.step(state)[1], torch.tensor([0]), torch.tensor([1]))
    assert scorer.step(state)[0][0].exp().tolist() == pytest.approx([2 / 7, 0.0, 5 / 7])
    state = scorer.extend(state, scorer.step(state)[1], torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="slate_size must be at most 2"):
        scorer.step(state)[0]


def test_no_cache_is_made_after_the_last_position(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, kept, select = MatrixScorer(lambda batch: (LOGITS, torch.zeros(1, 3, 2))), [], MatrixScorer.select
    monkeypatch.setattr(scorer, "select", lambda *given: kept.append(given) or select(scorer, *given))
    assert greedy_search(scorer, BATCH, 2).slates.tolist() == [[[0, 2]]]
    assert len(kept) == 1


def test_static_scorer_scores_alike_at_every_position() -> None:
    scorer = StaticScorer(lambda batch: (LOGITS[:, 0], torch.zeros(1, 3, 2)))
    state = scorer.start(BATCH)
    assert scorer.step(state)[0][0].exp().tolist() == pytest.approx([0.6, 0.3, 0.1])
    for chosen, expected in ((1, [6 / 7, 0.0, 1 / 7]), (2, [1.0, 0.0, 0.0]), (0, [0.0, 0.0, 0.0]), (-100, [0.0] * 3)):
        state = scorer.extend(state, scorer.step(state)[1], torch.tensor([0]), torch.tensor([chosen]))
        assert scorer.step(state)[0][0].exp().tolist() == pytest.approx(expected)
    assert scorer.candidate_states(state) is not None


def test_extend_reorders_rows_and_leaves_the_old_state_alone() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    scorer = TableScorer(torch.zeros(2, 3, 3), torch.arange(18.0).view(2, 3, 3), mask)
    start = scorer.start(scorer.batch)
    one = scorer.extend(start, scorer.step(start)[1], torch.tensor([1, 0, 1]), torch.tensor([2, 0, 1]))
    assert one.request.tolist() == [1, 0, 1]
    assert one.prefix.tolist() == [[2], [0], [1]]
    assert one.available.tolist() == [[True, True, False], [False, True, False], [True, False, True]]
    assert one.cache["bias"].tolist() == [[15, 16, 17], [0, 1, 2], [12, 13, 14]]
    two = scorer.extend(one, scorer.step(one)[1], torch.tensor([2, 1]), torch.tensor([0, -100]))
    assert two.prefix.tolist() == [[1, 0], [0, -100]]
    assert two.available.tolist() == [[False, False, True], [False, True, False]]
    assert two.cache["bias"].tolist() == [[21, 23, 25], [0, 1, 2]]
    assert start.available.equal(mask)
    assert start.prefix.shape == (2, 0)


def test_keep_top_k() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [-torch.inf, 0.0, -torch.inf]])
    assert keep_top_k(scores, 2)[0].tolist() == [-torch.inf, 3.0, 2.0]
    assert keep_top_k(scores, 2)[1].tolist() == [-torch.inf, 0.0, -torch.inf]
    assert torch.equal(keep_top_k(scores, 9), scores)


@pytest.mark.parametrize(("slate_size", "expected"), [(2, None), (3, [2, 3]), (4, [2, 3]), (10**30, [2, 3])])
def test_how_many_positions_a_request_fills(slate_size: int, expected: list[int] | None) -> None:
    available = torch.tensor([[True, True, False], [True, True, True]])
    length = filled_positions(available, slate_size, {})
    assert (length if length is None else length.tolist()) == expected


def test_a_batch_may_tell_how_many_positions_are_filled() -> None:
    available = torch.tensor([[True, True, False], [True, True, True]])
    length = filled_positions(available, 2, {"slate_length": torch.tensor([3, 1])})
    assert length is not None
    assert length.tolist() == [2, 1]
    assert filled_positions(available, 2, {"slate_length": torch.tensor([2, 3])}) is None
