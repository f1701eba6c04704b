"""Beam search over prefixes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from rerankzoo.batch import PADDING, Batch
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Scorer
from rerankzoo.generation.search import Decoded, Rows

NEVER = float("-inf")


@dataclass
class BeamStep:
    """One step of a beam search, as mining needs it. Rows are grouped by request, best first.

    Totals are -inf where there is no such prefix or constraints forbid it. A whole slate has one continuation, itself,
    in column 0.
    """

    totals: Tensor  # (R, N), the score of each of the R prefixes extended by each candidate, boosts included
    parent: Tensor  # (R',), the row of `totals` that each kept prefix continues
    index: Tensor  # (R',), its column


def beam_search(
    scorer: Scorer,
    batch: Batch,
    slate_size: int,
    num_beams: int,
    num_return_sequences: int,
    history: list[BeamStep] | None = None,
    rules: SlateRules | None = None,
) -> Decoded:
    """Keeps the `num_beams` best prefixes of each request at every position.

    With `num_beams` at least the number of prefixes it is exhaustive. Prefixes are compared by their score: the sum of
    log-probabilities, or the value of the prefix, as the scorer's kind says; with boosts, by that plus the boosts of
    their items.

    Args (others as of `greedy_search`):
        num_beams: W.
        num_return_sequences: S; at most W.
        history: A list that gets every step's scores and choices.

    Returns:
        The S best slates per request, best first; where fewer exist, the rest is -100 with score -inf.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    num_requests, num_candidates = rows.state.available.shape
    first_row = torch.arange(num_requests, device=rows.steps.device).unsqueeze(-1)
    total = torch.zeros(num_requests, device=rows.steps.device)  # (R,), the score of each prefix
    for left in reversed(range(slate_size)):  # positions after this one
        scores, cache = scorer.step(rows.state)
        totals = _totals(rows, total, rows.preferences(scores))
        expansions = totals.view(num_requests, -1)  # (B, width * N)
        kept = num_beams if left else num_return_sequences
        best, flat = expansions.topk(min(kept, expansions.shape[-1]), dim=-1)
        width = total.shape[0] // num_requests
        beam = flat // num_candidates
        # Not `flat % num_candidates`: ONNX has no remainder by a size that is known only when the graph runs.
        parent, index = (first_row * width + beam).flatten(), (flat - beam * num_candidates).flatten()
        if history is not None:
            history.append(BeamStep(totals, parent, index))
        rows = rows.extend(scores, cache, parent, index)
        best = best.flatten()
        # With boosts, prefixes are compared by more than their score.
        total = best if rules is None else rows.totals().masked_fill(best == NEVER, NEVER)
    return _best(rows.decoded(num_requests, total), num_return_sequences)


def _totals(rows: Rows, total: Tensor, scores: Tensor) -> Tensor:
    """The score (R, N) of prefixes (R,) extended by each candidate; -inf for those that do not exist."""
    total, sums = total.unsqueeze(-1), rows.scorer.kind == "log_prob"
    if rows.rules is not None:
        by_request = rows.state.prefix.unflatten(0, (rows.rules.length.shape[0], -1))
        boost = rows.rules.boosts(by_request).view(-1, 1)
        total, scores = total + boost, scores if sums else scores + boost
    extended = total + scores if sums else scores.masked_fill(total == NEVER, NEVER)
    finished = rows.finished
    if finished is None:
        return extended
    # A whole slate has one continuation, itself; it stands in column 0.
    first, finished = torch.arange(scores.shape[-1], device=scores.device) == 0, finished.unsqueeze(-1)
    return torch.where(finished & first, total, extended.masked_fill(finished, NEVER))


def _best(decoded: Decoded, num_return_sequences: int) -> Decoded:
    """Pads to the slates asked for where fewer exist."""
    slates, scores, steps = vars(decoded).values()
    missing = num_return_sequences - scores.shape[1]
    if missing > 0:
        slates, steps = (functional.pad(tensor, (0, 0, 0, missing)) for tensor in (slates, steps))
        scores = functional.pad(scores, (0, missing), value=NEVER)
    absent = (scores == NEVER).unsqueeze(-1)
    return Decoded(slates.masked_fill(absent, PADDING), scores, steps.masked_fill(absent, 0.0))
