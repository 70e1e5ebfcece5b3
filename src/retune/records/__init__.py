"""Result files. One class defines each file, and writes and reads it."""

from retune.records.base import Number as Number
from retune.records.base import Record
from retune.records.certificates import (
    Certificates,
    Certified,
    CertifiedFile,
    CertifiedImage,
    Claim,
    TrainingCertificate,
)
from retune.records.examinations import Examinations, ExaminedFile, FindingRecord, Findings
from retune.records.pictured import Pictured, PicturedImage, PicturedResidual
from retune.records.progress import ImageScores, Progress, Searched, Trained
from retune.records.restored import RestoredImage
from retune.records.results import (
    Curve,
    MethodResult,
    Pictures,
    ProblemResult,
    Results,
    Scores,
    Training,
    Verdict,
)
from retune.records.results import (
    Methods as Methods,
)
from retune.records.runs import CheckpointFacts, Competitor, EstimatedGain, RunFacts, TuneFacts, TuneResult
from retune.records.studies import Raced, StepCost, Study, StudyCell, StudyDepth, StudyImage

__all__ = [
    "Certificates",
    "Certified",
    "CertifiedFile",
    "CertifiedImage",
    "CheckpointFacts",
    "Claim",
    "Competitor",
    "Curve",
    "EstimatedGain",
    "Examinations",
    "ExaminedFile",
    "FindingRecord",
    "Findings",
    "ImageScores",
    "MethodResult",
    "Pictured",
    "PicturedImage",
    "PicturedResidual",
    "Pictures",
    "ProblemResult",
    "Progress",
    "Raced",
    "Record",
    "RestoredImage",
    "Results",
    "RunFacts",
    "Scores",
    "Searched",
    "StepCost",
    "Study",
    "StudyCell",
    "StudyDepth",
    "StudyImage",
    "Trained",
    "Training",
    "TrainingCertificate",
    "TuneFacts",
    "TuneResult",
    "Verdict",
]
