"""Warm starts: every training image remembers its equilibrium, and its adjoint, from step to step."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retune.data import Crop
from retune.equilibrium import Equilibrium
from retune.errors import InvalidParameterError, require, require_real, require_whole, wrong_type
from retune.gradients.base import AdjointMemory
from retune.model import Restarted
from retune.solve import Stop

__all__ = ["WarmStart"]

#: An adjoint counts as a useful start if it leaves at most this share of the residual.
USEFUL = 0.5
#: Maximum number of steps until a useless start is tried again.
LONGEST = 64


class WarmStart:
    """Warm starts: a canvas for each training image stores the last equilibrium at every pixel, in image space.

    A crop starts from its part of the canvas, with the same flips, and writes its own equilibrium back after the step.
    Unvisited pixels start as usual. The canvas is only a start: operator, noise and weights have changed since then,
    and near the edges of a crop the operator had a different boundary. So the restarts continue until the relative
    change per K layers is below `rtol`; the network's ``restarts`` is then their maximum number. The random crops and
    noise of a seed do not change. Pixels that a prior restores beyond the image (its margin) are not stored.

    A second canvas stores the adjoint ``w = (I − Jᵀ)⁻¹ v`` in the same way. It is the first direction, at any scale, of
    the next solve for the same pixels. This solve also continues to the tolerance of the gradient rule, so the gradient
    is as accurate as without it. The saving is large if measurements return almost unchanged. Fresh noise changes the
    gradient of the loss, and so the adjoint. If a start leaves more than half of the residual, it is not tried again
    for one step, then two, four, … up to 64. For coefficients in a tight frame D the canvas stores the image ``D w``,
    and the direction is ``Dᵀ D w``. Only rules that solve to a tolerance accept any start:
    [`Implicit`][retune.Implicit], and [`Truncated`][retune.Truncated] with `rtol`.

    Canvases need the memory of the training images plus one byte per pixel; adjoints need the same again. Beyond
    `limit` bytes they are memory-mapped files. Without `folder` these are removed with the object.

    Args:
        rtol: relative change per block of K layers at which the restarts of a training step stop, in (0, 1).
        limit: bytes of canvases kept in memory.
        folder: folder for the memory-mapped files; default: a temporary folder.
        adjoint: whether adjoints are stored; default: if the gradient rule solves for them to a tolerance.

    Raises:
        InvalidParameterError: an option is out of range; the network has no restarts; the gradient rule does not solve
            for adjoints; or the training images have changed.
    """

    def __init__(
        self,
        rtol: float = 1e-3,
        limit: int = 2**30,
        folder: str | Path | None = None,
        adjoint: bool | None = None,
    ):
        rtol, limit = require_real("rtol", rtol), require_whole("limit", limit)
        if not 0 < rtol < 1 or limit < 0:
            raise InvalidParameterError(f"WarmStart needs 0 < rtol < 1 and limit ≥ 0, got rtol={rtol}, limit={limit}")
        if folder is not None:
            require("folder", folder, (str, Path), "a folder")
        self.rtol, self.limit = rtol, limit
        if adjoint not in (True, False, None):
            raise wrong_type("adjoint", adjoint, "True, False or None", "None stores adjoints if possible")
        self.adjoint = adjoint
        self.folder = None if folder is None else Path(folder)
        self._place: Path | None = None  # folder of the files
        self._canvases: list[Tensor] = []
        self._visited: list[Tensor] = []
        self._adjoints: list[Tensor] = []  # zero at unvisited pixels
        self._gains: dict[int, float] = {}
        self._wait, self._pause = 0, 1  # remaining steps without a start, and their number after the next failure
        self._crops: Sequence[Crop] = ()
        self._known: list[tuple] = []

    @property
    def on_disk(self) -> bool:
        """Whether the canvases are in files."""
        return self._place is not None

    def prepare(self, net: Restarted, images: Sequence[Tensor]) -> None:
        """Make the canvases of these images, or continue with existing ones."""
        if not net.gradient.restarts:
            raise InvalidParameterError(
                f"{net.gradient!r} has no restarts, so a warm start would change its output and save nothing. Leave "
                "warm_start out, or train with retune.Truncated()"
            )
        remember = net.gradient.solves_adjoint if self.adjoint is None else self.adjoint
        if remember and not net.gradient.solves_adjoint:
            raise InvalidParameterError(
                f"adjoint=True, but {net.gradient!r} sums a fixed number of terms, starting with the gradient of the "
                "loss: a different start would change the gradient. Leave adjoint out, or train with "
                "retune.Truncated(rtol=...) or retune.Implicit()"
            )
        known = [(tuple(i.shape), i.dtype, float(i.sum(dtype=torch.float64))) for i in images]
        if self._known and known != self._known:
            raise InvalidParameterError(
                "this WarmStart stores the equilibria of other training images; make a new WarmStart for these images"
            )
        pixels = sum(i.numel() * i.element_size() for i in images)
        size = sum(i[0].numel() for i in images) + (2 if remember else 1) * pixels
        if not self._known:
            self._known = known
            self._canvases = [self._empty(i.shape, i.dtype, size, f"canvas-{k}") for k, i in enumerate(images)]
            self._visited = [self._empty(i.shape[1:], torch.bool, size, f"visited-{k}") for k, i in enumerate(images)]
        if remember and not self._adjoints:
            self._adjoints = [self._empty(i.shape, i.dtype, size, f"adjoint-{k}") for k, i in enumerate(images)]

    def _empty(self, shape: torch.Size, dtype: torch.dtype, size: int, name: str) -> Tensor:
        if size <= self.limit:
            return torch.zeros(shape, dtype=dtype)
        if self._place is None:
            if self.folder is None:
                self._place = Path(tempfile.mkdtemp(prefix="retune-warm-start-"))
                weakref.finalize(self, shutil.rmtree, self._place, ignore_errors=True)
            else:
                # Each of several processes has its own crops, and so its own canvases.
                rank = os.environ.get("RANK")
                self._place = self.folder if rank is None else self.folder / f"process-{rank}"
                self._place.mkdir(parents=True, exist_ok=True)
        kind = torch.zeros((), dtype=dtype).numpy().dtype
        return torch.from_numpy(np.memmap(self._place / f"{name}.bin", dtype=kind, mode="w+", shape=tuple(shape)))

    def at(self, crops: Sequence[Crop]) -> None:
        """Set the crops of the next step."""
        self._crops = crops

    def stop(self, net: Restarted) -> Stop:
        """The stopping rule for the restarts of a training step."""
        return Stop(self.rtol, net.depth * net.restarts)

    def init(self, usual: Tensor) -> Tensor:
        """The start of the step's crops (B, C, H, W), given the usual one."""
        if usual.shape[0] != len(self._crops):
            raise InvalidParameterError(
                f"a warm start for {len(self._crops)} crops was asked for {usual.shape[0]} images: the loss changes "
                "the batch; train without warm_start"
            )
        rows = []
        for crop, start in zip(self._crops, usual, strict=True):
            known = crop.read(self._visited[crop.image][None]).to(start.device)
            found = crop.read(self._canvases[crop.image])
            if found.shape != start.shape:
                raise InvalidParameterError(
                    f"the network restores images {tuple(start.shape)} from crops {tuple(found.shape)}: the loss or "
                    "the physics changes their shape; train without warm_start"
                )
            rows.append(torch.where(known, found.to(start), start))
        return torch.stack(rows)

    def keep(self, equilibrium: Equilibrium) -> None:
        """Store the equilibria of the step's crops, except for failed images."""
        images = equilibrium.image.detach().cpu()
        for crop, image, status in zip(self._crops, images, equilibrium.status, strict=True):
            if not status.failed:
                crop.write(self._canvases[crop.image], image)
                crop.write(self._visited[crop.image][None], torch.ones(1, *image.shape[1:], dtype=torch.bool))

    def adjoints(self) -> AdjointMemory:
        """The adjoints of the step's crops, in image space."""
        crops, tried = self._crops, []

        def recall(v: Tensor) -> tuple[Tensor, Tensor]:
            found = torch.stack([c.read(self._adjoints[c.image]) for c in crops])
            gain = torch.tensor([self._gains.get(c.image, 1.0) for c in crops])
            if self._wait:
                self._wait -= 1
                return torch.zeros_like(found), torch.ones_like(gain)
            tried[:] = found.flatten(1).any(1).tolist()
            return found, torch.where(torch.tensor(tried), gain, 1.0)

        def keep(w: Tensor, gain: Tensor, left: Tensor) -> None:
            shares = [share for share, known in zip(left.tolist(), tried, strict=True) if known] if tried else []
            if shares and sum(shares) <= USEFUL * len(shares):
                self._pause = 1
            elif shares:
                self._wait, self._pause = self._pause, min(2 * self._pause, LONGEST)
            for crop, image, met in zip(crops, w.detach().cpu(), gain.tolist(), strict=True):
                if bool(torch.isfinite(image).all()) and math.isfinite(met):
                    crop.write(self._adjoints[crop.image], image)
                    self._gains[crop.image] = met if not tried else max(met, self._gains.get(crop.image, 1.0))

        return AdjointMemory(recall, keep)

    def state(self) -> dict[str, Tensor]:
        """The canvases of visited images and of their adjoints, for a checkpoint (only those in memory)."""
        kept = {"pace": torch.tensor([self._wait, self._pause])}
        for k, seen in enumerate(self._visited):
            if bool(seen.any()):
                kept |= {f"visited-{k}": seen, f"canvas-{k}": self._canvases[k]}
            if self._adjoints and bool(self._adjoints[k].any()):
                kept[f"adjoint-{k}"] = self._adjoints[k]
            if k in self._gains:
                kept[f"gain-{k}"] = torch.tensor(self._gains[k], dtype=torch.float64)
        return kept

    def take(self, state: dict[str, Tensor]) -> None:
        """Restore the result of [`state`][retune.WarmStart.state], and clear everything else."""
        self._wait, self._pause = state["pace"].tolist()
        self._gains = {k: float(state[f"gain-{k}"]) for k in range(len(self._visited)) if f"gain-{k}" in state}
        for name, memory in (("visited", self._visited), ("canvas", self._canvases), ("adjoint", self._adjoints)):
            for k, held in enumerate(memory):
                known = state.get(f"{name}-{k}")
                held.zero_() if known is None else held.copy_(known)

    def options(self, net: Restarted) -> dict[str, Any]:
        """The keyword arguments of the network for the step: `init`, `stop`, and `adjoint` if those are remembered."""
        known = {"adjoint": self.adjoints()} if self._adjoints and net.gradient.solves_adjoint else {}
        return {"init": self.init, "stop": self.stop(net)} | known
