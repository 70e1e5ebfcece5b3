"""Time of a training step (forward and backward), ReTune against deepinv's exact deep-equilibrium gradient.

4×3×128×128 inpainting, db4, 4 levels, K = 10 layers, R = 10 restarts: 110 layers forward and 10 backward. deepinv's
PGD gets the same 110 iterations forward, and for its adjoint equation first the same 10, then its default of 50.
Run ``python benchmarks/training_step.py``.
"""

from __future__ import annotations

from collections.abc import Callable

import deepinv
import torch
from deepinv.optim import L2, PGD, DEQConfig
from deepinv.optim.prior import WaveletPrior
from torch import nn

import retune
from _timing import Column, arguments, interleave, report

SHAPE = (4, 3, 128, 128)
WAVELET, LEVELS = "db4", 4
STEP, REG = 0.9, 0.05
DEPTH, RESTARTS = 10, 10


def networks(device: torch.device) -> dict[str, nn.Module]:
    def ours(prior: type, **options: object) -> nn.Module:
        forward_backward = retune.ForwardBackward(prior(WAVELET, LEVELS, **options), step_size=STEP, reg=REG)
        return retune.Restarted(forward_backward, depth=DEPTH, restarts=RESTARTS, gradient=retune.Truncated())

    def theirs(backward: int) -> nn.Module:
        return PGD(
            data_fidelity=L2(),
            prior=WaveletPrior(level=LEVELS, wv=WAVELET, device=str(device)),
            stepsize=2 * STEP,  # ‖A‖ = 1
            lambda_reg=REG,
            max_iter=DEPTH * (RESTARTS + 1),
            early_stop=False,
            unfold=True,
            trainable_params=["lambda", "stepsize"],
            DEQ=DEQConfig(jacobian_free=False, max_iter_backward=backward),
        )

    unequal = torch.linspace(0.6, 1.6, 9).reshape(3, 1, 3)  # weights such as are learned
    found = {
        "WaveletL1": ours(retune.priors.WaveletL1),
        "WaveletL12, equal weights": ours(retune.priors.WaveletL12),
        "WaveletL12, learned weights": ours(retune.priors.WaveletL12, channels=3, weights=unequal),
        "deepinv DEQ, 10 backward": theirs(DEPTH),
        "deepinv DEQ, 50 backward": theirs(50),
    }
    return {name: network.to(device).train() for name, network in found.items()}


def main() -> None:
    options = arguments(__doc__)
    device = torch.device(options.device)
    physics = deepinv.physics.Inpainting(SHAPE[1:], mask=0.5, device=device)  # pyright: ignore[reportArgumentType]
    x = torch.rand(SHAPE, device=device)
    y = physics(x)

    def step(network: nn.Module) -> Callable[[], None]:
        def run() -> None:
            network.zero_grad(set_to_none=True)
            (network(y, physics) - x).square().mean().backward()
            assert any(p.grad is not None for p in network.parameters())

        return run

    contenders = {name: step(network) for name, network in networks(device).items()}
    timing = interleave(contenders, 2 if options.quick else 5, device)
    columns = [
        Column("deepinv DEQ, 10 backward", faster=True, bar=5.0, only="Wavelet"),
        Column("deepinv DEQ, 50 backward", faster=True, only="Wavelet"),
    ]
    title = f"Training step, 4×3×128×128, K = {DEPTH}, R = {RESTARTS}, forward + backward"
    report(title, {"inpainting": timing}, columns, options, scale=1.0, unit="s")


if __name__ == "__main__":
    main()
