"""Result files: one definition of each, by which it is written and read."""

from retune.records.base import Number as Number
from retune.records.base import Record
from retune.records.results import (
    Certified,
    CertifiedImage,
    Claim,
    Curve,
    MethodResult,
    Pictures,
    ProblemResult,
    Results,
    Training,
    Verdict,
)
from retune.records.results import (
    Methods as Methods,
)

__all__ = [
    "Certified",
    "CertifiedImage",
    "Claim",
    "Curve",
    "MethodResult",
    "Pictures",
    "ProblemResult",
    "Record",
    "Results",
    "Training",
    "Verdict",
]
