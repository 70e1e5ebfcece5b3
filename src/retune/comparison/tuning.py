"""Choose the strength of a run by grid search: for the untrained methods, and as the start of the trained ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepinv.loss.metric import PSNR

from retune.build import map_of, prior_of, rule_of, solver_of, takes_reg
from retune.comparison.methods import Method, network
from retune.comparison.score import Pair
from retune.comparison.search import line_search
from retune.config import Config
from retune.model import Restarted
from retune.solve import Stop

__all__ = ["Tuned", "grid_search", "method_network"]

#: smallest and largest tried noise level of Plug-and-Play
SIGMA = (0.005, 0.19)
_STEPS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Tuned:
    """A run with the values of the best validation PSNR, and all tried values."""

    run: Config
    tried: list[dict[str, float]]
    seconds: float = 0.0

    @property
    def remark(self) -> str | None:
        """A remark if the best value is at the end of the tried range: a better one may lie beyond it."""
        best = max(self.tried, key=lambda t: t["psnr"])
        name = "sigma" if "sigma" in best else "reg"
        values = [t[name] for t in self.tried]
        if len(values) == 1:  # the map has no strength, so nothing was searched
            return None
        for end, which in ((min(values), "smallest"), (max(values), "largest")):
            if best[name] == end:
                return f"the best {name} of the grid search, {end:.3g}, is the {which} that was tried"
        return None

    @property
    def psnr(self) -> float:
        """The best validation PSNR."""
        return max(t["psnr"] for t in self.tried)


def grid_search(run: Config, held_out: Pair, note: Callable[[str], None] = lambda _: None) -> Tuned:
    """Choose λ, or for Plug-and-Play σ and then the step size, on validation images, with ``compare.grid`` tries."""
    tried: list[dict] = []

    def attempt(candidate: Config, **values: float) -> float:
        x, y, physics = held_out
        net = method_network(_GRID, candidate, x.shape[1]).to(x.device).eval()
        depth = candidate.model.depth
        image = net.solve(y, physics, stop=Stop(max(1e-4, candidate.model.rtol), 30 * depth)).image
        psnr = float(PSNR()(image, x).mean())
        tried.append(values | {"psnr": psnr})
        note(", ".join(f"{k} = {v:.4g}" for k, v in values.items()) + f": {psnr:.2f} dB")
        return psnr

    tries = run.compare.grid
    if not takes_reg(run):
        attempt(run, reg=run.model.reg)
        return Tuned(run, tried)
    if run.prior.type != "denoiser":
        best = line_search(lambda reg: attempt(_at(run, reg=reg), reg=reg), run.compare.reg_range, tries).best
        return Tuned(_at(run, reg=best), tried)
    rest = min(len(_STEPS), tries // 4)
    first = run.model.step_size
    best = line_search(lambda sigma: attempt(_at(run, sigma=sigma), step_size=first, sigma=sigma), SIGMA, tries - rest)
    steps = {first: max(p for _, p in best.tried)}
    for step in _STEPS[len(_STEPS) - rest :]:
        if step not in steps:
            steps[step] = attempt(_at(run, sigma=best.best, step_size=step), step_size=step, sigma=best.best)
    return Tuned(_at(run, sigma=best.best, step_size=max(steps, key=steps.__getitem__)), tried)


def _at(run: Config, *, reg: float | None = None, sigma: float | None = None, step_size: float | None = None) -> Config:
    model = {k: v for k, v in (("reg", reg), ("step_size", step_size)) if v is not None}
    update: dict = {"model": run.model.model_copy(update=model)}
    if sigma is not None:
        update["prior"] = run.prior.model_copy(update={"sigma": sigma})
    return run.model_copy(update=update)


_GRID = Method("grid", "", "", None)


def method_network(method: Method, run: Config, channels: int) -> Restarted:
    """The network of a method for a run, untrained."""
    model = run.model
    total = model.depth * (model.restarts + 1)
    return network(
        method,
        map_of(prior_of(run.prior, channels), run),
        model.depth,
        model.restarts,
        rtol=model.rtol,
        longest=max(run.compare.multiples) * total,
        rule=rule_of(run.gradient),
        solver=solver_of(model),
    )
