"""Small seeded problems whose answer is known in closed form, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from deepinv.optim.prior import L1Prior, Tikhonov
from deepinv.physics import Denoising, Inpainting, LinearPhysics
from torch import Tensor

from retune import (
    DataTerm,
    DouglasRachford,
    ForwardBackward,
    GradientStep,
    HalfQuadratic,
    MirrorDescent,
    PrimalDual,
    ThreeOperators,
)
from retune.maps import AbstractMap
from retune.maps.base import BoundMap
from retune.priors import (
    RED,
    TGV,
    TV,
    Denoiser,
    Energy,
    Ridge,
    Sum,
    UndecimatedWavelet,
    WaveletL1,
    WaveletL12,
)
from small_parts import (
    Dense,
    DenseEnergy,
    Quadratic,
    Rough,
    as_matrix,
    dense,
    rand,
    soft,
    spectrum,
)


@dataclass(frozen=True)
class Case:
    """A problem, a map for it, and the closed form of the map's equilibrium, differentiable in its parameters."""

    map: AbstractMap
    y: Tensor
    physics: LinearPhysics
    answer: Callable[[], Tensor]

    def bind(self) -> BoundMap:
        return self.map.bind(self.map.data_term(self.y, self.physics))


def quadratic(batch: int = 2, low: float = 0.7, step_size: float = 0.6, reg: float = 0.3, **options) -> Case:
    """``½‖Ax − y‖² + ½λ‖Wx‖²`` with dense A: ``x* = (AᵀA + λW²)⁻¹Aᵀy``."""
    shape = (1, 4, 5)
    matrix = spectrum(24, 20, low, 1.1)
    y = rand(batch, 1, 1, 24, seed=1)
    prior = Quadratic(torch.rand(1, *shape, generator=torch.Generator().manual_seed(2)) + 0.5)
    net = ForwardBackward(prior, step_size=step_size, reg=reg, **options)

    def answer() -> Tensor:
        weight = (2 * prior.log_weight).exp().flatten()
        system = matrix.T @ matrix + net.reg()[0] * weight.diag()
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def untied(batch: int = 2) -> Case:
    """Two different layers ``u ↦ S_k(u − τ_k(AᵀAu − Aᵀy))``: the equilibrium is that of their composition."""
    shape = (1, 3, 4)
    matrix = spectrum(12, 12, 0.7, 1.0)
    y = rand(batch, 1, 1, 12, seed=1)
    priors = [Quadratic(0.5 + torch.rand(1, *shape, generator=torch.Generator().manual_seed(k))) for k in (2, 3)]
    net = ForwardBackward(priors, step_size=[0.5, 0.7], reg=[0.2, 0.6], layers=2)

    def answer() -> Tensor:
        lipschitz = DataTerm(y, dense(matrix, shape)).lipschitz.mean()
        normal, target = matrix.T @ matrix, (y.flatten(1) @ matrix).T
        jacobian, offset = torch.eye(12), torch.zeros_like(target)
        for k, prior in enumerate(priors):
            tau = 2 * net.step_size()[k] / lipschitz
            shrink = 1 / (1 + tau * net.reg()[k] * (2 * prior.log_weight).exp().flatten())[:, None]
            jacobian, offset = (
                shrink * (jacobian - tau * normal @ jacobian),
                shrink * (offset - tau * (normal @ offset - target)),
            )
        return torch.linalg.solve(torch.eye(12) - jacobian, offset).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def denoise_l1(batch: int = 2, step_size: float = 0.4) -> Case:
    """Denoising with ℓ1 on an orthonormal basis: ``u* = soft(Dᵀy, λ α_j w_cb)``, reached in one step with τ = 1."""
    y = rand(batch, 2, 8, 8, seed=1)
    weights = [[[0.5, 1.0, 1.5]], [[1.2, 0.8, 1.0]]]
    prior = WaveletL1("db2", 2, channels=2, weights=weights, scale_weights=[[0.7, 1.3]])
    net = ForwardBackward(prior, step_size=step_size, reg=0.5)

    def answer() -> Tensor:
        frame = prior.frame(y.shape, y.dtype, y.device)
        scales = [
            a.expand(height * width)
            for a, (height, width) in zip(prior.scale_weights()[0], frame.basis.band_shapes, strict=True)
        ]
        details = (net.reg()[0] * prior.weights()[..., None] * torch.cat(scales)).flatten(-2)
        threshold = torch.cat([details, details.new_zeros(2, 1, frame.basis.coarse)], -1)
        return frame.synthesis(soft(frame.analysis(y), threshold))

    return Case(net, y, Denoising(), answer)


def denoise_l12(batch: int = 2) -> Case:
    """Per-channel weights inside the group norm, ``A = I``: ``u* = prox_{λg}(Dᵀy)``."""
    y = rand(batch, 3, 8, 8, seed=1)
    weights = torch.tensor([[[0.5, 1.0, 1.5]], [[1.0, 0.3, 1.0]], [[2.0, 1.0, 0.7]]])
    prior = WaveletL12("db3", 2, channels=3, weights=weights, coarse=True)
    net = ForwardBackward(prior, step_size=0.4, reg=0.8)
    return Case(net, y, Denoising(), lambda: prior.prox(y, gamma=net.reg()[0]))


def damped_l1(batch: int = 2) -> Case:
    """Damped inpainting (A = diag(m), m in {0.6, 1}) with deepinv's own ℓ1 prior: ``x* = soft(m y, λ)/m²``."""
    mask = torch.where(rand(1, 1, 4, 6, seed=3) > 0, 1.0, 0.6)
    y = rand(batch, 1, 4, 6, seed=1)
    net = ForwardBackward(L1Prior(), step_size=0.6, reg=0.3)
    physics = Inpainting((1, 4, 6), mask=mask)
    return Case(net, y, physics, lambda: soft(mask * y, net.reg()[0]) / mask**2)


def tikhonov(batch: int = 2) -> Case:
    """``½‖Ax − y‖² + ½λ‖x‖²`` by gradient steps: ``x* = (AᵀA + λ)⁻¹Aᵀy``."""
    shape = (1, 3, 4)
    matrix = spectrum(14, 12, 0.7, 1.1)
    y = rand(batch, 1, 1, 14, seed=1)
    net = GradientStep(Tikhonov(), step_size=0.6, reg=0.3, prior_lipschitz=1.0)

    def answer() -> Tensor:
        system = matrix.T @ matrix + net.reg()[0] * torch.eye(12)
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def plug_and_play(batch: int = 2) -> Case:
    """A linear denoiser ``P = (1 − α) I + α D_σ`` as prox: ``x* = (I − P(I − τAᵀA))⁻¹ P τAᵀy``."""
    shape = (1, 3, 4)
    matrix = spectrum(14, 12, 0.7, 1.1)
    y = rand(batch, 1, 1, 14, seed=1)
    prior = Denoiser(Dense(shape, seed=2), sigma=0.1, strength=0.8, learn_denoiser=True)
    net = ForwardBackward(prior, step_size=0.6)
    physics = dense(matrix, shape)
    lipschitz = DataTerm(y, physics).lipschitz.mean()

    def answer() -> Tensor:
        tau, alpha = 2 * net.step_size()[0] / lipschitz, prior.strength()
        prox = (1 - alpha) * torch.eye(12) + alpha * prior.denoiser.matrix / (1 + prior.sigma())
        jacobian = prox @ (torch.eye(12) - tau * matrix.T @ matrix)
        offset = prox @ (tau * (y.flatten(1) @ matrix).T)
        return torch.linalg.solve(torch.eye(12) - jacobian, offset).T.unflatten(1, shape)

    return Case(net, y, physics, answer)


def denoiser_as_gradient(batch: int = 2) -> Case:
    """RED with a linear denoiser: ``x* = (AᵀA + λ(I − D_σ))⁻¹Aᵀy``."""
    shape = (1, 3, 4)
    matrix = spectrum(14, 12, 0.7, 1.1)
    y = rand(batch, 1, 1, 14, seed=1)
    prior = RED(Dense(shape, seed=2), sigma=0.1, learn_denoiser=True)
    net = GradientStep(prior, step_size=0.6, reg=0.3)

    def answer() -> Tensor:
        system = matrix.T @ matrix + net.reg()[0] * (torch.eye(12) - prior.denoiser.matrix / (1 + prior.sigma()))
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def ridge(batch: int = 2) -> Case:
    """``½‖Ax − y‖² + λR_σ(x)`` with a convex ridge regulariser, minimised by Newton's method with dense Hessians.

    R is piecewise quadratic, so the iteration ends at the minimiser after a few steps. One step more, with the gradient
    of the objective as a function of the parameters, has their exact derivative (implicit function theorem).
    """
    shape = (1, 4, 5)
    matrix = spectrum(24, 20, 0.9, 1.1)
    y = rand(batch, 1, 1, 24, seed=1)
    prior = Ridge(features=(2, 3), sizes=(3, 2), knots=2, convexity="convex", sigma=0.3)
    with torch.no_grad():
        for p in prior.filters.parameters():
            p.add_(0.3 * rand(*p.shape, seed=3))
    net = GradientStep(prior, step_size=0.6, reg=0.3)

    def gradient(x: Tensor) -> Tensor:
        image = x.unflatten(1, shape)
        return (x @ matrix.T - y.flatten(1)) @ matrix + net.reg()[0] * prior.grad(image).flatten(1)

    def newton(x: Tensor) -> Tensor:
        hessians = torch.autograd.functional.jacobian(lambda v: gradient(v).sum(0), x.detach()).transpose(0, 1)
        return x.detach() - torch.linalg.solve(hessians, gradient(x.detach()))

    def answer() -> Tensor:
        x = y.flatten(1) @ matrix
        while float(gradient(x).detach().abs().max()) > 1e-12:
            x = newton(x).detach()
        return newton(x).unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def energy(batch: int = 2) -> Case:
    """``½‖Ax − y‖² + ½λ‖W x‖²/(1 + σ)`` as an explicit energy: ``x* = (AᵀA + λWᵀW/(1 + σ))⁻¹Aᵀy``."""
    shape = (1, 3, 4)
    matrix = spectrum(14, 12, 0.7, 1.1)
    y = rand(batch, 1, 1, 14, seed=1)
    prior = Energy(DenseEnergy(shape, seed=2), sigma=0.1, learn_network=True)
    net = GradientStep(prior, reg=0.3)

    def answer() -> Tensor:
        curvature = prior.network.matrix.T @ prior.network.matrix / (1 + prior.sigma())
        system = matrix.T @ matrix + net.reg()[0] * curvature
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def roughness(batch: int = 2) -> Case:
    """``½‖Ax − y‖² + ½λw‖Kx‖²`` by Condat–Vũ: ``x* = (AᵀA + λwKᵀK)⁻¹Aᵀy``."""
    shape = (1, 3, 4)
    matrix, rough = spectrum(14, 12, 0.8, 1.1), spectrum(9, 12, 0.4, 1.0, seed=4)
    y = rand(batch, 1, 1, 14, seed=1)
    prior = Rough(rough)
    net = PrimalDual(prior, step_size=0.7, reg=0.3, balance=3.0)

    def answer() -> Tensor:
        system = matrix.T @ matrix + net.reg()[0] * prior.log_weight.exp() * rough.T @ rough
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def two_pixels(batch: int = 2) -> Case:
    """Vectorial total variation of two pixels, ``A = I``: the mean stays, and the difference d shrinks by 2λ."""
    y = rand(batch, 3, 1, 2, seed=1)
    net = PrimalDual(TV(), step_size=0.8, reg=0.2, balance=0.2, relaxation=1.0)  # quick on two pixels

    def answer() -> Tensor:
        mean, d = y.mean(-1, keepdim=True), y[..., 1:] - y[..., :1]
        d = d * (1 - 2 * net.reg()[0] / d.norm(dim=1, keepdim=True)).clamp_min(0)
        return torch.cat([mean - d / 2, mean + d / 2], -1)

    return Case(net, y, Denoising(), answer)


def three_pixels(batch: int = 2) -> Case:
    """Generalised variation of three pixels, ``A = I`` and ρ < 1: ``ρ‖x_0 − 2x_1 + x_2‖``, with a threshold as prox."""
    y = rand(batch, 2, 1, 3, seed=1)
    prior = TGV(0.7)
    net = PrimalDual(prior, step_size=0.8, reg=0.1)

    def answer() -> Tensor:
        bend = torch.tensor([1.0, -2.0, 1.0])
        size = y @ bend / 6  # (B, C)
        radius = net.reg()[0] * prior.ratio()
        length = size.norm(dim=1, keepdim=True)
        return y - (size * (radius / length).clamp_max(1))[..., None] * bend

    return Case(net, y, Denoising(), answer)


def four_pixels(batch: int = 2) -> Case:
    """Undecimated Haar wavelets of 2×2 pixels, ``A = I``: thresholds for the three details, as every shift has them."""
    y = rand(batch, 2, 2, 2, seed=1)
    weights = [[0.5, 1.0, 0.7], [0.8, 0.6, 0.4]]
    prior = UndecimatedWavelet("haar", 1, channels=2, weights=weights, scale_weights=[0.8])
    net = PrimalDual(prior, step_size=0.8, reg=0.3, balance=0.3, relaxation=1.0)  # quick on four pixels

    def answer() -> Tensor:
        signs = torch.tensor([[1.0, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
        found = y.flatten(2) @ signs
        threshold = net.reg()[0] * prior.scale_weights()[0] * prior.weights()
        details = soft(found[..., 1:], threshold)
        return (torch.cat([found[..., :1], details], -1) @ signs).unflatten(-1, (2, 2))

    return Case(net, y, Denoising(), answer)


def mixed(batch: int = 2) -> Case:
    """`roughness` with two priors: ``x* = (AᵀA + λΣ v_i w_i K_iᵀK_i)⁻¹Aᵀy`` with the weights v of the sum."""
    shape = (1, 3, 4)
    matrix = spectrum(14, 12, 0.8, 1.1)
    first, second = spectrum(9, 12, 0.4, 1.0, seed=4), spectrum(5, 12, 0.4, 1.0, seed=5)
    y = rand(batch, 1, 1, 14, seed=1)
    prior = Sum([Rough(first), Rough(second, 0.6)], [0.7, 1.2])
    net = PrimalDual(prior, step_size=0.7, reg=0.3, balance=3.0)

    def answer() -> Tensor:
        weights = prior.weights() * torch.stack([p.log_weight.exp() for p in prior.priors])
        rough = weights[0] * first.T @ first + weights[1] * second.T @ second
        system = matrix.T @ matrix + net.reg()[0] * rough
        return torch.linalg.solve(system, (y.flatten(1) @ matrix).T).T.unflatten(1, shape)

    return Case(net, y, dense(matrix, shape), answer)


def two_proxes(batch: int = 2) -> Case:
    """`quadratic` by Douglas–Rachford; the prox of its dense data term needs conjugate gradients."""
    case = quadratic(batch)
    (prior,) = case.map.priors
    net = DouglasRachford(prior, step_size=0.6, reg=0.3)

    def answer() -> Tensor:
        matrix = as_matrix(case.physics.A, (1, 4, 5))
        system = matrix.T @ matrix + net.reg()[0] * (2 * prior.log_weight).exp().flatten().diag()
        return torch.linalg.solve(system, (case.y.flatten(1) @ matrix).T).T.unflatten(1, (1, 4, 5))

    return Case(net, case.y, case.physics, answer)


def half_quadratic(batch: int = 2) -> Case:
    """`quadratic` by half-quadratic splitting: ``u* = ((I + γN)(I + γλW²) − I)⁻¹ γc`` with ``N = AᵀA``, for this γ."""
    case = quadratic(batch)
    (prior,) = case.map.priors
    net = HalfQuadratic(prior, step_size=0.6, reg=0.3)

    def answer() -> Tensor:
        matrix, eye = as_matrix(case.physics.A, (1, 4, 5)), torch.eye(20)
        gamma = net.gamma(DataTerm(case.y, case.physics)).mean()
        grown = eye + gamma * net.reg()[0] * (2 * prior.log_weight).exp().flatten().diag()
        system = (eye + gamma * matrix.T @ matrix) @ grown - eye
        return torch.linalg.solve(system, gamma * (case.y.flatten(1) @ matrix).T).T.unflatten(1, (1, 4, 5))

    return Case(net, case.y, case.physics, answer)


def counts(batch: int = 2) -> Case:
    """Counts through a mask m, and ``½λ‖x‖²``: ``λx² + mx = y``, so ``x* = (√(m² + 4λy) − m)/(2λ)``."""
    mask = torch.where(rand(1, 1, 3, 4, seed=3) > 0, 1.0, 0.6)
    y = torch.poisson(torch.full((batch, 1, 3, 4), 9.0), generator=torch.Generator().manual_seed(1)) + 1
    net = MirrorDescent(Tikhonov(), step_size=0.9, reg=0.3)
    physics = Inpainting((1, 3, 4), mask=mask)

    def answer() -> Tensor:
        reg = net.reg()[0]
        return ((mask**2 + 4 * reg * y).sqrt() - mask) / (2 * reg)

    return Case(net, y, physics, answer)


def boxed_l1(batch: int = 2) -> Case:
    """`damped_l1` in a box, which is separable, too: ``x* = clamp(soft(m y, λ)/m²)``."""
    mask = torch.where(rand(1, 1, 4, 6, seed=3) > 0, 1.0, 0.6)
    y = rand(batch, 1, 4, 6, seed=1)
    net = ThreeOperators(L1Prior(), step_size=0.6, reg=0.3, box=(-0.4, 0.9))
    physics = Inpainting((1, 4, 6), mask=mask)
    return Case(net, y, physics, lambda: (soft(mask * y, net.reg()[0]) / mask**2).clamp(-0.4, 0.9))


#: Every map and every kind of prior has at least one case here; `test_matrix.py` says what is missing.
CASES = {
    f.__name__: f
    for f in (
        quadratic,
        untied,
        denoise_l1,
        denoise_l12,
        damped_l1,
        plug_and_play,
        tikhonov,
        denoiser_as_gradient,
        ridge,
        energy,
        roughness,
        two_pixels,
        four_pixels,
        mixed,
        two_proxes,
        half_quadratic,
        counts,
        boxed_l1,
    )
}
