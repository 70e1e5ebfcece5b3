"""Restore the images of one file, and write the result, its record and its section of the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retune import io
from retune._torch.allocator import return_freed_memory
from retune._torch.threads import suited_threads
from retune._version import __version__
from retune.bound import Moment
from retune.build import problem_of
from retune.certificate.parts import worst_part
from retune.certificate.quick import in_a_line
from retune.diagnosis.correlation import correlation
from retune.errors import DivergedError, InvalidParameterError
from retune.io.files import require_file
from retune.io.intensity import Level, Unit, require_white
from retune.jobs.failures import failure
from retune.jobs.folder import problem_files
from retune.jobs.inputs import known_noise, unit_of, without_gaps
from retune.jobs.instant import InstantModel
from retune.jobs.opened import OpenedModel
from retune.jobs.pictures import section_of
from retune.jobs.results import FORMAT, Result, digest_of
from retune.jobs.sections import Seen, restored_section
from retune.jobs.tiles import Outcome, restore_image
from retune.model import Restarted
from retune.problems.base import Problem
from retune.records import CertifiedImage, Pictured, RestoredImage

__all__ = ["WHOLE", "FileJob", "Options", "Row"]

#: Larger images (in pixels) are restored in tiles by default.
WHOLE = 4_000_000
AUTO_TILE = 1024


@dataclass(frozen=True)
class Options:
    """How to restore.

    Attributes:
        out: folder of the results.
        tile: side of the tiles; 0 restores every image at once, None tiles those above 4 megapixels.
        overlap: margin around a tile.
        white: intensity (in the units of the file) that counts as 1; by default the largest of an integer type, and 1
            for floats. "auto" finds it in each file.
        black: intensity that counts as 0, and is subtracted; the result has it again.
        white_remembered: whether `white` comes from the network, and was not given for these files.
        again: restore finished images again.
        certificate: certify every image, which takes about an eighth of the layers of its restoration.
        report: keep a section of the page ``report.html`` for every image.
    """

    out: Path
    tile: int | None = None
    overlap: int = 96
    white: Level = None
    white_remembered: bool = False
    again: bool = False
    certificate: bool = True
    report: bool = True
    black: Level = None


@dataclass(frozen=True)
class Row:
    """The outcome for one file: "restored", "done before" or "failed".

    Attributes:
        file: the file.
        result: one of these three words.
        detail: status and certificate, or the reason of the failure, in one line.
        seconds: time that the file took.
        residual: the judgement of the residual; see ``retune.diagnosis.residual``.
        unpictured: why the page has no section for it, if one was wanted.
        short: the detail without the words for experts.
    """

    file: Path
    result: str
    detail: str = ""
    seconds: float = 0.0
    residual: str = ""
    unpictured: str = ""
    short: str = ""


class FileJob:
    """A network, ready to restore files one after the other.

    Args:
        model: the network.
        options: how.
        detailed: names of the files that have all their pictures on the page.
        watch: called at the checks of each solve.
    """

    def __init__(
        self,
        model: OpenedModel | InstantModel,
        options: Options,
        detailed: frozenset[str] = frozenset(),
        watch: Callable[[Moment], None] | None = None,
    ):
        self.model, self.options, self.detailed, self.watch = model, options, detailed, watch
        #: noise of the last file, if the problem did not state it
        self.found: str | None = None
        #: whether the noise of the last file is alike in neighbouring pixels
        self.correlated = False
        #: the unit of the last file
        self.unit = Unit()
        if options.tile is not None and options.tile < 0:
            raise InvalidParameterError(f"tile must be at least 1, or 0 to restore at once, got {options.tile}")
        if options.overlap < 1:
            raise InvalidParameterError(f"overlap must be at least 1, got {options.overlap}")
        require_white(options.white, options.black)
        # The network was trained for one noise level. Do not estimate that of this image: it may have no noise.
        self.problem = problem_of(known_noise(model.problem))  # if wrong, then for all files
        self.problem_files = problem_files(model.problem)

    def run(self, file: Path) -> Row:
        """Restore one file. Any failure is described in the row."""
        start = time.perf_counter()
        try:
            facts = self._facts(file)
            result = Result(self.options.out, file.name)
            if not self.options.again and result.is_of(facts, self.options.certificate):
                residual, why = self._picture(
                    file, result.before or facts, result.content, lambda: self._again(file, result)
                )
                return Row(file, "done before", residual=residual, unpictured=why)
            result.require_unchanged()
            outcome, seen = self._restore(file, result)
            seconds = time.perf_counter() - start
            found = {"noise": self.found, "result_sha256": digest_of(result.image)}
            if self.unit.auto:
                found |= dict(zip(("black_found", "white_found"), self.unit.levels, strict=True))
            told = _told(facts, outcome, seconds).model_copy(update=found)
            # Before the record, which says that the file is done.
            residual, why = self._picture(file, told, told.content(), lambda: seen)
            result.record(told)
            detail = f"{outcome.status.value}, residual {outcome.residual:.1e}"
            short = outcome.status.value
            if self.correlated:
                detail, short = (f"{words}, noise not white (JPEG, interpolation?)" for words in (detail, short))
            if self.unit.auto:
                detail, short = (f"{words}, {self.unit}" for words in (detail, short))
            if told.certificate is not None:
                detail += f", {in_a_line(told.certificate)}"
                short += f", {in_a_line(told.certificate)}"
            return Row(file, "restored", detail, seconds, residual, why, short)
        except Exception as error:
            return Row(file, "failed", failure(error), time.perf_counter() - start)

    def _facts(self, file: Path) -> RestoredImage:
        options = self.options
        require_file(file)
        return RestoredImage(
            format=FORMAT,
            retune=__version__,
            file=file.name,
            image_sha256=digest_of(file),
            model_sha256=self.model.digest,
            # Files are identified by content, not by path: the folder of the network may have been moved.
            problem=json.loads(self.model.problem.model_dump_json(exclude=set(self.problem_files))),
            problem_files=self.problem_files,
            tile=options.tile,
            overlap=options.overlap,
            white=options.white,
            black=options.black,
        )

    def _picture(self, file: Path, told: RestoredImage, content: bytes, seen: Callable[[], Seen]) -> tuple[str, str]:
        """Write the section of a file. Returns the kind of its residual, and the reason if there is no section."""
        if not self.options.report:
            return "", ""

        def make(made: str) -> Pictured:
            remembered = self.options.white_remembered
            shown = seen()
            model, problem = shown.fitted or self.model.fitted(self.problem, shown.y)
            return restored_section(model, problem, told, made, shown, file.name in self.detailed, remembered)

        section, why = section_of(self.options.out, file.name, content, make)
        shown = next((i.residual for i in section.images if i.residual), None) if section else None
        return ("" if shown is None else shown.kind), why

    def _again(self, file: Path, result: Result) -> Seen:
        """The first image of a file that was restored before, and its result, read again."""
        images, layout = io.read(file, any_integers=True, finite=False)
        unit = self._unit(file, images, layout)
        y = without_gaps(self.problem, unit.scaled(images[:1]).to(torch.get_default_dtype()), str(file))
        restored = unit.scaled(io.read(result.image, any_integers=True)[0][:1])
        return Seen(y, restored, unit, layout, len(images), read_again=True)

    def _unit(self, file: Path, images: Tensor, layout: io.Layout) -> Unit:
        options = self.options
        return unit_of(file, images, layout, self.model.problem, options.white, options.black, options.white_remembered)

    def _restore(self, file: Path, result: Result) -> tuple[Outcome, Seen]:
        options = self.options
        images, layout = io.read(file, any_integers=True, finite=False)
        self.unit = unit = self._unit(file, images, layout)
        restored, worst, first, fitted, found = [], None, None, None, []
        for image in unit.scaled(images).to(torch.get_default_dtype()):
            y = without_gaps(self.problem, image[None], str(file)).to(self.model.device)
            model, problem = self.model.fitted(self.problem, y)
            if problem is not self.problem:
                found.append(problem.noise_words)
            if model.borderless:
                problem = problem.borderless()
            with suited_threads(y.numel()):
                restored_one, outcome = _restore_one(model.net, problem, options, y, self.watch)
            worst = outcome if worst is None else worst.worse(outcome)
            restored.append(unit.stored(restored_one.cpu()))
            if first is None:
                first, fitted = y, (model, problem)
                self.correlated = not problem.has_gaps and correlation(y) is not None
        assert worst is not None
        assert first is not None
        with result.being_written():
            io.write(result.image, torch.cat(restored), layout)
        self.found = "; ".join(dict.fromkeys(found)) or None
        return_freed_memory(images)
        return worst, Seen(first, unit.scaled(restored[0]), unit, layout, len(restored), fitted=fitted)


def _restore_one(
    net: Restarted,
    problem: Problem,
    options: Options,
    y: Tensor,
    watch: Callable[[Moment], None] | None,
) -> tuple[Tensor, Outcome]:
    tile = options.tile
    if tile is None:
        tile = AUTO_TILE if y.shape[-1] * y.shape[-2] > WHOLE else 0
    image, outcome = restore_image(
        net, problem, y, tile=tile or None, overlap=options.overlap, certify=options.certificate, watch=watch
    )
    if outcome.status.failed:
        raise DivergedError(f"{outcome.status.value}. {outcome.status.advice}")
    return image, outcome


def _told(facts: RestoredImage, outcome: Outcome, seconds: float) -> RestoredImage:
    told = {
        "status": outcome.status.value,
        "advice": outcome.status.advice,
        "residual": outcome.residual if outcome.residual < float("inf") else None,
        "layers": outcome.layers,
        "tiles": outcome.tiles,
        "solver": outcome.solver,
        "kind": "measured",
        "seconds": round(seconds, 3),
    }
    if outcome.certificates:
        told["certificate"] = CertifiedImage.model_validate(worst_part(outcome.certificates).to_dict())
    return facts.model_copy(update=told)
