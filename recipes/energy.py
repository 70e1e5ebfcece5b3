"""Trains the energies: ``python -m recipes.energy --name energy-gray --data FOLDER``.

One step, ``x − ∇R_σ(x)``, is trained to denoise: σ uniform in [2, 55]/255, squared error over ``σ^1.5``, fresh crops of
64×64 and fresh noise in every step, Adam with one cosine. On a CPU the convolutions run in bfloat16, which halves the
time; the weights and their updates are in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from deepinv.loss.metric import PSNR
from torch import Tensor

from recipes._data import noisy_crops, split
from recipes._loop import Budget, train
from retune import _checkpoint
from retune.errors import unknown_name
from retune.networks import EnergyNet
from retune.training.checkpoints import fingerprint

NAMES = {"energy-gray": (1, (16, 32, 64)), "energy-color": (3, (24, 48, 96))}


def main(
    name: Annotated[str, typer.Option(help="energy-gray or energy-color.")],
    data: Annotated[Path, typer.Option(help="Folder with the subfolders train and val of images.")],
    out: Annotated[Path | None, typer.Option(help="File to write; NAME.safetensors by default.")] = None,
    work: Annotated[
        Path | None, typer.Option(help="Folder of the resumable state and the log; by default as OUT, with -training.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 50_000,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = 16,
    crop: Annotated[int, typer.Option(help="Side of the crops.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate at the start.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
) -> None:
    """Train, or continue where a run of the same name was interrupted, and write the weights."""
    if name not in NAMES:
        raise unknown_name("recipe", name, NAMES)
    channels, features = NAMES[name]
    torch.manual_seed(seed)
    net = EnergyNet(channels, features).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    images = split(data, "train", channels)
    held_out = [x[:, :256, :256] for x in split(data, "val", channels)[::8]]

    def loss(step: int) -> Tensor:
        clean, noisy, sigma = noisy_crops(images, batch, crop, net.sigma_range, seed, step)
        clean, noisy, sigma = clean.to(device), noisy.to(device), sigma.to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            restored = net(noisy, sigma)
        # The weight keeps low noise levels from being forgotten beside high ones.
        return ((restored.float() - clean).square() / sigma**1.5).mean()

    @torch.no_grad()
    def validate() -> float:
        x = torch.stack(held_out)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        restored = net((x + 25 / 255 * noise).to(device), 25 / 255).cpu()
        return float(PSNR()(restored, x).mean())

    target = Path(f"{name}.safetensors") if out is None else out
    folder = Path(f"{target.stem}-training") if work is None else work
    settings = {"name": name, "seed": seed, "batch": batch, "crop": crop, "images": fingerprint(images)}
    train(net, loss, validate, Budget(steps, lr, betas=(0.9, 0.99)), folder, settings=settings)
    notes = {
        "recipe": f"python -m recipes.energy --name {name} --data FOLDER --steps {steps} "
        f"--batch {batch} --crop {crop} --lr {lr} --seed {seed}"
    }
    _checkpoint.write(target, net.state_dict(), net.describe(), notes)
    typer.echo(f"{target}: {sum(p.numel() for p in net.parameters())} parameters")


if __name__ == "__main__":
    typer.run(main)
