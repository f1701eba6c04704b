"""Utility: what feedback on slates and items is worth, by the weights and values that a schema names.

B requests, N candidates, M positions, S slates, T feedback targets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, gather_candidates
from rerankzoo.features.schema import FeatureSchema


def slate_utility(feedback: Tensor, slates: Tensor, candidate_value: Tensor, schema: FeatureSchema) -> Tensor:
    """Utility of slates: the sum over positions and targets of weight x value x feedback (x position discount).

    Args:
        feedback: (B, S, M, T), observed feedback, or predicted probabilities for the expected utility.
        slates: (B, S, M), -100 pads.
        candidate_value: (B, N, T), value of each target for each candidate.
        schema: Tells the targets' weights and the position discount: 1, or 1/log2(t + 1) at position t = 1, 2...

    Returns:
        (B, S) utilities; padding (-100) counts nothing.

    Raises:
        ValueError: If the schema has another number of targets than the feedback.
    """
    return position_utility(feedback, slates, candidate_value, schema).sum(-1)


def position_utility(feedback: Tensor, slates: Tensor, candidate_value: Tensor, schema: FeatureSchema) -> Tensor:
    """What each position adds to the utility of its slate; see `slate_utility` for arguments and errors.

    Returns:
        (B, S, M); 0 at padding.
    """
    # A padded position gathers value 0, but 0 x NaN would still be NaN: the feedback there is masked as well.
    real = (slates != PADDING).unsqueeze(-1)
    earned = candidate_utility(feedback.masked_fill(~real, 0), gather_candidates(candidate_value, slates), schema)
    position = torch.arange(slates.shape[-1], dtype=earned.dtype, device=earned.device)
    return earned * position_discount(position, schema)


def position_discount(position: Tensor, schema: FeatureSchema) -> Tensor:
    """What the feedback of a position counts: 1, or 1/log2(position + 2) where the schema says so.

    Args:
        position: Positions 0, 1... of any shape, as a floating type.
        schema: Tells the discount.

    Returns:
        A tensor of the same shape and type.
    """
    ones = torch.ones_like(position)
    return ones / torch.log2(position + 2) if schema.position_discount == "log2" else ones


def candidate_utility(feedback: Tensor, value: Tensor, schema: FeatureSchema) -> Tensor:
    """Utility of items, wherever they stand: the sum over targets of weight x value x feedback.

    Args:
        feedback: (..., T), observed feedback, or predicted probabilities for the expected utility.
        value: (..., T), value of each target for each item.
        schema: Tells the targets' weights.

    Returns:
        (...).

    Raises:
        ValueError: If the schema has another number of targets than the feedback.
    """
    if len(schema.targets) != feedback.shape[-1]:
        raise ValueError(f"the schema has {len(schema.targets)} targets, the feedback {feedback.shape[-1]}")
    earned = value * feedback  # in the wider precision of the two; half precision may be too narrow for a weight
    weights = torch.tensor([target.weight for target in schema.targets], dtype=earned.dtype, device=earned.device)
    return (earned * weights).sum(-1)
