"""Small priors, data terms, operators and numbers from which tests are built."""

from __future__ import annotations

from collections.abc import Callable

import torch
from deepinv.optim import DataFidelity
from deepinv.optim.distance import Distance
from deepinv.optim.prior import Prior
from deepinv.physics import Inpainting, LinearPhysics
from torch import Tensor, nn

from retune.guarantee import Convexity
from retune.maps.base import BoundMap
from retune.priors import (
    AbstractPrior,
    Analysis,
    BoundPrior,
)


class Quadratic(Prior):
    """``½‖w x‖²``, w learnable: ``prox(v) = v/(1 + γ w²)``."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.explicit_prior = True
        self.log_weight = nn.Parameter(weight.log())

    def convexity(self):
        return Convexity(strong=(2 * self.log_weight.min()).exp(), how="a diagonal quadratic")

    def fn(self, x, *args, **kwargs):
        return 0.5 * (self.log_weight.exp() * x).square().flatten(1).sum(1)

    def prox(self, x, *args, gamma=1.0, **kwargs):
        return x / (1 + gamma * (2 * self.log_weight).exp())


class Rounded(DataFidelity):
    """``Σ √(1 + (u − y)²) − 1``: a smooth neighbour of ℓ1, whose gradient is 1-Lipschitz."""

    def __init__(self):
        super().__init__()
        self.d = Distance(d=lambda u, y: ((1 + (u - y) ** 2).sqrt() - 1).flatten(1).sum(1))


class Dense(nn.Module):
    """A denoiser that is one dense matrix: ``D_σ(x) = C x / (1 + σ)``. C is learnable, and not symmetric."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0):
        super().__init__()
        n = int(torch.tensor(shape).prod())
        self.matrix = nn.Parameter(0.9 * torch.eye(n) + 0.02 * rand(n, n, seed=seed))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.flatten(1) @ self.matrix.T / (1 + sigma.reshape(-1, 1))).reshape(x.shape)


class DenseEnergy(nn.Module):
    """``½‖W x‖²/(1 + σ)``, W learnable: an energy whose curvature is known, but not to the map."""

    channels, alignment = 1, 1

    def __init__(self, shape: tuple[int, int, int], seed: int = 0):
        super().__init__()
        n = int(torch.tensor(shape).prod())
        self.matrix = nn.Parameter(0.6 * torch.eye(n) + 0.1 * rand(n, n, seed=seed))

    def at(self, sigma: Tensor, like: Tensor) -> BoundPrior:
        shape, scale = like.shape[1:], 1 / (1 + sigma.reshape(-1, 1))

        def fn(x: Tensor) -> Tensor:
            return 0.5 * (scale * (x.flatten(1) @ self.matrix.T).square()).sum(1)

        def grad(x: Tensor) -> Tensor:
            return (scale * (x.flatten(1) @ self.matrix.T) @ self.matrix).unflatten(1, shape)

        return BoundPrior(fn=fn, grad=grad, fn_and_grad=lambda x: (fn(x), grad(x)))


class Rough(AbstractPrior):
    """``½ w ‖Kx‖²`` with a dense K and a learnable w, in its analysis form."""

    has_analysis = True

    def __init__(self, matrix: Tensor, weight: float = 1.3):
        super().__init__()
        self.matrix = matrix
        self.log_weight = nn.Parameter(torch.tensor(weight).log())

    def convexity(self):
        return Convexity(how="a quadratic")

    def bind(self, shape, layer, gamma):
        matrix, image = self.matrix, tuple(shape[1:])
        strength = gamma.reshape(-1, 1) * self.log_weight.exp() if gamma.ndim else gamma * self.log_weight.exp()
        analysis = Analysis(
            forward=lambda x: x.flatten(1) @ matrix.T,
            adjoint=lambda z: (z @ matrix).unflatten(1, image),
            sqnorm=torch.linalg.matrix_norm(matrix, 2).square().reshape(1),
            dual_prox=lambda p, sigma: p / (1 + sigma[:, None] / strength),
        )
        return BoundPrior(analysis=analysis)


class Transparent(Prior):
    """A prior whose prox is the given function of the image."""

    def __init__(self, prox: Callable[[Tensor], Tensor], *parameters: Tensor):
        super().__init__()
        self._function = prox
        self.held = nn.ParameterList(parameters)

    def prox(self, x, *args, gamma=1.0, **kwargs):
        return self._function(x)


def rand(*shape: int, seed: int = 0, **kwargs) -> Tensor:
    """Standard normal, from a stream of its own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), **kwargs)


def central_difference(value: Callable[[], Tensor], p: Tensor, step: Tensor) -> Tensor:
    """``(value at p + step − value at p − step)/2``, p changed in place and put back."""
    with torch.no_grad():
        p += step
        up = value()
        p -= 2 * step
        down = value()
        p += step
    return (up - down) / 2


def largest_factor(bound: BoundMap, shape: tuple[int, ...], pairs: int = 100) -> float:
    """The largest ``‖T(a + d) − T(a)‖/‖d‖`` over random pairs of states whose d has few entries."""
    worst = 0.0
    for seed in range(pairs):
        a, d = rand(*shape, seed=seed), 1e-3 * rand(*shape, seed=seed + 500)
        d = d * (rand(1, *shape[1:], seed=seed + 900) > 0.8)  # few pixels, so that the worst one shows
        moved = bound.layer(a + d) - bound.layer(a)
        worst = max(worst, float((moved.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1).clamp_min(1e-30)).max()))
    return worst


def damped_inpainting() -> tuple[Tensor, Inpainting]:
    """A measurement by a mask without zeros: least squares is strongly convex."""
    mask = torch.where(rand(1, 1, 4, 6, seed=3) > 0, 1.0, 0.5)
    return rand(2, 1, 4, 6, seed=1), Inpainting((1, 4, 6), mask=mask)


def spectrum(rows: int, cols: int, low: float, high: float, seed: int = 0) -> Tensor:
    """A random matrix whose singular values are spread evenly over [low, high]."""
    u, _, v = torch.linalg.svd(rand(rows, cols, seed=seed), full_matrices=False)
    return u * torch.linspace(high, low, min(rows, cols)) @ v


def dense(matrix: Tensor, shape: tuple[int, int, int]) -> LinearPhysics:
    """A dense matrix as a deepinv physics on images of `shape` (C, H, W); measurements are (B, 1, 1, rows)."""
    return LinearPhysics(
        A=lambda x, **_: (x.flatten(1) @ matrix.T)[:, None, None],
        A_adjoint=lambda y, **_: (y.flatten(1) @ matrix).unflatten(1, shape),
    )


def as_matrix(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear function of tensors of `shape` (no batch axis), which may have a batch axis."""
    n = int(torch.tensor(shape).prod())
    return function(torch.eye(n).reshape(n, *shape)).flatten(1).T


def soft(v: Tensor, t: Tensor | float) -> Tensor:
    return v.sign() * (v.abs() - t).clamp_min(0)
