"""Trains the denoisers: ``python -m recipes.denoiser --name denoiser-gray --data FOLDER``.

Gaussian denoising with σ uniform in [0, 50/255], mean absolute error, random 64×64 crops, Adam with one cosine. On a
CPU the convolutions run in bfloat16, which halves the time; the weights and their updates are in float32.
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
from retune.errors import unknown_name
from retune.networks import SmallUNet
from retune.training.checkpoints import fingerprint

_SMALL, _LARGE = (32, 64, 112), (48, 96, 160)
NAMES = {
    "denoiser-gray": (1, _SMALL),
    "denoiser-color": (3, _SMALL),
    "denoiser-large-gray": (1, _LARGE),
    "denoiser-large-color": (3, _LARGE),
}


def main(
    name: Annotated[str, typer.Option(help="denoiser-gray, denoiser-large-gray, or the same with -color.")],
    data: Data,
    out: Out = None,
    work: Work = None,
    steps: Steps = 20_000,
    batch: Batch = 16,
    crop: Crop = 64,
    lr: Rate = 1e-3,
    seed: Seed = 0,
    device: Device = "cpu",
) -> None:
    """Train, or continue where a run of the same name was interrupted, and write the weights."""
    if name not in NAMES:
        raise unknown_name("recipe", name, NAMES)
    channels, features = NAMES[name]
    torch.manual_seed(seed)
    net = SmallUNet(channels, features).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = split(data, "train", channels)
    held_out = torch.stack([x[:, :256, :256] for x in split(data, "val", channels)[::4]])

    def loss(step: int) -> Tensor:
        clean, noisy, sigma = noisy_crops(images, batch, crop, net.sigma_range, seed, step)
        clean = clean.to(device, memory_format=torch.channels_last)
        noisy = noisy.to(device, memory_format=torch.channels_last)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            restored = net(noisy, sigma.to(device))
        return (restored.float() - clean).abs().mean()

    def validate() -> float:
        return psnr_at_25(net, held_out, seed, device)

    target, folder = places(name, out, work)
    settings = {"name": name, "seed": seed, "batch": batch, "crop": crop, "images": fingerprint(images)}
    train(net, loss, validate, Budget(steps, lr), folder, settings=settings)
    command = (
        f"python -m recipes.denoiser --name {name} --data FOLDER --steps {steps} "
        f"--batch {batch} --crop {crop} --lr {lr} --seed {seed}"
    )
    write(net, target, command)


if __name__ == "__main__":
    typer.run(main)
