"""What a shop demands, as part of a graph: exclusions, pinned items, at most k of a category.

The same rules as `rerankzoo.generation.constraints`, for those of them whose completion is known by counting alone. A
graph cannot refuse a demand: what no slate can keep, it lets go, as told in docs/export.md.
B requests, N candidates, M positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch, Entry
from rerankzoo.generation.constraints.rules import SlateRules, look_up, mask_of
from rerankzoo.generation.constraints.search import Plan

#: The inputs beside the batch that a graph with demands has.
DEMANDS = {
    "exclude": Entry("BN", torch.bool),
    "pin": Entry("BM", torch.int64, PADDING),
    "at_most": Entry("B", torch.int64),
}
NO_LIMIT = 1 << 40


class GraphRules(SlateRules):
    """Rules that can be traced.

    Args:
        batch: With `candidate_mask` (B, N) and the demands: `exclude` (B, N); `pin` (B, M), candidate indexes, -100
            where any may stand; and, where there are labels, `at_most` (B,), the items of a category in a slate.
        labels: (B, N) int64, the category of each candidate, 0 for none; `None`: nobody asks.
    """

    def __init__(self, batch: Batch, labels: Tensor | None) -> None:
        self.usable, pins = batch["candidate_mask"] & ~batch["exclude"], batch["pin"]
        self.bias = None
        size = pins.shape[1]
        self._labels, self._most = labels, _no_limit(self.usable) if labels is None else batch["at_most"]
        self.length = self._supply().clamp_max(size)
        places = torch.arange(size, device=pins.device)
        inside = (pins >= 0) & (pins < self.usable.shape[1])
        known = look_up(self.usable.long(), pins.masked_fill(~inside, PADDING), 0) > 0  # ONNX Runtime: no bool
        again = ((pins.unsqueeze(-1) == pins.unsqueeze(1)) & (places < places.unsqueeze(-1))).any(-1)
        kept = known & ~again & (places < self.length.unsqueeze(-1))
        self.fixed = pins.masked_fill(~kept, PADDING)

    @property
    def plans(self) -> list[Plan | None]:
        """None: counting is exact, and nothing is searched."""
        return []

    def legal(self, request: Tensor, slates: Tensor, position: int) -> Tensor:
        """(R, N), what may stand at a position of slates with gaps (R, M): the pinned item, or what leaves room."""
        pinned = self.fixed[request, position : position + 1]  # (R, 1)
        own = pinned == torch.arange(self.usable.shape[1], device=pinned.device)
        legal = self.usable[request] & ~mask_of(slates, self.usable.shape[1])
        if self._labels is not None:
            labels = self._labels[request]
            shown = look_up(labels, slates, 0)  # (R, M)
            same = (labels.unsqueeze(-1) == shown.unsqueeze(1)).sum(-1)
            legal = legal & ((same < self._most[request].unsqueeze(-1)) | (labels == 0))
        return own | (legal & (pinned < 0))

    def _supply(self) -> Tensor:
        """(B,), how many candidates there are when every category has at most as many as a slate may show."""
        if self._labels is None:
            return self.usable.sum(-1)
        labels, order = self._labels, torch.arange(self.usable.shape[1], device=self.usable.device)
        same = (labels.unsqueeze(-1) == labels.unsqueeze(1)) & self.usable.unsqueeze(1)  # (B, N, N)
        earlier = (same & (order < order.unsqueeze(-1))).sum(-1)
        return (self.usable & ((earlier < self._most.unsqueeze(-1)) | (labels == 0))).sum(-1)


def no_demands(batch: Batch, slate_size: int, limited: bool) -> dict[str, Tensor]:
    """Demands that leave everything to the model."""
    mask = batch["candidate_mask"]
    most = {"at_most": _no_limit(mask)} if limited else {}
    return {"exclude": torch.zeros_like(mask), "pin": torch.full((mask.shape[0], slate_size), PADDING), **most}


def _no_limit(mask: Tensor) -> Tensor:
    return torch.full(mask.shape[:1], NO_LIMIT)
