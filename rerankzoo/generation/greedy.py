"""Greedy decoding."""

from __future__ import annotations

from rerankzoo.batch import Batch
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Scorer
from rerankzoo.generation.search import Decoded, Rows


def greedy_search(scorer: Scorer, batch: Batch, slate_size: int, rules: SlateRules | None = None) -> Decoded:
    """Takes the best-scored candidate at every position.

    Args:
        scorer: Scores the continuations of a prefix.
        batch: The requests; `candidate_mask` (B, N) and the features of the scorer's model.
        slate_size: M.
        rules: What constraints ask, as `rerankzoo.generation.bind` made it for this batch and slate size.

    Returns:
        One slate per request.
    """
    rows = Rows.start(scorer, batch, slate_size, rules)
    for _ in range(slate_size):
        scores, cache = scorer.step(rows.state)
        rows = rows.extend(scores, cache, None, rows.preferences(scores).argmax(-1))
    return rows.decoded(rows.total.shape[0])
