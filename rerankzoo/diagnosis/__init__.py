"""What a log can support, before and after training: evaluators of several forms, their judges, and a verdict."""

from __future__ import annotations

from rerankzoo.diagnosis.crossfit import CrossFittedJudge, Judge, Prediction
from rerankzoo.diagnosis.diagnosis import Diagnosis, Proposal, cross_fitted_judge, diagnose
from rerankzoo.diagnosis.log import Log
from rerankzoo.diagnosis.page import write_page
from rerankzoo.diagnosis.verdict import Figures, Verdict, decide

__all__ = [
    "CrossFittedJudge",
    "Diagnosis",
    "Figures",
    "Judge",
    "Log",
    "Prediction",
    "Proposal",
    "Verdict",
    "cross_fitted_judge",
    "decide",
    "diagnose",
    "write_page",
]
