"""Random trials in float64 against dense algebra: no bound is exceeded, and no cycle is called an equilibrium.

``RETUNE_TRIALS=500 pytest tests/certificate/test_trials.py`` makes so many of each kind.
"""

from __future__ import annotations

import os
import random
import warnings
from dataclasses import dataclass

import pytest
import torch
from deepinv.physics import Denoising

from retune import (
    Anderson,
    Damped,
    DataTerm,
    ForwardBackward,
    Inertial,
    Picard,
    Restarted,
    Status,
    Stop,
    Truncated,
    certify,
)
from small_parts import Quadratic, Transparent, dense, rand, spectrum

#: of each kind
TRIALS = int(os.environ.get("RETUNE_TRIALS", "25"))
SOLVERS = (None, Picard(), Damped(), Anderson(), Inertial())
SHAPE = (1, 3, 4)


def draw_network(draw, map_):
    """A network of a random solver, depth and number of layers, which need not be a multiple of the depth."""
    depth, rtol = draw.randint(1, 12), draw.choice((0.0, 1e-2, 1e-4, 1e-8))
    stop = Stop(rtol, draw.randint(depth, 400))
    return Restarted(map_, depth, 1, Truncated(), draw.choice(SOLVERS), stop).eval()


def solved(draw, net, y, physics):
    """The result, the certificate, and the map bound to the measurement."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not settled, or oscillates, is in the result
        result = net.solve(y, physics)
        certificate = certify(
            net, y, physics, result=result, iterations=draw.choice((1, 2, 10)), starts=1, learning=draw.random() < 0.5
        )
    with torch.no_grad():
        return result, certificate, net.map.requires_grad_(False).bind(DataTerm(y, physics))


def affine(bound, u):
    """The matrix J and the equilibria (B, n) of a layer ``u ↦ J u + c``."""
    n, size = u[0].numel(), u.shape[1:]
    offset = bound.layer(torch.zeros_like(u)).flatten(1)
    base = bound.layer(torch.zeros_like(u))[:1]
    columns = [
        (bound.layer(torch.cat([e.view(1, *size), u[1:]]))[:1] - base).flatten() for e in torch.eye(n, dtype=u.dtype)
    ]
    matrix = torch.stack(columns, 1)
    return matrix, torch.linalg.solve(torch.eye(n) - matrix, offset.T).T


def convex_map(draw):
    """½‖Ax − y‖² + ½λ‖Wx‖², of a random condition."""
    seed = draw.randrange(10**6)
    matrix = spectrum(14, 12, draw.choice((0.05, 0.3, 0.9)), 1.1, seed=seed)
    weight = 0.2 + torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(seed))
    map_ = ForwardBackward(
        Quadratic(weight),
        step_size=draw.uniform(0.05, 0.97),
        reg=draw.choice((1e-3, 0.05, 0.5)),
        strong_convexity=draw.choice((0.0, 0.02, 0.3)),
    )
    return map_, rand(2, 1, 1, 14, seed=seed + 1), dense(matrix, SHAPE)


@dataclass
class Linear:
    """``v ↦ M v`` of images."""

    matrix: torch.Tensor

    def __call__(self, v):
        return (v.flatten(1) @ self.matrix.T).view_as(v)


def free_map(draw):
    """A linear denoiser that is no prox: its eigenvalues attract or repel, and single steps may expand anyway."""
    seed = draw.randrange(10**6)
    basis = torch.linalg.qr(rand(12, 12, seed=seed))[0] + draw.choice((0.0, 0.3)) * rand(12, 12, seed=seed + 1)
    values = torch.tensor([draw.uniform(-0.95, 0.95) for _ in range(12)])
    if draw.random() < 0.5:
        values[0] = draw.choice((-1.0, 1.0)) * draw.uniform(1.02, 2)
    matrix = basis @ values.diag() @ torch.linalg.inv(basis)
    step = draw.uniform(0.05, 0.5)
    map_ = ForwardBackward(Transparent(Linear(matrix / (1 - 2 * step))), step_size=step)
    return map_, rand(2, *SHAPE, seed=seed + 2), Denoising()


@pytest.mark.parametrize("kind", [convex_map, free_map], ids=["convex", "free"])
def test_no_distance_is_larger_than_its_bound(kind, float64):
    """Against the equilibrium that dense algebra finds, whatever the solver, the depth and the layers that are run."""
    draw, bounds, expanding, converged, tightest = random.Random(0), 0, 0, 0, 0.0
    for trial in range(TRIALS):
        map_, y, physics = kind(draw)
        net = draw_network(draw, map_)
        result, certificate, bound = solved(draw, net, y, physics)
        u = result.state.flatten(1)
        matrix, answers = affine(bound, result.state)
        norm = float(torch.linalg.matrix_norm(matrix, 2))
        attracts = float(torch.linalg.eigvals(matrix).abs().max()) < 1
        expanding += norm > 1
        for i, image in enumerate(certificate):
            if result.status[i].failed:
                continue
            assert not image.jumps or not attracts, trial
            true = float((u[i] - answers[i]).norm())
            moved = float((matrix @ (u[i] - answers[i]) - (u[i] - answers[i])).norm())
            if result.status[i] is Status.CONVERGED:
                converged += 1
                assert moved <= net.stop.rtol * max(1, norm) * float(u[i].norm()) + 1e-12, trial
            proved = image.distance.proved
            if proved is not None:
                bounds += 1
                rounding = 1e-13 * float(u[i].norm()) / (1 - image.block_factor.proved.value)
                assert true <= proved.value * (1 + 1e-9) + rounding, trial
                assert float((u[i] - answers[i]).norm()) / 12**0.5 <= image.rmse.proved.value * (1 + 1e-9) + rounding
                tightest = max(tightest, true / proved.value)
            else:
                assert kind is free_map or image.block_factor.proved is None or image.block_factor.proved.value >= 1
            # What is only estimated may be wrong by a factor, but not without limit where the map attracts.
            estimated = image.distance.estimated
            if kind is free_map:
                assert proved is None
                assert image.verdict.startswith("Nothing is proved")
                if attracts and estimated is not None and estimated.value < float("inf"):
                    assert moved <= (1 + max(9, norm)) * estimated.value + 1e-11, trial
    if kind is convex_map:
        assert bounds > TRIALS
        assert 0.3 < tightest <= 1 + 1e-9
    else:
        assert expanding > TRIALS / 3
    print(
        f"{TRIALS} trials of two images: {converged} images converged, {expanding} maps expand, {bounds} bounds of a "
        f"distance, none exceeded; at most {tightest:.4f} of a bound was reached"
    )


def steep_map(draw, period):
    """A pointwise step with two attracting values, and a shift: cycles of the period attract, 0.5 repels."""
    slope, step = draw.uniform(1.2, 2.5), draw.uniform(0.01, 0.1)

    def flip(v):
        return 0.5 - slope * torch.tanh(v - 0.5)

    def shift(v):
        return 0.5 + slope * torch.tanh(v - 0.5).roll(1, -1)

    seed = draw.randrange(10**6)
    own = flip if period == 2 and draw.random() < 0.5 else shift
    map_ = ForwardBackward(Transparent(own), step_size=step)
    return map_, 0.5 + 0.5 * rand(2, 1, 2, period, seed=seed), Denoising(), slope


@pytest.mark.parametrize("period", [2, 3, 5])
def test_no_cycle_is_called_an_equilibrium(period, float64):
    """Neither by the solver nor by the certificate: within d of an equilibrium a layer moves at most ``(1 + L)d``."""
    draw, said = random.Random(period), {"converged": 0, "jumps": 0, "oscillates": 0, "not settled": 0}
    for trial in range(TRIALS):
        map_, y, physics, lipschitz = steep_map(draw, period)
        net = draw_network(draw, map_)
        result, certificate, bound = solved(draw, net, y, physics)
        with torch.no_grad():
            moved = (bound.layer(result.state) - result.state).flatten(1).norm(dim=1)
        size = result.state.flatten(1).norm(dim=1)
        for i, image in enumerate(certificate):
            if result.status[i] is Status.CONVERGED:
                assert float(moved[i]) <= lipschitz * net.stop.rtol * float(size[i]) + 1e-12, trial
            said[result.status[i].value] = said.get(result.status[i].value, 0) + 1
            said["jumps"] += image.jumps > 0
            assert image.distance.proved is None
            distance = image.distance.estimated
            if distance is None or distance.value == float("inf"):
                assert "from its equilibrium" not in image.verdict
                continue
            assert not image.jumps
            assert float(moved[i]) <= (1 + lipschitz) * distance.value + 1e-11, trial
            if float(moved[i]) > 1e-3 * float(size[i]):
                # It still moves, so its iterates have to come closer: a cycle's never do.
                u = result.state
                with torch.no_grad():
                    for _ in range(3000):
                        u = bound.layer(u)
                    assert float((bound.layer(u) - u)[i].norm()) < 0.5 * float(moved[i]), trial
    assert said["jumps"] > TRIALS / 5
    print(f"period {period}, {TRIALS} trials of two images: {said}")
