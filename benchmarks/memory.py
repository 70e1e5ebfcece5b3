"""Memory of a training step: the same for any number of restarts, and little more than the tape of K layers.

4×3×128×128 inpainting, db4, 4 levels. Three quantities, all in bytes of tensor storage:

* **tape**: what autograd saves for K layers of the network, recorded on their own (``bound.block(u, K)`` with u
  requiring a gradient): the distinct storages that ``torch.autograd.graph.saved_tensors_hooks`` sees. Constants that
  existed before the block (step sizes, thresholds, the operator's mask) are not counted; they don't grow with K.
* **peak**: the most that is alive at once during ``net(y, physics)`` and ``backward()``, above what was alive before
  (weights, measurement, operator). On a CPU every storage that an operation returns is followed until it is freed; on
  CUDA it is ``torch.cuda.max_memory_allocated``.
* **constants**: the part of the peak that is there before the first layer: ``Aᵀy``, its coefficients, the
  thresholds, the first state.

The rest of the peak is what one layer needs while it is computed or pulled back (the image, its normal operator's
result, the padded windows of the transform, one gradient of each) and the accumulated gradients of the constants.
Run ``python benchmarks/memory.py``.
"""

from __future__ import annotations

from typing import Any

import deepinv
import torch
from rich.table import Table
from torch import Tensor

import retune
from _timing import CONSOLE, arguments, verdict, where, write
from retune._torch.memory import StorageMeter, peak_of

SHAPE = (4, 3, 128, 128)
WAVELET, LEVELS = "db4", 4
SAME, OVERHEAD = 1.03, 1.3  # the bars


def tape_of(forward_backward: retune.ForwardBackward, depth: int, y: Tensor, physics: Any) -> tuple[int, int]:
    """Bytes that autograd saves for `depth` layers, and bytes of what is computed once before them."""
    device = y.device
    held: list[Any] = []

    def bind() -> None:
        bound = forward_backward.bind(retune.DataTerm(y, physics))
        held.extend((bound, bound.init().detach().requires_grad_()))

    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        bind()
        constants = torch.cuda.memory_allocated() - before
    else:
        with StorageMeter() as meter:
            bind()
            constants = meter.alive
    bound, u = held
    saved: dict[int, int] = {}
    old = {_key(t) for t in _tensors_within(bound)}

    def pack(t: Tensor) -> Tensor:
        if _key(t) not in old:
            saved[_key(t)] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = bound.block(u, depth)
    del out
    return sum(saved.values()), constants


def _key(t: Tensor) -> int:
    return t.untyped_storage()._cdata


def _tensors_within(root: object) -> list[Tensor]:
    """Every tensor that an object holds, in its attributes, closures and containers."""
    found, seen, todo = [], set(), [root]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type | str | int | float):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            todo.extend(item.values())
        elif isinstance(item, list | tuple):
            todo.extend(item)
        else:
            todo.extend(getattr(item, "__dict__", {}).values())
            todo.extend(c.cell_contents for c in getattr(item, "__closure__", None) or ())
            todo.extend(filter(None, [getattr(item, "__self__", None)]))
    return found


def main() -> None:
    options = arguments(__doc__)
    device = torch.device(options.device)
    physics = deepinv.physics.Inpainting(SHAPE[1:], mask=0.5, device=device)  # pyright: ignore[reportArgumentType]
    x = torch.rand(SHAPE, device=device)
    y = physics(x)
    unequal = torch.linspace(0.6, 1.6, 9).reshape(3, 1, 3)
    priors = {
        "WaveletL1": retune.priors.WaveletL1(WAVELET, LEVELS),
        "WaveletL12": retune.priors.WaveletL12(WAVELET, LEVELS, channels=3, weights=unequal),
    }
    # The meter makes every operation slower, so the deeper network gets fewer restarts.
    cases = ((10, 20), (30, 5)) if options.quick else ((10, 200), (30, 20))
    table = Table(title=f"Peak memory of a training step, 4×3×128×128 (MiB)\n{where(options)}")
    headings = (
        "K",
        "tape",
        "constants",
        "peak, R = 1",
        "R",
        "peak",
        f"÷ R = 1\n(≤ {SAME:g})",
        f"÷ tape\n(≤ {OVERHEAD:g})",
    )
    for heading in ("", *headings):
        table.add_column(heading, justify="right" if heading else "left")
    records = []
    for name, prior in priors.items():
        forward_backward = retune.ForwardBackward(prior, step_size=0.9, reg=0.05).to(device)
        for depth, many in cases:

            def step(restarts: int, fb: retune.ForwardBackward = forward_backward, depth: int = depth) -> None:
                net = retune.Restarted(fb, depth=depth, restarts=restarts, gradient=retune.Truncated()).train()
                net.zero_grad(set_to_none=True)
                (net(y, physics) - x).square().mean().backward()

            step(1)  # whatever is cached for good
            few_peak, many_peak = (peak_of(lambda r=r: step(r), device) for r in (1, many))
            tape, constants = tape_of(forward_backward, depth, y, physics)
            growth, overhead = many_peak / few_peak, many_peak / tape
            table.add_row(
                name,
                str(depth),
                *(f"{b / 2**20:.1f}" for b in (tape, constants, few_peak)),
                str(many),
                f"{many_peak / 2**20:.1f}",
                f"{growth:.3f}{verdict(growth <= SAME)}",
                f"{overhead:.2f}{verdict(overhead <= OVERHEAD)}",
            )
            records.append(
                {"prior": name, "depth": depth, "tape": tape, "constants": constants}
                | {"peak R=1": few_peak, f"peak R={many}": many_peak, "growth": growth, "peak / tape": overhead}
            )
    CONSOLE.print(table)
    state = x.numel() * x.element_size()
    CONSOLE.print(f"one state: {state / 2**20:.2f} MiB")
    write(options, "memory of a training step", records)


if __name__ == "__main__":
    main()
