"""Results as plain data: from single images to rows of the table, and to files."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import deepinv
import imageio.v3 as iio
import torch
from torch import Tensor

from retune._files import write_atomically
from retune._version import __version__
from retune.config import Config
from retune.errors import InvalidParameterError
from retune.records import Results
from retune.records.certificates import Basis, Claim
from retune.records.results import FORMAT, horizons

__all__ = ["header", "means", "require_own", "write_picture", "write_results"]

_SAME = ("layers_trained",)


def header(run: Config, device: str) -> dict[str, Any]:
    """The settings and versions of a run: entries of [`Results`][retune.records.Results]."""
    return {
        "format": FORMAT,
        "retune": __version__,
        "seed": run.seed,
        "device": device,
        "versions": {"torch": torch.__version__, "deepinv": deepinv.__version__},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "settings": {
            f"{name} {k}": list(v) if isinstance(v, tuple) else v
            for name, section in run
            if name in ("prior", "model", "data", "optimiser", "compare")
            for k, v in section
            if v is not None and section.has(k)
        },
    }


def means(rows: list[dict[str, Any]]) -> dict:
    """The means over the images, the lists with one value per image, and the available pictures and certificates."""
    row: dict[str, Any] = {}
    for key in rows[0]:
        values: list[Any] = [r.get(key) for r in rows]
        if key in _SAME:
            row[key] = values[0]
        elif key == "curve":
            row[key] = _curve(values)
        elif isinstance(values[0], list):
            row[key] = [v for value in values for v in value]
        elif key not in ("image", "certificate"):
            row[key] = _mean(values)
    if pictures := [r["image"] for r in rows if "image" in r]:
        row["images"] = pictures
    certificates = [r["certificate"] for r in rows if "certificate" in r]
    if certificates:
        row["certificate"] = certificates[0] | {"images": [i for c in certificates for i in c["images"]]}
        row |= _distance(row["certificate"]["images"])
    return row


def _mean(values: list) -> float | None:
    numbers = [v for v in values if v is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def _curve(curves: list[dict]) -> dict:
    """The mean curve. If an image failed on the way, only the landmarks that all images have."""
    layers = sorted(set.intersection(*(set(c["layers"]) for c in curves)))
    at = [{n: (p, r) for n, p, r in zip(c["layers"], c["psnr"], c["residual"], strict=True)} for c in curves]
    psnr, residual = ([_mean([c[n][k] for c in at]) for n in layers] for k in (0, 1))
    return {"layers": layers, "psnr": psnr, "residual": residual}


def _distance(images: list[dict]) -> dict:
    """The largest certified relative distance to the equilibrium; a proved bound if there is one."""
    claims = [[Claim.model_validate(n) for n in image["claims"]["relative_distance"]] for image in images]
    for basis in (Basis.PROVED, Basis.ESTIMATED):
        found = [next((n.value for n in c if n.rests_on(basis)), None) for c in claims]
        if found and all(v is not None and math.isfinite(v) for v in found):
            return {"distance": max(found), "distance_kind": basis}  # type: ignore[type-var]
    return {"distance": None, "distance_kind": None}


def write_picture(out: Path, name: str, image: Tensor) -> str:
    """Write a batch of one image as PNG. Return its path relative to `out`."""
    pixels = (image[0].detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    pixels = pixels[..., 0] if pixels.shape[-1] != 3 else pixels
    path = f"images/{name}.png"
    write_atomically(out / path, iio.imwrite("<bytes>", pixels, extension=".png"))
    return path


_RESULT = ("psnr", "ssim", "psnr_trained")
_COST = (
    "residual",
    "distance",
    "distance_kind",
    "seconds",
    "seconds_restoring",
    "memory",
    "layers_trained",
    "gradient_error",
    "failure",
)


def require_own(out: Path, *more: str) -> None:
    """Raise if results would replace files that are not results of a comparison.

    Args:
        out: folder of the results.
        more: names beside ``results.json``, ``results.csv``, ``report.html`` and ``figures``.

    Raises:
        InvalidParameterError: such a file or folder exists, and the folder holds no results of a comparison.
    """
    names = ("results.json", "results.csv", "report.html", "figures", *more)
    found = [name for name in names if (out / name).exists() or (out / name).is_symlink()]
    if found and not Results.is_in(out / "results.json"):
        raise InvalidParameterError(
            f"{out} contains {', '.join(found)} but no results of a comparison, so these may belong to something else "
            "and would be replaced: choose another folder with --out, or move the files"
        )


def write_results(results: Results, out: Path) -> None:
    """Write ``results.json``, and ``results.csv`` with one line per method."""
    results.write(out / "results.json")
    text = io.StringIO(newline="")
    table = csv.writer(text)
    columns = [*_RESULT, *(f"psnr_{n}x" for n in horizons(results.methods)), *_COST]
    table.writerow(["problem", "method", *columns])
    for name, problem in results.problems.items():
        for key, method in problem.methods.items():
            row = method.plain()
            table.writerow([name, key, *(row.get(c) for c in columns)])
    write_atomically(out / "results.csv", text.getvalue().encode())
