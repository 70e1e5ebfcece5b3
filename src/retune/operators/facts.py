"""Cached facts about a forward operator: linearity, ‖A‖², a fast normal operator."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from deepinv.physics import Blur, BlurFFT, DecomposablePhysics, Denoising, Downsampling, Inpainting, LinearPhysics
from torch import Tensor, nn

from retune._torch.batch import image_norm, inner
from retune._torch.precision import agree, full_precision, without_autocast
from retune.errors import InvalidParameterError, PhysicsError, ShapeError
from retune.guarantee import Known
from retune.operators.adjoint import repair
from retune.operators.blur import BlurNormal, SubsampleNormal
from retune.operators.images import parts
from retune.operators.norm import SAFETY, lanczos_sqnorm
from retune.operators.restrict import DiagonalNormal

#: An adjoint with a larger error, relative to ‖Aa‖ ‖Ac‖ on random images, is refused.
REFUSED = 2e-3
#: Largest allowed ‖A‖ and 1/‖A‖: beyond it, squares of gradients leave the range of the precision.
_REACH = {torch.float32: 1e7, torch.float64: 1e60}
# Diagonalised by construction, so no check is needed for each new mask.
_TRUSTED = (Inpainting, Denoising, BlurFFT)
# Attributes of a module that torch itself maintains.
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"training"}
# Maximum depth of nested lists that are searched.
_NESTED = 4
# Attributes that deepinv's Downsampling recomputes at every call, from the filter and the image size.
_DERIVED = {"Fh", "Fhc", "Fh2", "imsize_dynamic"}


@dataclass(frozen=True)
class OperatorFacts:
    """The known facts about a physics for one image size; see [`DataTerm`][retune.DataTerm]."""

    sqnorm: Tensor
    sqnorm_kind: Known
    normal_scale: float | None
    normal: Callable[[Tensor], Tensor] | None  # None: the physics' own A_adjoint_A
    floor: Tensor | None = None  # a lower bound on the least eigenvalue of AᵀA, if one is known exactly
    mismatch: float | None = None  # error of A_adjoint on random images; None if not tested
    composed: bool = False  # whether the physics' own A_adjoint_A differs from A_adjoint after A


_cache: weakref.WeakKeyDictionary[LinearPhysics, tuple[Any, list[Tensor], OperatorFacts]]
_cache = weakref.WeakKeyDictionary()


def facts(physics: LinearPhysics, like: Tensor, y: Any, known_sqnorm: float | Tensor | None = None) -> OperatorFacts:
    """The facts for images shaped as `like`; cached until a tensor or a plain attribute of the physics changes.

    Raises:
        PhysicsError: A is not linear, A_adjoint is not its adjoint, or ‖A‖² is out of the range of the precision.
        ShapeError: y does not fit.
        InvalidParameterError: the given norm is invalid.
    """
    if known_sqnorm is not None:
        sqnorm = torch.as_tensor(known_sqnorm, dtype=like.dtype, device=like.device).reshape(-1)
        if not bool((sqnorm > 0).all() & torch.isfinite(sqnorm).all()) or len(sqnorm) not in (1, len(like)):
            raise InvalidParameterError(
                f"sqnorm = ‖A‖² must be positive and finite, one number or one per image, got {known_sqnorm}"
            )
        return OperatorFacts(sqnorm, Known.GIVEN, None, None)
    if (
        isinstance(physics, _TRUSTED) and type(physics) in _TRUSTED and not _changed(physics)
    ):  # a few operations, cheaper than a cache look-up
        if parts(y)[0].shape != like.shape:  # a mask broadcasts, and would turn a grey measurement into colour
            raise ShapeError(
                f"the measurement of shape {tuple(parts(y)[0].shape)} does not fit {type(physics).__name__}, whose "
                f"images here are {tuple(like.shape)}; make y with physics(x), or rebuild the physics for this size"
            )
        return _in_range(_diagonal_facts(physics, like), physics)
    key, tensors = _fingerprint(physics, like)
    held = _cache.get(physics)
    # The cache holds the tensors themselves: a comparison by `is` then stays valid when memory is reused.
    if held is not None and held[0] == key and all(a is b for a, b in zip(held[1], tensors, strict=True)):
        return held[2]
    found = _in_range(_examine(physics, like.detach(), y), physics)
    _cache[physics] = (key, tensors, found)
    return found


def _changed(physics: nn.Module) -> bool:
    """Whether a method of this object was replaced, so that its class does not tell what it does."""
    return any(callable(value) and hasattr(type(physics), name) for name, value in vars(physics).items())


def _in_range(found: OperatorFacts, physics: LinearPhysics) -> OperatorFacts:
    """Refuse a norm that is too large or too small for the precision. The caller handles 0."""
    reach = _REACH[found.sqnorm.dtype]
    for value in found.sqnorm.double().sqrt().tolist():
        if not (value == 0 or 1 / reach <= value <= reach):
            raise _out_of_scale(physics, value, found.sqnorm.dtype)
    return found


def _out_of_scale(physics: LinearPhysics, norm: float, dtype: torch.dtype) -> PhysicsError:
    reach = _REACH[dtype]
    return PhysicsError(
        f"{type(physics).__name__} is out of scale for {str(dtype).removeprefix('torch.')}: ‖A‖ is about {norm:.3g}, "
        f"but its squares fit into this precision only for ‖A‖ from {1 / reach:.0e} to {reach:.0e}; divide A and y by "
        "‖A‖, so that the norm is near 1"
    )


def normal_operator(physics: LinearPhysics, known: OperatorFacts) -> Callable[[Tensor], Tensor]:
    """The fastest exact route to ``x ↦ AᵀA x``; in the precision of x, under autocast too."""
    if known.normal is not None:
        return known.normal  # FFTs and products of numbers, which autocast leaves alone
    if known.sqnorm_kind == Known.EXACT:  # without a faster operator: a physics that diagonalises itself
        return _Diagonalised(physics)
    return without_autocast(_composed(physics) if known.composed else physics.A_adjoint_A)


class _Diagonalised:
    """``AᵀA`` of a physics ``A = U diag(m) Vᵀ`` with tested factors: its own, and the inverse of a shifted one."""

    def __init__(self, physics: Any):
        self._physics, self._normal = physics, without_autocast(physics.A_adjoint_A)

    def __call__(self, x: Tensor) -> Tensor:
        return self._normal(x)

    def resolve(self, shift: Tensor) -> Callable[[Tensor], Tensor]:
        """``r ↦ (I + shift · AᵀA)⁻¹ r``, see ``retune.operators.restrict.DiagonalNormal``."""
        mask = self._physics.mask
        power = (mask.conj() * mask).real if mask.is_complex() else mask * mask
        inverse = DiagonalNormal(power, (self._physics.V, self._physics.V_adjoint)).resolve(shift)
        return without_autocast(inverse)


def _composed(physics: LinearPhysics) -> Callable[[Tensor], Tensor]:
    return lambda x: physics.A_adjoint(physics.A(x))


def _fingerprint(physics: nn.Module, like: Tensor) -> tuple[Any, list[Tensor]]:
    """A key that changes with the physics: plain attributes by value, tensors by identity and version."""
    tensors: list[Tensor] = []
    plain: list[Any] = [tuple(like.shape), like.dtype, like.device]

    def add(name: str, value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, int | float | complex | str):
            plain.append((name, value))
        elif isinstance(value, np.ndarray | np.generic):  # NumPy has no version counter
            plain.append(
                (name, value.shape, str(value.dtype), hashlib.sha256(np.ascontiguousarray(value).data).digest())
            )
        elif isinstance(value, list | tuple) and all(type(v) in (int, float) for v in value):
            plain.append((name, tuple(value)))
        elif isinstance(value, list | tuple | dict) and depth < _NESTED:
            pairs = list(value.items() if isinstance(value, dict) else enumerate(value))
            plain.append((name, len(pairs)))
            for key, item in pairs:
                add(f"{name}[{key!r}]", item, depth + 1)

    for name, module in physics.named_modules():
        if "noise_model" in name or "sensor_model" in name:
            continue  # they do not affect A
        derived = _DERIVED if isinstance(module, Downsampling) else set()
        ours = {k: v for k, v in sorted(vars(module).items()) if k not in derived and k not in _BOOKKEEPING}
        for key, value in {**ours, **module._buffers, **module._parameters}.items():
            if key not in derived:
                add(f"{name}.{key}", value)
    # A tensor made in inference mode has no version counter, so its entry never compares equal. Changes through
    # ``.data`` are not counted either; this is the purpose of ``.data``.
    return (tuple(plain), tuple(object() if t.is_inference() else t._version for t in tensors)), tensors


def _examine(physics: LinearPhysics, like: Tensor, y: Any) -> OperatorFacts:
    # The cache outlives the caller's inference mode, and autograd refuses tensors that were made in it.
    with torch.inference_mode(False), torch.no_grad(), full_precision():
        probes = _probes(like)
        mismatch = _check_linear(physics, like, y, probes)
        if isinstance(physics, DecomposablePhysics) and _is_diagonalised(physics, next(probes)):
            # This is cached, so it must not keep the physics alive, nor freeze a learned mask.
            known = _diagonal_facts(physics, like)
            return OperatorFacts(known.sqnorm, known.sqnorm_kind, None, None, known.floor, mismatch)
        normal, exact = _fast_normal(physics, like)
        probe = next(probes)
        if normal is not None and not agree(normal(probe), physics.A_adjoint_A(probe)):
            normal, exact = None, None
        if exact is not None:
            power = getattr(normal, "eigenvalues", None)
            floor = None if power is None else _floor(power).to(like)
            return OperatorFacts(exact.to(like), Known.EXACT, None, normal, floor, mismatch)
        composed = normal is None and not _own_normal_is_right(physics, probe)
        route = normal or (_composed(physics) if composed else physics.A_adjoint_A)
        start = next(probes)
        sample = getattr(normal, "one_of_each", None)
        if sample is not None:
            start = sample(start)  # images and channels with the same kernel have the same norm
        sqnorm = lanczos_sqnorm(route, start) * SAFETY
        return OperatorFacts(sqnorm, Known.ESTIMATED, None, normal, None, mismatch, composed)


def _own_normal_is_right(physics: LinearPhysics, probe: Tensor) -> bool:
    """Whether A_adjoint_A, which a physics may override, equals A followed by A_adjoint."""
    if type(physics).A_adjoint_A is LinearPhysics.A_adjoint_A:
        return True
    try:
        return agree(physics.A_adjoint_A(probe), physics.A_adjoint(physics.A(probe)))
    except Exception:  # an untested method may raise anything; A and A_adjoint were called and work
        return False


def _diagonal_facts(physics: DecomposablePhysics, like: Tensor) -> OperatorFacts:
    """A = U diag(m) Vᵀ: ‖A‖² = max |m|², AᵀA = V |m|² Vᵀ, with |m|² computed once."""
    mask = physics.mask
    if not isinstance(mask, Tensor):
        raise PhysicsError(f"{type(physics).__name__} has no mask yet: set one (physics.update(mask=...)) first")
    power = (mask.conj() * mask).real if mask.is_complex() else mask * mask
    if mask.numel() == 1 and not mask.requires_grad:
        scale = float(power)
        only = power.detach().to(like).reshape(1)
        return OperatorFacts(only, Known.EXACT, scale, DiagonalNormal(power.detach().reshape(()), None), only)
    batched = mask.ndim == power.ndim and mask.shape[0] == like.shape[0] and mask.ndim >= 4 and len(like) > 1
    sqnorm = power.detach().flatten(1).amax(1) if batched else power.detach().max().reshape(1)
    normal = DiagonalNormal(power, None if type(physics) is Inpainting else (physics.V, physics.V_adjoint))
    return OperatorFacts(sqnorm.to(like), Known.EXACT, None, normal, _floor(power if batched else power[None]).to(like))


def _floor(power: Tensor) -> Tensor:
    """The smallest entry of each row of |m|², minus the possible rounding error of an FFT; (1,) or (B,)."""
    flat = power.detach().flatten(1)
    margin = 16 * torch.finfo(flat.dtype).eps * flat.amax(1)
    least = flat.amin(1)
    return torch.where(least > margin, least - margin, torch.zeros_like(least))


def _is_diagonalised(physics: DecomposablePhysics, probe: Tensor) -> bool:
    """Whether the factors are orthonormal on a random image and give the true AᵀA."""
    mask = physics.mask
    if not isinstance(mask, Tensor):
        return False
    power = (mask.conj() * mask).real if mask.is_complex() else mask * mask
    claimed = physics.V(power * physics.V_adjoint(probe))
    actual = physics.A_adjoint(physics.A(probe))
    if not (agree(physics.V(physics.V_adjoint(probe)), probe) and agree(claimed, actual)):
        return False
    # V could still be oblique. Then a power iteration, a lower bound of the norm, would exceed max |m|².
    v = probe
    for _ in range(10):
        v = physics.A_adjoint_A(v / image_norm(v).clamp_min(1e-30))
    return bool((image_norm(v).max() <= power.max() * (1 + 1e-4)).item())


def _probes(like: Tensor) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(20250614)  # a separate stream keeps the caller's seed unchanged
    while True:  # the same start for every image, so that a norm does not depend on the batch
        one = torch.randn(like.shape[1:], generator=generator, dtype=like.dtype).to(like.device)
        yield one.expand(like.shape).clone()


def _check_linear(physics: LinearPhysics, like: Tensor, y: Any, probes: Iterator[Tensor]) -> float:
    """Refuse an operator that is not linear or has a wrong adjoint. Returns its error relative to ‖Aa‖ ‖Ac‖."""
    a, b = next(probes), next(probes)
    image_a, image_b, both = physics.A(a), physics.A(b), physics.A(2 * a + b)
    name = type(physics).__name__
    for got, one, two in zip(parts(both), parts(image_a), parts(image_b), strict=True):
        if not agree(got, 2 * one + two):
            raise PhysicsError(
                f"{name} is not linear: A(2a + b) differs from 2A(a) + A(b). The guarantees here hold for linear "
                "operators only; move offsets and saturation out of A"
            )
    expected = [tuple(p.shape[1:]) for p in parts(image_a)]
    given = [tuple(p.shape[1:]) for p in parts(y)]
    if expected != given:
        raise PhysicsError(
            f"{name} contradicts the measurement: A maps images {tuple(like.shape[1:])} to {expected}, "
            f"but y has {given}"
        )
    # Use 2a + b, not b: independent images are almost orthogonal, which hides a wrong scale or position.
    left = sum(inner(p, q) for p, q in zip(parts(image_a), parts(both), strict=True))
    back = physics.A_adjoint(both)
    right = inner(a, back)
    scale = sum(inner(p, p) for p in parts(image_a)) ** 0.5 * sum(inner(p, p) for p in parts(both)) ** 0.5
    tiny = scale <= torch.finfo(like.dtype).tiny and any(bool((p != 0).any()) for p in parts(both))
    if tiny or (back.isinf().any() and not back.isnan().any()):
        raise _out_of_scale(physics, sum(inner(p, p) for p in parts(image_a)) ** 0.5 / inner(a, a) ** 0.5, like.dtype)
    mismatch = abs(left - right) / max(scale, 1e-300)
    if not mismatch <= REFUSED:  # also if it is NaN
        raise PhysicsError(
            f"A_adjoint of {name} is not the adjoint of A: ⟨Aa, Ac⟩ = {left:.6g} but ⟨a, AᵀAc⟩ = {right:.6g}. "
            f"{repair(physics, like)}"
        )
    return mismatch


def _fast_normal(
    physics: LinearPhysics, like: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor | None] | tuple[None, None]:
    """A faster AᵀA than the physics' own, if one is known, and the exact ‖A‖² if this method gives it."""
    if isinstance(physics, Downsampling) and type(physics) is Downsampling and physics.filter is None:
        return SubsampleNormal(int(physics.factor)), like.new_ones(1)
    if isinstance(physics, Blur | Downsampling) and type(physics) in (Blur, Downsampling):
        kernel = physics.filter
        if isinstance(kernel, Tensor) and kernel.ndim == 4 and not kernel.requires_grad:
            fast = BlurNormal(physics, like.shape)
            return fast, fast.sqnorm
    return None, None
