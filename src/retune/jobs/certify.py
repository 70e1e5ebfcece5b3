"""Certify the restorations of a user's images: the distance of each to its equilibrium, and whether it is proved."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from retune._version import __version__
from retune.build import problem_of
from retune.certificate import Certificate, certify
from retune.diagnosis.psf import kernel_doubts
from retune.errors import DoubtfulWarning, InvalidParameterError
from retune.io.intensity import Level, Unit, require_white
from retune.jobs.failures import failure
from retune.jobs.inputs import known_noise, middle, read_in_unit
from retune.jobs.opened import OpenedModel
from retune.jobs.restored_file import WHOLE
from retune.records import Certificates, CertifiedFile

__all__ = ["AUTO_SIDE", "Certified", "certify_files", "record"]

#: Images that are too large to differentiate at once are cropped to their middle of this side.
AUTO_SIDE = 1024


@dataclass(frozen=True)
class Certified:
    """The certificate of one image, or the reason for its absence.

    Attributes:
        name: name of the file, with the number of the image if the file is a stack.
        certificate: certificate of the restoration; None after a failure.
        failure: the reason, if there is no certificate.
        part: (h, w) of the certified middle, or None for the whole image.
        seconds: time for the restoration and the certificate.
        file: name of the file; the images of a stack have it in common.
        unit: black and white, if they were found in the file.
    """

    name: str
    certificate: Certificate | None
    failure: str = ""
    part: tuple[int, int] | None = None
    seconds: float = 0.0
    file: str = ""
    unit: Unit | None = None

    @property
    def sound(self) -> bool:
        """Whether the restoration succeeded and has a certificate."""
        return self.certificate is not None and not any(i.status.failed for i in self.certificate)

    def record(self) -> CertifiedFile:
        """The entry in a result file."""
        told = {"name": self.name, "part": self.part, "seconds": round(self.seconds, 3)}
        if self.unit is not None:
            told |= dict(zip(("black_found", "white_found"), self.unit.levels, strict=True))
        if self.certificate is None:
            return CertifiedFile.model_validate(told | {"failure": self.failure})
        return CertifiedFile.model_validate(told | {"certificate": self.certificate.to_dict()})


def certify_files(
    model: OpenedModel,
    files: Sequence[Path],
    *,
    white: Level = None,
    black: Level = None,
    white_remembered: bool = False,
    side: int | None = None,
    note: Callable[[Certified], None] = lambda done: None,
) -> list[Certified]:
    """Certify every image. A failure of one image does not stop the others.

    Args:
        model: the network, with its problem; see ``retune.jobs.opened.open_model``.
        files: images.
        white: intensity (in the units of the files) that counts as 1; "auto" finds it in each file.
        black: intensity that counts as 0.
        white_remembered: whether `white` comes from the network, and was not given for these files.
        side: certify at most this many pixels per side, in the middle. 0 always takes the whole image. None crops
            images above 4 megapixels to ``AUTO_SIDE``.
        note: called with each result.

    Raises:
        InvalidParameterError: an option out of range.

    Warns:
        DoubtfulWarning: a kernel with a background or off its centre, …; one warning for all files.
    """
    if side is not None and side < 0:
        raise InvalidParameterError(f"crop must be a number of pixels, or 0 for the whole image, got {side}")
    require_white(white, black)
    for doubt in kernel_doubts(problem_of(known_noise(model.problem))):
        warnings.warn(doubt, DoubtfulWarning, stacklevel=2)
    done: list[Certified] = []
    for file in files:
        try:
            measured, unit = read_in_unit(file, model.problem, white, black, remembered=white_remembered)
        except Exception as error:
            done.append(Certified(file.name, None, failure(error), file=file.name))
            note(done[-1])
            continue
        for name, y in measured:
            one = _certify_one(model, name, y.to(model.device), side)
            done.append(replace(one, file=file.name, unit=unit if unit.auto else None))
            note(done[-1])
    return done


def _certify_one(model: OpenedModel, name: str, y: Tensor, side: int | None) -> Certified:
    start, part = time.perf_counter(), None
    try:
        problem = problem_of(model.problem, y)
        if side is None:
            side = AUTO_SIDE if y.shape[-1] * y.shape[-2] > WHOLE else 0
        if side:
            problem, y = middle(problem, y, side)
            part = (y.shape[-2], y.shape[-1])
        if model.borderless:  # as restore does
            problem = problem.borderless()
        certificate = certify(model.net, y, problem.operator(y))
    except Exception as error:
        return Certified(name, None, failure(error), part, time.perf_counter() - start)
    return Certified(name, certificate, "", part, time.perf_counter() - start)


def record(model: OpenedModel, certified: Sequence[Certified]) -> Certificates:
    """The record of all images, with the network and the problem."""
    return Certificates(
        format=1,
        retune=__version__,
        model_sha256=model.digest,
        problem=json.loads(model.problem.model_dump_json()),
        images=[c.record() for c in certified],
    )
