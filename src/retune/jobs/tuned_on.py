"""The measurements of a tuning: which files can be used, and their common problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from retune.build import problem_of
from retune.config import Config
from retune.data import require_one_kind
from retune.errors import InvalidParameterError
from retune.io.intensity import Level
from retune.jobs.failures import failure
from retune.jobs.inputs import read_in_unit, read_measured
from retune.problems.base import Problem
from retune.problems.counts import PoissonGaussian

__all__ = ["Usable", "common_levels", "usable_of", "with_noise"]


@dataclass(frozen=True)
class Usable:
    """The usable measurements, their problem, and the files that were left out."""

    files: list[Path]
    named: list[tuple[str, Tensor]]
    problem: Problem
    left_out: dict[str, str]


def usable_of(config: Config, files: Sequence[Path], white: float | None, black: float | None) -> Usable:
    """Read every file, and leave out those that cannot be used.

    Raises:
        RetuneError: no file can be used, or the files have different numbers of channels.
    """
    used: list[Path] = []
    named: list[tuple[str, Tensor]] = []
    problems: list[Problem] = []
    failures: dict[str, Exception] = {}
    for file in files:
        try:
            found = read_measured(file, config.problem, white, black=black)
            bound = [problem_of(config.problem, y) for _, y in found]
            for one, (_, y) in zip(bound, found, strict=True):
                one.operator(y)  # files that do not fit are named before the tuning
        except Exception as error:
            failures[str(file)] = error
            continue
        used.append(file)
        named.extend(found)
        problems.extend(bound)
    if not named:
        if len(failures) == 1:
            raise next(iter(failures.values()))
        listed = "".join(f"\n  {failure(error)}" for error in failures.values())
        raise InvalidParameterError("there are no images to tune on" + (f":{listed}" if listed else ""))
    require_one_kind([(name, y[0]) for name, y in named])
    left_out = {name: failure(error) for name, error in failures.items()}
    return Usable(used, named, _problem(config, problems), left_out)


def common_levels(
    config: Config, files: Sequence[Path], white: Level, black: Level
) -> tuple[float | None, float | None]:
    """Black and white of all files together, as numbers: of those that are found, the darkest and the brightest."""
    if not isinstance(white, str) and not isinstance(black, str):
        return black, white
    units, failures = [], []
    for file in files:
        try:
            units.append(read_in_unit(file, config.problem, white, black)[1])
        except Exception as error:  # when this file is read again, it is left out for the same reason
            failures.append(error)
    if not units:
        raise failures[0] if failures else InvalidParameterError("there are no images to tune on")
    dark, bright = min(u.levels[0] for u in units), max(u.levels[1] for u in units)
    return (dark if isinstance(black, str) else black), (bright if isinstance(white, str) else white)


def _problem(config: Config, problems: Sequence[Problem]) -> Problem:
    """The problem of all images, with the mean of their estimated noise levels if no level is given."""
    if config.problem.sigma != "estimate" or config.problem.noise is not None:
        return problems[0]
    counts = [p.noise for p in problems if p.noise is not None]
    if 2 * len(counts) > len(problems):  # in most of them the noise grows with the brightness
        gain, read = (np.mean([np.atleast_1d(getattr(c, k)) for c in counts], axis=0) for k in ("gain", "read"))
        known = PoissonGaussian(tuple(gain.tolist()), tuple(read.tolist()))
        return problem_of(config.problem.model_copy(update={"noise": str(known)}))
    levels = np.mean([np.atleast_1d(p.sigma) for p in problems], axis=0).tolist()
    return problem_of(config.problem.model_copy(update={"sigma": levels if len(levels) > 1 else levels[0]}))


def with_noise(config: Config, problem: Problem) -> Config:
    """The run with noise that grows with the brightness, if that was found: the data term depends on it."""
    if problem.noise is None or config.problem.noise is not None:
        return config
    return config.model_copy(update={"problem": config.problem.model_copy(update={"noise": str(problem.noise)})})
