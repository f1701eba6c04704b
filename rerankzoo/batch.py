"""The batch: one dictionary of tensors, and one table that says what each entry's axes are.

B requests, N candidates, M slate positions, S slates per request, T feedback targets, F fields, L history length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

#: In slates: no candidate stands here.
PADDING = -100

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Entry:
    """What an entry of a batch is.

    Args:
        axes: One letter per axis, such as `"BNF"`.
        dtype: Of its tensor.
        fill: What padding holds.
        label: Whether it is known only after a slate was chosen, or of no use to choose one.
    """

    axes: str
    dtype: torch.dtype = torch.float32
    fill: float = 0
    label: bool = False


ENTRIES: dict[str, Entry] = {
    "request_categorical": Entry("BF", torch.int64),
    "request_numeric": Entry("BF"),
    "candidate_categorical": Entry("BNF", torch.int64),
    "candidate_numeric": Entry("BNF"),
    "candidate_value": Entry("BNT"),
    "candidate_mask": Entry("BN", torch.bool),  # True where a candidate is real
    "history_categorical": Entry("BLF", torch.int64),
    "history_numeric": Entry("BLF"),
    "history_time": Entry("BL"),  # how long ago, in mean gaps of the training rows
    "history_page": Entry("BL", torch.int64),  # how many pages ago
    "history_mask": Entry("BL", torch.bool),
    "slate_length": Entry("B", torch.int64, fill=1),  # positions of the request's page, where they differ
    "slates": Entry("BSM", torch.int64, fill=PADDING, label=True),
    "feedback": Entry("BSMT", label=True),
    "slate_weights": Entry("BS", label=True),
    "slate_values": Entry("BS", label=True),
    "soft_labels": Entry("BSMN", label=True),
    "candidate_feedback": Entry("BNT", label=True),
    "candidate_feedback_mask": Entry("BN", torch.bool, label=True),  # True where every target's label is known
    "propensity": Entry("BSM", label=True),
    "request_index": Entry("B", torch.int64, fill=-1, label=True),  # row number in the source
}

#: Of these the extractor knows which columns they are made of; another entry is the column of its name.
BUILT_IN = frozenset(ENTRIES) - {"slate_length"}

#: Of each axis that can be cut, the entries that tell what is real on it, and from which value on.
_REAL = {"N": ("candidate_mask", 1), "L": ("history_mask", 1), "S": ("slates", 0), "M": ("slates", 0)}


def register_entry(name: str, entry: Entry) -> None:
    """Makes a family's own entry known to all that cut, pad and move batches.

    Args:
        name: Its key in the batch.
        entry: What it is.

    Raises:
        ValueError: If the name stands for another entry already, or the first axis is not B.
    """
    if not entry.axes.startswith("B"):
        raise ValueError(f"batch entry {name!r}: expected axes that begin with B, got {entry.axes!r}")
    if ENTRIES.setdefault(name, entry) != entry:
        raise ValueError(f"batch entry {name!r} is registered as {ENTRIES[name]}, got {entry}")


def inputs(batch: Batch) -> dict[str, Tensor]:
    """The part of a batch that is known before a slate is chosen: features, values, masks, history."""
    return {name: tensor for name, tensor in batch.items() if name in ENTRIES and not ENTRIES[name].label}


def take(batch: Batch, rows: Tensor | slice | list[int]) -> dict[str, Tensor]:
    """Some requests of a batch, by number, mask or slice."""
    if isinstance(rows, Tensor) and rows.dtype == torch.int64:  # several times faster than indexing
        return {name: tensor.index_select(0, rows) for name, tensor in batch.items()}
    return {name: tensor[rows] for name, tensor in batch.items()}


def to_device(batch: Batch, device: torch.device | str) -> dict[str, Tensor]:
    """The batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def trim(batch: Batch) -> dict[str, Tensor]:
    """Cuts what is padding in all requests from the ends of the axes N, L, S and M; at least one entry stays.

    Raises:
        ValueError: If an entry is not registered.
    """
    return pad(batch, **{axis: _real_size(batch, axis) for axis, (name, _) in _REAL.items() if name in batch})


def _real_size(batch: Batch, axis: str) -> int:
    name, least = _REAL[axis]
    number, tensor = ENTRIES[name].axes.index(axis), batch[name]
    size = tensor.shape[number]
    if size and bool((tensor.select(number, size - 1) >= least).any()):  # as mostly: nothing to cut
        return size
    used = (tensor >= least).transpose(0, number).flatten(1).any(1).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def pad(batch: Batch, **sizes: int) -> dict[str, Tensor]:
    """Pads, or cuts, axes at their ends.

    Args:
        batch: The batch.
        **sizes: New sizes by axis letter, such as `N=20`.

    Returns:
        The batch with these sizes; new places hold each entry's `fill`.

    Raises:
        ValueError: If an entry is not registered.
    """
    return {name: _resize(tensor, entry_of(name), sizes) for name, tensor in batch.items()}


def entry_of(name: str) -> Entry:
    """What an entry of a batch is.

    Raises:
        ValueError: If it is not registered.
    """
    if name not in ENTRIES:
        raise ValueError(f"batch entry {name!r} is not registered, expected one of {sorted(ENTRIES)}")
    return ENTRIES[name]


def _resize(tensor: Tensor, entry: Entry, sizes: Mapping[str, int]) -> Tensor:
    for axis, letter in enumerate(entry.axes):
        missing = sizes.get(letter, tensor.shape[axis]) - tensor.shape[axis]
        if missing < 0:
            tensor = tensor.narrow(axis, 0, sizes[letter])
        elif missing > 0:
            widths = [0, 0] * (tensor.dim() - axis - 1) + [0, missing]
            tensor = functional.pad(tensor, widths, value=entry.fill)
    return tensor


def shown(slates: Tensor) -> Tensor:
    """(B, ..., M), True where a position of slates (B, ..., M), or of soft ones (B, ..., M, N), is no padding."""
    return (slates > 0).any(-1) if slates.is_floating_point() else slates != PADDING


def gather_candidates(values: Tensor, slates: Tensor) -> Tensor:
    """Looks up each slate position's candidate.

    Args:
        values: (B, N, ...) something per candidate.
        slates: (B, ..., M) int64 candidate indexes, -100 pads. Any number of dimensions between B and M. Or soft
            slates, floating (B, ..., M, N): the share of each candidate in each position, nothing at padding.

    Returns:
        (B, ..., M, ...): the entries of `values`, zero at padding; of soft slates their means.

    Raises:
        ValueError: If the batch sizes differ.
    """
    if values.shape[0] != slates.shape[0]:
        raise ValueError(f"expected values and slates of one batch size, got {values.shape[0]} and {slates.shape[0]}")
    if slates.is_floating_point():
        flat = values.reshape(*values.shape[:2], math.prod(values.shape[2:]))
        mixed = slates.flatten(1, -2).to(flat.dtype) @ flat
        return mixed.reshape(*slates.shape[:-1], *values.shape[2:])
    real = slates != PADDING
    rows = torch.arange(slates.shape[0], device=slates.device).view(-1, *[1] * (slates.dim() - 1))
    gathered = values[rows, slates.masked_fill(~real, 0)]
    return gathered.masked_fill(~real.view(*real.shape, *[1] * (values.dim() - 2)), 0)


def widened(value: Any) -> Any:
    """A half-precision tensor as float32; anything else as it is."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
