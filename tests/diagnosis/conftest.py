from __future__ import annotations

from pathlib import Path

import pytest

from rerankzoo.data.simulator import SimulatorSettings, write_simulator_folder
from rerankzoo.diagnosis import Log

SMALL = {"num_users": 30, "num_items": 40, "retrieval_pool": 15, "num_candidates": 5, "slate_size": 3}


@pytest.fixture(autouse=True)
def _small_logs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs of these tests have too little feedback for a diagnosis."""
    monkeypatch.setattr("rerankzoo.diagnosis.diagnosis.MIN_POSITIVES", 40)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 160 simulated requests, slates of 3 of 5 candidates."""
    path = tmp_path_factory.mktemp("log")
    write_simulator_folder(path, SimulatorSettings(**SMALL), num_train=160, num_validation=40, num_test=20)
    return path


@pytest.fixture(scope="session")
def log(folder: Path) -> Log:
    return Log.read(folder)
