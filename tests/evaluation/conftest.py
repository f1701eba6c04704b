from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.folder import read_metadata
from rerankzoo.data.simulator import Simulator, SimulatorSettings, write_simulator_folder
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from rerankzoo.generation import RerankingGenerationConfig
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from rerankzoo.slates import all_slates

NUM_REQUESTS = 60


class ScriptedModel:
    """Returns prepared slates (R, M), batch by batch; stands in for a model under a single decoding."""

    device = torch.device("cpu")
    generation_config_class = RerankingGenerationConfig
    strategies = ("greedy",)

    def __init__(self, slates: Tensor) -> None:
        self.slates = slates
        self.config = SimpleNamespace(slate_size=slates.shape[1])
        self.generation_config = SimpleNamespace(slate_size=None)
        self._place = 0

    def generate(self, evaluator: Any = None, num_beams: int = 1, **batch: Tensor) -> Tensor:
        assert num_beams == 1
        start, self._place = self._place, self._place + len(batch["candidate_mask"])
        return self.slates[start : self._place]


class LastFirst:
    """An evaluator by which the best slate is the last candidates, last one first; no two slates tie."""

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        weights = 0.1 ** torch.arange(slates.shape[-1], dtype=torch.float64)
        return ((slates + 1).clamp(min=0) * weights).sum(-1)


@dataclass(frozen=True)
class Simulated:
    folder: Path
    data: Dataset
    metadata: dict[str, Any]
    extractor: RerankingFeatureExtractor
    simulator: Simulator
    users: np.ndarray
    items: np.ndarray

    def utility(self, slates: np.ndarray) -> np.ndarray:
        """Share of the optimum (R,) of slates (R, M), straight from the simulator."""
        best = self.simulator.all_utilities(self.users, self.items, slates.shape[1]).max(1)
        return self.simulator.expected_utility(self.users, self.items, slates[:, None])[:, 0] / best

    def model(self, seed: int = 0) -> NAR4RecForReranking:
        torch.manual_seed(seed)
        return NAR4RecForReranking(self._config()).eval()

    def evaluator(self, seed: int = 0) -> NAR4RecEvaluator:
        torch.manual_seed(seed)
        return NAR4RecEvaluator(self._config()).eval()

    def _config(self) -> NAR4RecConfig:
        schema = self.extractor.schema.to_dict()
        return NAR4RecConfig(
            feature_schema=schema, slate_size=3, hidden_size=16, embedding_size=4, intermediate_size=16
        )


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """60 test requests of 6 candidates: 120 slates of 3 each."""
    folder = tmp_path_factory.mktemp("simulated")
    settings = SimulatorSettings(num_users=50, num_items=60, retrieval_pool=20, num_candidates=6, slate_size=3)
    write_simulator_folder(folder, settings, num_train=200, num_validation=50, num_test=NUM_REQUESTS)
    splits = open_splits(folder)
    extractor = RerankingFeatureExtractor(FeatureSchema.from_yaml(folder / "schema.yaml")).fit(splits["train"])
    rows = splits["test"][:]
    users, items = np.array(rows["user_id"]), np.array(rows["item_id"])
    return Simulated(folder, splits["test"], read_metadata(folder), extractor, Simulator(settings), users, items)


@dataclass(frozen=True)
class Labelled:
    data: Dataset
    extractor: RerankingFeatureExtractor


@pytest.fixture(scope="session")
def labelled() -> Labelled:
    """Four requests with labels of all candidates; only the first two have a positive and a negative one."""
    rows = [
        {"item_id": ["a", "b", "c", "d"], "score": [0.1, 0.4, 0.3, 0.2], "label": [1.0, 0.0, 1.0, 0.0]},
        {"item_id": ["b", "e"], "score": [0.1, 0.9], "label": [1.0, 0.0]},
        {"item_id": ["a", "b", "c"], "score": [3.0, 2.0, 1.0], "label": [0.0, 0.0, 0.0]},
        {"item_id": ["a", "b", "c"], "score": [3.0, 2.0, 1.0], "label": [1.0, 1.0, 1.0]},
    ]
    schema = FeatureSchema(
        name="labelled",
        item_id="item_id",
        fields=(
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="score", group="candidate", kind="numeric", transforms=("standardize",)),
        ),
        targets=(TargetSpec(name="relevant", candidate_feedback="label"),),
        upstream_score="score",
    )
    data = Dataset.from_list(rows)
    return Labelled(data, RerankingFeatureExtractor(schema).fit(data))


@pytest.fixture
def best_slates(simulated: Simulated) -> Tensor:
    """The truly best slate (R, 3) of every simulated request."""
    utilities = simulated.simulator.all_utilities(simulated.users, simulated.items, 3)
    return torch.tensor(all_slates(6, 3)[utilities.argmax(1)])


@pytest.fixture(scope="session")
def scripted() -> type[ScriptedModel]:
    return ScriptedModel


@pytest.fixture(scope="session")
def last_first() -> LastFirst:
    return LastFirst()
