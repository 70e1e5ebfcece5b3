"""The computations of the page. They run in a process of their own, read files of a folder, and write into it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retune import io
from retune.app import parts
from retune.app.first import first_picture
from retune.app.looking import examined, measured, noise_in
from retune.app.prepare import example, gaps, paint
from retune.app.settings import OUT, TUNED, Settings
from retune.app.words import in_page_words
from retune.bound import Moment
from retune.build import problem_of
from retune.config import from_dict
from retune.equilibrium import Status
from retune.errors import InvalidParameterError, RetuneError, told_to_command
from retune.jobs.failures import failure
from retune.jobs.inputs import known_noise, without_gaps
from retune.jobs.instant import InstantModel, instant_model
from retune.jobs.opened import OpenedModel, open_model
from retune.jobs.pictures import doubts_of, picture_image
from retune.jobs.restore import WHOLE, Options
from retune.jobs.restore import restore as restore_files
from retune.jobs.sections import tuning_in_words
from retune.jobs.tune import starting_run
from retune.jobs.tune import tune as tune_files
from retune.problems.base import Problem
from retune.records import Pictured, RestoredImage
from retune.report.page import write_page

__all__ = ["JOBS", "run", "warm"]

#: Seconds between two steps that are told.
_EVERY = 0.25
#: Seconds between two pictures of the iteration.
_PICTURES = 1.0
_FIRST = "A first rough picture: the damage undone in a few steps, then denoised once. The restoration follows."
Note = Callable[..., None]


def look(note: Note, *, folder: str, image: str, page: int, settings: Settings, most: int) -> dict[str, Any]:
    """Describe an image and its faults. The picture and the noise come before the findings."""
    place = Path(folder)
    seen = measured(place / image, settings, page, most)
    noise = noise_in(seen, settings, place)
    known = {
        "said": noise.said,
        "pages": seen.pages,
        "holes": seen.holes is not None,
        "plain": _plain(seen.y.shape[-2] * seen.y.shape[-1], settings) and seen.holes is None,
        "size": [int(n) for n in seen.y.shape[-2:]],
        "facts": parts.facts(image, seen, page),
        "picture": parts.picture(seen),
        "noise": parts.noise(noise),
        "blur": "",
    }
    note(**known)
    used = replace(settings, noise=noise.said)
    try:
        known["blur"] = parts.blur(used.fields(place))
        found = examined(seen, used, place)
        known |= {"findings": parts.findings(found), "mends": [mend.__dict__ for mend in found.mends]}
    except RetuneError as error:
        known |= {"findings": parts.remark(in_page_words(str(error), place)), "mends": []}
    return known


def restore(
    note: Note, *, folder: str, image: str, page: int, settings: Settings, tuned: bool = False
) -> dict[str, Any]:
    """Restore a file as ``retune restore`` does. All pages of a stack are restored, and one is shown."""
    place = Path(folder)
    model, options = _opened(place, settings, tuned)
    if not tuned:
        _tell_first(note, place / image, page, model, options)
    told = _Told(note)
    (row,) = restore_files(model, [place / image], options, watch=told.moment)
    if row.result == "failed":
        raise InvalidParameterError(row.detail)
    if row.unpictured:
        raise InvalidParameterError(f"the result was not pictured: {row.unpictured}")
    write_page(place / OUT)
    solves = [solve.plain() for solve in told.solves]
    shown = _curves(solves, page)
    return {"result": _result(place, image, page, model, options, shown), "curves": shown.plain(), "solves": solves}


def turn(
    note: Note, *, folder: str, image: str, page: int, settings: Settings, tuned: bool, solves: list[dict[str, Any]]
) -> dict[str, Any]:
    """Show the result of another page of a restored stack."""
    place = Path(folder)
    model, options = _opened(place, settings, tuned)
    return {"result": _result(place, image, page, model, options, _curves(solves, page))}


def _opened(place: Path, settings: Settings, tuned: bool) -> tuple[OpenedModel | InstantModel, Options]:
    """The network of the settings, opened for a restoration."""
    white, black = settings.levels()
    model: OpenedModel | InstantModel
    if tuned:
        model = open_model(place / TUNED)
    elif settings.network:
        model = open_model(place / settings.network, settings.fields(place))
    else:
        model = instant_model(settings.fields(place))
    white, remembered = (model.white, model.white is not None) if white is None else (white, False)
    black = model.black if black is None else black
    return model, Options(place / OUT, white=white, white_remembered=remembered, black=black, again=True)


def _curves(solves: list[dict[str, Any]], page: int) -> parts.Curves:
    """The curves of a page, if each page was solved as a whole; otherwise those of the last part."""
    return parts.Curves(**solves[min(page, len(solves) - 1)]) if solves else parts.Curves()


def _result(
    place: Path, image: str, page: int, model: OpenedModel | InstantModel, options: Options, curves: parts.Curves
) -> str:
    """Everything about a restored page."""
    section = Pictured.of((place / OUT / "report" / f"{image}.json").read_bytes(), image)
    record = RestoredImage.of((place / OUT / f"{image}.json").read_bytes(), image)
    if section is None or record is None:
        raise InvalidParameterError("the result was not pictured: its record is damaged")
    if page:
        section = _of_page(section, record, place, page, model, options)
    return parts.result(section, record, curves)


def _tell_first(note: Note, file: Path, page: int, model: OpenedModel | InstantModel, options: Options) -> None:
    """Send a first rough picture, if there is one."""
    try:
        seen = measured(file, _levels(options), page, 10**12)
        problem = _problem(model)
        image = first_picture(model, problem, without_gaps(problem, seen.y, file.name))
    except RetuneError:  # the restoration has the reason, and says it
        return
    if image is not None:
        part = "" if image.numel() >= seen.y.numel() else " Of a large image, its middle."
        note(say="Restoring …", picture=parts.glimpse(image), caption=f"{_FIRST}{part}")


def _of_page(
    section: Pictured, record: RestoredImage, place: Path, page: int, model: OpenedModel | InstantModel,
    options: Options,
) -> Pictured:  # fmt: skip
    """The section of a stack, with the given page instead of the first."""
    seen = measured(place / section.file, _levels(options), page, 10**12)
    after, layout = io.read(place / OUT / section.file, any_integers=True)
    y = without_gaps(_problem(model), seen.y, section.file)
    fitted, problem = model.fitted(_problem(model), y)
    restored = seen.unit.scaled(after[min(page, len(after) - 1)][None])
    name = f"image {page + 1} of {seen.pages}"
    image = picture_image(name, problem, fitted.problem, y, restored, seen.unit, layout, rounded=True)
    unsettled = [] if record.status in (Status.CONVERGED, Status.DEPTH_REACHED) else section.doubts[:1]
    return section.model_copy(
        update={
            "images": [image],
            "verdict": [f"Residual: {image.residual.sentence}"] if image.residual else [],
            "doubts": [*unsettled, *doubts_of(fitted.problem, problem, name, y)],
        }
    )


def _problem(model: OpenedModel | InstantModel) -> Problem:
    return problem_of(known_noise(model.problem))


def _levels(options: Options) -> Settings:
    """Black and white of the options, as settings."""
    white, black = ("" if level is None else str(level) for level in (options.white, options.black))
    return Settings(white=white, black=black)


def tune(note: Note, *, folder: str, image: str, page: int, settings: Settings) -> dict[str, Any]:
    """Tune on a file as ``retune tune`` does, and restore it with the result."""
    place = Path(folder)
    white, black = settings.levels()
    note(say="Preparing the tuning", share=0.0)

    def step(done: int, total: int) -> None:
        last = (
            "Comparing the learned parameters with the initial ones"
            if done == total
            else f"Learning: step {done} of {total}"
        )
        note(say=last, share=0.8 * done / total)

    config = starting_run({"sigma": "estimate", **settings.fields(place)})
    found, _ = tune_files(
        config, [place / image], place / TUNED, white=white, black=black, device="cpu", progress=False, ships=True,
        note=step,
    )  # fmt: skip
    note(say="Restoring with the learned parameters", share=0.9)
    made = restore(note, folder=folder, image=image, page=page, settings=settings, tuned=True)
    verdict = in_page_words(tuning_in_words(found), place)
    return made | {"result": parts.tuned(verdict) + made["result"], "tuned": verdict}


class _Told:
    """Sends the moments of a solve, at most as often as a person can notice."""

    def __init__(self, note: Note):
        self._note, self.solves = note, list[parts.Curves]()
        self._last = self._pictured = 0.0

    def moment(self, moment: Moment) -> None:
        """See ``watch`` of [`solve`][retune.Restarted.solve]."""
        now = time.monotonic()
        told: dict[str, Any] = {}
        if moment.settled or now - self._pictured > _PICTURES:
            self._pictured = now
            told["picture"] = parts.glimpse(moment.image)
        objective = moment.objective
        if not self.solves or moment.layers <= self.solves[-1].layers[-1]:  # the next page, or tile
            self.solves.append(parts.Curves())
        curves = self.solves[-1]
        curves.add(moment.layers, float(moment.change[0]), None if objective is None else float(objective[0]))
        if told or now - self._last > _EVERY:
            self._last = now
            say = f"Layer {moment.layers}: one more changes the image by {100 * curves.change[-1]:.2g} %"
            if moment.settled:
                say = f"At rest after {moment.layers} layers. Checking the image, and drawing the report …"
            self._note(say=say, curves=curves.shown(), **told)


def _plain(pixels: int, settings: Settings) -> bool:
    """Whether ``retune.restore`` gives the same image as the command."""
    return pixels <= WHOLE and not settings.network


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job for job in (look, restore, turn, tune, example, paint, gaps)
}


def run(kind: str, note: Note, options: dict[str, Any]) -> dict[str, Any]:
    """One computation.

    Raises:
        InvalidParameterError: it failed. The message is a sentence for the page.
    """
    folder = Path(options["folder"])
    try:
        with warnings.catch_warnings(), told_to_command():
            warnings.simplefilter("ignore")  # the findings and the report say the same
            return JOBS[kind](note, **options)
    except Exception as error:  # whatever a file does, the page gets a sentence
        raise InvalidParameterError(in_page_words(failure(error), folder)) from error


def warm() -> None:
    """Load the networks that come with ReTune and run each once, so that the first image does not wait."""
    for name, more in (("denoise", {}), ("deblur", {"kernel": "gaussian:1"})):
        model = instant_model({"name": name, "sigma": 0.05, **more})
        y = torch.rand(1, 3, 32, 32)
        fitted, problem = model.fitted(_problem(model), y)
        problem = problem.borderless()
        with torch.no_grad():
            fitted.net.solve(y, problem.operator(y), stop=replace(fitted.net.stop, max_layers=fitted.net.depth))
    from_dict({"problem": {"name": "denoise"}}, (), "the page")
