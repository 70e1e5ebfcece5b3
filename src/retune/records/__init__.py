"""Result files: one definition of each, by which it is written and read."""

from retune.records.base import Number, Record
from retune.records.results import (
    Certified,
    CertifiedImage,
    Claim,
    Curve,
    MethodResult,
    Methods,
    Pictures,
    ProblemResult,
    Results,
    Training,
    Verdict,
)

__all__ = [
    "Certified",
    "CertifiedImage",
    "Claim",
    "Curve",
    "MethodResult",
    "Methods",
    "Number",
    "Pictures",
    "ProblemResult",
    "Record",
    "Results",
    "Training",
    "Verdict",
]
