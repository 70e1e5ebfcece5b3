"""The supported images of an operator: batches (B, C, H, W) of real numbers, in float32 or float64."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.errors import InvalidParameterError, PhysicsError, ShapeError

__all__ = ["in_words", "other_precision", "parts", "require_images", "require_precision", "unsupported"]

_PRECISIONS = (torch.float32, torch.float64)
_COMPLEX = (
    "Write the operator for real images: for complex ones give x two channels, real and imaginary part, as deepinv's "
    "MRI physics do (torch.view_as_complex inside A, torch.view_as_real inside A_adjoint); for real ones return the "
    "real part, A_adjoint(y).real. The measurement y may be complex"
)


def parts(y: object) -> list[Tensor]:
    """The tensors of a measurement: a single one, or the entries of deepinv's TensorList for stacked physics.

    Raises:
        ShapeError: not a measurement.
    """
    if isinstance(y, Tensor):
        return [y]
    try:
        found = list(y)  # type: ignore[call-overload]
    except TypeError:
        found = []
    if not found or not all(isinstance(p, Tensor) for p in found):
        raise ShapeError(f"the measurement y must be a tensor (B, ...) or a deepinv TensorList, got {type(y).__name__}")
    return found


def unsupported(image: Tensor) -> tuple[str, str] | None:
    """Why a back-projection ``Aᵀy`` is not a supported batch of images, and the advice; None if it is supported."""
    shape = tuple(image.shape)
    if len(shape) == 5 and 0 not in shape:
        return (
            f"Aᵀy has the shape {shape}: volumes and sequences (B, C, D, H, W) are not supported yet, only images "
            "(B, C, H, W)",
            "Restore slice by slice, with an operator for one slice",
        )
    if len(shape) != 4 or 0 in shape:
        missing = "Add the missing batch or channel dimension to y and to the physics" if len(shape) < 4 else ""
        return f"Aᵀy must be a non-empty batch of images (B, C, H, W), got shape {shape}", missing
    if image.is_complex():
        return f"Aᵀy is {_name(image.dtype)}: complex images are not supported", _COMPLEX
    return None


def require_images(image: Tensor) -> None:
    """Refuse a back-projection that is not a batch of real images.

    Raises:
        ShapeError: not (B, C, H, W), or empty.
        PhysicsError: complex images.
    """
    reason = unsupported(image)
    if reason is not None:
        raise (PhysicsError if image.is_complex() and image.ndim == 4 else ShapeError)(in_words(reason))


def in_words(reason: tuple[str, str]) -> str:
    """The reason and the advice of ``unsupported`` in one text."""
    return ". ".join(part for part in reason if part)


def require_precision(y: object) -> None:
    """Refuse a measurement whose numbers are neither float32 nor float64.

    Raises:
        InvalidParameterError: whole numbers, floats of 16 bits, or a tensor that is not dense.
    """
    for part in parts(y):
        if part.layout is not torch.strided or part.device.type == "meta":
            what = "on the device meta, which holds no values" if part.device.type == "meta" else "a sparse tensor"
            raise InvalidParameterError(f"the measurement y is {what}: give its values as a dense tensor")
        real = part.real.dtype if part.is_complex() else part.dtype
        if real not in _PRECISIONS:
            whole = not part.is_floating_point() and not part.is_complex()
            raise InvalidParameterError(
                f"the measurement y is {_name(part.dtype)}, but images are restored in float32 or float64: "
                + ("convert it and scale it to [0, 1], for example y.float() / 255" if whole else "give y.float()")
            )


def other_precision(y: object, physics: LinearPhysics) -> str | None:
    """Advice if y and the tensors of the physics differ in precision; else None."""
    given = {p.real.dtype if p.is_complex() else p.dtype for p in parts(y)}
    held: set[torch.dtype] = set()
    for name, tensor in (*physics.named_parameters(), *physics.named_buffers()):
        if "noise_model" not in name and (tensor.is_floating_point() or tensor.is_complex()):
            held.add(tensor.real.dtype)
    if len(given) == 1 and len(held) == 1 and given != held:
        mine, theirs = _name(given.pop()), _name(held.pop())
        return (
            f"y is {mine}, but the tensors of {type(physics).__name__} are {theirs}: give y.to(torch.{theirs}), or "
            f"build the physics in {mine}"
        )
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
