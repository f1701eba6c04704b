"""Evaluation of trained models: protocol, results, report."""

from __future__ import annotations

from rerankzoo.evaluation.evaluators import evaluator_quality
from rerankzoo.evaluation.judges import EvaluatorJudge, Judge, Judges, SimulatorJudge
from rerankzoo.evaluation.protocol import (
    PENALTY_ALPHAS,
    Decoding,
    default_decodings,
    evaluate,
    tune_penalty_alpha,
)
from rerankzoo.evaluation.report import Point, print_table, write_curve, write_report
from rerankzoo.evaluation.results import Comparison, Evaluation, Row, Summary, aggregate, compare, differences

__all__ = [
    "PENALTY_ALPHAS",
    "Comparison",
    "Decoding",
    "Evaluation",
    "EvaluatorJudge",
    "Judge",
    "Judges",
    "Point",
    "Row",
    "SimulatorJudge",
    "Summary",
    "aggregate",
    "compare",
    "default_decodings",
    "differences",
    "evaluate",
    "evaluator_quality",
    "print_table",
    "tune_penalty_alpha",
    "write_curve",
    "write_report",
]
