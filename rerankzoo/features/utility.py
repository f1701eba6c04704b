"""Utility: what feedback on slates and items is worth, by the weights and values that a schema names.

B requests, N candidates, M positions, S slates, T feedback targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import gather_candidates, shown
from rerankzoo.features.schema import FeatureSchema


def slate_utility(feedback: Tensor, slates: Tensor, candidate_value: Tensor, schema: FeatureSchema) -> Tensor:
    """Utility (B, S) of slates: the sum over positions and targets of weight x value x feedback x position discount.

    Args:
        feedback: (B, S, M, T), observed feedback, or predicted probabilities for the expected utility.
        slates: (B, S, M); padding (-100) counts nothing.
        candidate_value: (B, N, T), value of each target for each candidate.
        schema: Tells the targets' weights and the position discount: 1, or 1/log2(t + 1) at position t = 1, 2...

    Raises:
        ValueError: If the schema has another number of targets than the feedback.
    """
    return position_utility(feedback, slates, candidate_value, schema).sum(-1)


def position_utility(feedback: Tensor, slates: Tensor, candidate_value: Tensor, schema: FeatureSchema) -> Tensor:
    """What each position (B, S, M) adds to the utility of its slate, 0 at padding; see `slate_utility`.

    Slates may be soft (see `rerankzoo.batch.gather_candidates`).
    """
    # A padded position gathers value 0, but 0 x NaN would still be NaN: the feedback there is masked as well.
    real = shown(slates).unsqueeze(-1)
    earned = candidate_utility(feedback.masked_fill(~real, 0), gather_candidates(candidate_value, slates), schema)
    position = torch.arange(earned.shape[-1], dtype=earned.dtype, device=earned.device)
    return earned * position_discount(position, schema)


def position_discount(position: Tensor, schema: FeatureSchema) -> Tensor:
    """What the feedback of floating positions 0, 1... counts: 1, or 1/log2(position + 2) where the schema says so."""
    ones = torch.ones_like(position)
    return ones / torch.log2(position + 2) if schema.position_discount == "log2" else ones


def candidate_utility(feedback: Tensor, value: Tensor, schema: FeatureSchema) -> Tensor:
    """Utility (...) of items, wherever they stand, by feedback and value (..., T); see `slate_utility`."""
    if len(schema.targets) != feedback.shape[-1]:
        raise ValueError(f"the schema has {len(schema.targets)} targets, the feedback {feedback.shape[-1]}")
    earned = value * feedback  # in the wider precision of the two; half precision may be too narrow for a weight
    weights = torch.tensor([target.weight for target in schema.targets], dtype=earned.dtype, device=earned.device)
    return (earned * weights).sum(-1)
