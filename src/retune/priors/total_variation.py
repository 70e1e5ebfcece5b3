"""Total variation ``g(x) = λ Σ_p ‖(∇x)_p‖``, declared as a norm of finite differences for primal–dual maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from retune._registry.entries import register
from retune._torch.batch import over_images
from retune._torch.function import Function
from retune._torch.write import write
from retune.errors import InvalidParameterError, ShapeError, require_real, wrong_type
from retune.guarantee import Convexity, Smoothness
from retune.priors.base import AbstractPrior, Analysis, BoundPrior

__all__ = ["TV"]


@register
class TV(AbstractPrior):
    r"""Total variation: ``TV(x) = Σ_p ‖(∇x)_p‖``, the sum of the sizes of the differences of neighbouring pixels.

    ``∇x`` are the forward differences ``x[i+1, j] − x[i, j]`` and ``x[i, j+1] − x[i, j]``; beyond the border they are 0
    (Rudin, Osher, Fatemi, *Physica D* 60, 1992). Two options define the size of the differences of a pixel p:

    * isotropic: the Euclidean norm of both directions. Edges then cost the same in every direction. Otherwise
      (anisotropic) it is the sum of the absolute values, and edges along the axes cost least.
    * vectorial: the Euclidean norm over the colour channels, so that the channels share their edges (Bresson and Chan,
      *Inverse Problems and Imaging* 2(4), 2008). Otherwise it is the sum over the channels, which are then independent.

    Total variation has a value, but neither a gradient nor a prox in closed form. [`PrimalDual`][retune.PrimalDual]
    uses it exactly, as ``λ g(Kx)`` with ``K = ∇``. The norm of ∇ is exact for every size: the eigenvectors of ``∇ᵀ∇``
    are cosines, so ``‖∇‖² = 4 cos²(π/2H) + 4 cos²(π/2W)``.

    With ``smoothing = ε > 0`` the size t of a group counts as Huber's ``t²/(2ε)`` for t ≤ ε, and as ``t − ε/2`` beyond.
    Small differences are then not flattened to steps, and the prior has a gradient, too, with the Lipschitz constant
    ``‖∇‖²/ε``: [`GradientStep`][retune.GradientStep] takes it, and so does [`PrimalDual`][retune.PrimalDual].

    The prior has no parameters: its strength λ is learned by the map.

    Args:
        isotropic: whether the two directions form one group.
        vectorial: whether the channels form one group.
        smoothing: ε ≥ 0, a difference of intensities; 0 is total variation itself.

    Raises:
        InvalidParameterError: an option of another type, or a negative or infinite ε.
    """

    explicit_prior = True
    added_later = ("smoothing",)
    has_value = True
    has_analysis = True

    def __init__(self, isotropic: bool = True, vectorial: bool = True, smoothing: float = 0.0):
        super().__init__()
        self.explicit_prior = True
        for name, value in (("isotropic", isotropic), ("vectorial", vectorial)):
            if not isinstance(value, bool):
                raise wrong_type(name, value, "True or False")
        self.isotropic, self.vectorial = isotropic, vectorial
        self.smoothing = require_real("smoothing", smoothing)
        if not 0 <= self.smoothing < math.inf:
            raise InvalidParameterError(f"smoothing must be finite and ≥ 0, got {smoothing}")
        self.has_grad = self.smoothing > 0

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        smooth = f", smoothing={self.smoothing:g}" if self.smoothing else ""
        return f"isotropic={self.isotropic}, vectorial={self.vectorial}{smooth}"

    def convexity(self) -> Convexity:
        """A sum of norms of linear functions is convex. The prox of its conjugate is a projection, which is exact."""
        smooth = "Huber functions of " if self.smoothing else ""
        return Convexity(0.0, f"TV: {smooth}norms of finite differences; the dual prox is a projection", checked=True)

    def smoothness(self, like: Tensor) -> Smoothness | None:
        """``‖∇‖²/ε``; None without smoothing. Without an image size, the bound 8/ε for all sizes."""
        if not self.smoothing:
            return None
        norm = squared_norm(*like.shape[-2:]) if like.ndim == 4 else 8.0
        how = f"‖∇‖²/ε with ‖∇‖² exact and ε = {self.smoothing:g}"
        return Smoothness(
            like.new_tensor([norm / self.smoothing]), 0.0, how, checked=True, row="smoothed total variation"
        )

    def fn(self, x: Tensor, *args, **kwargs) -> Tensor:
        """``TV(x)`` per image, shape (B,)."""
        return self._value(differences(_image(x)))

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior]: the value, and the analysis form."""
        height, width = shape[-2:]
        radius, dims, smoothing = (gamma.reshape(-1, 1, 1, 1, 1) if gamma.ndim else gamma), self._dims, self.smoothing

        def dual_prox(p: Tensor, sigma: Tensor) -> Tensor:
            """Huber's function adds ``ε/(2γ)‖p‖²`` to the conjugate, which is 0 in the ball of radius γ."""
            if smoothing:
                p = p / (1 + smoothing * over_images(sigma, p.ndim) / radius)
            return onto_balls(p, radius, dims)

        def both(x: Tensor) -> tuple[Tensor, Tensor]:
            z = differences(x)
            return self._value(z) * gamma.flatten(), self._gradient(z)

        analysis = Analysis(
            forward=differences,
            adjoint=differences_adjoint,
            sqnorm=gamma.detach().new_tensor([squared_norm(height, width)]),
            dual_prox=dual_prox,
            homogeneous=not smoothing,
            smoothing=smoothing or None,
            how=f"4 cos²(π/2H) + 4 cos²(π/2W) for H, W = {height}, {width}",
            checked=True,
        )
        return BoundPrior(
            fn=lambda x: self._value(differences(x)) * gamma.flatten(),
            grad=(lambda x: self._gradient(differences(x))) if smoothing else None,
            fn_and_grad=both if smoothing else None,
            analysis=analysis,
        )

    @property
    def _dims(self) -> tuple[int, ...]:
        """The axes of (B, direction, C, H, W) that form a group."""
        return tuple(d for d, grouped in ((1, self.isotropic), (2, self.vectorial)) if grouped)

    def _value(self, z: Tensor) -> Tensor:
        dims = self._dims
        if self.smoothing:  # with s = max(‖z‖, ε): ‖z‖²/(2s) + s/2 − ε/2
            square = z.square().sum(dims) if dims else z.square()
            size = self._at_least(square)
            return (square / size + size - self.smoothing).flatten(1).sum(1) / 2
        # vector_norm has the subgradient 0 at 0, where the square root of a sum would give NaN
        sizes = torch.linalg.vector_norm(z, dim=dims) if dims else z.abs()
        return sizes.flatten(1).sum(1)

    def _gradient(self, z: Tensor) -> Tensor:
        """``∇ᵀ(z/max(‖z‖, ε))``."""
        dims = self._dims
        square = z.square().sum(dims, keepdim=True) if dims else z.square()
        return differences_adjoint(z / self._at_least(square))

    def _at_least(self, square: Tensor) -> Tensor:
        """``max(‖z‖, ε)``, whose derivatives exist at 0."""
        return square.clamp_min(self.smoothing**2).sqrt()


def squared_norm(height: int, width: int) -> float:
    """``‖∇‖²`` of the forward differences of images of this size, exactly; 0 for a single pixel."""
    return sum(4 * math.cos(math.pi / (2 * n)) ** 2 if n > 1 else 0.0 for n in (height, width))


def differences(x: Tensor) -> Tensor:
    """``∇x``: (B, C, H, W) → (B, 2, C, H, W), vertical and horizontal forward differences, 0 beyond the border."""
    return _Nabla.run(x, False)


def differences_adjoint(z: Tensor) -> Tensor:
    """``∇ᵀz``, minus the divergence: (B, 2, C, H, W) → (B, C, H, W)."""
    return _Nabla.run(z, True)


class _Nabla(Function):
    """``∇``, or its adjoint. It is linear: its backward pass is the adjoint, and nothing is stored."""

    @staticmethod
    def forward(x, adjoint):
        height, width = x.shape[-2] - 1, x.shape[-1] - 1
        if adjoint:
            down, right = x.select(-4, 0).narrow(-2, 0, height), x.select(-4, 1).narrow(-1, 0, width)
            image = x.new_zeros((*x.shape[:-4], *x.shape[-3:]))
            image.narrow(-2, 1, height).add_(down)
            image.narrow(-2, 0, height).sub_(down)
            image.narrow(-1, 1, width).add_(right)
            image.narrow(-1, 0, width).sub_(right)
            return image
        both = x.new_zeros((*x.shape[:-3], 2, *x.shape[-3:]))
        down, right = both.select(-4, 0).narrow(-2, 0, height), both.select(-4, 1).narrow(-1, 0, width)
        write(torch.sub, x.narrow(-2, 1, height), x.narrow(-2, 0, height), down)
        write(torch.sub, x.narrow(-1, 1, width), x.narrow(-1, 0, width), right)
        return both

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.adjoint = inputs[1]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        return _Nabla.run(grad, not ctx.adjoint), None

    @staticmethod
    def vmap(info, in_dims, x, adjoint):
        """The axes before the last ones are free, so the mapped axis becomes the first."""
        return _Nabla.run(x.movedim(in_dims[0], 0), adjoint), 0


def onto_balls(p: Tensor, radius: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The projection of every group onto the ball of this radius > 0: ``p min(1, r/‖p‖)``; exact.

    Args:
        p: (B, …).
        radius: r, (), or broadcastable to p and constant within a group.
        dims: axes of a group; none for single entries.
    """
    return _OntoBalls.run(p, radius, dims)


class _OntoBalls(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(p, radius, dims):
        if not dims:
            return torch.minimum(torch.maximum(p, -radius), radius)
        # A sum of squares is ten times faster than torch.linalg.vector_norm over two entries that lie far apart.
        return p * (p / radius).square_().sum(dims, keepdim=True).clamp_min_(1).rsqrt_()

    @staticmethod
    def setup_context(ctx, inputs, output):
        p, radius, ctx.dims = inputs
        ctx.save_for_backward(p, radius)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        """Outside of a ball, with ``e = p/‖p‖``: ``dx = (r/‖p‖)(dp − e⟨e, dp⟩) + e dr``; inside ``dx = dp``."""
        p, radius = ctx.saved_tensors
        square = p.square().sum(ctx.dims, keepdim=True) if ctx.dims else p.square()
        outside = square > radius * radius
        # The square root of 0 has no second derivative.
        size = torch.where(outside, square, torch.ones_like(square)).sqrt()
        unit = torch.where(outside, p / size, torch.zeros_like(p))
        along = (unit * grad).sum(ctx.dims, keepdim=True) if ctx.dims else unit * grad
        grad_p = torch.where(outside, radius / size, torch.ones_like(size)) * (grad - along * unit)
        grad_radius = None
        if ctx.needs_input_grad[1]:
            grad_radius = along.sum_to_size(radius.shape) if radius.ndim else along.sum()
        return grad_p, grad_radius, None


def _image(x: Tensor) -> Tensor:
    if x.ndim != 4:
        raise ShapeError(f"expected images (B, C, H, W), got shape {tuple(x.shape)}")
    return x
