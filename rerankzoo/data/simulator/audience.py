"""Requests whose users are known, in truth or by a fitted model: utility of slates, and the search for good ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

from rerankzoo.data.simulator.user_models import Page, Requests, UserModel
from rerankzoo.slates import all_slates, neighbour_slates

_ROUNDING = 1e-9  # smaller gains, as a share, are no gains: a local search must end
_CHUNK_ELEMENTS = 2**17  # (request, slate) pairs evaluated at once: temporaries of 1 MiB stay in the CPU cache
_BEST_BEAMS = 8  # where there are too many slates to list
_MAX_LISTED = 50_000


class Audience(NamedTuple):
    """B requests and how their users read; slates are (B, S, M), or (S, M) shared by all requests."""

    user: UserModel
    requests: Requests

    def expected_utility(self, slates: np.ndarray) -> np.ndarray:
        """Expected utilities (B, S), float64."""
        page = Page(self.requests, slates)
        utility = 0.0
        for position, click in enumerate(self.user.expected_clicks(self.requests, slates)):
            utility = utility + click * page.at(self.requests.value, position)
        return np.asarray(utility)

    def all_utilities(self, slate_size: int) -> np.ndarray:
        """Expected utilities (B, P) of every slate, in the order of `all_slates(N, slate_size)`."""
        count, num_candidates = self.requests.appeal.shape
        slates = all_slates(num_candidates, slate_size)
        step = max(1, _CHUNK_ELEMENTS // len(slates))
        starts = range(0, max(1, count), step)
        parts = [self._replace(requests=self.requests.select(slice(start, start + step))) for start in starts]
        return np.concatenate([part.expected_utility(slates) for part in parts])

    def stand_alone(self) -> np.ndarray:
        """The utilities (B, N) of pages of one item, where it is the only candidate."""
        shape = self.requests.appeal.shape
        alone = Requests(
            *(values.reshape(-1, 1) for values in self.requests[:3]),
            *(values[:, :: shape[1] + 1].reshape(-1, 1) for values in self.requests[3:]),
        )
        return self._replace(requests=alone).expected_utility(np.zeros((1, 1), dtype=np.int64)).reshape(shape)

    def pointwise(self, slate_size: int) -> np.ndarray:
        """The slates (B, M) that sort the candidates by their stand-alone utility."""
        return np.argsort(-self.stand_alone(), axis=1, kind="stable")[:, :slate_size]

    def beam(self, slate_size: int, num_beams: int) -> np.ndarray:
        """The best slates (B, M) of a beam search on the utility of prefixes, each scored as if it were the page."""
        batch, num_candidates = self.requests.appeal.shape
        beams = np.empty((batch, 1, 0), dtype=np.int64)
        for length in range(slate_size):
            width = beams.shape[1]
            prefixes = np.repeat(beams, num_candidates, axis=1)
            items = np.broadcast_to(np.tile(np.arange(num_candidates), width)[:, None], (*prefixes.shape[:2], 1))
            slates = np.concatenate([prefixes, items], axis=-1)
            # A repeated item is no slate; what the formula says of it does not count.
            utilities = np.where((prefixes == items).any(-1), -np.inf, self.expected_utility(slates))
            keep = min(num_beams, width * (num_candidates - length))  # no more than there are without repetition
            best = np.argsort(-utilities, axis=1, kind="stable")[:, :keep]
            beams = np.take_along_axis(slates, best[..., None], axis=1)
        return beams[:, 0]

    def local_search(self, slates: np.ndarray) -> np.ndarray:
        """Improves slates (B, M) until no swap of two positions and no replacement of one item raises the utility."""
        current = slates.copy()
        open_rows = np.arange(len(current))  # requests whose slate may still be improved
        while len(open_rows):
            start = torch.from_numpy(current[open_rows])[:, None]
            every = torch.ones(len(start), self.requests.appeal.shape[1], dtype=torch.bool)
            steps = torch.cat([start, neighbour_slates(start, every)[0][:, 0]], dim=1).numpy()  # the first is no step
            utilities = self._replace(requests=self.requests.select(open_rows)).expected_utility(steps)
            better = utilities.max(1) > utilities[:, 0] * (1 + _ROUNDING)
            open_rows = open_rows[better]
            current[open_rows] = steps[better, utilities[better].argmax(1)]
        return current

    def best(self, slate_size: int) -> np.ndarray:
        """The best slates (B, M): of all where they can be listed, else what beam and local search find."""
        num_candidates = self.requests.appeal.shape[1]
        if math.perm(num_candidates, slate_size) <= _MAX_LISTED:
            return all_slates(num_candidates, slate_size)[self.all_utilities(slate_size).argmax(1)]
        return self.local_search(self.beam(slate_size, _BEST_BEAMS))
