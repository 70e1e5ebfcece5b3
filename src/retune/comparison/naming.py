"""Names for the parts of a comparison, by which a resumed comparison finds them, and titles of its problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from retune.config import CompareConfig, Config

__all__ = ["before_testing", "file_name", "grid_name", "model_names", "title_of"]

_TITLES = {"deblur": "Deblurring", "denoise": "Denoising", "inpaint": "Inpainting", "superres": "Super-resolution"}

#: the fields of the section [compare] that affect the report, but not the networks
_REPORTED = ("test", "every", "crop", "certify", "certified", "memory", "about")


def before_testing(run: Config) -> Config:
    """The run without the fields that only affect the report: test images may be added to a comparison."""
    reported = {k: v for k, v in run.compare if k not in _REPORTED}
    return run.model_copy(update={"compare": CompareConfig(**reported)})


def grid_name(run: Config) -> str:
    """A name for the inputs of a grid search. Learned parameters and the initial σ do not affect it."""
    prior = run.prior.model_dump(exclude={"sigma", "learn_weights", "learn_sigma", "learn_strength"})
    first = run.model.model_dump(include={"layers", "step_size", "solver", "depth"})
    return f"{run.prior.type}-{hashlib.sha256(json.dumps([prior, first]).encode()).hexdigest()[:8]}"


def model_names(models: Sequence[Path]) -> dict[str, Path]:
    """A name for each network: the name of its file or folder, with a number if two are equal."""
    named: dict[str, Path] = {}
    for path in models:
        name, number = file_name(f"model-{path.stem}"), 2
        key = name
        while key in named:
            key, number = f"{name}-{number}", number + 1
        named[key] = path
    return named


def file_name(text: str) -> str:
    """The text with letters and digits only, for the name of a file or column."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in text).strip("-") or "problem"


def title_of(problem: str) -> str:
    """The title of a problem in a report."""
    return _TITLES.get(problem, problem.capitalize())
