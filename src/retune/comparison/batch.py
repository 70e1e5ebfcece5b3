"""One batch of images: the methods with the same map, start, budget, crops and measurements, in memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from deepinv.loss.metric import PSNR
from torch import Tensor

from retune.comparison.methods import METHODS, Method, network
from retune.comparison.score import (
    Pair,
    certified,
    gradient_error,
    layers_of_training,
    learned,
    score,
    visible,
)
from retune.comparison.search import Search, line_search
from retune.errors import DivergedError, InvalidParameterError
from retune.maps import ForwardBackward
from retune.model import Restarted
from retune.priors import WaveletL12
from retune.problems import Problem
from retune.solve import Stop
from retune.training.fit import FitResult, fit

__all__ = ["Settings", "compare", "settings_as_data", "verdicts"]


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


Note = Callable[[str], None]


def compare(
    problem: Problem,
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
    images = {"truth": test, "measurement": visible(final)}
    note("grid search")
    start = time.perf_counter()
    search = _grid_search(settings, channels, held_out)
    reg = search.best
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
        # Only the network that is to be shown not to move, and the one that does, are run all the way.
        trained_depth = layers_of_training(net)
        shown = settings.far[1] * (trained_depth if method.key in ("retune", "unrolled") else settings.depth)
        row, image = score(net, final, settings.depth, settings.far, max(shown, settings.far[1] * settings.depth))
        rows[method.key] = row | {
            "label": method.label,
            "how": method.how,
            "seconds": seconds,
            "gradient_error": gradient_error(method, trained),
            "failure": failure,
            "learned": learned(net),
            "certificate": certified(net, final) if failure is None and method.key == "retune" else None,
            "training": None if trained is None else {"loss": [s.loss for s in trained.steps]},
        }
        images[method.key] = image
    result = {
        "title": problem.name.capitalize(),
        "problem": _plain(problem.describe()),
        "grid": [{"reg": r, "psnr": p} for r, p in search.tried],
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
    longest = settings.far[1] * settings.depth * (settings.restarts + 1)
    given = ForwardBackward(prior, reg=reg)
    return network(method, given, settings.depth, settings.restarts, rtol=settings.rtol, longest=longest)


def _grid_search(settings: Settings, channels: int, held_out: Pair) -> Search:
    """The single λ of best validation PSNR."""
    x, y, physics = held_out

    def psnr(reg: float) -> float:
        net = _network(settings, METHODS[0], reg, channels).to(x.device).eval()
        image = net.solve(y, physics, stop=Stop(1e-4, 30 * settings.depth)).image
        return float(PSNR()(image, x).mean())

    return line_search(psnr, settings.reg_range, settings.grid)


def _measured(problem: Problem, x: Tensor, seed: int) -> Pair:
    y, physics = problem.measure(x, seed)
    return x, y, physics


def _plain(options: dict) -> dict:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def settings_as_data(settings: Settings) -> dict:
    """The settings as they go into ``results.json``."""
    return _plain(asdict(settings))
