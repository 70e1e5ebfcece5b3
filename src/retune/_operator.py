"""Facts about a forward operator that are worth knowing once: linearity, ‖A‖², a fast normal operator."""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from deepinv.physics import Blur, BlurFFT, DecomposablePhysics, Denoising, Downsampling, Inpainting, LinearPhysics
from torch import Tensor, nn

from retune._blur import BlurNormal, SubsampleNormal
from retune._restrict import DiagonalNormal
from retune.errors import InvalidParameterError, PhysicsError, ShapeError

#: ‖A‖² ≤ SAFETY · (Lanczos estimate), with probability at least 1 − FAILURE over the start vector.
SAFETY = 1.05
FAILURE = 1e-6
#: An adjoint further off, relative to ‖Aa‖ ‖Ac‖ on random images, is refused.
REFUSED = 2e-3
# Diagonalised by construction, so there is nothing to check each time a fresh mask is drawn.
_TRUSTED = (Inpainting, Denoising, BlurFFT)
# What torch keeps in a module besides its own attributes.
_BOOKKEEPING = frozenset(vars(nn.Module())) | {"training"}
# How deep lists in lists are looked into.
_NESTED = 4
# What deepinv's Downsampling computes anew at every call: it follows from the filter and the image size.
_DERIVED = {"Fh", "Fhc", "Fh2", "imsize_dynamic"}


@dataclass(frozen=True)
class OperatorFacts:
    """What is known of a physics for one image size; see :class:`retune.problem.Problem`."""

    sqnorm: Tensor
    sqnorm_kind: str
    normal_scale: float | None
    normal: Callable[[Tensor], Tensor] | None  # None: the physics' own route
    floor: Tensor | None = None  # a lower bound on the least eigenvalue of AᵀA, if one is known exactly
    mismatch: float | None = None  # of A and A_adjoint on random images; None where it was not looked for


_cache: weakref.WeakKeyDictionary[LinearPhysics, tuple[Any, list[Tensor], OperatorFacts]]
_cache = weakref.WeakKeyDictionary()


def facts(physics: LinearPhysics, like: Tensor, y: Any, known_sqnorm: float | Tensor | None = None) -> OperatorFacts:
    """The facts for images shaped as `like`; cached until a tensor or a plain attribute of the physics changes."""
    if known_sqnorm is not None:
        sqnorm = torch.as_tensor(known_sqnorm, dtype=like.dtype, device=like.device).reshape(-1)
        if not bool((sqnorm > 0).all() & torch.isfinite(sqnorm).all()) or len(sqnorm) not in (1, len(like)):
            raise InvalidParameterError(
                f"sqnorm = ‖A‖² must be positive and finite, one number or one per image, got {known_sqnorm}"
            )
        return OperatorFacts(sqnorm, "given", None, None)
    if isinstance(physics, _TRUSTED) and type(physics) in _TRUSTED:  # a few operations: cheaper than a look-up
        if _parts(y)[0].shape != like.shape:  # a mask broadcasts, and would turn a grey measurement into colour
            raise ShapeError(
                f"the measurement of shape {tuple(_parts(y)[0].shape)} does not fit {type(physics).__name__}, whose "
                f"images here are {tuple(like.shape)}; make y with physics(x), or rebuild the physics for this size"
            )
        return _diagonal_facts(physics, like)
    key, tensors = _fingerprint(physics, like)
    held = _cache.get(physics)
    # The cache holds the tensors themselves, so that `is` cannot be fooled by reused memory.
    if held is not None and held[0] == key and all(a is b for a, b in zip(held[1], tensors, strict=True)):
        return held[2]
    found = _examine(physics, like.detach(), y)
    _cache[physics] = (key, tensors, found)
    return found


def normal_operator(physics: LinearPhysics, known: OperatorFacts) -> Callable[[Tensor], Tensor]:
    """The fastest exact route to ``x ↦ AᵀA x``."""
    return physics.A_adjoint_A if known.normal is None else known.normal


def _fingerprint(physics: nn.Module, like: Tensor) -> tuple[Any, list[Tensor]]:
    """What tells that a physics has changed: its plain attributes by value, its tensors by identity and version."""
    tensors: list[Tensor] = []
    plain: list[Any] = [tuple(like.shape), like.dtype, like.device]

    def add(name: str, value: Any, depth: int = 0) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, int | float | complex | str):
            plain.append((name, value))
        elif isinstance(value, np.ndarray | np.generic):  # NumPy counts no versions
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
            continue  # they do not enter A
        derived = _DERIVED if isinstance(module, Downsampling) else set()
        ours = {k: v for k, v in sorted(vars(module).items()) if k not in derived and k not in _BOOKKEEPING}
        for key, value in {**ours, **module._buffers, **module._parameters}.items():
            if key not in derived:
                add(f"{name}.{key}", value)
    # A tensor made in inference mode does not count its changes: a fresh object never compares equal. Changes through
    # ``.data`` are not counted either, and not seen: that is what it is for.
    return (tuple(plain), tuple(object() if t.is_inference() else t._version for t in tensors)), tensors


def _examine(physics: LinearPhysics, like: Tensor, y: Any) -> OperatorFacts:
    with torch.no_grad(), full_precision():
        probes = _probes(like)
        mismatch = _check_linear(physics, like, y, probes)
        if isinstance(physics, DecomposablePhysics) and _is_diagonalised(physics, next(probes)):
            # Cached, so nothing here may hold on to the physics, nor freeze a mask that is being learned.
            known = _diagonal_facts(physics, like)
            return OperatorFacts(known.sqnorm, known.sqnorm_kind, None, None, known.floor, mismatch)
        normal, exact = _fast_normal(physics, like)
        if normal is not None and not _agree(normal(probe := next(probes)), physics.A_adjoint_A(probe)):
            normal, exact = None, None
        if exact is not None:
            floor = _floor(normal.power).to(like) if isinstance(normal, BlurNormal) and type(physics) is Blur else None
            return OperatorFacts(exact.to(like), "exact", None, normal, floor, mismatch)
        sqnorm = lanczos_sqnorm(normal or physics.A_adjoint_A, next(probes)) * SAFETY
        return OperatorFacts(sqnorm, "estimated", None, normal, None, mismatch)


def _diagonal_facts(physics: DecomposablePhysics, like: Tensor) -> OperatorFacts:
    """A = U diag(m) Vᵀ: ‖A‖² = max |m|², AᵀA = V |m|² Vᵀ, with |m|² computed once."""
    mask = physics.mask
    if not isinstance(mask, Tensor):
        raise PhysicsError(f"{type(physics).__name__} has no mask yet: set one (physics.update(mask=...)) first")
    power = (mask.conj() * mask).real if mask.is_complex() else mask * mask
    if mask.numel() == 1 and not mask.requires_grad:
        scale = float(power)
        only = power.detach().to(like).reshape(1)
        return OperatorFacts(only, "exact", scale, DiagonalNormal(power.detach().reshape(()), None), only)
    batched = mask.ndim == power.ndim and mask.shape[0] == like.shape[0] and mask.ndim >= 4 and len(like) > 1
    sqnorm = power.detach().flatten(1).amax(1) if batched else power.detach().max().reshape(1)
    normal = DiagonalNormal(power, None if type(physics) is Inpainting else (physics.V, physics.V_adjoint))
    return OperatorFacts(sqnorm.to(like), "exact", None, normal, _floor(power if batched else power[None]).to(like))


def _floor(power: Tensor) -> Tensor:
    """The least entry of each row of |m|², less what rounding (of an FFT) may have added to it; (1,) or (B,)."""
    flat = power.detach().flatten(1)
    margin = 16 * torch.finfo(flat.dtype).eps * flat.amax(1)
    least = flat.amin(1)
    return torch.where(least > margin, least - margin, torch.zeros_like(least))


def _is_diagonalised(physics: DecomposablePhysics, probe: Tensor) -> bool:
    """Whether the factors are orthonormal on a random image and AᵀA is what they say it is."""
    mask = physics.mask
    if not isinstance(mask, Tensor):
        return False
    power = (mask.conj() * mask).real if mask.is_complex() else mask * mask
    claimed = physics.V(power * physics.V_adjoint(probe))
    actual = physics.A_adjoint(physics.A(probe))
    if not (_agree(physics.V(physics.V_adjoint(probe)), probe) and _agree(claimed, actual)):
        return False
    # V could still be oblique; a power iteration is a lower bound of the norm and would exceed max |m|².
    v = probe
    for _ in range(10):
        v = physics.A_adjoint_A(v / _norm(v).clamp_min(1e-30))
    return bool((_norm(v).max() <= power.max() * (1 + 1e-4)).item())


def lanczos_sqnorm(normal: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Largest Ritz value of AᵀA per image, shape (B,): never above ‖A‖² up to rounding.

    The number of steps k makes the probability that ``SAFETY`` times the value is below ‖A‖² at most ``FAILURE``:
    for a start uniform on the sphere of R^n, P(θ_k < (1 − ε)‖A‖²) ≤ 1.648 √n exp(−√ε (2k − 1))
    (Kuczyński and Woźniakowski, SIAM J. Matrix Anal. Appl. 13(4):1094-1122, 1992).
    """
    n = start[0].numel()
    epsilon = 1 - 1 / SAFETY
    steps = math.ceil((math.log(1.648 * math.sqrt(n) / FAILURE) / math.sqrt(epsilon) + 1) / 2)
    tiny = torch.finfo(start.dtype).tiny
    v, previous = start / _norm(start).clamp_min(tiny), torch.zeros_like(start)
    beta = torch.zeros_like(_norm(start))
    diagonal, off = [], []
    for _ in range(min(steps, n)):
        w = normal(v) - beta * previous
        alpha = (w * v).sum((1, 2, 3), keepdim=True)
        w = w - alpha * v
        beta = _norm(w)
        diagonal.append(alpha)
        off.append(beta)
        # After an exact breakdown w is 0 and only zeros are appended, which leave the largest value alone.
        previous, v = v, w / beta.clamp_min(tiny)
    main = torch.cat(diagonal, 1).flatten(1).double()
    side = torch.cat(off, 1).flatten(1).double()[:, :-1]
    matrix = torch.diag_embed(main) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    return torch.linalg.eigvalsh(matrix.cpu())[:, -1].clamp_min(0).to(start)


def _probes(like: Tensor) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(20250614)  # its own stream: the caller's seed is left alone
    while True:  # the same for every image, so that an image alone has the norm that it has in a batch
        one = torch.randn(like.shape[1:], generator=generator, dtype=like.dtype).to(like.device)
        yield one.expand(like.shape).clone()


def _check_linear(physics: LinearPhysics, like: Tensor, y: Any, probes: Iterator[Tensor]) -> float:
    """Refuse what is no linear operator with an adjoint; how far the adjoint is off, relative to ‖Aa‖ ‖Ac‖."""
    a, b = next(probes), next(probes)
    image_a, image_b, both = physics.A(a), physics.A(b), physics.A(2 * a + b)
    name = type(physics).__name__
    for got, one, two in zip(_parts(both), _parts(image_a), _parts(image_b), strict=True):
        if not _agree(got, 2 * one + two):
            raise PhysicsError(
                f"{name} is not linear: A(2a + b) differs from 2A(a) + A(b). Only linear operators have the "
                "guarantees used here; move offsets and saturation out of A"
            )
    expected = [tuple(p.shape[1:]) for p in _parts(image_a)]
    given = [tuple(p.shape[1:]) for p in _parts(y)]
    if expected != given:
        raise PhysicsError(
            f"{name} contradicts the measurement: A maps images {tuple(like.shape[1:])} to {expected}, "
            f"but y has {given}"
        )
    # With 2a + b, not b: independent images are all but orthogonal, and hide a wrong scale or a wrong place.
    left = sum(_inner(p, q) for p, q in zip(_parts(image_a), _parts(both), strict=True))
    right = _inner(a, physics.A_adjoint(both))
    scale = sum(_inner(p, p) for p in _parts(image_a)) ** 0.5 * sum(_inner(p, p) for p in _parts(both)) ** 0.5
    mismatch = abs(left - right) / max(scale, 1e-30)
    if not mismatch <= REFUSED:  # also where it is NaN
        raise PhysicsError(
            f"A_adjoint of {name} is not the adjoint of A: ⟨Aa, Ac⟩ = {left:.6g} but ⟨a, AᵀAc⟩ = {right:.6g}. "
            "Correct A_adjoint, or leave it out and give img_size to deepinv's LinearPhysics"
        )
    return mismatch


def sharp(like: Tensor) -> float:
    """How far an adjoint may be off by rounding alone; right ones are found at 4e-8 in float32 at most.

    An operator that is wrong in a few pixels of n is off by about their share of n, so this is not zero in meaning
    either: where it is exceeded, nothing is called proved that rests on the adjoint.
    """
    eps = rounding(like)
    if like.dtype == torch.float64:
        return 1e-10
    return 1e-4 if eps > torch.finfo(like.dtype).eps else max(1e-6, 8 * eps)


def rounding(like: Tensor) -> float:
    """ε of the arithmetic: that of the dtype, or of TF32, in which a GPU may multiply and convolve float32."""
    eps = torch.finfo(like.dtype).eps
    if like.device.type != "cuda" or like.dtype != torch.float32:
        return eps
    try:
        tf32 = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch's newer switches were used, and it refuses to answer by the older ones
        tf32 = True
    return max(eps, 2.0**-10) if tf32 else eps


_full: ContextVar[bool] = ContextVar("full_precision", default=False)


def wants_full_precision() -> bool:
    """Whether the call is within :func:`full_precision`: for code that chooses its arithmetic itself."""
    return _full.get()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no autocast within: what is proved or compared is meant for the precision of the tensors."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    try:
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = False
    except RuntimeError:  # see `rounding`, which then allows for TF32
        before = None
    token = _full.set(True)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        _full.reset(token)
        if before is not None:
            cudnn.allow_tf32, matmul.allow_tf32 = before


def _parts(y: Any) -> list[Tensor]:
    return [y] if isinstance(y, Tensor) else list(y)


def _inner(a: Tensor, b: Tensor) -> float:
    return float((a.conj() * b).real.sum(dtype=torch.float64))


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def _tolerance(like: Tensor) -> float:
    """Of two images that should be the same: right operators agree to 1e-6 in float32."""
    if like.dtype == torch.float64:
        return 1e-8
    eps = rounding(like)
    return 2e-3 if eps > torch.finfo(like.dtype).eps else max(1e-5, 8 * eps)


def _agree(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    scale = torch.linalg.vector_norm(b).clamp_min(torch.finfo(b.real.dtype).tiny)
    return bool(torch.linalg.vector_norm(a - b) <= _tolerance(b.real) * scale)


def _fast_normal(
    physics: LinearPhysics, like: Tensor
) -> tuple[Callable[[Tensor], Tensor], Tensor | None] | tuple[None, None]:
    """A route to AᵀA faster than the physics' own, if one is known, and ‖A‖² where that route gives it exactly."""
    if isinstance(physics, Downsampling) and type(physics) is Downsampling and physics.filter is None:
        return SubsampleNormal(int(physics.factor)), like.new_ones(1)
    if isinstance(physics, Blur | Downsampling) and type(physics) in (Blur, Downsampling):
        kernel = physics.filter
        if isinstance(kernel, Tensor) and kernel.ndim == 4 and not kernel.requires_grad:
            fast = BlurNormal(physics, like.shape)
            return fast, fast.sqnorm
    return None, None
