"""Time of one iteration, against deepinv's PGD and against a hand-written loop.

1×3×256×256, db4, 4 levels, float32. Run ``python benchmarks/iteration.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import torch
from deepinv.optim import L2, PGD
from deepinv.optim.prior import WaveletPrior
from deepinv.physics import LinearPhysics
from deepinv.physics.functional.blur import gaussian_blur
from torch import Tensor

import retune
from _timing import Column, Timing, arguments, interleave, report
from retune.maps.base import BoundMap
from retune.priors.wavelet_basis import WaveletBasis
from retune.solve import Stop, solve
from retune.solvers import Picard

SHAPE = (1, 3, 256, 256)
WAVELET, LEVELS = "db4", 4
STEP, REG = 0.9, 0.05  # τ = 2·0.9/L and λ
ITERATIONS = 10  # per timed call


def physics_by_name(device: torch.device) -> dict[str, LinearPhysics]:
    size = SHAPE[1:]
    gaussian = gaussian_blur(sigma=(2.0, 2.0))
    uniform = torch.full((1, 1, 25, 25), 1 / 625)
    return {
        "inpainting": deepinv.physics.Inpainting(size, mask=0.5, device=device),  # pyright: ignore[reportArgumentType]
        "FFT blur": deepinv.physics.BlurFFT(size, filter=gaussian, device=device),
        "25×25 reflect blur": deepinv.physics.Blur(filter=uniform, padding="reflect", device=device),
    }


def plain_loop(bound: BoundMap, problem: retune.DataTerm, step: float) -> Callable[[Tensor], Tensor]:
    """What one would write by hand with the same transform: operator, transform, threshold, two vector operations.

    Constants are Python numbers and everything that can be is done in place, which a differentiable map can't do.
    """
    basis = WaveletBasis(WAVELET, LEVELS, SHAPE[2:], device=problem.device)
    tau = 2 * step / float(problem.lipschitz)
    threshold = tau * REG
    offset = tau * basis.analysis(problem.adjoint_y)
    details = 3 * basis.positions

    def loop(u: Tensor) -> Tensor:
        for _ in range(ITERATIONS):
            r = basis.analysis(problem.normal(basis.synthesis(u)))
            u = (u + offset).sub_(r, alpha=tau)
            d = u[..., :details]
            d.sub_(d.clamp(-threshold, threshold))
        return u

    start = bound.init().squeeze(2)
    expected = bound.block(bound.init(), ITERATIONS).squeeze(2)
    assert torch.allclose(loop(start), expected, atol=1e-4), "the two loops must compute the same thing"
    return loop


def measure(physics: LinearPhysics, rounds: int) -> Timing:
    device = torch.device(next(physics.buffers()).device)
    y = physics(torch.rand(SHAPE, device=device))
    problem = retune.DataTerm(y, physics)

    def network(prior: type, **options: object) -> retune.ForwardBackward:
        return retune.ForwardBackward(prior(WAVELET, LEVELS, **options), step_size=STEP, reg=REG).to(device)

    unequal = torch.linspace(0.6, 1.6, 9).reshape(3, 1, 3)  # weights such as are learned
    maps = {
        "WaveletL1, layer()": (first := network(retune.priors.WaveletL1)).bind(problem),
        "WaveletL12, equal weights": network(retune.priors.WaveletL12).bind(problem),
        "WaveletL12, learned weights": network(retune.priors.WaveletL12, channels=3, weights=unequal).bind(problem),
    }
    theirs = PGD(
        data_fidelity=L2(),
        prior=WaveletPrior(level=LEVELS, wv=WAVELET, device=str(device)),
        stepsize=2 * STEP / float(problem.lipschitz),
        lambda_reg=REG,
        max_iter=ITERATIONS,
        early_stop=False,
    )
    x0 = problem.adjoint_y / problem.sqnorm
    l1 = maps["WaveletL1, layer()"]
    start = l1.init()
    plain = plain_loop(l1, problem, float(first.step_size()))
    contenders: dict[str, Callable[[], object]] = {
        label: lambda b=bound: b.block(start, ITERATIONS) for label, bound in maps.items()
    }
    contenders["WaveletL1, solve()"] = lambda: solve(
        l1.layer,
        start,
        solver=Picard(),
        depth=ITERATIONS,
        stop=Stop(rtol=1e-12, max_layers=ITERATIONS),
    )
    contenders["plain loop"] = lambda: plain(start.squeeze(2))
    contenders["deepinv PGD"] = lambda: theirs(y, physics, init=x0)
    return interleave(contenders, rounds, device)


def main() -> None:
    options = arguments(__doc__)
    rounds = 5 if options.quick else 21
    with torch.no_grad():
        device = torch.device(options.device)
        cases = {name: measure(physics, rounds) for name, physics in physics_by_name(device).items()}
    columns = [
        Column("deepinv PGD", True, 2.5, only="WaveletL1", asked="WaveletL1", bars={"25×25 reflect blur": 3.0}),
        Column("plain loop", faster=False, bar=1.3, only="WaveletL1", asked="WaveletL1,"),
    ]
    title = "One iteration, 1×3×256×256, db4, 4 levels"
    report(title, cases, columns, options, scale=1e3 / ITERATIONS, unit="ms")


if __name__ == "__main__":
    main()
