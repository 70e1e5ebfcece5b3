"""A layer of wavelets (ℓ1,2 norm of db4, inpainting) with the levels of small images as one matrix product, and apart.

Calls of torch (views included) and milliseconds of a layer, interleaved in one process. "Apart" is what a layer does
with images that have no small levels. Run ``OMP_NUM_THREADS=1 python benchmarks/small_levels.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from deepinv.physics import Inpainting
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

import retune
from _timing import CONSOLE, arguments, interleave, where, write
from retune.priors import wavelet_basis

ONE_PRODUCT = wavelet_basis._SMALL


class Calls(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def layer(shape: tuple[int, int, int, int], levels: int, small: int, device: torch.device) -> Callable[[], object]:
    """One layer at its start."""
    wavelet_basis._SMALL = small
    mask = (torch.rand(1, *shape[1:]) > 0.3).float().to(device)
    physics = Inpainting(tuple(shape[1:]), mask=mask, device=device)  # type: ignore[arg-type]
    prior = retune.priors.WaveletL12("db4", levels)
    net = retune.Restarted(retune.ForwardBackward(prior, reg=0.05)).to(device)
    bound = net.bind(physics(torch.rand(shape, device=device)), physics).map
    u = bound.init()
    return lambda: bound.layer(u)


def main() -> None:
    """Run it."""
    options = arguments(__doc__)
    device = torch.device(options.device)
    table = Table(title=f"Levels of small images as one product, and apart\n{where(options)}")
    for heading in ("image", "levels", "calls: one product", "apart", "ms: one product", "apart", "ratio"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    records = []
    for shape in ((1, 1, 32, 32), (1, 3, 32, 32), (1, 1, 64, 64), (1, 3, 64, 64), (4, 3, 64, 64), (1, 3, 128, 128),
                  (1, 1, 256, 256), (1, 3, 256, 256)):  # fmt: skip
        for levels in (3, 4, 5):
            with torch.no_grad():
                ways = {k: layer(shape, levels, v, device) for k, v in (("one", ONE_PRODUCT), ("apart", 0))}
                calls = {}
                for name, run in ways.items():
                    with Calls() as counted:
                        run()
                    calls[name] = counted.count
                many = 40 if options.quick else 400 if shape[-1] <= 64 else 100
                timing = interleave(ways, many, device)
            one, apart = (1e3 * timing.median(name) for name in ("one", "apart"))
            ratio = timing.ratio("one", "apart")
            cells = f"{calls['one']}", f"{calls['apart']}", f"{one:.3f}", f"{apart:.3f}", f"{ratio:.2f}"
            table.add_row("×".join(map(str, shape)), str(levels), *cells)
            records.append({"image": shape, "levels": levels, "calls": calls, "ms": [one, apart], "ratio": ratio})
    CONSOLE.print(table)
    write(options, "levels of small images", records)


if __name__ == "__main__":
    main()
