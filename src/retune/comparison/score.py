"""Score a network: its output, and the images after many more layers."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from deepinv.loss.metric import PSNR, SSIM
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.certificate import certify
from retune.comparison.methods import Method
from retune.equilibrium import Equilibrium, Status
from retune.model import Restarted
from retune.solve import Solution, Stop, solve
from retune.training.records import FitResult

__all__ = ["Pair", "certified", "gradient_error", "layers_of_training", "learned", "number", "score", "visible"]

#: Larger tables are weights, which nobody reads in a result file.
_SMALL = 1000

#: images, their measurement, and its operator
Pair = tuple[Tensor, Tensor, LinearPhysics]


def layers_of_training(net: Restarted) -> int:
    """The number of layers of a training step: K(R + 1), or K for an unrolled network."""
    return net.depth * (1 + (net.restarts if net.gradient.restarts else 0))


def score(
    net: Restarted, pair: Pair, depth: int, far: Sequence[int], longest: int, *, settled: float | None = None
) -> tuple[dict, Tensor]:
    """Scores of the output, and after `far` times the trained depth.

    The output is the result of eval mode. The run continues from there, so no layer is computed twice.

    Args:
        net: the network.
        pair: images, measurement, operator.
        depth: layers per block, the same for all methods, so that residuals mean the same.
        far: the multiples of the trained depth at which PSNR is taken.
        longest: number of layers at which the run ends.
        settled: an image stops when its relative change per block is below this, since it would hardly change any more.
            By default all images run to the end.

    Returns:
        Plain data (means over the images), and the restored images.
    """
    x, y, physics = pair
    net.eval()
    trained = layers_of_training(net)
    horizons = {f"psnr_{f}x": trained * f for f in far}
    wanted = {n for n in _landmarks(depth, longest) | {trained, *horizons.values()} if n <= longest or settled is None}
    curve: dict[int, float] = {}
    residual: dict[int, float] = {}
    with torch.no_grad():
        bound = net.map.bind(net.map.data_term(y, physics))
        solver = net.solver.bind(bound.objective)

        def run(u: Tensor, stop: Stop, done: int) -> Solution:
            """Continue from `u`, after `done` layers."""

            def see(layers: int, state: Tensor) -> None:
                if done + layers in wanted or layers == stop.max_layers:
                    curve[done + layers] = float(PSNR()(bound.image(state), x).mean())

            solution = solve(
                bound.layer,
                u,
                solver=solver,
                depth=depth,
                stop=stop,
                cycle=bound.layers,
                trace=True,
                observe=see,
            )
            assert solution.trace is not None
            seen = solution.trace.residual.mean(1).tolist()
            residual.update({done + n: r for n, r in zip(solution.trace.layers, seen, strict=True)})
            return solution

        start = time.perf_counter()
        output = run(bound.init(), net.stop, 0)
        image = bound.image(output.u)
        seconds = time.perf_counter() - start
        end, reached = output, int(output.layers.max())
        stays = settled is not None and all(s is Status.CONVERGED for s in output.status)
        if reached < longest and not stays:
            end = run(output.u, Stop(settled or 0.0, longest - reached), reached)
        if settled is not None:
            _hold(curve, residual, wanted, float(PSNR()(bound.image(end.u), x).mean()))
    psnr = PSNR()(image, x)
    row = {
        "psnr": float(psnr.mean()),
        "psnr_per_image": psnr.tolist(),
        "ssim": float(SSIM()(image, x).mean()),
        "psnr_trained": curve.get(trained),
        **{name: curve.get(layers) for name, layers in horizons.items()},
        "layers_trained": trained,
        "layers_run": output.layers.tolist(),
        "status": [s.value for s in output.status],
        "residual": number(output.residual.mean()),
        **{f"residual_{f}x": number(residual.get(trained * f)) for f in far},
        "seconds_restoring": seconds / len(x),
        "curve": {
            "layers": sorted(curve),
            "psnr": [curve[k] for k in sorted(curve)],
            "residual": [number(residual.get(k)) for k in sorted(curve)],
        },
    }
    return row, image


def _hold(curve: dict[int, float], residual: dict[int, float], wanted: set[int], last: float) -> None:
    """Fill in the landmarks after the images had settled, with the values at which they settled."""
    end = max(residual, default=0)
    for layers in sorted(wanted):
        if layers > end:
            curve[layers] = last
            residual[layers] = residual.get(end, math.nan)
    for layers in set(curve) - wanted:
        del curve[layers]


def _landmarks(depth: int, longest: int, per_decade: int = 12) -> set[int]:
    """Multiples of `depth`, about evenly spaced on a logarithmic axis."""
    count = max(2, int(per_decade * math.log10(max(longest / depth, 10))))
    steps = {round((longest / depth) ** (i / (count - 1))) for i in range(count)}
    return {depth * s for s in steps}


def gradient_error(method: Method, trained: FitResult | None) -> float | None:
    """The mean of the measured gradient error over the last training steps."""
    if trained is None:
        return None
    # Without restarts the gradient is exact, but it belongs to the output at depth K, not to the equilibrium.
    if method.rule is not None and not method.rule.restarts:
        return None
    last = [s.gradient_error for s in trained.steps[-10:] if math.isfinite(s.gradient_error)]
    return sum(last) / len(last) if last else None


def learned(net: Restarted) -> dict:
    """The learned scalars and small tables, as plain data."""
    return net.map.learned()


def certified(net: Restarted, pair: Pair, image: Equilibrium | None = None) -> dict:
    """A certificate as plain data, from a few iterations only, because every method gets one."""
    _, y, physics = pair
    return certify(net, y, physics, result=image, iterations=10, starts=2, max_layers=500).to_dict()


def visible(pair: Pair) -> Tensor:
    """The measurement as an image of the size of x.

    It is y itself, a smaller y with its pixels enlarged by a whole number, or the back-projection.
    """
    x, y, physics = pair
    if not isinstance(y, Tensor) or y.ndim != 4 or y.shape[1] != x.shape[1]:
        return physics.A_adjoint(y)
    if y.shape == x.shape:
        return y
    (height, width), (h, w) = x.shape[-2:], y.shape[-2:]
    whole = height % h == 0 and width % w == 0 and height // h == width // w
    return torch.nn.functional.interpolate(y, (height, width)) if whole else physics.A_adjoint(y)


def number(value: float | Tensor | None) -> float | None:
    """A finite number, or None."""
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None
