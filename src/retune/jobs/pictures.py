"""The pictures and sentences of the page ``report.html``, one section a result.

The worker that makes a result also writes its section, as ``report/NAME.json``. The page is put together from these
files without reading any image again, also if a job was stopped or shares its folder with another job.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from retune._torch.batch import window
from retune._torch.precision import full_precision
from retune._version import __version__
from retune.config import ProblemConfig
from retune.diagnosis.glance import doubts
from retune.diagnosis.residual import judge
from retune.errors import InvalidParameterError, RetuneError, one_line
from retune.io import SUFFIXES, Layout
from retune.io.intensity import Unit
from retune.model import Restarted
from retune.parameters import scalars
from retune.priors.capabilities import priors_of
from retune.problems.base import Problem
from retune.problems.noise import estimate_noise
from retune.records.pictured import Encoded, Pictured, PicturedImage, PicturedKernel, PicturedResidual

__all__ = ["DETAILED", "FOLDER", "doubts_of", "facts_of_network", "picture_image", "problem_words", "section_of"]

#: Folder of the sections, in the folder of the results.
FOLDER = "report"
#: This many files have all their pictures; the others have a thumbnail.
DETAILED = 12
#: Larger pictures are reduced to this side; a middle part of this side is shown pixel by pixel, and the residual.
SIDE, MIDDLE, THUMBNAIL = 1024, 512, 96
#: The residual of a larger image (in pixels) is that of its middle, of this side.
WHOLE, PART = 1536 * 1536, 1024
#: A PNG of more bytes than this becomes a JPEG.
_HEAVY = 1_200_000
#: Percentiles of the restored image that are black and white, where a file has more than 8 bits.
_ENDS = (0.1, 99.9)
#: Side of the neighbourhood of a clipped value that is not judged.
_NEAR = 7
#: Standard deviations of the noise that are black and white in the picture of the residual.
_RANGE = 4.0


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
        section.write(path, indent=None)
    except Exception as error:  # the result is more important than its picture
        with suppress(OSError):
            path.parent.rmdir()  # if it was made for this section
        return None, one_line(error) or type(error).__name__
    return section, ""


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
    shown = [_eight(image, low, high) for image in show]
    told.thumbnail = encode(_reduced(shown[1], THUMBNAIL))
    told.residual = _residual(problem, config, y, restored, unit, layout, rounded, detailed)
    if not detailed:
        return told
    told.before, told.after = (encode(_reduced(image, SIDE)) for image in shown)
    factor = restored.shape[-1] / y.shape[-1]
    if max(restored.shape[-2:]) > SIDE:
        side = MIDDLE if factor < 1 else max(1, int(MIDDLE / factor))
        where = [(n - min(n, side)) // 2 for n in y.shape[-2:]]
        sides = [min(n, side) for n in y.shape[-2:]]
        told.middle_before = encode(_cut(shown[0], where, sides, 1))
        told.middle_after = encode(_cut(shown[1], where, sides, factor))
        told.notes.append(
            f"The image has {_by(restored)} pixels and is shown reduced; its middle is shown below, pixel by pixel."
        )
    if factor != 1:
        told.notes.append(f"The measurement has {_by(y)} pixels, the restored image {_by(restored)}.")
    if "jpeg" in (told.before.format, told.after.format):
        told.notes.append("To keep the page small, pictures are stored as JPEG, which blurs the finest details a bit.")
    told.kernel = _kernel(problem)
    told.mask, told.mask_note = _mask(problem, y)
    return told


def encode(pixels: np.ndarray) -> Encoded:
    """8-bit pixels (h, w) or (h, w, 3) as a PNG, or as a JPEG if that is large."""
    image, out, kind = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO(), "png"
    image.save(out, "PNG", compress_level=3)
    if out.tell() > _HEAVY:
        out, kind = io.BytesIO(), "jpeg"
        image.save(out, "JPEG", quality=90, subsampling=0)
    height, width = pixels.shape[:2]
    return Encoded(format=kind, data=base64.b64encode(out.getvalue()).decode(), width=width, height=height)


def doubts_of(config: ProblemConfig, problem: Problem, name: str, y: Tensor) -> list[str]:
    """Reasons to doubt that a measurement is what the problem says; see ``retune.diagnosis.glance``."""
    try:
        found = list(doubts(problem, [(name, y)]))
    except (RetuneError, RuntimeError):  # the restoration has told why
        return []
    # A level that was estimated from the image itself cannot contradict the image.
    return [doubt for doubt in found if config.sigma != "estimate" or not doubt.startswith("σ =")]


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
    """A value. Of a file only the name is shown, because a page is given to others."""
    text = str(value)
    return text.replace("\\", "/").rsplit("/", 1)[-1] if text.lower().endswith(SUFFIXES) else text


def _by(image: Tensor) -> str:
    return f"{image.shape[-2]}×{image.shape[-1]}"


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


def _eight(image: Tensor, low: float, high: float) -> np.ndarray:
    """(h, w) or (h, w, 3) in 8 bits."""
    levels = ((image.float() - low) * (255 / (high - low))).nan_to_num().clamp(0, 255).round().byte().numpy()
    return levels[0] if len(levels) == 1 else levels.transpose(1, 2, 0)


def _reduced(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reduced by averaging, so that no side is longer."""
    factor = math.ceil(max(pixels.shape[:2]) / side)
    if factor <= 1:
        return pixels
    values = torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None].float()
    small = avg_pool2d(values, factor, ceil_mode=True)[0].round().byte().permute(1, 2, 0).numpy()
    return small[..., 0] if pixels.ndim == 2 else small


def _cut(pixels: np.ndarray, where: list[int], sides: list[int], factor: float) -> np.ndarray:
    top, left = (round(n * factor) for n in where)
    height, width = (max(1, round(n * factor)) for n in sides)
    return pixels[top : top + height, left : left + width]


def _kernel(problem: Problem) -> PicturedKernel | None:
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
    pixels = _eight((mean / most)[None].clamp_min(0), 0.0, 1.0)
    enlarged = max(1, 192 // max(height, width))
    pixels = _reduced(pixels.repeat(enlarged, 0).repeat(enlarged, 1), SIDE)
    return PicturedKernel(picture=encode(pixels), centre=((col + 0.5) / width, (row + 0.5) / height), text=text)


def _mask(problem: Problem, y: Tensor) -> tuple[Encoded | None, str]:
    seen = problem.observed(y)
    if seen is None:
        return None, ""
    share = float(seen.float().mean())
    shown = seen.float().expand_as(y)[0].amax(0, keepdim=True)
    return encode(_reduced(_eight(shown, 0.0, 1.0), SIDE // 2)), f"White: measured, {share:.1%} of all values."


def _residual(
    problem: Problem,
    config: ProblemConfig,
    y: Tensor,
    restored: Tensor,
    unit: Unit,
    layout: Layout | None,
    rounded: bool,
    detailed: bool,
) -> PicturedResidual:
    """``(y − A x̂)/σ``, judged; if it cannot be computed, the reason takes the place of the judgement."""
    try:
        return _judged(problem, config, y, restored, unit, layout, rounded, detailed)
    except (RetuneError, RuntimeError, ValueError) as error:
        return PicturedResidual(kind="not judged", sentence=f"The residual could not be computed: {one_line(error)}")


def _judged(
    problem: Problem,
    config: ProblemConfig,
    y: Tensor,
    restored: Tensor,
    unit: Unit,
    layout: Layout | None,
    rounded: bool,
    detailed: bool,
) -> PicturedResidual:
    notes: list[str] = []
    ratio = restored.shape[-1] / y.shape[-1]
    margin = 0
    if y.shape[-2] * y.shape[-1] > WHOLE and problem.has_parts:
        rows, cols = (torch.arange(n)[window(n, PART)] for n in y.shape[-2:])
        problem = problem.part(rows, cols)
        y = y[..., rows, :][..., cols]
        top, left, height, width = (round(float(n) * ratio) for n in (rows[0], cols[0], len(rows), len(cols)))
        restored = restored[..., top : top + height, left : left + width]
        taps = getattr(problem, "kernel", None)
        # Light from beyond the part was blurred into its border.
        margin = max(taps.shape[-2:]) if isinstance(taps, Tensor) else 0
        notes.append(f"It is computed on the middle {_by(y)} pixels.")
    levels = _levels(config, problem, y, notes)
    physics = problem.operator(y)
    image, border = _framed(problem, y, restored)
    if problem.noise is not None:
        y = y - problem.noise.offset
    with torch.no_grad(), full_precision():
        difference = y - physics.A(image)
    seen = problem.observed(y)
    inside = torch.ones_like(y, dtype=torch.bool) if seen is None else seen.expand_as(y).clone()
    for axis, (first, last) in zip((-2, -1), border, strict=True):
        at = torch.arange(y.shape[axis])
        keep = (at >= first + margin) & (at < y.shape[axis] - last - margin)
        inside &= keep[:, None] if axis == -2 else keep
    steps = 0.0
    if layout is not None and layout.top is not None:
        inside &= ~_clipped(unit.stored(y), inside, notes)
        steps = (1 + rounded) * (unit.scale / layout.top) ** 2 / 12  # of the values that were rounded to whole numbers
    if levels is not None:
        difference = difference / (levels.square() + steps).sqrt()
    found = judge(difference[0], inside[0], known=levels is not None)
    picture = None
    if detailed and found.histogram:
        size = found.size if levels is not None else float(difference[inside].square().mean().sqrt())
        # The mean over the channels, times the root of their number, has the unit of the noise again.
        shown = torch.where(inside, difference, 0.0)[0].mean(0, keepdim=True) * difference.shape[1] ** 0.5
        shown = shown / (1.0 if levels is not None else size or 1.0)
        part = shown[..., window(shown.shape[-2], MIDDLE), :][..., window(shown.shape[-1], MIDDLE)]
        picture = encode(_eight(part, -_RANGE, _RANGE))
        notes.append(
            f"Grey is 0, black −{_RANGE:g} and white +{_RANGE:g} standard deviations"
            + (f"; the middle {_by(part)} pixels." if part.shape != shown.shape else ".")
        )
    return PicturedResidual(
        kind=found.kind.value,
        sentence=found.sentence,
        size=found.size,
        beyond=found.beyond,
        histogram=list(found.histogram),
        spectrum=list(found.spectrum),
        notes=notes,
        picture=picture,
    )


def _levels(config: ProblemConfig, problem: Problem, y: Tensor, notes: list[str]) -> Tensor | None:
    """The standard deviation of the noise, broadcastable to y; None if it is not known."""
    if problem.noise is not None:
        notes.append("The noise grows with the brightness; each pixel is divided by its own standard deviation.")
        return problem.variance(y).sqrt()
    sigma = problem.sigma
    if config.sigma == "estimate":
        try:
            sigma = estimate_noise(y)
        except InvalidParameterError:
            sigma = 0.0
        notes.append("The noise level was estimated from this image.")
    levels = torch.as_tensor(sigma, dtype=y.dtype).reshape(1, -1, 1, 1)
    if float(levels.min()) <= 0:
        notes.append("The noise level is unknown: the residual is divided by its own size.")
        return None
    return levels


def _framed(problem: Problem, y: Tensor, restored: Tensor) -> tuple[Tensor, list[tuple[int, int]]]:
    """An image of the size that the operator takes, and the number of measured pixels at each border that depend on the
    added part.

    A blur with a valid boundary takes a larger image than the part that is shown; its border is repeated.
    """
    size = problem.image_size((y.shape[1], y.shape[2], y.shape[3]))
    if tuple(restored.shape[1:]) == tuple(size):
        return restored, [(0, 0), (0, 0)]
    borders = []
    for axis in (1, 2):
        grid = torch.arange(size[axis], dtype=torch.float64)
        grid = grid[:, None].expand(size[1:]) if axis == 1 else grid.expand(size[1:])
        shown = problem.frame(grid[None, None])
        borders.append((int(shown.min()), size[axis] - 1 - int(shown.max())))
    (top, bottom), (left, right) = borders
    image = pad(restored, (left, right, top, bottom), mode="replicate")
    return image, borders


def _clipped(stored: Tensor, inside: Tensor, notes: list[str]) -> Tensor:
    """The pixels where a file of whole numbers is at the ends of its range: the noise is cut off there.

    Their neighbours are biased, because only the noise away from the end is visible; they are left out, too.
    """
    clipped = ((stored <= 0) | (stored >= 1)) & inside
    share = float(clipped.float().mean())
    if share > 0.9:  # a picture of two levels
        return torch.zeros_like(clipped)
    near = max_pool2d(clipped.float(), _NEAR, stride=1, padding=_NEAR // 2) > 0
    if int((inside & ~near).sum()) > 0.2 * int(inside.sum()):
        clipped = near
    if share > 0.001:
        left_out = float((clipped & inside).float().mean())
        notes.append(
            f"{share:.1%} of the values are at the ends of the range of the file. They and their "
            f"neighbours are left out ({left_out:.0%})."
        )
    return clipped
