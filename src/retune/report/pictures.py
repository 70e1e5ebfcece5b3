"""The pictures of a problem: reading, choosing the enlarged part, encoding."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib import image as mpl_image

from retune._files import require_file
from retune.errors import InvalidParameterError
from retune.records import Pictures, ProblemResult
from retune.report.numbers import decimal, label

#: Pictures with a side below this have no enlarged part.
ZOOM_FROM = 96

#: Side of the enlarged part, as a share of the shorter side; its height is two thirds of its width.
_ZOOM = 0.36

#: Pictures with a longer side are reduced by averaging for the page.
_PAGE_SIDE = 640


@dataclass(frozen=True)
class Window:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, picture: np.ndarray) -> np.ndarray:
        """The part of `picture`."""
        return picture[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Picture:
    """One picture of a row.

    Attributes:
        key: "truth", "measurement", or the name of a method.
        title: title for readers.
        note: its PSNR, as text; empty for the truth.
        pixels: (H, W, 3), in [0, 1].
        path: path of its file.
    """

    key: str
    title: str
    note: str
    pixels: np.ndarray
    path: Path

    @property
    def uri(self) -> str:
        """A data URL with the picture: its file unchanged, or reduced by averaging if it is large."""
        factor = -(-max(self.pixels.shape[:2]) // _PAGE_SIDE)
        if factor == 1:
            return data_uri(self.path.read_bytes())
        height, width = (n // factor * factor for n in self.pixels.shape[:2])
        blocks = self.pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, -1)
        return pixels_uri(blocks.mean((1, 3)))


@dataclass(frozen=True)
class Row:
    """One test photograph: its name, its pictures, and the enlarged part."""

    name: str
    pictures: list[Picture]
    window: Window | None


def read_rows(problem: ProblemResult, folder: Path) -> list[Row]:
    """A row per test photograph: truth, measurement, and each method's restoration.

    Raises:
        InvalidParameterError: a named picture is missing, unreadable, or outside the folder.
    """
    images = problem.images or Pictures()
    methods = problem.methods
    count = max(len(images.truth), *(len(m.images or ()) for m in methods.values()))
    rows = []
    for i in range(count):
        pictures = []
        for key, name, files in (("truth", "Truth", images.truth), ("measurement", "Measurement", images.measurement)):
            if files:
                pictures.append(Picture(key, name, "", *_read(folder, files[i])))
        pictures = [_measured(p, pictures[0]) for p in pictures]
        for key, method in methods.items():
            if method.images:
                each = method.psnr_per_image
                note = f"{decimal(each[i])} dB" if each else ""
                pictures.append(Picture(key, label(method, key), note, *_read(folder, method.images[i])))
        window = interesting(pictures[0].pixels) if pictures else None
        if any(p.pixels.shape != pictures[0].pixels.shape for p in pictures):
            window = None
        rows.append(Row(images.names[i] if images.names else f"image {i + 1}", pictures, window))
    return rows


def _measured(picture: Picture, truth: Picture) -> Picture:
    """The measurement with its PSNR after clipping, if it has the size of the truth."""
    if picture.key != "measurement" or truth.key != "truth" or picture.pixels.shape != truth.pixels.shape:
        return picture
    error = float(np.mean((picture.pixels - truth.pixels) ** 2))
    note = f"{decimal(-10 * float(np.log10(error)))} dB" if error > 0 else ""
    return replace(picture, note=note)


def _read(folder: Path, name: str) -> tuple[np.ndarray, Path]:
    path = (folder / str(name)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InvalidParameterError(f"the results name the image {name!r}, but it is outside their folder {folder}")
    try:
        require_file(path, "an image")
        pixels = mpl_image.imread(path, format="png")
    except (InvalidParameterError, OSError, SyntaxError, ValueError) as error:
        raise InvalidParameterError(
            f"the results name the image {name!r}, but {path} is missing or is not a PNG («{error}»); keep the images "
            "beside results.json, or run the command again"
        ) from error
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    return pixels[..., :3], path


def interesting(truth: np.ndarray) -> Window | None:
    """The most detailed part of a picture. It is chosen from the truth alone, so that it favours no method."""
    side = min(truth.shape[:2])
    if side < ZOOM_FROM:
        return None
    width = max(32, round(_ZOOM * side))
    height = round(width * 2 / 3)
    grey = truth.mean(-1)
    detail = np.zeros_like(grey)
    detail[1:, :] += np.abs(np.diff(grey, axis=0))
    detail[:, 1:] += np.abs(np.diff(grey, axis=1))
    # With the square root, a single sharp edge does not outweigh rich texture.
    total = np.pad(np.sqrt(detail), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    top, left = np.unravel_index(int(sums.argmax()), sums.shape)
    return Window(int(top), int(left), height, width)


def data_uri(png: bytes) -> str:
    """A PNG as a data URL."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def pixels_uri(pixels: np.ndarray) -> str:
    """Pixels as a data URL."""
    buffer = io.BytesIO()
    mpl_image.imsave(buffer, np.ascontiguousarray((pixels * 255).round().astype(np.uint8)), format="png")
    return data_uri(buffer.getvalue())
