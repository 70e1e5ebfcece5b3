"""The computations of the page. They run in a process of their own, read files of a folder, and write into it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from retune import io
from retune.app import parts
from retune.app.looking import examined, measured, noise_in
from retune.app.settings import OUT, TUNED, Settings
from retune.app.words import in_page_words
from retune.bound import Moment
from retune.config import from_dict
from retune.data import photograph
from retune.errors import InvalidParameterError, RetuneError, told_to_command
from retune.jobs.failures import failure
from retune.jobs.instant import InstantModel, instant_model
from retune.jobs.opened import OpenedModel, open_model
from retune.jobs.pictures import picture_image
from retune.jobs.pixels import eight
from retune.jobs.restore import WHOLE, Options
from retune.jobs.restore import restore as restore_files
from retune.jobs.sections import tuning_in_words
from retune.jobs.tune import starting_run
from retune.jobs.tune import tune as tune_files
from retune.problems import get
from retune.records import Pictured, RestoredImage
from retune.report.page import write_page

__all__ = ["EXAMPLES", "JOBS", "warm"]

#: Seconds between two steps that are told.
_EVERY = 0.25
#: Seconds between two pictures of the iteration.
_PICTURES = 1.0
#: The photographs that ship: name, what was done to it, and its settings.
EXAMPLES = {
    "Astronaut, with noise": ("astronaut", {"name": "denoise", "sigma": 0.1}, Settings()),
    "Cameraman, blurred": (
        "camera",
        {"name": "deblur", "kernel": "gaussian:1.6", "sigma": 0.02},
        Settings("deblur", kernel="gaussian:1.6"),
    ),
    "Cat, half of its pixels missing": (
        "chelsea",
        {"name": "inpaint", "keep": 0.5, "sigma": 0.02},
        Settings("inpaint", mask="mask.png"),
    ),
    "Coffee, of half the size": ("coffee", {"name": "superres", "factor": 2, "sigma": 0.01}, Settings("superres")),
}
Note = Callable[..., None]


def look(note: Note, *, folder: str, image: str, page: int, settings: Settings, most: int) -> dict[str, Any]:
    """What an image is, and what is wrong with it. The picture and the noise are told before the findings."""
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
        "picture": parts.picture(image, seen),
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
    """Restore a file as ``retune restore`` does."""
    place = Path(folder)
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
    options = Options(place / OUT, white=white, white_remembered=remembered, black=black, again=True)
    told = _Told(note)
    (row,) = restore_files(model, [place / image], options, watch=told.moment)
    if row.result == "failed":
        raise InvalidParameterError(row.detail)
    write_page(place / OUT)
    section = Pictured.of((place / OUT / "report" / f"{image}.json").read_bytes(), image)
    record = RestoredImage.of((place / OUT / f"{image}.json").read_bytes(), image)
    if section is None or record is None:
        raise InvalidParameterError(f"the result was not pictured: {row.unpictured or 'its record is damaged'}")
    if page:
        section = section.model_copy(update={"images": [_page(place, image, page, model, options)]})
    return {"result": parts.result(section, record, told.curves), "curves": told.curves.plain()}


def _page(place: Path, image: str, page: int, model: OpenedModel | InstantModel, options: Options):
    """The pictures of another page of a stack."""
    settings = Settings(white=_text(options.white), black=_text(options.black))
    seen = measured(place / image, settings, page, 10**12)
    after, layout = io.read(place / OUT / image, any_integers=True)
    fitted, problem = model.fitted(_problem(model), seen.y)
    restored = seen.unit.scaled(after[min(page, len(after) - 1)][None])
    return picture_image(
        f"image {page + 1} of {seen.pages}", problem, fitted.problem, seen.y, restored, seen.unit, layout, rounded=True
    )


def _problem(model: OpenedModel | InstantModel):
    from retune.build import problem_of
    from retune.jobs.inputs import known_noise

    return problem_of(known_noise(model.problem))


def _text(level: Any) -> str:
    return "" if level is None else str(level)


def tune(note: Note, *, folder: str, image: str, page: int, settings: Settings) -> dict[str, Any]:
    """Tune on a file as ``retune tune`` does, and restore it with the result."""
    place = Path(folder)
    white, black = settings.levels()
    note(say="Preparing the tuning", share=0.0)

    def step(done: int, total: int) -> None:
        last = (
            "Comparing what was learned with what it started from"
            if done == total
            else f"Learning: step {done} of {total}"
        )
        note(say=last, share=0.8 * done / total)

    config = starting_run({"sigma": "estimate", **settings.fields(place)})
    found, _ = tune_files(
        config, [place / image], place / TUNED, white=white, black=black, device="cpu", progress=False, ships=True,
        note=step,
    )  # fmt: skip
    note(say="Restoring with what was learned", share=0.9)
    made = restore(note, folder=folder, image=image, page=page, settings=settings, tuned=True)
    verdict = in_page_words(tuning_in_words(found), place)
    return made | {"result": parts.tuned(verdict) + made["result"], "tuned": verdict}


def example(note: Note, *, folder: str, name: str) -> dict[str, Any]:
    """Write one of the photographs that ship, as it is measured, and its mask."""
    place = Path(folder)
    photo, problem, settings = EXAMPLES[name]
    x = photograph(photo)[None]
    height, width = (n - n % 2 for n in x.shape[-2:])
    made = get(problem["name"], **{k: v for k, v in problem.items() if k != "name"})
    y, physics = made.measure(x[..., :height, :width])
    file = f"{photo}.png"
    _write(place / file, y)
    if settings.mask:
        mask: Any = physics.mask  # an inpainting has one
        _write(place / settings.mask, mask[:, :1])
    return {"file": file, "settings": settings}


def _write(path: Path, image: torch.Tensor) -> None:
    """An image (1, C, h, w) as a PNG of 8 bits."""
    Image.fromarray(np.ascontiguousarray(eight(image[0].detach(), 0.0, 1.0))).save(path)


def paint(
    note: Note, *, folder: str, image: str, strokes: list[dict[str, Any]], size: list[int], mask: str
) -> dict[str, Any]:
    """Write the mask of what was painted: black where a stroke was drawn.

    Args:
        note: told of steps.
        folder: of the files.
        image: the image.
        strokes: each has the ``radius`` of the brush, and its ``points``; lengths are shares of the width.
        size: (h, w) of the image.
        mask: name of the mask.
    """
    Image.fromarray(painted(strokes, size)).save(Path(folder) / mask)
    return {"mask": mask}


def painted(strokes: list[dict[str, Any]], size: list[int]) -> np.ndarray:
    """The mask (h, w) of strokes: 0 where one was drawn, 255 elsewhere."""
    height, width = size
    picture = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(picture)
    for stroke in strokes:
        r = max(0.5, float(stroke["radius"]) * width)
        points = [(float(x) * width, float(y) * width) for x, y in stroke["points"]]
        for x, y in points:
            draw.ellipse((x - r, y - r, x + r, y + r), fill=0)
        if len(points) > 1:
            draw.line(points, fill=0, width=max(1, round(2 * r)))
    return np.asarray(picture)


def gaps(note: Note, *, folder: str, image: str, page: int, settings: Settings, most: int, mask: str) -> dict[str, Any]:
    """Write the mask of the pixels that are no numbers."""
    place = Path(folder)
    seen = measured(place / image, settings, page, most)
    if seen.holes is None:
        raise InvalidParameterError("all pixels are numbers")
    Image.fromarray(np.where(seen.holes, 0, 255).astype(np.uint8)).save(place / mask)
    return {"mask": mask}


class _Told:
    """Tells the moments of a solve, not more often than somebody can see."""

    def __init__(self, note: Note):
        self._note, self.curves = note, parts.Curves()
        self._last = self._pictured = 0.0

    def moment(self, moment: Moment) -> None:
        """See ``watch`` of [`solve`][retune.Restarted.solve]."""
        now = time.monotonic()
        told: dict[str, Any] = {}
        if now - self._pictured > _PICTURES:
            self._pictured = now
            told["picture"] = parts.glimpse(moment.image)
        objective = moment.objective
        self.curves.add(moment.layers, float(moment.change[0]), None if objective is None else float(objective[0]))
        if told or now - self._last > _EVERY:
            self._last = now
            self._note(say=f"Layer {moment.layers}", curves=self.curves.shown(), **told)


def _plain(pixels: int, settings: Settings) -> bool:
    """Whether ``retune.restore`` gives the same image as the command."""
    return pixels <= WHOLE and not settings.network


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    job.__name__: job for job in (look, restore, tune, example, paint, gaps)
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
    """Read the networks that ship, and let them run once, so that the first image does not wait."""
    for name, more in (("denoise", {}), ("deblur", {"kernel": "gaussian:1"})):
        model = instant_model({"name": name, "sigma": 0.05, **more})
        y = torch.rand(1, 3, 32, 32)
        fitted, problem = model.fitted(_problem(model), y)
        problem = problem.borderless()
        with torch.no_grad():
            fitted.net.solve(y, problem.operator(y), stop=replace(fitted.net.stop, max_layers=fitted.net.depth))
    from_dict({"problem": {"name": "denoise"}}, (), "the page")
