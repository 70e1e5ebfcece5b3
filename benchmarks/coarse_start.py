"""A solve whose denoiser computes in bfloat16 until the change is 4e-3, against one in float32.

Plug-and-Play with the colour denoiser that ships, two photographs, half of the pixels and two blurs. Both solves run in
turn. A third one takes the same two parts, both in float32: it shows what the precision gains, and what the new start
of the solver at a change of 4e-3. Needs a processor with instructions for bfloat16 (others are several times slower).
Run ``python benchmarks/coarse_start.py`` (about 2 min).
"""

from __future__ import annotations

from contextlib import nullcontext
from unittest.mock import patch

import torch
from deepinv.loss.metric import PSNR
from rich.table import Table

import retune
from _timing import CONSOLE, arguments, interleave, where, write
from acceleration import photographs
from retune._torch.precision import coarse_networks, fast_bfloat16

SIGMA = 0.05
STARTS = {"float32": nullcontext, "float32, two parts": nullcontext, "bfloat16": coarse_networks}
PROBLEMS = {
    "half of the pixels, σ 0.05": lambda: retune.problems.inpaint(0.5, sigma=0.05),
    "Gaussian blur 1.0, σ 0.05": lambda: retune.problems.deblur("gaussian:1.0", sigma=0.05),
    "Gaussian blur 1.6, σ 0.02": lambda: retune.problems.deblur("gaussian:1.6", sigma=0.02),
}


def main() -> None:
    options = arguments(__doc__)
    x, _ = photographs(64 if options.quick else 128, options)
    table = Table(title=f"Plug-and-Play to 1e-4, {tuple(x.shape)}\n{where(options)}")
    for heading in ("problem", "start", "layers", "settled", "PSNR", "s", "faster"):
        table.add_column(heading, justify="left" if heading in ("problem", "start") else "right")
    records = []
    for name, make in PROBLEMS.items():
        y, physics = make().measure(x, 22)
        nets = {label: network(label != "float32").to(options.device) for label in STARTS}
        found = {}

        def solve(label, nets=nets, found=found, y=y, physics=physics):
            with patch("retune._iteration.coarse_networks", STARTS[label]):
                found[label] = nets[label].solve(y, physics)

        timing = interleave(
            {label: lambda label=label: solve(label) for label in nets}, 1 if options.quick else 3, x.device
        )
        for label, result in found.items():
            psnr = float(PSNR()(result.image, x).mean())
            faster = timing.ratio("float32", label)
            layers, settled = result.layers.tolist(), int(result.converged.sum())
            cells = (" / ".join(map(str, layers)), f"{settled} of {len(x)}", f"{psnr:.2f}")
            table.add_row(name, label, *cells, f"{timing.median(label):.2f}", f"{faster:.2f}")
            records.append({"problem": name, "start": label, "layers": layers, "settled": settled, "psnr": psnr}
                           | {"seconds": timing.median(label), "faster": faster})  # fmt: skip
        table.add_section()
    CONSOLE.print(table)
    CONSOLE.print(f"instructions for bfloat16: {'yes' if fast_bfloat16(x.device) else 'no'}")
    write(options, "a coarse start", records)


def network(coarse: bool) -> retune.Restarted:
    """Plug-and-Play with the denoiser that ships, averaged so that it settles."""
    prior = retune.priors.Denoiser(retune.weights.load("denoiser-color"), SIGMA, strength=0.5)
    return retune.Restarted(retune.ForwardBackward(prior), 10, coarse_start=coarse).eval()


if __name__ == "__main__":
    with torch.no_grad():
        main()
