"""Trains the energies: ``python -m recipes.energy --name energy-gray --data FOLDER``.

One step, ``x − ∇R_σ(x)``, is trained to denoise: σ uniform in [2, 55]/255, squared error over ``σ^1.5``, fresh crops of
64×64 and fresh noise in every step, Adam with one cosine. The convolutions run in bfloat16; the weights and their
updates are in float32. That halves the time on processors with such instructions, and doubles it on others: use
``--float32`` there.
"""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import Tensor

from recipes._data import noisy_crops, split
from recipes._loop import Budget, train
from recipes._options import Batch, Crop, Data, Device, Out, Rate, Seed, Steps, Work, places
from recipes._result import psnr_at_25, write
from retune import weights
from retune._registry.describe import description
from retune.errors import InvalidParameterError, unknown_name
from retune.networks import EnergyNet
from retune.training.checkpoints import fingerprint

NAMES = {"energy-gray": (1, (16, 32, 64)), "energy-color": (3, (16, 32, 64))}


def main(
    name: Annotated[str, typer.Option(help="energy-gray or energy-color.")],
    data: Data,
    out: Out = None,
    work: Work = None,
    steps: Steps = 50_000,
    batch: Batch = 16,
    crop: Crop = 64,
    lr: Rate = 2e-3,
    seed: Seed = 0,
    device: Device = "cpu",
    bfloat16: Annotated[bool, typer.Option("--bfloat16/--float32", help="Precision of the convolutions.")] = True,
    start: Annotated[str | None, typer.Option(help="Weights to begin with: a name, or a file.")] = None,
) -> None:
    """Train, or continue where a run of the same name was interrupted, and write the weights."""
    if name not in NAMES:
        raise unknown_name("recipe", name, NAMES)
    channels, features = NAMES[name]
    torch.manual_seed(seed)
    net = EnergyNet(channels, features).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if start is not None:
        first = weights.load(start)
        if description(first) != description(net):
            raise InvalidParameterError(
                f"--start must be weights of the network of {name}, {description(net)}; {start} has "
                f"{description(first)}"
            )
        net.load_state_dict(first.state_dict())
    images = split(data, "train", channels)
    held_out = torch.stack([x[:, :256, :256] for x in split(data, "val", channels)[::8]])

    def loss(step: int) -> Tensor:
        clean, noisy, sigma = noisy_crops(images, batch, crop, net.sigma_range, seed, step)
        clean, noisy, sigma = clean.to(device), noisy.to(device), sigma.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            restored = net(noisy, sigma)
        # The weight keeps low noise levels from being neglected beside high ones.
        return ((restored.float() - clean).square() / sigma**1.5).mean()

    def validate() -> float:
        return psnr_at_25(net, held_out, seed, device)

    target, folder = places(name, out, work)
    settings = {"name": name, "seed": seed, "batch": batch, "crop": crop, "images": fingerprint(images)}
    settings |= {"bfloat16": bfloat16, "start": start}
    train(net, loss, validate, Budget(steps, lr, betas=(0.9, 0.99)), folder, settings=settings)
    command = (
        f"python -m recipes.energy --name {name} --data FOLDER --steps {steps} "
        f"--batch {batch} --crop {crop} --lr {lr} --seed {seed}"
        f"{'' if bfloat16 else ' --float32'}{f' --start {start}' if start else ''}"
    )
    write(net, target, command)


if __name__ == "__main__":
    typer.run(main)
