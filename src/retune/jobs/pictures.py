"""The pictures and sentences of the page ``report.html``, one section a result.

The worker that makes a result also writes its section, as ``report/NAME.json``. The page is put together from these
files without reading any image again, also if a job was stopped or shares its folder with another job.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import torch
from torch import Tensor

from retune._files import write_atomically
from retune._version import __version__
from retune.config import ProblemConfig
from retune.diagnosis.glance import doubts
from retune.errors import RetuneError, one_line
from retune.io import SUFFIXES, Layout
from retune.io.intensity import Unit
from retune.jobs.pixels import by, cut, eight, encode, reduced
from retune.jobs.residuals import MIDDLE, picture_residual
from retune.model import Restarted
from retune.parameters import scalars
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.records.pictured import Encoded, Pictured, PicturedImage, PicturedKernel, PicturedResidual

__all__ = [
    "DETAILED",
    "FOLDER",
    "doubts_of",
    "facts_of_network",
    "picture_image",
    "picture_kernel",
    "problem_words",
    "section_of",
]

#: Folder of the sections, in the folder of the results.
FOLDER = "report"
#: This many files have all their pictures; the others have a thumbnail.
DETAILED = 12
#: Larger pictures are reduced to this side.
SIDE, THUMBNAIL = 1024, 96
#: Percentiles of the restored image that are black and white, where a file has more than 8 bits.
_ENDS = (0.1, 99.9)


def section_of(folder: Path, name: str, record: bytes, make: Callable[[str], Pictured]) -> tuple[Pictured | None, str]:
    """The section of a result. It is made and written if it does not exist. Never fails.

    Args:
        folder: of the results.
        name: of the result.
        record: content of its record; a section that does not belong to it is made again.
        make: function of the fingerprint of `record` that makes the section.

    Returns:
        The section and ""; or None and the reason.
    """
    path = folder / FOLDER / f"{name}.json"
    made = hashlib.sha256(record).hexdigest()
    try:
        if path.is_file():
            before = Pictured.of(path.read_bytes(), name)
            if before is None:
                return None, f"{path} is not a section of a report, so it was not changed"
            if before.made == made:
                return before, ""
        elif path.is_symlink() or path.exists():
            return None, f"{path} is not a section of a report, so it was not changed"
        section = make(made)
        write_atomically(path, _content(section))
    except Exception as error:  # the result is more important than its picture
        with suppress(OSError):
            path.parent.rmdir()  # if it was made for this section
        return None, one_line(error) or type(error).__name__
    return section, ""


def _content(section: Pictured) -> bytes:
    try:
        return section.model_dump_json(exclude_unset=True).encode()
    except ValueError:  # the name of a file that is no text
        return section.content(None)


def picture_image(
    name: str,
    problem: Problem,
    config: ProblemConfig,
    y: Tensor,
    restored: Tensor,
    unit: Unit,
    layout: Layout | None,
    *,
    detailed: bool = True,
    rounded: bool = False,
) -> PicturedImage:
    """The pictures of one measurement and its restoration.

    Args:
        name: of the image.
        problem: the problem of the measurement.
        config: the same as a section of a run.
        y: the measurement (1, C, h, w), as the network saw it.
        restored: (1, C, H, W), on the same scale.
        unit: of the values.
        layout: how the file is stored; None if there is no file.
        detailed: whether all pictures are made, or a thumbnail.
        rounded: whether `restored` was read from a file, where its values are rounded.
    """
    y, restored = y.detach().cpu(), restored.detach().cpu()
    told = PicturedImage(name=name)
    told.notes, ends = _window(unit.stored(restored), layout)
    low, high = (unit.scaled(end) for end in ends)
    show = [_shown(image, told.notes if i else []) for i, image in enumerate((y, restored))]
    shown = [eight(image, low, high) for image in show]
    told.thumbnail = encode(reduced(shown[1], THUMBNAIL))
    try:
        told.residual = picture_residual(problem, config, y, restored, unit, layout, rounded, detailed)
    except (RetuneError, RuntimeError, ValueError) as error:
        why = f"The residual could not be computed: {one_line(error)}"
        told.residual = PicturedResidual(kind="not judged", sentence=why)
    if not detailed:
        return told
    told.before, told.after = (encode(reduced(image, SIDE)) for image in shown)
    factor = restored.shape[-1] / y.shape[-1]
    if max(restored.shape[-2:]) > SIDE:
        side = MIDDLE if factor < 1 else max(1, int(MIDDLE / factor))
        where = [(n - min(n, side)) // 2 for n in y.shape[-2:]]
        sides = [min(n, side) for n in y.shape[-2:]]
        told.middle_before = encode(cut(shown[0], where, sides, 1))
        told.middle_after = encode(cut(shown[1], where, sides, factor))
        told.notes.append(
            f"The image has {by(restored)} pixels and is shown reduced; its middle is shown below, pixel by pixel."
        )
    if factor != 1:
        told.notes.append(f"The measurement has {by(y)} pixels, the restored image {by(restored)}.")
    if "jpeg" in (told.before.format, told.after.format):
        told.notes.append("To keep the page small, pictures are stored as JPEG, which blurs the finest details a bit.")
    told.kernel = picture_kernel(problem)
    told.mask, told.mask_note = _mask(problem, y)
    return told


def doubts_of(config: ProblemConfig, problem: Problem, name: str, y: Tensor) -> list[str]:
    """Reasons to doubt that a measurement fits the problem; see ``retune.diagnosis.glance``."""
    try:
        return list(doubts(problem, [(name, y)], level_given=config.sigma != "estimate"))
    except (RetuneError, RuntimeError):  # the restoration has already given the reason
        return []


def problem_words(config: ProblemConfig) -> str:
    """The problem without its noise level: "deblur, kernel gaussian:1.6, boundary reflect"."""
    given = {k: v for k, v in config if k not in ("name", "sigma", "noise") and v not in (None, {})}
    return ", ".join([config.name, *(f"{key} {_file_name(value)}" for key, value in given.items())])


def facts_of_network(net: Restarted, digest: str = "") -> list[list[str]]:
    """The assumptions about images (the prior and its strengths), and the versions of the software."""
    kinds = ", ".join(dict.fromkeys(type(prior).__name__ for prior in priors_of(net))) or "none"
    told = [["prior", f"{kinds}, in {type(net.map).__name__}, solved by {type(net.solver).__name__}"]]
    for name, parameter in scalars(net.map).items():
        values = parameter.value.detach().flatten().tolist()
        if len(values) <= 16:
            told.append([_NAMES.get(name, name), " ".join(f"{v:.3g}" for v in values)])
    if digest:
        told.append(["network", f"SHA-256 {digest[:12]}…"])
    return [*told, ["versions", f"ReTune {__version__}, PyTorch {torch.__version__}, deepinv {deepinv.__version__}"]]


_NAMES = {"reg": "strength of the prior (λ)", "step_size": "step size"}


def _file_name(value: Any) -> str:
    """A value as text. For a file, only its name is shown, because users pass pages on."""
    text = str(value)
    return text.replace("\\", "/").rsplit("/", 1)[-1] if text.lower().endswith(SUFFIXES) else text


def _window(restored: Tensor, layout: Layout | None) -> tuple[list[str], tuple[float, float]]:
    """How intensities are shown, in words, and the values of black and white, in the units of the file as read."""
    top = None if layout is None else layout.top
    if layout is not None and top is not None and top <= 255:
        return [f"Intensities are shown as they are, from 0 to {top}, in both pictures."], (0.0, 1.0)
    values = restored.double().flatten()
    step = max(1, len(values) // 1_000_000)  # a million values are enough for a percentile
    low, high = np.percentile(values[::step].numpy(), _ENDS).tolist()
    if not high > low:
        low, high = low - 0.5, low + 0.5
    unit = top or 1
    told = (
        f"In both pictures, {low * unit:.6g} is black and {high * unit:.6g} is white: the percentiles {_ENDS[0]} and "
        f"{_ENDS[1]} of the restored image{'' if layout is None else ', in the units of the file'}."
    )
    return [told], (low, high)


def _shown(image: Tensor, notes: list[str]) -> Tensor:
    """The channels (1 or 3, H, W) that are shown."""
    channels = image.shape[1]
    if channels in (1, 3):
        return image[0]
    notes.append(f"Channel 1 of {channels} is shown.")
    return image[0, :1]


def picture_kernel(problem: Problem) -> PicturedKernel | None:
    """The blur kernel of a problem, with its size and its centre of mass in words; None if it has none."""
    taps = getattr(problem, "kernel", None)
    if not isinstance(taps, Tensor) or taps.ndim != 4:
        return None
    mean = taps.detach().cpu().double().mean((0, 1))
    height, width = mean.shape
    # deepinv centres a kernel of even side at the pixel before the middle.
    row, col = (n // 2 - (n - 1) % 2 for n in (height, width))
    most = float(mean.abs().max()) or 1.0
    total = float(mean.sum())
    text = f"{height}×{width} pixels, largest value {most:.3g}, sum {total:.4g}"
    if total > 0 and bool((mean >= 0).all()):
        down, right = (
            float((mean.sum(1 - axis) * torch.arange(n).double()).sum()) / total - at
            for axis, n, at in ((0, height, row), (1, width, col))
        )
        places = [
            f"{abs(off):.2g} pixels {word}"
            for off, word in (
                (down, "below" if down > 0 else "above"),
                (right, f"{'right' if right > 0 else 'left'} of"),
            )
            if abs(off) >= 0.05
        ]
        text += f"; its centre of mass is {' and '.join(places) or 'at'} its centre"
    if bool((mean < 0).any()):
        text += "; negative values are shown black"
    pixels = eight((mean / most)[None].clamp_min(0), 0.0, 1.0)
    enlarged = max(1, 192 // max(height, width))
    pixels = reduced(pixels.repeat(enlarged, 0).repeat(enlarged, 1), SIDE)
    return PicturedKernel(picture=encode(pixels), centre=((col + 0.5) / width, (row + 0.5) / height), text=text)


def _mask(problem: Problem, y: Tensor) -> tuple[Encoded | None, str]:
    seen = problem.observed(y)
    if seen is None:
        return None, ""
    share = float(seen.float().mean())
    shown = seen.float().expand_as(y)[0].amax(0, keepdim=True)
    return encode(reduced(eight(shown, 0.0, 1.0), SIDE // 2)), f"White: measured, {share:.1%} of all values."
