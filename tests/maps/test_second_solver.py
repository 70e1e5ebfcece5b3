"""Every map against a second solver on ten convex problems: the objective within 1e-5, the image within 1e-3.

The second solver is the interior-point method that CVXPY chooses; for ridge regularisers it is SciPy's L-BFGS-B. The
problems are written down again here, with matrices: only the wavelet frames and the ridge functions are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import pywt
import torch
from deepinv.optim import L2, PoissonLikelihood
from deepinv.optim.prior import Tikhonov
from deepinv.physics import Blur, Denoising, Inpainting

from retune import (
    Anderson,
    DouglasRachford,
    ForwardBackward,
    GradientStep,
    HalfQuadratic,
    MirrorDescent,
    PrimalDual,
    Restarted,
    Stop,
    ThreeOperators,
)
from retune.data import photograph
from retune.priors import TGV, TV, Ridge, Sum, UndecimatedWavelet, WaveletL1, WaveletL12
from small_parts import as_matrix, dense, rand

KERNEL = torch.tensor([[0.5, 1.0, 0.5], [1.0, 4.0, 1.0], [0.0, 1.0, 0.0]]) / 9


@dataclass(frozen=True)
class Problem:
    """A measurement of a piece of a photograph, and the objective.

    Attributes:
        operator: "denoise", "mask", "dense", "ill" (singular values from 1 down to 0.03), "counting" (a dense matrix
            without negative entries), or the boundary of a blur.
        prior: a prior, not trained.
        reg: λ.
        shape: (C, H, W).
        box: the allowed intensities.
        level: the standard deviation of the noise, or the number of photons at white.
        background: of counts.
        sigma: of the least squares.
    """

    operator: str
    prior: object
    reg: float
    shape: tuple[int, int, int] = (1, 7, 9)
    box: tuple[float, float] | None = None
    level: float = 0.05
    background: float = 0.0
    sigma: float = 1.0

    def __str__(self):
        return f"{self.operator}-{type(self.prior).__name__}-{'x'.join(map(str, self.shape))}"

    @property
    def truth(self):
        c, h, w = self.shape
        return photograph("chelsea")[None, :c, 100 : 100 + 3 * h : 3, 100 : 100 + 3 * w : 3].double()

    @property
    def physics(self):
        n = math.prod(self.shape)
        if self.operator == "denoise":
            return Denoising()
        if self.operator == "mask":
            mask = (rand(1, 1, *self.shape[1:], seed=3) > -0.3).double()
            return Inpainting(self.shape, mask=mask.expand(1, *self.shape))
        if self.operator == "counting":
            return dense(rand(n + 3, n, seed=4).abs() / n, self.shape)
        if self.operator in ("dense", "ill"):
            u, _, v = torch.linalg.svd(rand(n + 5, n, seed=4), full_matrices=False)
            values = torch.logspace(0, -1.5, n) if self.operator == "ill" else torch.linspace(1.2, 0.4, n)
            return dense(u * values @ v, self.shape)
        return Blur(KERNEL[None, None].double(), padding=self.operator)

    @property
    def y(self):
        clean = self.physics.A(self.truth)
        return clean + self.level * rand(*clean.shape, seed=7)

    @property
    def counts(self):
        clean = self.physics.A(self.level * self.truth) + self.background
        return torch.poisson(clean, generator=torch.Generator().manual_seed(5))


L1 = WaveletL1("haar", 1, learn=False)
DB2 = WaveletL1("db2", 2, learn=False, weights=[[[1.0, 0.5, 2.0]]], scale_weights=[[1.0, 0.6]])
GROUPS = WaveletL12("haar", 2, learn=False, coarse=True)
CHANNELS = WaveletL12("db2", 1, over="channel", learn=False)
SHIFTED = UndecimatedWavelet("db2", 2, weights=[[1.0, 0.5, 2.0]], scale_weights=[1.0, 0.6], coarse=True, learn=False)
SHARED = UndecimatedWavelet("haar", 1, ("channel", "band"), weights=[[0.7, 1.3, 1.0]], learn=False)

SYNTHESIS = (
    Problem("denoise", WaveletL1(("haar", "db2"), 1, learn=False, coarse=True), 0.05, (1, 6, 6), (0.3, 0.6)),
    Problem("denoise", WaveletL12("db3", 1, learn=False), 0.1, (3, 4, 6), (0.3, 0.6)),
    Problem("mask", WaveletL1("haar", 2, learn=False, coarse=True), 0.05, (1, 8, 8), (0.2, 0.5)),
    Problem("circular", DB2, 0.03, (1, 8, 8), (0.3, 0.7)),
    Problem("valid", GROUPS, 0.02, (1, 8, 4), (0.2, 0.75)),
    Problem("reflect", CHANNELS, 0.02, (3, 4, 6), (0.4, 0.6)),
    Problem("replicate", L1, 0.03, (1, 6, 10), (0.25, 0.75)),
    Problem("constant", WaveletL1("db2", 1, learn=False, coarse=True), 0.02, (1, 6, 8), (0.35, 0.6)),
    Problem("dense", WaveletL1("haar", 1, learn=False, margin=1, coarse=True), 0.05, (1, 5, 7), (0.35, 0.6)),
    Problem("ill", DB2, 0.01, (1, 4, 8), (0.35, 0.6), sigma=0.7),
)
ANALYSIS = (
    Problem("denoise", TV(), 0.1, (3, 6, 5)),
    Problem("denoise", TGV(1.5), 0.05, (1, 6, 7)),
    Problem("mask", TV(vectorial=False), 0.05, (3, 5, 7), (0.4, 0.6)),
    Problem("circular", TV(isotropic=False), 0.02),
    Problem("valid", TV(smoothing=0.1), 0.05, (1, 7, 6)),
    Problem("reflect", TV(isotropic=False, vectorial=False), 0.01, (3, 5, 6), (0.4, 0.6)),
    Problem("replicate", Sum([TV(), TV(isotropic=False)], [0.7, 0.4], learn_weights=False), 0.02),
    Problem("constant", TV(), 0.02, (3, 4, 6)),
    Problem("dense", Sum([TV(), TGV(1.5)], [0.3, 1.0], learn_weights=False), 0.1, (1, 4, 5)),
    Problem("ill", TV(), 0.02, (1, 6, 7), sigma=0.8),
    Problem("denoise", SHIFTED, 0.1, (1, 7, 9)),
    Problem("mask", SHARED, 0.1, (3, 5, 7), (0.4, 0.6)),
    Problem("circular", UndecimatedWavelet("db3", 1, "channel", learn=False), 0.05, (3, 5, 6)),
    Problem("valid", Sum([TV(), SHIFTED], [0.4, 0.5], learn_weights=False), 0.02, (1, 6, 7)),
)
SMOOTH = (
    Problem("denoise", TV(smoothing=0.1), 0.1, (3, 6, 5)),
    Problem("denoise", Tikhonov(), 0.5, (1, 5, 8), (0.2, 0.4)),
    Problem("mask", TV(vectorial=False, smoothing=0.2), 0.1, (3, 5, 7)),
    Problem("circular", TV(isotropic=False, smoothing=0.1), 0.05, (1, 7, 9), (0.35, 0.6)),
    Problem("valid", TV(smoothing=0.1), 0.05, (1, 8, 7)),
    Problem("reflect", Sum([TV(smoothing=0.1), Tikhonov()], [1.0, 0.2], learn_weights=False), 0.05),
    Problem("replicate", "ridge", 0.5, (1, 9, 8)),
    Problem("constant", "ridge", 1.0, (1, 8, 8), (0.3, 0.75)),
    Problem("dense", TV(smoothing=0.1), 0.1, (1, 7, 6), sigma=0.8),
    Problem("ill", Tikhonov(), 0.02, (1, 6, 7)),
)
COUNTS = (
    Problem("denoise", TV(smoothing=2.0), 0.3, (1, 5, 6), level=20),
    Problem("denoise", Tikhonov(), 0.01, (3, 4, 5), level=200),
    Problem("denoise", TV(smoothing=20.0), 0.1, (3, 4, 5), level=1000),
    Problem("mask", TV(smoothing=10.0), 0.2, (1, 5, 6), level=50, background=3.0),
    Problem("circular", TV(isotropic=False, smoothing=3.0), 0.1, (1, 5, 6), level=50),
    Problem("valid", TV(smoothing=10.0), 0.3, (1, 5, 6), level=100),
    Problem("reflect", TV(smoothing=5.0), 0.05, (1, 4, 5), level=200, background=10.0),
    Problem("replicate", Tikhonov(), 0.02, (1, 5, 5), level=30),
    Problem("constant", Sum([TV(smoothing=5.0), Tikhonov()], [0.1, 0.02], learn_weights=False), 1.0, level=100),
    Problem("counting", Tikhonov(), 0.05, (1, 3, 4), level=300),
)


def differences_of(shape):
    """Vertical and horizontal forward differences as matrices of images (C, H, W), 0 beyond the border."""
    c, *sides = shape
    down, right = (np.diff(np.eye(n), axis=0, append=0) for n in sides)
    for d in (down, right):
        d[-1] = 0
    return np.kron(np.eye(c), np.kron(down, np.eye(sides[1]))), np.kron(np.eye(c * sides[0]), right)


def groups(z, shape, together):
    """The Euclidean norms of fields (each of the size of the image), over the channels, too, if they go together."""
    import cvxpy as cp

    if together:
        pixels = shape[1] * shape[2]
        z = [part[c * pixels : (c + 1) * pixels] for part in z for c in range(shape[0])]
    return cp.norm(cp.vstack(z), 2, axis=0)


def undecimated(prior, x, shape):
    """R(x) for undecimated wavelets, with a matrix for every axis and scale, from PyWavelets' filters."""
    import cvxpy as cp

    channels, *sides = shape
    weights = np.broadcast_to(prior.weights().numpy(), (channels, 3))
    scales, smooth, total = prior.scale_weights().tolist(), [np.eye(n) for n in sides], 0
    taps = (np.array(f[::-1]) / math.sqrt(2) for f in pywt.Wavelet(prior.wavelet).filter_bank[:2])
    low, high = taps
    for j in range(prior.levels):
        each = []
        for axis, n in enumerate(sides):
            both = [np.zeros((n, n)), np.zeros((n, n))]
            for k, t in np.ndindex(n, len(low)):
                both[0][k, (k + 2**j * t) % n] += low[t]
                both[1][k, (k + 2**j * t) % n] += high[t]
            each.append([m @ smooth[axis] for m in both])
        z = []
        for b, (r, c) in enumerate(((0, 1), (1, 0), (1, 1))):
            detail = np.kron(np.eye(channels), np.kron(each[0][r], each[1][c])) @ x
            z.append(cp.multiply(np.repeat(weights[:, b], math.prod(sides)), detail))
        sizes = [groups(z, shape, "channel" in prior.over)] if "band" in prior.over else []
        sizes = sizes or [groups([d], shape, "channel" in prior.over) for d in z]
        total += scales[j] * 0.5 ** (j + 1) * sum(cp.sum(s) for s in sizes)
        smooth = [m[0] for m in each]
    if prior.coarse:
        coarse = np.kron(np.eye(channels), np.kron(*smooth)) @ x
        total += 0.5**prior.levels * cp.norm1(coarse)
    return total


def value_of(prior, x, shape):
    """R(x) of an expression x, and the constraints of its further variables."""
    import cvxpy as cp

    down, right = differences_of(shape)
    if isinstance(prior, Sum):
        parts = [value_of(p, x, shape) for p in prior.priors]
        weights = prior.weights().tolist()
        return sum(w * p for w, p in zip(weights, parts, strict=True))
    if isinstance(prior, Tikhonov):
        return cp.sum_squares(x) / 2
    if isinstance(prior, UndecimatedWavelet):
        return undecimated(prior, x, shape)
    if isinstance(prior, TGV):
        v, h = cp.Variable(len(down)), cp.Variable(len(down))
        has_v, has_h = ((d != 0).any(1).astype(float) for d in (down, right))
        first = [down @ x - cp.multiply(has_v, v), right @ x - cp.multiply(has_h, h)]
        second = [down @ v, right @ h, (right @ v + down @ h) / math.sqrt(2)]
        ratio = float(prior.ratio())
        return cp.sum(groups(first, shape, prior.vectorial)) + ratio * cp.sum(groups(second, shape, prior.vectorial))
    assert isinstance(prior, TV)
    z = [down @ x, right @ x]
    sizes = [groups(z, shape, prior.vectorial)] if prior.isotropic else [groups([d], shape, prior.vectorial) for d in z]
    if prior.smoothing:  # cp.huber(t, ε) is t² up to ε
        return sum(cp.sum(cp.huber(s, prior.smoothing)) for s in sizes) / (2 * prior.smoothing)
    return sum(cp.sum(s) for s in sizes)


def norm_of(prior, u, frame, channels):
    """g(u) of packed coefficients: for every channel and basis three bands of details, then the coarse ones."""
    import cvxpy as cp

    bases, basis = len(prior.wavelets), frame.basis
    weights = np.broadcast_to(prior.weights().numpy(), (channels, bases, 3))
    counts = np.diff(basis.offsets)
    each, p = 3 * basis.positions + basis.coarse, basis.positions
    total, grouped = 0, {}
    for c in range(channels):
        for m in range(bases):
            at = (c * bases + m) * each
            scales = np.repeat(prior.scale_weights().numpy()[m], counts)
            for b in range(3):
                detail = weights[c, m, b] * u[at + b * p : at + (b + 1) * p]
                over = getattr(prior, "over", None)
                if over is None:
                    total += scales @ cp.abs(detail)
                else:
                    key = (m, c if "channel" not in over else 0, b if "band" not in over else 0)
                    grouped.setdefault(key, (scales, []))[1].append(detail)
            if prior.coarse:
                total += cp.norm1(u[at + 3 * p : at + each])
    return total + sum(scales @ cp.norm(cp.vstack(parts), 2, axis=0) for scales, parts in grouped.values())


@dataclass(frozen=True)
class Solved:
    """The solution x (C, H, W) of a problem, and its value at the best x and at any other."""

    image: torch.Tensor
    best: float
    at: object


@cache
def by_cvxpy(problem, kind, gamma=None):
    """The solution of a problem. Kinds: "synthesis", "boxed synthesis", "split" (with γ), "analysis", "counts"."""
    import cvxpy as cp

    shape, n = problem.shape, math.prod(problem.shape)
    a = as_matrix(lambda x: problem.physics.A(x), shape).numpy()
    y = (problem.counts if kind == "counts" else problem.y).flatten().numpy()
    u = image = cp.Variable(n)
    if "synthesis" in kind or kind == "split":
        frame = problem.prior.frame((1, *shape), torch.float64, torch.device("cpu"))
        packed = frame.shape(1, shape[0])[1:]
        u = cp.Variable(math.prod(packed))
        d = as_matrix(frame.synthesis, packed).numpy()
        prior, image = norm_of(problem.prior, u, frame, shape[0]), d @ u
    else:
        prior = value_of(problem.prior, image, shape)
    seen = image
    if kind == "split":
        v = cp.Variable(u.size)
        seen = d @ v
        prior = problem.reg * prior + cp.sum_squares(u - v) / (2 * gamma)
    else:
        prior = problem.reg * prior
    if kind == "counts":
        data = cp.sum(a @ seen) - y @ cp.log(a @ seen + problem.background)
    else:
        data = cp.sum_squares(a @ seen - y) / (2 * problem.sigma**2)
    boxed = problem.box is not None and kind in ("boxed synthesis", "analysis")
    limits = [problem.box[0] <= image, image <= problem.box[1]] if boxed else []
    whole = cp.Problem(cp.Minimize(data + prior), limits)
    best = whole.solve(solver=cp.CLARABEL)

    def at(x):
        """The least value of the objective with this image."""
        if u is image and len(whole.variables()) == 1:
            image.value = x
            return float(whole.objective.value)
        return cp.Problem(whole.objective, [image == x]).solve(solver=cp.CLARABEL)

    return Solved(torch.from_numpy(np.asarray(image.value)).reshape(shape), float(best), at)


@cache
def by_lbfgs(problem, prior):
    """The solution of a problem with a ridge regulariser."""
    from scipy.optimize import minimize

    physics, y, shape = problem.physics, problem.y, (1, *problem.shape)

    def value(x):
        x = torch.from_numpy(x).reshape(shape).requires_grad_()
        f = (physics.A(x) - y).square().sum() / (2 * problem.sigma**2) + problem.reg * prior.fn(x).sum()
        (gradient,) = torch.autograd.grad(f, x)
        return float(f.detach()), gradient.flatten().numpy()

    bounds = None if problem.box is None else [problem.box] * math.prod(shape)
    options = {"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30}
    found = minimize(value, np.zeros(math.prod(shape)), jac=True, bounds=bounds, method="L-BFGS-B", options=options)
    return Solved(torch.from_numpy(found.x).reshape(problem.shape), float(found.fun), lambda x: value(x)[0])


def require_same(found, expected, box=None):
    """Both have the same value and image."""
    x = found.detach()[0]
    if box is not None:
        assert box[0] - 1e-9 <= float(x.min())
        assert float(x.max()) <= box[1] + 1e-9
        x = x.clamp(*box)
    assert abs(expected.at(x.flatten().numpy()) - expected.best) <= 1e-5 * abs(expected.best)
    assert float((x - expected.image).norm()) <= 1e-3 * float(expected.image.norm())


def solved(map_, problem, y=None, rtol=1e-6, most=20000, solver=None):
    net = Restarted(map_.requires_grad_(False), depth=10, stop=Stop(rtol, most), solver=solver).eval()
    found = net.solve(problem.y if y is None else y, problem.physics)
    assert bool(found.converged.all()), found
    return found.image


def fidelity(problem):
    return L2(sigma=problem.sigma)


@pytest.mark.parametrize("map_", [ForwardBackward, DouglasRachford])
@pytest.mark.parametrize("problem", SYNTHESIS, ids=str)
def test_a_smooth_or_quadratic_term_and_a_synthesis_prior(problem, map_, float64):
    found = solved(map_(problem.prior, fidelity(problem), reg=problem.reg), problem, solver=Anderson())
    require_same(found, by_cvxpy(problem, "synthesis"))


@pytest.mark.parametrize("problem", SYNTHESIS, ids=str)
def test_three_operators(problem, float64):
    map_ = ThreeOperators(problem.prior, fidelity(problem), reg=problem.reg, box=problem.box)
    expected = by_cvxpy(problem, "boxed synthesis")
    require_same(solved(map_, problem), expected, problem.box)


@pytest.mark.parametrize("problem", SYNTHESIS, ids=str)
def test_half_quadratic(problem, float64):
    """Its own objective, with its γ, which contains an upper bound of ‖A‖², at most 5 % too large."""
    share = 0.6
    map_ = HalfQuadratic(problem.prior, fidelity(problem), step_size=share, reg=problem.reg).requires_grad_(False)
    gamma = float(map_.gamma(map_.data_term(problem.y, problem.physics)))
    norm = np.linalg.norm(as_matrix(lambda x: problem.physics.A(x), problem.shape).numpy(), 2) / problem.sigma
    assert 0.95 <= gamma * norm**2 * (1 - share) / share <= 1 + 1e-9
    require_same(solved(map_, problem, solver=Anderson()), by_cvxpy(problem, "split", gamma))


@pytest.mark.parametrize("problem", ANALYSIS, ids=str)
def test_primal_dual(problem, float64):
    map_ = PrimalDual(problem.prior, fidelity(problem), reg=problem.reg, box=problem.box)
    require_same(solved(map_, problem), by_cvxpy(problem, "analysis"), problem.box)


@pytest.mark.parametrize("problem", SMOOTH, ids=str)
def test_gradient_step(problem, float64):
    prior, ridge = problem.prior, problem.prior == "ridge"
    if ridge:
        prior = Ridge(features=(2, 4), sizes=(3, 2), knots=3, convexity="convex", sigma=0.2)
        with torch.no_grad():
            for p in prior.filters.parameters():
                p.add_(0.3 * rand(*p.shape, seed=3))
    constant = 1.0 if isinstance(prior, Tikhonov) else None
    map_ = GradientStep(prior, fidelity(problem), reg=problem.reg, box=problem.box, prior_lipschitz=constant)
    expected = by_lbfgs(problem, prior) if ridge else by_cvxpy(problem, "analysis")
    require_same(solved(map_, problem, solver=Anderson()), expected, problem.box)


@pytest.mark.parametrize("problem", COUNTS, ids=str)
def test_mirror_descent(problem, float64):
    """The exact likelihood of counts."""
    map_ = MirrorDescent(problem.prior, PoissonLikelihood(bkg=problem.background), reg=problem.reg)
    require_same(solved(map_, problem, problem.counts), by_cvxpy(problem, "counts"))
