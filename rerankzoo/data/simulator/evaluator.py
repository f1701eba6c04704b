"""The truth of a simulated world in an evaluator's place: a teacher that makes no errors.

If a method fails with it, the method or the code is wrong; if it fails with a learned evaluator only, it exploits that
evaluator's errors.

B requests, N candidates, M positions, S slates, L width of the vectors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rerankzoo.data.simulator.user_models import Page, Requests
from rerankzoo.data.simulator.world import Simulator
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.models.base import EvaluatorOutput

_USER, _ITEM = "user_embedding", "item_embedding"


class SimulatorEvaluator(nn.Module):
    """The exact expected utility of slates, by what a batch shows of its users and items.

    Args:
        simulator: The world.
        schema: Of the batches: the world's, fitted.
    """

    world: Tensor

    def __init__(self, simulator: Simulator, schema: FeatureSchema) -> None:
        super().__init__()
        self.simulator = simulator
        self.schema = schema
        size, user, item = simulator.settings.latent_size, schema.position(_USER), schema.position(_ITEM)
        self._columns = {_USER: slice(user, user + size), _ITEM: slice(item, item + size)}
        self._users, self._items = _Rows(simulator.observed_users, _USER), _Rows(simulator.observed_items, _ITEM)
        settings = json.dumps(simulator.settings.to_dict(), sort_keys=True).encode()
        self.register_buffer("world", torch.tensor(list(settings), dtype=torch.uint8))  # that its digest tells

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], schema: FeatureSchema) -> SimulatorEvaluator:
        """Of the world that a data folder's `dataset.json` describes; errors are those of `Simulator.from_metadata`."""
        return cls(Simulator.from_metadata(metadata), schema)

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        """Exact expected utility (B, S) of slates (B, S, M); -100 pads.

        Raises:
            RerankingDataError: If a user or an item is none of this world.
        """
        users, items = self._ids(batch)
        shown = slates.cpu().numpy()
        lengths = (shown >= 0).sum(-1)
        utilities = np.zeros(lengths.shape)
        for length in set(lengths.flat) - {0}:
            chosen = lengths == length
            columns = chosen.any(0)
            some = np.where(chosen[:, columns, None], shown[:, columns, :length], np.arange(length))
            found = self.simulator.expected_utility(users, items, some)
            utilities[chosen] = found[chosen[:, columns]]
        return torch.tensor(utilities, dtype=torch.float32, device=slates.device)

    def score_choices(self, choices: Tensor, /, **batch: Tensor) -> EvaluatorOutput:
        """Values soft slates (B, S, M, N), with gradients; see `rerankzoo.models.base.SlateEvaluator.score_choices`.

        Appeal, similarity and complements are expectations over the choices. Users who serve needs by category see no
        category in a mixture.
        """
        audience = self.simulator.audience(*self._ids(batch))
        requests = Requests(*(torch.as_tensor(table).to(choices) for table in audience.requests))
        page, clicks = Page(requests, choices), audience.user.expected_clicks(requests, choices)
        utilities = torch.stack([click * page.at(requests.value, place) for place, click in enumerate(clicks)])
        return EvaluatorOutput(utilities=utilities.sum(0), probabilities=torch.stack(clicks, dim=-1).unsqueeze(-1))

    def _ids(self, batch: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """The users (B,) and items (B, N) of a batch, 0 where there is no candidate."""
        users, real = self._users.find(batch["request_numeric"][:, self._columns[_USER]]), batch["candidate_mask"]
        items = np.zeros(real.shape, dtype=np.int64)
        items[real.cpu().numpy()] = self._items.find(batch["candidate_numeric"][real][:, self._columns[_ITEM]])
        return users, items


class _Rows:
    """Finds rows of a table (K, L) again, by a number that hardly two of them share."""

    def __init__(self, table: np.ndarray, field: str) -> None:
        self.table, self.field = table.astype(np.float32), field
        self.direction = np.random.default_rng(0).normal(size=table.shape[1])
        keys = self.table @ self.direction
        self.order = np.argsort(keys)
        self.keys = keys[self.order]

    def find(self, rows: Tensor) -> np.ndarray:
        """The numbers (R,) of rows (R, L)."""
        wanted = rows.detach().float().cpu().numpy()
        keys = wanted @ self.direction
        above = np.searchsorted(self.keys, keys).clip(1, len(self.keys) - 1)
        nearest = above - (keys - self.keys[above - 1] < self.keys[above] - keys)
        found = self.order[nearest]
        if len(wrong := np.flatnonzero((self.table[found] != wanted).any(-1))):
            message = f"expected vectors of the simulated world, got {wanted[wrong[0]].tolist()}"
            raise RerankingDataError(message, field=self.field)
        return found
