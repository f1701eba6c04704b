"""Simulated worlds whose truth is known: the exact expected utility of any slate, and logs of a policy.

A world is users, items, a retrieval stage, an upstream ranker and a logging policy (`Simulator`), and a user model: how
users read a page (`UserModel`). Named worlds are `SETTINGS`; docs/simulator.md tells what each is for.
"""

from __future__ import annotations

from rerankzoo.data.simulator.audience import Audience
from rerankzoo.data.simulator.settings import SETTINGS, SimulatorSettings
from rerankzoo.data.simulator.user_models import (
    USER_MODELS,
    CascadeUser,
    ChoiceUser,
    ContrastUser,
    DecoyUser,
    NeedsUser,
    Page,
    Requests,
    SatiationUser,
    UserModel,
    constant,
    register_user_model,
    sigmoid,
)
from rerankzoo.data.simulator.world import BLOCK_SIZE, TRUTH_COLUMNS, Simulator, write_simulator_folder

__all__ = [
    "BLOCK_SIZE",
    "SETTINGS",
    "TRUTH_COLUMNS",
    "USER_MODELS",
    "Audience",
    "CascadeUser",
    "ChoiceUser",
    "ContrastUser",
    "DecoyUser",
    "NeedsUser",
    "Page",
    "Requests",
    "SatiationUser",
    "Simulator",
    "SimulatorSettings",
    "UserModel",
    "constant",
    "register_user_model",
    "sigmoid",
    "write_simulator_folder",
]
