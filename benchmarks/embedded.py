"""A denoiser at the equilibrium: Plug-and-Play, plain unrolled, and ReTune, with the same denoiser and the same start.

Colour photographs, deblurring (three 25-tap kernels, or a Gaussian of 1.6 pixels, reflected) or 50 % inpainting, noise
of σ = 0.05 (--noise). All three iterate ``T(x) = D_σ(x − τ∇f(x))`` with the shipped colour denoiser.

* **PnP**: the denoiser as it is; τ and σ by grid search on validation crops.
* **unrolled**: K layers from the same start, trained end to end: τ, σ and all weights of the denoiser.
* **ReTune**: the same parameters, trained at the equilibrium: R restarts without graph, K layers differentiated.

All start from the same image, the usual start: the back-projection, whose missing pixels are filled in with the
average of those around them. Both are trained with the same steps, crops, learning rates and seed, from the PnP
values; no setting was tuned on the test images. Reported on every n-th image of ``test`` (full size, fixed noise) at
K, K(R + 1), 10K and 50K layers: K is what the unrolled network was trained at, K(R + 1) what ReTune was trained at.
An image that has settled (relative change per K layers below --rtol) is not run further, it would not change. All
methods restore an image before the next is begun, and what is done is kept in --out: an interrupted run, started
again, goes on.

    python benchmarks/embedded.py deblur --data FOLDER       # FOLDER/train, val, test
    python benchmarks/embedded.py gaussian --data FOLDER
    python benchmarks/embedded.py inpaint --data FOLDER
    python benchmarks/embedded.py inpaint --data FOLDER --stabilisers   # what keeps the iteration stable, on val
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from deepinv.loss import SupLoss
from deepinv.loss.metric import PSNR, SNR
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import retune
from memory import StorageMeter
from retune._files import write_atomically
from retune.data import as_images
from retune.priors import Denoiser
from retune.solve import Stop, solve
from retune.solvers import Anderson
from retune.training.penalty import JacobianPenalty

CONSOLE = Console()


def main() -> None:
    options = arguments()
    torch.manual_seed(0)
    problem = {
        "deblur": lambda: retune.problems.Deblur(sigma=options.noise),
        "gaussian": lambda: retune.problems.Deblur("gaussian:1.6", sigma=options.noise),
        "inpaint": lambda: retune.problems.Inpaint(keep=0.5, sigma=options.noise),
    }[options.problem]()
    result = read(options)
    held_out = [x[:, 60:156, 60:156] for x in as_images(options.data / "val")]
    few = torch.stack(held_out[:: options.val_every])
    denoiser = retune.weights.load(options.denoiser)
    if "pnp" not in result:
        result["pnp"], result["grid"] = grid_search(denoiser, problem, few, options)
        write(options, result)
    best = result["pnp"]
    say(f"PnP: step_size {best['step_size']}, sigma {best['sigma']:.4f}: {best['psnr']:.2f} dB on val")
    images = as_images(options.data / "train")
    if options.stabilisers:
        compare_stabilisers(denoiser, best, problem, images, held_out[:: options.val_every], options)
        return
    nets = {"PnP": network(denoiser, best, options, retune.Truncated(), learn=False)}
    for label, rule in (("unrolled", retune.Unrolled()), ("ReTune", retune.Truncated())):
        nets[label] = net = network(copy.deepcopy(denoiser), best, options, rule, learn=True)
        weights = options.out.with_name(f"{options.out.stem}-{label}.safetensors")
        if weights.exists() and label in result["rows"]:
            net.load_state_dict(load_file(weights))
            continue
        folder = options.out.with_name(f"{options.out.stem}-{label}")
        long = {"folder": folder, "resume": folder.exists(), "checkpoint_every": 200}
        usual = net.solver
        if options.anderson and label == "ReTune":
            net.solver = Anderson()
        peak = peak_memory(net, problem, few[:, :, : options.crop, : options.crop], options.batch)
        row = train(net, images, problem, options, **long) | {"peak_megabytes": peak / 1e6}
        net.solver = usual
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, weights)
        result["rows"].setdefault(label, {}).update(row)
        write(options, result)
        say(f"{label}: {row['seconds']:.0f} s of training, peak {peak / 1e6:.0f} MB, {row['learned']}")
    test = as_images(options.data / "test")[:: options.every]
    for i in range(len(test)):
        for label, net in nets.items():
            per_image = result["rows"].setdefault(label, {}).setdefault("per_image", [])
            if len(per_image) <= i:
                per_image.append(score(net, *sample(problem, test, i), options))
                write(options, result)
                say(f"  image {i + 1} of {len(test)}, {label}: {per_image[-1]['psnr_50K']:.2f} dB")
    for label in nets:
        row = summary(result["rows"][label]["per_image"])
        result["rows"][label] |= row
        write(options, result)
        say(
            f"{options.problem} {label}: start {row['psnr_start']:.2f}, "
            f"K {row['psnr_K']:.2f}, K(R+1) {row['psnr_KR']:.2f}, 10K {row['psnr_10K']:.2f}, 50K {row['psnr_50K']:.2f} "
            f"dB, K evaluations with Anderson {row['psnr_K_anderson']:.2f} dB, residual {row['residual']:.1e}, "
            f"settled {row['settled']}/{row['images']}, {row['layers']:.0f} layers, {row['seconds_test']:.0f} s"
        )


def network(
    denoiser: Any, at: dict, options: argparse.Namespace, rule: Any, *, learn: bool, **prior: Any
) -> retune.Restarted:
    plugged = Denoiser(denoiser, at["sigma"], learn_denoiser=learn, bfloat16=options.bfloat16, **prior)
    step = retune.ForwardBackward(plugged, step_size=at["step_size"])
    return retune.Restarted(step, options.depth, options.restarts, rule)


def train(net: retune.Restarted, images: list[Tensor], problem: Any, options: argparse.Namespace, **more: Any) -> dict:
    fitted = retune.fit(
        net,
        images,
        problem,
        steps=options.steps,
        batch_size=options.batch,
        crop=options.crop,
        lr=options.lr,
        lr_network=options.lr_network,
        validate_every=options.steps,
        loss=SupLoss(SNR(train_loss=True)) if options.loss == "snr" else None,
        **more,
    )
    last = fitted.steps[-20:]
    return {
        "seconds": fitted.seconds,
        "gradient_error": mean(s.gradient_error for s in last),
        "residual_in_training": mean(s.residual for s in last),
        "learned": learned(net),
    }


def compare_stabilisers(denoiser: Any, at: dict, problem: Any, images: Any, held_out: Any, options: Any) -> None:
    """The same training with nothing, a Jacobian penalty, averaging, or spectrally normalised convolutions."""
    for label in ("none", "penalty", "averaging", "spectral normalisation"):
        mine = copy.deepcopy(denoiser)
        if label == "spectral normalisation":
            for module in [m for m in mine.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]:
                spectral_norm(module)
        more = {"strength": 0.5} if label == "averaging" else {}
        net = network(mine, at, options, retune.Truncated(), learn=True, **more)
        loss = JacobianPenalty(options.penalty) if label == "penalty" else None
        row = train(net, images, problem, options, loss=loss)
        norm = JacobianPenalty(iterations=20)
        rows, norms = [], []
        for i in range(len(held_out)):
            x, y, physics = sample(problem, held_out, i)
            rows.append(score(net, x, y, physics, options))
            norms.append(float(norm.spectral_norm(net.map.priors[0], x).detach()))  # type: ignore[arg-type, index]
        found = summary(rows)
        say(
            f"{options.problem} {label}: {found['psnr_50K']:.2f} dB at the equilibrium, settled {found['settled']}/"
            f"{found['images']}, residual {found['residual']:.1e}, largest norm of the Jacobian {max(norms):.2f} "
            f"(median {sorted(norms)[len(norms) // 2]:.2f}), {found['layers']:.0f} layers, {row['seconds']:.0f} s of "
            f"training, {row['learned']}"
        )


def sample(problem: Any, images: list[Tensor], i: int) -> tuple[Tensor, Tensor, Any]:
    return images[i][None], *problem.measure(images[i][None], 1000 + i)


def grid_search(denoiser: Any, problem: Any, x: Tensor, options: argparse.Namespace) -> tuple[dict, list[dict]]:
    """The pair of best validation PSNR after K(R + 1) layers: for each τ, σ by factors of 2, then √2, then 2^¼.

    That is what ReTune is trained at. With some σ Plug-and-Play falls off later, so its best there is its best figure.
    """
    y, physics = problem.measure(x, 11)
    tried: list[dict] = []

    def attempt(step_size: float, sigma: float) -> None:
        at = {"step_size": step_size, "sigma": sigma}
        net = network(denoiser, at, options, retune.Truncated(), learn=False).eval()
        image = net.solve(y, physics, stop=Stop(options.rtol, options.depth * (options.restarts + 1))).image
        tried.append(at | {"psnr": float(PSNR()(image, x).mean())})
        say(f"  step_size {step_size} sigma {sigma:.4f}: {tried[-1]['psnr']:.2f} dB")

    for step_size in (0.25, 0.5, 0.75, 0.98):
        here = len(tried)
        for sigma in (0.01, 0.02, 0.04, 0.08, 0.16):
            attempt(step_size, sigma)
        for factor in (2**0.5, 2**0.25):
            middle = max(tried[here:], key=lambda t: t["psnr"])["sigma"]
            attempt(step_size, middle / factor)
            attempt(step_size, min(middle * factor, denoiser.sigma_range[1]))
    return max(tried, key=lambda t: t["psnr"]), tried


@torch.no_grad()
def score(net: retune.Restarted, x: Tensor, y: Tensor, physics: Any, options: argparse.Namespace) -> dict:
    """One test image, run to 50K layers or until it has settled; and K evaluations with Anderson acceleration."""
    net.eval()
    depth, psnr = net.depth, {}
    trained = depth * (net.restarts + 1)
    bound = net.map.bind(net.map.data_term(y, physics))
    first = bound.init()
    start = time.perf_counter()

    def see(layers: int, u: Tensor) -> None:
        if layers in (depth, trained, 10 * depth):
            psnr[layers] = float(PSNR()(bound.image(u), x))

    end = solve(bound.layer, first, solver=net.solver, depth=depth, stop=Stop(options.rtol, 50 * depth), observe=see)
    seconds = time.perf_counter() - start
    quick = solve(bound.layer, first, solver=Anderson(), depth=depth, stop=Stop(0.0, depth), cycle=1)
    final = float(PSNR()(bound.image(end.u), x))
    return {
        "psnr_start": float(PSNR()(bound.image(first), x)),
        "psnr_K": psnr[depth],
        "psnr_KR": psnr.get(trained, final),
        "psnr_10K": psnr.get(10 * depth, final),
        "psnr_50K": final,
        "psnr_K_anderson": float(PSNR()(bound.image(quick.u), x)),
        "residual": float(end.residual),
        "layers": int(end.layers),
        "settled": end.status[0] is retune.Status.CONVERGED,
        "seconds_test": seconds,
    }


def summary(rows: list[dict]) -> dict:
    """Means over the images; how many settled."""
    means = {k: mean(r[k] for r in rows) for k in rows[0] if k != "settled"}
    return means | {"settled": sum(r["settled"] for r in rows), "images": len(rows)}


def peak_memory(net: retune.Restarted, problem: Any, x: Tensor, batch: int) -> int:
    """Bytes alive at the peak of one training step."""
    x = x[:batch]
    y, physics = problem.measure(x, 0)
    net.train()
    with StorageMeter() as meter:
        (net(y, physics) - x).square().mean().backward()
    net.zero_grad()
    return meter.peak


def read(options: argparse.Namespace) -> dict[str, Any]:
    """What an interrupted run with the same options has found."""
    asked = {k: str(v) for k, v in vars(options).items() if k != "stabilisers"}
    if options.out.exists():
        found = json.loads(options.out.read_text())
        if found["options"] == asked:
            return found
        raise SystemExit(f"{options.out} holds a run with other options; remove it, or give another --out")
    return {"options": asked, "rows": {}}


def write(options: argparse.Namespace, result: dict) -> None:
    write_atomically(options.out, json.dumps(result, indent=1).encode())


def learned(net: retune.Restarted) -> dict:
    prior = net.map.priors[0]  # type: ignore[union-attr, index]
    found = {"step_size": net.map.step_size, "sigma": prior.sigma, "strength": prior.strength}  # type: ignore[union-attr]
    return {k: round(v().item(), 4) for k, v in found.items() if v is not None}  # type: ignore[operator]


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def say(text: str) -> None:
    CONSOLE.print(text, highlight=False)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("problem", choices=["deblur", "gaussian", "inpaint"])
    parser.add_argument("--data", type=Path, required=True, help="folder with train, val and test")
    parser.add_argument("--denoiser", default="denoiser-color")
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--lr-network", type=float, default=1e-4)
    parser.add_argument(
        "--loss", choices=["mse", "snr"], default="mse", help="snr: decibels, so all crops weigh the same"
    )
    parser.add_argument("--bfloat16", action="store_true", help="compute the denoiser in bfloat16 while training")
    parser.add_argument("--anderson", action="store_true", help="accelerate the restarts of the training of ReTune")
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation of the noise")
    parser.add_argument("--penalty", type=float, default=1e-3, help="weight of the Jacobian penalty, for --stabilisers")
    parser.add_argument("--stabilisers", action="store_true", help="compare what keeps the iteration stable, on val")
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--every", type=int, default=3, help="every n-th test image")
    parser.add_argument("--val-every", type=int, default=8)
    parser.add_argument("--out", type=Path, help="embedded-PROBLEM.json by default")
    options = parser.parse_args()
    if options.depth < 5:
        parser.error("--depth must be at least 5: shorter blocks are not looked at one by one")
    options.out = options.out or Path(f"embedded-{options.problem}.json")
    return options


if __name__ == "__main__":
    main()
