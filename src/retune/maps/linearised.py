"""The linearisation of a block of layers at a state: Jacobian products and power iterations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retune._torch.batch import image_norm, over_images, per_image_norm
from retune.errors import CutGradientError
from retune.maps.base import BoundMap

__all__ = ["Estimate", "Linearised", "spectral_norm", "spectral_radius"]


#: Below this multiple of √ε a finite difference of a unit vector is rounding.
_NOTHING = 8.0


class Linearised:
    """The Jacobian J of one cycle of a bound map at a state. Its graphs are recorded once.

    ``Jᵀw`` is a backward pass. ``Jv`` is the derivative of ``w ↦ Jᵀw``, so it is a backward pass through the backward
    pass. If a layer forbids that, ``Jv`` is the finite difference ``(T(u + hv) − T(u))/h``.

    Args:
        bound: the map; its cycle is recorded, so the memory is that of one cycle.
        u: the state, leading axis B; the images are independent of each other.
        products: whether ``Jv`` is needed as well as ``Jᵀw``.
        graph: False records no graph. ``Jv`` is then a finite difference, at the cost and memory of one cycle without
            graph, and ``Jᵀw`` is not available.

    Attributes:
        exact: whether ``Jv`` is by automatic differentiation.
        graph: whether ``Jᵀw`` is available.

    Raises:
        CutGradientError: no gradient flows through the map.
    """

    def __init__(self, bound: BoundMap, u: Tensor, *, products: bool = True, graph: bool = True):
        self._bound, self.graph = bound, graph
        if not graph:
            with torch.no_grad():
                self._u = u.detach()
                self._out = bound.block(self._u, bound.layers)
            self.exact = False
            return
        with torch.enable_grad():
            self._u = u.detach().clone().requires_grad_()
            self._out = bound.block(self._u, bound.layers)
            if not self._out.requires_grad:
                raise CutGradientError(
                    "no gradient flows through the map, so its contraction cannot be measured: a prior or denoiser "
                    "detaches (.detach(), torch.no_grad()); use a differentiable one"
                )
            self.exact = False
            if products:
                self._w = torch.zeros_like(self._out).requires_grad_()
                (self._pulled,) = torch.autograd.grad(self._out, self._u, self._w, create_graph=True)
                self.exact = self._twice()

    def _twice(self) -> bool:
        if not self._pulled.requires_grad:
            return False
        try:
            self._product(torch.zeros_like(self._u))
        except RuntimeError as error:
            # The graph is cut entirely, or in one of several paths. autograd has no error type for either.
            if any(words in str(error) for words in ("once_differentiable", "not implemented", "not have been used")):
                return False
            raise
        return True

    def transposed(self, w: Tensor, cycles: int = 1) -> Tensor:
        """``(Jᵀ)^cycles w``."""
        for _ in range(cycles):
            (w,) = torch.autograd.grad(self._out, self._u, w, retain_graph=True)
        return w

    def product(self, v: Tensor, cycles: int = 1) -> Tensor:
        """``J^cycles v``."""
        for _ in range(cycles):
            v = self._product(v) if self.exact else self._difference(v)
        return v

    def _product(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self._pulled, self._w, v, retain_graph=True)[0]

    def _difference(self, v: Tensor) -> Tensor:
        """The step balances rounding and curvature: ``√eps`` times the size of the state."""
        with torch.no_grad():
            eps = torch.finfo(v.dtype).eps
            size = per_image_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
            h = over_images(eps**0.5 * per_image_norm(self._u).clamp_min(1.0) / size, v.ndim)
            return (self._bound.block(self._u + h * v, self._bound.layers) - self._out) / h

    def last_change(self) -> Tensor:
        """The direction of ``T(u) − u``: mostly slow modes after an iteration. Random if it is 0 or not finite.

        See [`visible`][retune.BoundMap.visible].
        """
        with torch.no_grad():
            change = self._bound.visible(self._out - self._u, self._u.detach())
            size = per_image_norm(change)
            useless = over_images((size == 0) | ~torch.isfinite(size), change.ndim)
            return torch.where(useless, self.random(0), _unit(change))

    def random(self, seed: int) -> Tensor:
        """A random direction of norm 1, the same for every image and any batch size.

        See [`visible`][retune.BoundMap.visible].
        """
        generator = torch.Generator().manual_seed(seed)
        one = torch.randn(self._u.shape[1:], generator=generator, dtype=self._u.dtype)
        return _unit(self._bound.visible(one.to(self._u.device).expand(self._u.shape), self._u.detach()))


@dataclass(frozen=True)
class Estimate:
    """The result of power iterations from several starts.

    Attributes:
        value: (B,) the largest value over the starts.
        spread: (B,) largest minus smallest value.
        iterations: number of iterations of each start.
        starts: number of starts.
    """

    value: Tensor
    spread: Tensor
    iterations: int
    starts: int


def spectral_norm(jacobian: Linearised, cycles: int = 1, iterations: int = 20, starts: int = 3) -> Estimate:
    """``‖J^cycles‖₂`` per image by power iterations on ``(J^c)ᵀJ^c``: each value is a lower bound."""
    found = []
    for seed in range(starts):
        v, size = jacobian.random(seed), None
        for i in range(iterations):
            w = jacobian.product(v, cycles)
            size = _size(w)
            if i + 1 < iterations:
                v = _unit(jacobian.transposed(_unit(w), cycles))
        assert size is not None
        found.append(size)
    return _gather(found, iterations)


def spectral_radius(jacobian: Linearised, iterations: int = 100, starts: int = 3) -> Estimate:
    """The asymptotic rate of one cycle per image: the growth of ``(Jᵀ)^n w`` over the last half of the iterations.

    It is the geometric mean over that half, because norms oscillate for a pair of complex eigenvalues. Without graph it
    is the growth of ``J^n v``, which has the same rate. The first start is the last change of the iteration. It
    contains the slow modes of ``J`` and, if J is nearly symmetric, those of ``Jᵀ``; a random start hardly contains
    them.
    """
    found, taken = [], 0
    multiply = jacobian.transposed if jacobian.graph else jacobian.product
    for seed in range(starts):
        w, logs = jacobian.random(seed) if seed else jacobian.last_change(), []
        size = per_image_norm(w)
        for _ in range(iterations):
            w = multiply(w)
            size = per_image_norm(w)
            if not jacobian.graph and bool((size <= _NOTHING * torch.finfo(w.dtype).eps ** 0.5).all()):
                break  # a finite difference shows no more than rounding: the layer does not depend on its state
            logs.append(size.clamp_min(torch.finfo(w.dtype).tiny).log())
            w = _unit(w)
        taken = max(taken, len(logs))
        rate = torch.stack(logs[iterations // 2 :]).mean(0).exp() if len(logs) == iterations else size
        found.append(torch.where(torch.eq(size, 0), torch.zeros_like(rate), rate))
    return _gather(found, max(1, taken))


def _gather(found: list[Tensor], iterations: int) -> Estimate:
    table = torch.stack(found)
    return Estimate(table.amax(0), table.amax(0) - table.amin(0), iterations, len(found))


def _largest(v: Tensor) -> Tensor:
    """The largest entry of every image, in the axes of v. Divided by it, v can be squared without overflow."""
    return over_images(v.flatten(1).abs().amax(1).clamp_min(torch.finfo(v.dtype).tiny), v.ndim)


def _size(v: Tensor) -> Tensor:
    """``‖v‖`` per image, safe against underflow of the squares: a deep block reduces an error to 1e-24."""
    largest = _largest(v)
    return largest.flatten() * per_image_norm(v / largest)


def _unit(v: Tensor) -> Tensor:
    v = v / _largest(v)
    return v / image_norm(v).clamp_min(torch.finfo(v.dtype).tiny)
