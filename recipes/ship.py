"""Measures trained weights and puts them into the package: ``python -m recipes.ship FILE --data …``.

PSNR at σ = 5, 15, 25 and 50 (of 255) on all images of ``test``, full size, one seed of noise per image, averaged over
the images; the result is not clipped before it is compared. With ``--half`` the weights are stored with 16 bits, and
measured as they are stored.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from deepinv.loss.metric import PSNR
from rich.progress import track
from torch import Tensor, nn

from recipes._data import split
from retune._checkpoint import read, write
from retune._files import write_atomically
from retune.registry import build

LEVELS = (5, 15, 25, 50)


@torch.no_grad()
def measure(net: nn.Module, images: list[Tensor], level: int, device: str) -> list[float]:
    """PSNR in dB of every image, denoised at σ = level/255."""
    psnr = []
    for i, x in enumerate(track(images, f"σ = {level}", transient=True)):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1000 * level + i))
        noisy = (x + level / 255 * noise)[None].to(device)
        psnr.append(float(PSNR()(net(noisy, level / 255).cpu(), x[None])))
    return psnr


def main(
    file: Annotated[Path, typer.Argument(help="NAME.safetensors, as a recipe wrote it.")],
    data: Annotated[Path, typer.Option(help="Folder with the subfolder test of images.")],
    folder: Annotated[Path, typer.Option(help="Where to put the weights and manifest.json.")] = Path(
        "src/retune/weights"
    ),
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    every: Annotated[int, typer.Option(help="Measure on every n-th image only, without shipping.")] = 1,
    half: Annotated[bool, typer.Option("--half", help="Store the weights with 16 bits.")] = False,
) -> None:
    """Measure, copy, and enter into the manifest."""
    tensors, description, notes = read(file)
    if half:
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    net = build(description)
    net.load_state_dict(tensors)
    net = net.eval().requires_grad_(False).to(device)
    images = split(data, "test", net.channels)[::every]
    figures = {}
    for level in LEVELS:
        start = time.perf_counter()
        psnr = measure(net, images, level, device)
        figures[str(level)] = round(sum(psnr) / len(psnr), 3)
        seconds = time.perf_counter() - start
        typer.echo(f"{file.stem}  σ = {level}: {figures[str(level)]:.3f} dB on {len(psnr)} images, {seconds:.0f} s")
    if every > 1:
        return
    target = folder / file.name
    write(target, tensors, description, notes)
    entry = {
        "recipe": notes["recipe"],
        "data": "BSDS500, the 400 images of its train and test parts; figures on the 68 of (C)BSD68, full size",
        "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "psnr": figures,
        "licence": "MIT",
    }
    path = folder / "manifest.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[file.stem] = entry
    write_atomically(path, (json.dumps(dict(sorted(known.items())), indent=2) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
