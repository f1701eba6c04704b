"""Evaluation of trained models: protocol, results, report."""

from __future__ import annotations

from rerankzoo.evaluation.evaluator_quality import QUALITY_REQUESTS, evaluator_quality
from rerankzoo.evaluation.evidence import MIN_OBSERVED, MIN_POSITIVES, count_positives
from rerankzoo.evaluation.plots import Point, write_curve
from rerankzoo.evaluation.policies import Decoding, default_decodings
from rerankzoo.evaluation.protocol import PENALTY_ALPHAS, evaluate, tune_penalty_alpha
from rerankzoo.evaluation.report import print_table, write_report
from rerankzoo.evaluation.results import Comparison, Evaluation, Row, Summary, aggregate, compare, differences
from rerankzoo.evaluation.slate_ranks import EvaluatorRanks, Evaluators, SimulatorTruth, SlateRanks
from rerankzoo.evaluation.worlds import write_worlds
from rerankzoo.evaluation.yardsticks import LambdaMART

__all__ = [
    "MIN_OBSERVED",
    "MIN_POSITIVES",
    "PENALTY_ALPHAS",
    "QUALITY_REQUESTS",
    "Comparison",
    "Decoding",
    "Evaluation",
    "EvaluatorRanks",
    "Evaluators",
    "LambdaMART",
    "Point",
    "Row",
    "SimulatorTruth",
    "SlateRanks",
    "Summary",
    "aggregate",
    "compare",
    "count_positives",
    "default_decodings",
    "differences",
    "evaluate",
    "evaluator_quality",
    "print_table",
    "tune_penalty_alpha",
    "write_curve",
    "write_report",
    "write_worlds",
]
