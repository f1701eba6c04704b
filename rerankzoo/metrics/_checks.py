"""Input checks that the metrics share: ValueErrors that name the argument, the row and the offending value."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from rerankzoo.batch import PADDING


def check_option(name: str, value: str, choices: Any) -> None:
    """The value of option `name` must be one of `choices`, a Literal type."""
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")


def check_number(name: str, value: float, valid: bool, expected: str) -> None:
    """The value must be as expected."""
    if not valid:
        raise ValueError(f"{name} must {expected}, got {value}")


def check_fraction(name: str, value: float) -> None:
    """The value must be strictly between 0 and 1."""
    check_number(name, value, 0 < value < 1, "lie strictly between 0 and 1")


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], of: str) -> None:
    """The tensor must have the `expected` shape, which is that of argument `of`."""
    if tuple(tensor.shape) != tuple(expected):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(expected)} as {of}")


def check_rows(name: str, bad: Tensor, values: Tensor, problem: str) -> None:
    """No entry may be bad: the first True of `bad` (B, ...) is told with its place, its entry in `values`, and why."""
    if bad.any():
        place = tuple(bad.nonzero()[0].tolist())
        where = f"row {place[0]}" + (f", position {', '.join(map(str, place[1:]))}" if len(place) > 1 else "")
        raise ValueError(f"{name}, {where}: {values[place].item()} {problem}")


def check_slates(slates: Tensor, num_candidates: int) -> None:
    """Slates must be (B, M), of distinct positions below `num_candidates`, or -100."""
    if slates.dim() != 2 or slates.is_floating_point():
        raise ValueError(f"slates must be integers (B, M), got {slates.dtype} of shape {tuple(slates.shape)}")
    outside = (slates != PADDING) & ((slates < 0) | (slates >= num_candidates))
    check_rows("slates", outside, slates, f"is neither {PADDING} nor one of {num_candidates} candidates")
    ordered = slates.sort(dim=1).values
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)
    if repeated.any():
        row, column = repeated.nonzero()[0].tolist()
        raise ValueError(f"slates, row {row}: candidate {ordered[row, column].item()} appears twice")


def checked_mask(mask: Tensor | None, values: Tensor, of: str) -> Tensor:
    """The mask as bool, by default all True, which must have the shape of `values`, those of argument `of`."""
    if mask is None:
        return torch.ones_like(values, dtype=torch.bool)
    check_shape("mask", mask, tuple(values.shape), of)
    return mask.bool()


def as_float(values: Tensor) -> Tensor:
    """Casts integers, booleans and 16-bit floats to float32 and leaves float32 and float64 alone."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
