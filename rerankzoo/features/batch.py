"""The batch: the one dictionary of tensors that models, metrics and decoders speak.

B requests, N candidates, M slate positions, S slates per request, T feedback targets, F fields, L history length.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rerankzoo.features.schema import FeatureSchema

PADDING_INDEX = -100

BATCH_KEYS: tuple[str, ...] = (
    "request_categorical",  # (B, F) int64
    "request_numeric",  # (B, F) float32
    "candidate_categorical",  # (B, N, F) int64
    "candidate_numeric",  # (B, N, F) float32
    "candidate_value",  # (B, N, T) float32, 0 in padding
    "candidate_mask",  # (B, N) bool, True where a candidate is real
    "history_categorical",  # (B, L, F) int64
    "history_mask",  # (B, L) bool
    "slates",  # (B, S, M) int64, -100 pads
    "feedback",  # (B, S, M, T) float32
    "slate_weights",  # (B, S) float32
    "soft_labels",  # (B, S, M, N) float32
    "candidate_feedback",  # (B, N, T) float32
    "candidate_feedback_mask",  # (B, N) bool, True where every target's label is known
    "propensity",  # (B, S, M) float32
    "request_index",  # (B,) int64
)

#: What is known before a slate is chosen; the rest are labels.
INPUT_KEYS: tuple[str, ...] = BATCH_KEYS[: BATCH_KEYS.index("slates")]


def inputs_only(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the part of a batch that is known before a slate is chosen: features, values, masks, history."""
    return {key: value for key, value in batch.items() if key in INPUT_KEYS}


def gather_candidates(values: Tensor, slates: Tensor) -> Tensor:
    """Looks up each slate position's candidate.

    Args:
        values: (B, N, ...) something per candidate.
        slates: (B, ..., M) int64 candidate indexes, -100 pads. Any number of dimensions between B and M.

    Returns:
        (B, ..., M, ...): the entries of `values`, zero at padding.

    Raises:
        ValueError: If the batch sizes differ.
    """
    if values.shape[0] != slates.shape[0]:
        raise ValueError(f"values have batch size {values.shape[0]}, slates {slates.shape[0]}")
    real = slates != PADDING_INDEX
    rows = torch.arange(slates.shape[0], device=slates.device).view(-1, *[1] * (slates.dim() - 1))
    gathered = values[rows, slates.masked_fill(~real, 0)]
    trailing = real.view(*real.shape, *[1] * (values.dim() - 2))
    return gathered.masked_fill(~trailing, 0)


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
    real = (slates != PADDING_INDEX).unsqueeze(-1)
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
