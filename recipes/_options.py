"""The options that the recipes share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Batch", "Crop", "Data", "Device", "Out", "Rate", "Seed", "Steps", "Work", "places"]

Data = Annotated[Path, typer.Option(help="Folder with the subfolders train and val of images.")]
Out = Annotated[Path | None, typer.Option(help="File to write; NAME.safetensors by default.")]
Work = Annotated[
    Path | None, typer.Option(help="Folder of the resumable state and the log; by default as OUT, with -training.")
]
Steps = Annotated[int, typer.Option(help="Training steps.")]
Batch = Annotated[int, typer.Option(help="Crops per step.")]
Crop = Annotated[int, typer.Option(help="Side of the crops.")]
Rate = Annotated[float, typer.Option(help="Learning rate at the start.")]
Seed = Annotated[int, typer.Option(help="Seed of weights, crops and noise.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, …")]


def places(name: str, out: Path | None, work: Path | None) -> tuple[Path, Path]:
    """The file of the weights, and the folder of the state and the log."""
    target = Path(f"{name}.safetensors") if out is None else out
    return target, Path(f"{target.stem}-training") if work is None else work
