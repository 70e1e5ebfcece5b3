"""The examination: its checks and their order."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from deepinv.physics import LinearPhysics, Physics
from torch import Tensor

from retune._torch.precision import full_precision
from retune.diagnosis.consistency import check_consistency, check_pair, check_shape
from retune.diagnosis.copies import duplicate
from retune.diagnosis.exam import FAILURES, Exam, complex_images, image_shape, short
from retune.diagnosis.findings import Diagnosis, Finding, Severity
from retune.diagnosis.kernels import check_boundary, check_convolution, check_kernel
from retune.diagnosis.measurement import check_finite, check_noise, check_values
from retune.diagnosis.null_space import check_guarantees, check_null_space
from retune.diagnosis.operator import check_adjoint, check_linear, check_norm
from retune.errors import InvalidParameterError, PhysicsError, ShapeError, require
from retune.operators.images import parts
from retune.operators.kinds import kernel_of
from retune.problems.kernels import kernel as make_kernel

__all__ = ["doctor"]


def doctor(
    physics: Physics,
    y: Tensor | None = None,
    kernel: str | Tensor | np.ndarray | None = None,
    *,
    x: Tensor | None = None,
    img_size: tuple[int, int, int] | None = None,
) -> Diagnosis:
    r"""Examine a forward operator, and optionally a measurement, before training on them.

    Checks of A: linearity, and ``⟨Au, v⟩ = ⟨u, Aᵀv⟩`` in float64 and float32; ‖A‖² and its scale; the null space
    (unobserved pixels, the smallest eigenvalue of AᵀA); the guarantees that can hold (arXiv:2506.13239); the kernel
    (sum, centre, sides), whether A convolves or correlates with it, and the boundary condition. Checks of y: NaN and
    Inf, range, clipping, noise level, and whether A can have produced it. A fault is reported as a finding; it raises
    no error.

    The checks run on a deep copy, without gradients and with their own random streams. The physics, y and the global
    generator stay unchanged. Cost: about 40 evaluations of AᵀA for the norm (none if it is known exactly), 40 each for
    the null space and the consistency of y, and a few more.

    Args:
        physics: any deepinv ``Physics``.
        y: its measurement, a tensor (B, ...) or a deepinv ``TensorList``.
        kernel: the blur that you expect, as the image of a point; see [`kernel`][retune.problems.kernel]. Default: the
            kernel of the physics (deepinv's ``physics.filter``).
        x: the true image (B, C, H, W) behind y, if known (a test chart or a point source). y is then compared with Ax,
            also with the kernel turned by 180°.
        img_size: (C, H, W); needed if neither y, x nor the physics tells the image size.

    Returns:
        A [`Diagnosis`][retune.Diagnosis]: prints as a table; ``.ok``, ``.findings``, ``.to_dict()``.

    Raises:
        PhysicsError: `physics` is not a deepinv ``Physics``.
        InvalidParameterError: the image size is unknown; x or `img_size` is invalid.
        ShapeError: y is neither a tensor nor a list of tensors; x is not a batch of images.
        UnknownNameError, NotFiniteError: the kernel cannot be read.
    """
    if not isinstance(physics, Physics):
        given = f"the class {physics.__name__} itself" if isinstance(physics, type) else type(physics).__name__
        raise PhysicsError(
            f"doctor examines a deepinv Physics, got {given}; wrap a linear function as "
            "deepinv.physics.LinearPhysics(A=..., A_adjoint=...)"
        )
    _check_arguments(y, x, img_size)
    taps = kernel_of(physics) if kernel is None else make_kernel(kernel)
    with torch.no_grad(), full_precision():
        exam, findings = _prepare(physics, y, x, img_size)
        findings += _operator_findings(exam, taps, kernel is not None)
        if y is not None:
            findings += _measurement_findings(exam, x)
    size = "×".join(map(str, exam.shape))
    precision = str(exam.dtype).removeprefix("torch.")
    return Diagnosis(f"{exam.name} on images {size}, {precision}", tuple(findings))


def _check_arguments(y, x, img_size) -> None:
    if y is not None and not all(p.ndim > 0 and p.numel() for p in parts(y)):
        raise ShapeError("the measurement y is empty, or has no batch dimension")
    if x is not None:
        require("x", x, Tensor, "a tensor (B, C, H, W)", "retune.data.as_images makes tensors of files and arrays")
        if x.ndim != 4 or not x.numel() or not x.is_floating_point():
            raise ShapeError(f"x must be a batch of float images (B, C, H, W), got {tuple(x.shape)}, {x.dtype}")
        if y is None:
            raise InvalidParameterError("x is compared with its measurement: give y as well, or img_size instead of x")
    if img_size is not None:
        sized = isinstance(img_size, tuple | list | torch.Size) and len(img_size) == 3
        if not sized or not all(isinstance(n, int) and n > 0 for n in img_size):
            raise InvalidParameterError(f"img_size must be (C, H, W), three whole numbers ≥ 1, got {img_size!r}")


def _prepare(physics: Physics, y, x, img_size) -> tuple[Exam, list[Finding]]:
    findings: list[Finding] = []
    try:
        twin = duplicate(physics)
    except Exception as error:  # the user's object may raise anything when it is copied
        twin = physics
        findings.append(
            Finding(
                "copy",
                Severity.NOTE,
                f"the physics cannot be copied («{short(error)}»), so the original was examined",
                "Do not store open files or handles in the physics.",
            )
        )
    first = None if y is None else parts(y)[0]
    reference = next((t for t in (first, x, *physics.parameters(), *physics.buffers()) if _is_float(t)), None)
    dtype = torch.float32 if reference is None else reference.real.dtype
    dtype = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    device = torch.device("cpu") if reference is None else reference.device
    shape, finding = image_shape(twin, y, x, img_size)
    exam = Exam(twin, shape, dtype, device, y=y)
    finding = complex_images(exam) if finding is None else finding
    if finding is not None:
        findings.append(finding)
        if finding.severity is Severity.PROBLEM:
            exam.y, exam.supported = None, finding.check != "images"
    return exam, findings


def _operator_findings(exam: Exam, kernel: Tensor | None, asked: bool) -> Iterator[Finding]:
    yield from check_linear(exam)
    if exam.linear and isinstance(exam.physics, LinearPhysics):
        yield from check_adjoint(exam)
    yield from check_norm(exam)
    null_space = tuple(check_null_space(exam))
    yield from null_space
    yield from check_guarantees(exam, null_space)
    if kernel is not None:
        yield from check_kernel(kernel)
        if asked or exam.linear:
            yield from check_convolution(exam, kernel)
    if exam.linear:
        yield from check_boundary(exam)


def _measurement_findings(exam: Exam, x: Tensor | None) -> Iterator[Finding]:
    if exam.y is not None:
        yield from check_shape(exam)
    if exam.y is None:
        return
    finite = list(check_finite(exam.y))
    yield from finite
    if any(f.severity is Severity.PROBLEM for f in finite):
        return
    yield from check_noise(exam)
    yield from check_values(exam)
    try:
        if x is not None:
            yield from check_pair(exam, x)
        else:
            yield from check_consistency(exam)
    except FAILURES as error:
        yield Finding(
            "consistency",
            Severity.PROBLEM,
            f"y could not be compared with A: «{short(error)}»",
            "Bring y, the physics and x to one device and one precision.",
        )


def _is_float(t: object) -> bool:
    return isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
