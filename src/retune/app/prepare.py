"""Inputs of a restoration: measurements of photographs that come with ReTune, and masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from retune.app.looking import measured
from retune.app.settings import Settings
from retune.data import photograph
from retune.errors import InvalidParameterError
from retune.jobs.pixels import eight
from retune.problems import get

__all__ = ["EXAMPLES", "example", "gaps", "paint", "painted"]

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


def example(note: Note, *, folder: str, name: str) -> dict[str, Any]:
    """Write the measurement of a photograph that comes with ReTune, and its mask."""
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
    """Write the mask of painted strokes: black under each stroke.

    Args:
        note: called at each step.
        folder: the folder of the files.
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
    """Write the mask of the pixels that are NaN or Inf."""
    place = Path(folder)
    seen = measured(place / image, settings, page, most)
    if seen.holes is None:
        raise InvalidParameterError("all pixels are numbers")
    Image.fromarray(np.where(seen.holes, 0, 255).astype(np.uint8)).save(place / mask)
    return {"mask": mask}
