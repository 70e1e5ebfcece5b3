"""Trains the ridge regularisers: ``python -m recipes.ridge --name ridge-convex-gray --data FOLDER``.

Gaussian denoising at the equilibrium: the denoising problem is solved without graph, and differentiated there. A pool
of noisy crops remembers its equilibria and adjoints, so that both cost a few layers (see `_pool`). The loss is the
squared error over σ^1.5, about how the error itself grows with σ, so that all noise levels count alike. Protocol after
Goujon et al. (TCI 2023, SIIMS 2024).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.nn.functional import pad

from recipes._data import split
from recipes._loop import Budget, train
from recipes._options import Batch, Crop, Data, Device, Out, Rate, Seed, Steps, Work, places
from recipes._pool import Pool
from recipes._result import psnr_at_25, write
from retune import _checkpoint
from retune.data import centres
from retune.errors import unknown_name
from retune.networks import RidgeDenoiser
from retune.priors.ridge import Ridge
from retune.solve import Stop
from retune.training.checkpoints import fingerprint

#: Channels, convexity, filters that share a potential, and features.
NAMES = {
    "ridge-convex-gray": (1, "convex", 1, (8, 32)),
    "ridge-convex-color": (3, "convex", 1, (12, 48)),
    "ridge-weakly-convex-gray": (1, "weakly convex", 1, (8, 32)),
    "ridge-weakly-convex-color": (3, "weakly convex", 1, (12, 48)),
    "ridge-multivariate-gray": (1, "weakly convex", 4, (8, 60)),
    "ridge-multivariate-color": (3, "weakly convex", 4, (12, 60)),
}
SIZES = (7, 5)
SIGMA = (2 / 255, 55 / 255)


def main(
    name: Annotated[
        str, typer.Option(help="ridge-convex-gray, ridge-weakly-convex-gray, ridge-multivariate-gray, or with -color.")
    ],
    data: Data,
    out: Out = None,
    work: Work = None,
    steps: Steps = 6000,
    batch: Batch = 8,
    crop: Crop = 48,
    pool: Annotated[int, typer.Option(help="Noisy crops that remember their equilibrium.")] = 1024,
    tolerance: Annotated[float, typer.Option(help="Relative change per layer at which a crop is at rest.")] = 5e-4,
    powers: Annotated[int, typer.Option(help="Coefficients of the polynomials in log σ.")] = 3,
    start: Annotated[
        Path | None, typer.Option(help="Weights to begin from, a file of this recipe with at most as many powers.")
    ] = None,
    lr: Rate = 4e-3,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Train, or continue where a run of the same name was interrupted, and write the weights."""
    if name not in NAMES:
        raise unknown_name("recipe", name, NAMES)
    channels, convexity, group, features = NAMES[name]
    torch.manual_seed(seed)
    prior = Ridge(channels, features, SIZES, convexity=convexity, learn_sigma=False, powers=powers, group=group)
    net = RidgeDenoiser(prior, stop=Stop(rtol=1e-4, max_layers=200)).to(device)
    images = split(data, "train", channels)
    # All images are used: on a few of them alone, another σ than the true one looks best.
    held_out = centres(split(data, "val", channels), 96)
    tables = {id(p) for p in prior.profile.parameters()}

    crops = Pool.draw(images, pool, crop, SIGMA, prior.filters.reach, seed)

    def error(restored: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
        return ((restored - clean).square().mean((1, 2, 3)) / sigma.flatten() ** 1.5).mean()

    def loss(step: int) -> Tensor:
        chosen = crops.choose(step, batch, seed)
        return crops.loss(
            prior,
            chosen,
            Stop(rtol=tolerance, max_layers=40 if tolerance < 5e-4 else 20),
            0.1,
            torch.device(device),
            error,
        )

    def validate() -> float:
        return psnr_at_25(net, held_out, seed, device)

    def factor(parameter: nn.Parameter) -> float:
        return 5.0 if id(parameter) in tables else 1.0  # scales and slopes are logarithmic

    target, folder = places(name, out, work)
    budget = Budget(steps, lr, warmup=20, report_every=250)
    before = ""
    if start is not None:
        tensors, _, earlier = _checkpoint.read(start)
        net.load_state_dict({k: _padded(v, net.state_dict()[k].shape) for k, v in tensors.items()})
        before = f"{earlier['recipe']} --out {start.name} && "
    settings = {"name": name, "seed": seed, "batch": batch, "crop": crop, "pool": pool}
    settings |= {"tolerance": tolerance, "powers": powers, "images": fingerprint(images)}
    settings |= {"start": None if start is None else hashlib.sha256(start.read_bytes()).hexdigest()}
    train(net, loss, validate, budget, folder, tables=factor, settings=settings, memory=crops.state)
    command = (
        f"{before}python -m recipes.ridge --name {name} --data FOLDER --steps {steps} "
        f"--batch {batch} --crop {crop} --pool {pool} --tolerance {tolerance:g} --powers {powers} --lr {lr:g} "
        f"--seed {seed}" + (f" --start {start.name}" if start is not None else "")
    )
    write(net, target, command)


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Coefficients of fewer powers of log σ, continued by 0. Loading refuses any other difference of shape."""
    missing = shape[-1] - tensor.shape[-1] if tensor.ndim and tensor.ndim == len(shape) else 0
    return pad(tensor, (0, missing)) if missing > 0 else tensor


if __name__ == "__main__":
    typer.run(main)
