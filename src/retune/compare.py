"""The learning methods on equal terms: same map, same start, same budget, same crops, same measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from deepinv.loss.metric import PSNR, SSIM
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune.certificate import certify
from retune.errors import DivergedError, InvalidParameterError
from retune.gradients import GradientRule, Implicit, Truncated, Unrolled
from retune.maps import ForwardBackward
from retune.model import Restarted
from retune.priors import WaveletL12
from retune.problems import Restoration
from retune.solve import Solution, Stop, solve
from retune.solvers import Picard
from retune.training.fit import FitResult, fit

__all__ = ["METHODS", "Method", "Settings", "compare"]


@dataclass(frozen=True)
class Settings:
    """One budget for every method.

    Attributes:
        depth: K, layers differentiated (and the depth of the unrolled network).
        restarts: R; the methods at the equilibrium run K(R + 1) layers in a training step.
        steps: training steps of every learned method.
        batch_size, crop: crops of a step and their side.
        wavelet, levels: of the prior.
        lr: learning rate of the scalars and weights.
        grid: number of λ tried by the variational method, spread over `reg_range` logarithmically.
        rtol: relative change per K layers at which a restoration is called settled.
        far: how many times longer than trained every network is run.
        seed: of crops, masks and noise.
    """

    depth: int = 10
    restarts: int = 5
    steps: int = 40
    batch_size: int = 4
    crop: int = 64
    wavelet: str = "db4"
    levels: int = 5
    lr: float = 0.1
    grid: int = 10
    reg_range: tuple[float, float] = (0.005, 2.0)
    rtol: float = 1e-5
    far: tuple[int, int] = (10, 50)
    seed: int = 0


@dataclass(frozen=True)
class Method:
    """A way to choose the parameters of the map.

    Attributes:
        key, label, how: name in result files, name for people, one sentence.
        rule: the gradient rule; None for the grid search.
        single_layer: differentiate one layer (JFB) and restart K(R + 1) times instead.
    """

    key: str
    label: str
    how: str
    rule: type[GradientRule] | None
    single_layer: bool = False


METHODS = (
    Method("variational", "Variational, best single λ", "grid search of one λ, all weights equal", None),
    Method("unrolled", "Unrolled, K layers", "K layers with shared weights, trained end to end, no restart", Unrolled),
    Method("jfb", "JFB (K = 1)", "at the equilibrium, one layer differentiated", Truncated, single_layer=True),
    Method(
        "implicit",
        "Implicit gradient (DEQ)",
        "at the equilibrium, adjoint system solved to 1 % or to the budget",
        Implicit,
    ),
    Method("retune", "ReTune", "at the equilibrium, K layers differentiated", Truncated),
)

Pair = tuple[Tensor, Tensor, LinearPhysics]
Note = Callable[[str], None]


def compare(
    problem: Restoration,
    train: Sequence[Tensor],
    validation: Tensor,
    test: Tensor,
    settings: Settings,
    *,
    device: str = "cpu",
    note: Note = lambda _: None,
    progress: bool = False,
) -> tuple[dict, dict[str, Tensor]]:
    """Run every method of :data:`METHODS` on one problem.

    Args:
        problem: the problem.
        train: training images (C, H, W).
        validation: validation images (B, C, H, W); λ is chosen here.
        test: test images (B, C, H, W); only reported on.
        settings: the budget.
        device: where to run.
        note: told in a few words what is being done.
        progress: show a bar for each training.

    Returns:
        The results as plain data (see ``results.json`` of ``retune demo``), and the test images by name:
        "truth", "measurement", and one entry per method, each (B, C, H, W).
    """
    if settings.crop < 2**settings.levels:
        raise InvalidParameterError(f"crop={settings.crop} is too small for {settings.levels} wavelet levels")
    channels = test.shape[1]
    held_out = _measured(problem, validation.to(device), settings.seed + 11)
    final = _measured(problem, test.to(device), settings.seed + 22)
    images = {"truth": test, "measurement": _visible(final)}
    note("grid search")
    start = time.perf_counter()
    reg, tried = _grid_search(settings, channels, held_out)
    seconds = time.perf_counter() - start
    rows = {}
    for method in METHODS:
        note(method.label)
        net = _network(settings, method, reg, channels).to(device)
        trained: FitResult | None = None
        failure: str | None = None
        if method.rule is not None:
            try:
                trained = fit(
                    net,
                    train,
                    problem,
                    validation=None,
                    steps=settings.steps,
                    batch_size=settings.batch_size,
                    crop=settings.crop,
                    lr=settings.lr,
                    seed=settings.seed,
                    device=device,
                    progress=progress,
                )
                seconds = trained.seconds
            except DivergedError as error:  # a row of the table, not the end of the comparison
                failure = str(error)
        row, image = _score(settings, method, net, final)
        rows[method.key] = row | {
            "label": method.label,
            "how": method.how,
            "seconds": seconds,
            "gradient_error": _gradient_error(method, trained),
            "failure": failure,
            "learned": _learned(net),
            "certificate": _certificate(method, net, final) if failure is None else None,
            "training": None if trained is None else {"loss": [s.loss for s in trained.steps]},
        }
        images[method.key] = image
    result = {
        "title": problem.name.capitalize(),
        "problem": _plain(problem.describe()),
        "grid": [{"reg": r, "psnr": p} for r, p in tried],
        "psnr_measurement": float(PSNR()(images["measurement"].to(test), test).mean()),
        "methods": rows,
    }
    return result, {k: v.detach().cpu() for k, v in images.items()}


def verdicts(key: str, result: dict) -> list[dict]:
    """What the comparison was meant to show, and whether it did, in numbers."""
    rows = result["methods"]
    retune, implicit, single, unrolled = (rows[k] for k in ("retune", "implicit", "variational", "unrolled"))

    def verdict(claim: str, holds: bool, detail: str) -> dict:
        return {"problem": key, "claim": claim, "holds": bool(holds), "detail": detail}

    gap = retune["psnr"] - implicit["psnr"]
    moved = [abs(retune[f] - retune["psnr"]) for f in ("psnr_10x", "psnr_50x")]
    return [
        verdict(
            "ReTune is within 0.1 dB of the implicit gradient",
            abs(gap) <= 0.1,
            f"{retune['psnr']:.2f} against {implicit['psnr']:.2f} dB",
        ),
        verdict(
            "ReTune and the implicit gradient are ahead of the best single λ",
            min(retune["psnr"], implicit["psnr"]) > single["psnr"],
            f"{retune['psnr']:.2f} and {implicit['psnr']:.2f} against {single['psnr']:.2f} dB",
        ),
        verdict(
            "The ReTune output moves by less than 0.01 dB when run 10× and 50× longer",
            max(moved) < 0.01,
            f"output after {max(retune['layers_run'])} layers; after {10 * retune['layers_trained']} and "
            f"{50 * retune['layers_trained']} it differs by {moved[0]:.4f} and {moved[1]:.4f} dB; the unrolled network "
            f"at 10 and 50 times its {unrolled['layers_trained']} layers by "
            f"{unrolled['psnr_10x'] - unrolled['psnr']:+.2f} and {unrolled['psnr_50x'] - unrolled['psnr']:+.2f} dB",
        ),
    ]


def _network(settings: Settings, method: Method, reg: float, channels: int) -> Restarted:
    prior = WaveletL12(settings.wavelet, settings.levels, channels=channels)
    total = settings.depth * (settings.restarts + 1)
    depth, restarts = (1, total - 1) if method.single_layer else (settings.depth, settings.restarts)
    if method.rule is Implicit:  # the same budget backward as forward: at most as many products as there are layers
        rule: GradientRule = Implicit(rtol=1e-2, max_blocks=total)
    else:
        rule = Truncated() if method.rule is None else method.rule()
    stop = None if isinstance(rule, Unrolled) else Stop(settings.rtol, settings.far[1] * total)
    return Restarted(ForwardBackward(prior, reg=reg), depth, restarts, rule, stop=stop)


def _grid_search(settings: Settings, channels: int, held_out: Pair) -> tuple[float, list[tuple[float, float]]]:
    """The single λ of best validation PSNR: a coarse logarithmic grid, then a finer one around its best point."""
    x, y, physics = held_out
    low, high = (math.log(r) for r in settings.reg_range)
    coarse = max(3, settings.grid // 2)
    tried: list[tuple[float, float]] = []

    def attempt(reg: float) -> None:
        net = _network(settings, METHODS[0], reg, channels).to(x.device).eval()
        image = net.solve(y, physics, stop=Stop(1e-4, 30 * settings.depth)).image
        tried.append((reg, float(PSNR()(image, x).mean())))

    for i in range(coarse):
        attempt(math.exp(low + (high - low) * i / (coarse - 1)))
    centre = math.log(max(tried, key=lambda t: t[1])[0])
    fine = 2 * max(1, (settings.grid - coarse) // 2)  # even, so that the centre is not tried again
    for i in range(fine):
        offset = (i - (fine - 1) / 2) / fine * 2
        attempt(math.exp(centre + offset * (high - low) / (coarse - 1)))
    return max(tried, key=lambda t: t[1])[0], sorted(tried)


def _score(settings: Settings, method: Method, net: Restarted, final: Pair) -> tuple[dict, Tensor]:
    """Test figures of the output, and of running on to `far` times the trained depth.

    The output is what eval mode gives; the run then goes on from there, so no layer is computed twice.
    """
    x, y, physics = final
    net.eval()
    trained = net.depth * (1 + (net.restarts if net.gradient.restarts else 0))
    horizons = [trained * f for f in settings.far]
    # Only the network that is to be shown not to move, and the one that does, are run all the way.
    longest = max(horizons[1] if method.key in ("retune", "unrolled") else 0, settings.depth * settings.far[1])
    wanted = _landmarks(settings.depth, longest) | {trained, *horizons}
    curve: dict[int, float] = {}
    residual: dict[int, float] = {}
    with torch.no_grad():
        bound = net.map.bind(net.map.problem(y, physics))

        def run(u: Tensor, depth: int, stop: Stop, done: int) -> Solution:
            """Go on from `u`, `done` layers into the run."""

            def see(layers: int, state: Tensor) -> None:
                if done + layers in wanted or layers == stop.max_layers:
                    curve[done + layers] = float(PSNR()(bound.image(state), x).mean())

            solution = solve(bound.layer, u, solver=Picard(), depth=depth, stop=stop, trace=True, observe=see)
            assert solution.trace is not None
            seen = solution.trace.residual.mean(1).tolist()
            residual.update({done + n: r for n, r in zip(solution.trace.layers, seen, strict=True)})
            return solution

        # Blocks of K layers for every method, so that residuals mean the same.
        output = run(bound.init(), settings.depth, net.stop, 0)
        image = bound.image(output.u)
        reached = int(output.layers.max())
        if reached < longest:
            run(output.u, settings.depth, Stop(0.0, longest - reached), reached)
    psnr = PSNR()(image, x)

    row = {
        "psnr": float(psnr.mean()),
        "psnr_per_image": psnr.tolist(),
        "ssim": float(SSIM()(image, x).mean()),
        "psnr_trained": curve.get(trained),
        "psnr_10x": curve.get(horizons[0]),
        "psnr_50x": curve.get(horizons[1]),
        "layers_trained": trained,
        "layers_run": output.layers.tolist(),
        "status": [s.value for s in output.status],
        "residual": _number(output.residual.mean()),
        "residual_50x": _number(residual.get(horizons[1])),
        "curve": {
            "layers": sorted(curve),
            "psnr": [curve[k] for k in sorted(curve)],
            "residual": [_number(residual.get(k)) for k in sorted(curve)],
        },
    }
    return row, image


def _landmarks(depth: int, longest: int, per_decade: int = 12) -> set[int]:
    """Multiples of `depth`, about evenly spaced on a logarithmic axis."""
    count = max(2, int(per_decade * math.log10(max(longest / depth, 10))))
    steps = {round((longest / depth) ** (i / (count - 1))) for i in range(count)}
    return {depth * s for s in steps}


def _gradient_error(method: Method, trained: FitResult | None) -> float | None:
    if trained is None or method.rule is Unrolled:  # exact, but of the output at depth K, not of the equilibrium
        return None
    last = [s.gradient_error for s in trained.steps[-10:] if math.isfinite(s.gradient_error)]
    return sum(last) / len(last) if last else None


def _certificate(method: Method, net: Restarted, final: Pair) -> dict | None:
    """Of ReTune only; a few iterations, since it is done for every image."""
    if method.key != "retune":
        return None
    _, y, physics = final
    return certify(net, y, physics, iterations=10, starts=2, max_layers=500).to_dict()


def _learned(net: Restarted) -> dict:
    owner = net.map
    assert isinstance(owner, ForwardBackward)
    prior = owner.priors[0]
    assert isinstance(prior, WaveletL12)
    return {
        "reg": owner.reg.value.tolist(),
        "step_size": owner.step_size.value.tolist(),
        "weights": prior.weights.value[:, 0].tolist(),
        "scale_weights": prior.scale_weights.value[0].tolist(),
    }


def _measured(problem: Restoration, x: Tensor, seed: int) -> Pair:
    y, physics = problem.measure(x, seed)
    return x, y, physics


def _visible(pair: Pair) -> Tensor:
    """The measurement as an image: itself where it has the image's shape, else its back-projection."""
    x, y, physics = pair
    return y if isinstance(y, Tensor) and y.shape == x.shape else physics.A_adjoint(y)


def _number(value: float | Tensor | None) -> float | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else None


def _plain(options: dict) -> dict:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def settings_as_data(settings: Settings) -> dict:
    """The settings as they go into ``results.json``."""
    return _plain(asdict(settings))
