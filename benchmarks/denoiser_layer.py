"""What a Plug-and-Play layer costs beyond the denoiser and the operator.

1×3×256×256, the shipped colour denoiser, 3 layers per timed call. The reference calls the bare network, and
`DataTerm.grad` for the operator, and adds nothing. Run ``python benchmarks/denoiser_layer.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import retune
from _timing import Column, Timing, arguments, interleave, report
from retune.solve import Stop, solve

SHAPE = (1, 3, 256, 256)
SIGMA, LAYERS = 0.05, 3


def measure(problem: object, rounds: int, device: torch.device) -> Timing:
    y, physics = problem.measure(torch.rand(SHAPE, device=device), 0)  # type: ignore[attr-defined]
    denoiser = retune.weights.load("denoiser-color").to(device).eval()
    net = retune.Restarted(retune.ForwardBackward(retune.priors.Denoiser(denoiser, SIGMA)), depth=LAYERS).to(device)
    pose = net.map.data_term(y, physics)
    bound = net.map.bind(pose)
    start, sigma = bound.init(), torch.full((1,), SIGMA, device=device)

    def bare() -> Tensor:
        x = start
        for _ in range(LAYERS):
            pose.grad(x)
            x = denoiser(x, sigma)
        return x

    contenders: dict[str, Callable[[], object]] = {
        "denoiser and operator": bare,
        "layer()": lambda: bound.block(start, LAYERS),
        "solve()": lambda: solve(
            bound.layer, start, solver=net.solver, depth=LAYERS, stop=Stop(rtol=1e-12, max_layers=LAYERS)
        ),
    }
    return interleave(contenders, rounds, device)


def main() -> None:
    options = arguments(__doc__)
    rounds = 5 if options.quick else 15
    problems = {
        "denoise": retune.problems.denoise(),
        "inpaint": retune.problems.inpaint(),
        "deblur": retune.problems.deblur(),
    }
    with torch.no_grad():
        cases = {n: measure(p, rounds, torch.device(options.device)) for n, p in problems.items()}
    columns = [Column("denoiser and operator", faster=False, bar=1.05)]
    report("One Plug-and-Play layer, 1×3×256×256", cases, columns, options, scale=1e3 / LAYERS, unit="ms")


if __name__ == "__main__":
    main()
