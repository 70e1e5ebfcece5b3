"""The estimated error that a tuning minimises, and the one by which candidates are judged."""

from __future__ import annotations

from deepinv.loss import Loss

from retune.config import Config
from retune.errors import InvalidParameterError
from retune.problems.base import Problem
from retune.training.thinned import Thinned
from retune.training.unsupervised import ErrorEstimate, Estimate, Sure, SureEquivariant, SureSplit, recorrupted

__all__ = ["criteria_of", "judge_of"]


def criteria_of(config: Config, problem: Problem, loss: str) -> tuple[ErrorEstimate, Loss, Estimate]:
    """The estimate of the error, the loss of the tuning, and its name."""
    if problem.has_gaps:
        if loss in ("r2r", "ei"):
            raise InvalidParameterError(
                f"--loss {loss} does not work with missing pixels: the default loss sees more of the error; leave "
                "--loss at auto"
            )
        split = SureSplit(problem.sigma)
        return split, split, Estimate.SPLIT
    # A blurred measurement does not show the details that the blur has destroyed, so its own error would choose a weak
    # prior. The strength of an energy is chosen by restoring the restored image again, too.
    blurred = config.prior.type == "energy" and not problem.only_noise
    if loss == "ei" or (loss == "auto" and (problem.subsamples or not problem.has_parts or blurred)):
        again = SureEquivariant(problem.sigma, problem.noise)
        return again, again, Estimate.EQUIVARIANT
    sure = Sure(problem.sigma, problem.noise)
    if problem.noise is not None and loss == "r2r":
        raise InvalidParameterError("--loss r2r is for noise of one level: use --loss sure for counts")
    if problem.noise is not None:
        return sure, sure, Estimate.STEIN
    if loss == "r2r" or (loss == "auto" and config.problem.sigma == "estimate"):
        return sure, recorrupted(problem.sigma), Estimate.RECORRUPTED
    return sure, sure, Estimate.STEIN


def judge_of(problem: Problem, estimate: ErrorEstimate) -> ErrorEstimate:
    """The estimate by which candidates are judged: that of the training, if it sees more of the error than others."""
    if problem.has_gaps or problem.subsamples or not problem.has_parts:
        return estimate
    return Sure(problem.sigma) if problem.noise is None else Thinned(problem.noise)
