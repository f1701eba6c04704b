"""Training with Lightning: one module for every model, optimiser, callbacks."""

from __future__ import annotations

from rerankzoo.training.averaging import WarmWeightAveraging
from rerankzoo.training.callbacks import HubCheckpoint, PretrainedExport
from rerankzoo.training.evaluator_gradient import EvaluatorGradient
from rerankzoo.training.log_size import EpochsByLog
from rerankzoo.training.module import RerankingModule
from rerankzoo.training.neighbour_reward import BestNeighbour, NeighbourReward
from rerankzoo.training.objectives import (
    Companion,
    Objective,
    ObjectiveOutput,
    PropensityWeighted,
    Supervised,
)
from rerankzoo.training.off_policy import OffPolicyReinforce
from rerankzoo.training.predictions import SlateWriter
from rerankzoo.training.resuming import ExactResume, WholeCheckpointIO
from rerankzoo.training.sequence_distillation import SequenceDistillation
from rerankzoo.training.slate_objectives import (
    Comprehensive,
    EvaluatorReward,
    FlowBalance,
    GroupRelative,
    Preference,
)

__all__ = [
    "BestNeighbour",
    "Companion",
    "Comprehensive",
    "EpochsByLog",
    "EvaluatorGradient",
    "EvaluatorReward",
    "ExactResume",
    "FlowBalance",
    "GroupRelative",
    "HubCheckpoint",
    "NeighbourReward",
    "Objective",
    "ObjectiveOutput",
    "OffPolicyReinforce",
    "Preference",
    "PretrainedExport",
    "PropensityWeighted",
    "RerankingModule",
    "SequenceDistillation",
    "SlateWriter",
    "Supervised",
    "WarmWeightAveraging",
    "WholeCheckpointIO",
]
