"""A denoiser at the equilibrium: Plug-and-Play, plain unrolled, and ReTune, with the same denoiser and the same start.

Colour photographs, deblurring (three 25-tap kernels, reflected, σ = 0.05) or 50 % inpainting (σ = 0.05). All three
iterate ``T(x) = D_σ(x − τ∇f(x))`` with the shipped colour denoiser.

* **PnP**: the denoiser as it is; τ and σ by grid search on validation crops.
* **unrolled**: K layers from the same start, trained end to end: τ, σ and all weights of the denoiser.
* **ReTune**: the same parameters, trained at the equilibrium: R restarts without graph, K layers differentiated.

Both are trained with the same steps, crops, learning rates and seed, starting from the PnP values; no setting was tuned
on the test images. Reported on every n-th image of ``test`` (full size, fixed noise) at K, 10K and 50K layers; an image
that has settled (relative change per K layers below --rtol) is not run further, it would not change.

    python benchmarks/embedded.py deblur --data FOLDER       # FOLDER/train, val, test
    python benchmarks/embedded.py inpaint --data FOLDER --penalty 1e-3
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from deepinv.loss.metric import PSNR
from rich.console import Console
from torch import Tensor

import retune
from memory import StorageMeter
from retune.data import as_images
from retune.priors import Denoiser
from retune.solve import Stop, solve
from retune.training.penalty import JacobianPenalty

CONSOLE = Console()
SIGMA_NOISE = 0.05


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    problem = {
        "deblur": lambda: retune.problems.Deblur(sigma=SIGMA_NOISE),
        "inpaint": lambda: retune.problems.Inpaint(keep=0.5, sigma=SIGMA_NOISE),
    }[options.problem]()
    held_out = torch.stack([x[:, 60:188, 60:188] for x in as_images(options.data / "val")[:: options.val_every]])
    test = as_images(options.data / "test")[:: options.every]
    denoiser = retune.weights.load(options.denoiser)
    result: dict[str, Any] = {"options": {k: str(v) for k, v in vars(options).items()}, "rows": {}}

    best, grid = grid_search(denoiser, problem, held_out, options)
    result |= {"grid": grid, "pnp": best}
    say(f"PnP: step_size {best['step_size']}, sigma {best['sigma']:.4f}: {best['psnr']:.2f} dB on val")
    nets = {"PnP": network(denoiser, best, options.depth, options.restarts, retune.Truncated(), learn=False)}
    images = as_images(options.data / "train")
    for label, rule in (("unrolled", retune.Unrolled()), ("ReTune", retune.Truncated())):
        net = network(copy.deepcopy(denoiser), best, options.depth, options.restarts, rule, learn=True)
        loss = JacobianPenalty(options.penalty) if options.penalty else None
        peak = peak_memory(net, problem, held_out[:, :, : options.crop, : options.crop], options.batch)
        fitted = retune.fit(
            net,
            images,
            problem,
            steps=options.steps,
            batch_size=options.batch,
            crop=options.crop,
            lr=options.lr,
            lr_network=options.lr_network,
            loss=loss,
            validate_every=options.steps,
        )
        nets[label] = net
        last = fitted.steps[-20:]
        result["rows"][label] = {
            "seconds": fitted.seconds,
            "peak_megabytes": peak / 1e6,
            "gradient_error": mean(s.gradient_error for s in last),
            "residual_in_training": mean(s.residual for s in last),
            "learned": learned(net),
        }
        say(f"{label}: {fitted.seconds:.0f} s of training, {learned(net)}")
        options.out.write_text(json.dumps(result, indent=1))
        net.save(options.out.with_name(f"{options.out.stem}-{label}.safetensors"))
    for label, net in nets.items():
        row = result["rows"].setdefault(label, {})
        row |= score(net, problem, test, options)
        options.out.write_text(json.dumps(result, indent=1))
        say(
            f"{options.problem} {label}: "
            f"K {row['psnr_K']:.2f}, 10K {row['psnr_10K']:.2f}, 50K {row['psnr_50K']:.2f} dB, "
            f"residual {row['residual']:.1e}, settled {row['settled']}/{row['images']}, {row['layers']:.0f} layers"
        )


def network(denoiser: Any, at: dict, depth: int, restarts: int, rule: Any, *, learn: bool) -> retune.Restarted:
    prior = Denoiser(denoiser, at["sigma"], learn_denoiser=learn)
    return retune.Restarted(retune.ForwardBackward(prior, step_size=at["step_size"]), depth, restarts, rule)


def grid_search(denoiser: Any, problem: Any, x: Tensor, options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """The pair of best validation PSNR at the equilibrium: a coarse grid, then σ refined around its best point."""
    y, physics = problem.measure(x, 11)
    tried: list[dict] = []

    def attempt(step_size: float, sigma: float) -> None:
        at = {"step_size": step_size, "sigma": sigma}
        net = network(denoiser, at, options.depth, options.restarts, retune.Truncated(), learn=False).eval()
        image = net.solve(y, physics, stop=Stop(options.rtol, 30 * options.depth)).image
        tried.append(at | {"psnr": float(PSNR()(image, x).mean())})
        say(f"  step_size {step_size} sigma {sigma:.4f}: {tried[-1]['psnr']:.2f} dB")

    for step_size in (0.25, 0.5, 0.9):
        for sigma in (0.02, 0.04, 0.08):
            attempt(step_size, sigma)
    top = max(tried, key=lambda t: t["psnr"])
    for factor in (0.7, 0.85, 1.2, 1.4):
        attempt(top["step_size"], top["sigma"] * factor)
    return max(tried, key=lambda t: t["psnr"]), tried


@torch.no_grad()
def score(net: retune.Restarted, problem: Any, test: list[Tensor], options: argparse.Namespace) -> dict:
    """Mean figures over the test images, each run to 50K layers or until it has settled."""
    net.eval()
    depth, rows = net.depth, []
    start = time.perf_counter()
    for i, x in enumerate(test):
        y, physics = problem.measure(x[None], 1000 + i)
        bound = net.map.bind(net.map.problem(y, physics))
        psnr: dict[int, float] = {}

        def see(layers: int, u: Tensor, x: Tensor = x, psnr: dict = psnr, bound: Any = bound) -> None:
            if layers in (depth, 10 * depth):
                psnr[layers] = float(PSNR()(bound.image(u), x[None]))

        stop = Stop(options.rtol, 50 * depth)
        end = solve(bound.layer, bound.init(), solver=net.solver, depth=depth, stop=stop, observe=see)
        final = float(PSNR()(bound.image(end.u), x[None]))
        rows.append(
            {
                "psnr_K": psnr[depth],
                "psnr_10K": psnr.get(10 * depth, final),
                "psnr_50K": final,
                "residual": float(end.residual),
                "layers": int(end.layers),
                "settled": end.status[0] is retune.Status.CONVERGED,
            }
        )
    keys = ("psnr_K", "psnr_10K", "psnr_50K", "residual", "layers")
    return {k: mean(r[k] for r in rows) for k in keys} | {
        "settled": sum(r["settled"] for r in rows),
        "images": len(rows),
        "per_image": rows,
        "seconds_test": time.perf_counter() - start,
    }


def peak_memory(net: retune.Restarted, problem: Any, x: Tensor, batch: int) -> int:
    """Bytes alive at the peak of one training step."""
    x = x[:batch]
    y, physics = problem.measure(x, 0)
    net.train()
    with StorageMeter() as meter:
        (net(y, physics) - x).square().mean().backward()
    net.zero_grad()
    return meter.peak


def learned(net: retune.Restarted) -> dict:
    prior = net.map.priors[0]  # type: ignore[union-attr, index]
    return {"step_size": round(float(net.map.step_size()), 4), "sigma": round(float(prior.sigma()), 4)}  # type: ignore[operator, union-attr]


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def say(text: str) -> None:
    CONSOLE.print(text, highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["deblur", "inpaint"])
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--denoiser", default="denoiser-color")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--lr-network", type=float, default=1e-4)
    parser.add_argument("--penalty", type=float, default=0.0, help="weight of the Jacobian penalty; 0 for none")
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--every", type=int, default=3, help="every n-th test image")
    parser.add_argument("--val-every", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("embedded.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
