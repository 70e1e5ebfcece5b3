"""The data of a training: images, and the problem that measures them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from deepinv.physics import LinearPhysics

from retune.data import as_images
from retune.problems.base import Problem
from retune.problems.given import as_problem
from retune.training.checkpoints import fingerprint

__all__ = ["TrainingData"]


class TrainingData:
    """Images, and the problem that measures them. They are read once and fingerprinted once.

    Args:
        images: training images, see [`as_images`][retune.data.as_images].
        problem: a problem of ``retune.problems`` (fresh operator and noise at every step), or a deepinv physics
            (fresh noise only).
        validation: validation images, or None; their measurements are drawn once.

    Attributes:
        images: tensors (C, H, W).
        validation: tensors (C, H, W), or None.
        problem: the problem; a given deepinv physics becomes a problem.
        measure: ``(x, seed) → (y, physics)``.

    Raises:
        InvalidParameterError, ShapeError, NotFiniteError: an image cannot be used, or `problem` is neither a problem
            nor a physics.
    """

    def __init__(self, images: Any, problem: Problem | LinearPhysics, validation: Any = None):
        self.images = as_images(images)
        self.validation = None if validation is None else as_images(validation)
        self.problem = as_problem(problem)
        self.measure = self.problem.measure

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the shapes and pixels of the training images."""
        return fingerprint(self.images)

    @cached_property
    def validation_fingerprint(self) -> str | None:
        """SHA-256 of the shapes and pixels of the validation images; None without any."""
        return None if self.validation is None else fingerprint(self.validation)
