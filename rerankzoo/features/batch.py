"""The batch: the one dictionary of tensors that models, metrics and decoders speak.

B requests, N candidates, M slate positions, S slates per request, T feedback targets, F fields, L history length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

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


def slate_utility(batch: Mapping[str, Tensor], target_weights: Sequence[float]) -> Tensor:
    """Logged utility of every slate: the sum over positions and targets of weight x value x feedback.

    Args:
        batch: A batch with `slates`, `feedback` and `candidate_value`.
        target_weights: T weights, in schema order.

    Returns:
        (B, S) utilities; padding (-100) counts nothing.

    Raises:
        ValueError: If the number of weights is not T.
    """
    feedback, slates = batch["feedback"], batch["slates"]
    if len(target_weights) != feedback.shape[-1]:
        raise ValueError(f"{len(target_weights)} target weights for {feedback.shape[-1]} feedback targets")
    weights = torch.as_tensor(target_weights, dtype=feedback.dtype, device=feedback.device)
    # A padded position gathers value 0, but 0 x NaN would still be NaN: the feedback there is masked as well.
    real = (slates != PADDING_INDEX).unsqueeze(-1)
    earned = gather_candidates(batch["candidate_value"], slates) * feedback.masked_fill(~real, 0)
    return (earned * weights).sum(dim=(-2, -1))
