"""Validate the network of a recipe, and write its weights."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from deepinv.loss.metric import PSNR
from torch import Tensor, nn

from retune import _checkpoint
from retune._registry.describe import description

__all__ = ["psnr_at_25", "write"]


@torch.no_grad()
def psnr_at_25(net: nn.Module, images: Tensor, seed: int, device: str) -> float:
    """Mean PSNR in dB on images (B, C, H, W) with noise of level 25/255, the same noise for every call."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    restored = net((images + 25 / 255 * noise).to(device), 25 / 255).cpu()
    return float(PSNR()(restored, images).mean())


def write(net: nn.Module, target: Path, command: str) -> None:
    """Write the weights, the description, and the command that repeats the training."""
    _checkpoint.write(target, net.state_dict(), description(net), {"recipe": command})
    typer.echo(f"{target}: {sum(p.numel() for p in net.parameters())} parameters")
