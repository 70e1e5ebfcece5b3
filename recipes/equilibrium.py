"""Trains an energy where it is used, at its equilibrium: ``python -m recipes.equilibrium --name energy-gray --data …``.

It begins with weights for one step, ``x − ∇R_σ(x)``, from ``recipes.energy``. Each step of training restores a batch of
measurements to rest, ``x = argmin ½‖Ax − y‖² + λR_σ(x)``, by a descent without graph. There the loss is differentiated
implicitly: ``(AᵀA + λ∇²R) w = ∂L/∂x`` by conjugate gradients, then ``dL/dθ = −λ wᵀ ∂_θ∇R(x)``.

A share of the measurements has noise alone, with ``σ = σ_n`` and ``λ = 1``. For the others, blurs and missing pixels,
``σ = e^a σ_n^b`` and ``λ = e^c σ_n^d`` with four learned numbers for each kind. Each batch is visited
a few times before it is drawn anew, and the descent continues from its last equilibrium. The first descent begins with
one step of the weights that were given. The weights that are written are a running mean over the last steps: the
gradient of a few crops is noisy, and the mean is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from deepinv.loss.metric import PSNR
from torch import Tensor, nn

from recipes._data import split
from recipes._loop import Budget, train
from recipes._options import Batch, Crop, Data, Device, Out, Rate, Seed, Steps, Work, places
from recipes._pool import conjugate_gradients
from recipes._result import write
from recipes._tasks import KINDS, Measured, draw
from retune import weights
from retune._torch.batch import per_image_norm
from retune.networks import EnergyNet
from retune.solvers import Descent
from retune.solvers.base import Objective
from retune.training.checkpoints import fingerprint

#: Number of batches that are kept at a time, and of visits to each before it is drawn anew.
_SLOTS, _VISITS = 4, 4
#: Maximum number of steps of the descent, and the relative change at which it ends.
_MOST, _RTOL = 40, 1e-3
#: Maximum number of products with the Hessian, and the relative residual at which they end.
_PRODUCTS, _ADJOINT = 15, 0.05
#: A one-step energy has its best equilibria at a smaller noise level, ``σ/0.35``, and with half its strength.
_NARROWER, _WEAKER = 0.35, 0.5
#: Decay of the running mean of the weights, after a start in which it is shorter.
_DECAY = 0.998


class Trained(nn.Module):
    """An energy and, for each kind of measurement, ``log σ = a + b log σ_n`` and ``log λ = c + d log σ_n``."""

    def __init__(self, energy: EnergyNet):
        super().__init__()
        self.energy = energy
        # About σ_n = 0.03, so that slope and height are learned independently.
        self.table = nn.Parameter(torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.4, 1.0, -0.8, 0.0], [0.4, 1.0, -0.8, 0.0]]))

    def strengths(self, m: Measured) -> tuple[Tensor, Tensor]:
        """σ and λ of each crop, (B, 1, 1, 1)."""
        a, b, c, d = (t.reshape(-1, 1, 1, 1) for t in self.table[m.kind].unbind(1))
        t = (m.noise / 0.03).log()
        free = (m.kind > 0).reshape(-1, 1, 1, 1)
        sigma = torch.where(free, (a + b * t).exp() * 0.03, m.noise)
        return sigma, torch.where(free, (c + d * t).exp(), 1.0)


def rest(net: Trained, m: Measured, x: Tensor, most: int = _MOST, rtol: float = _RTOL) -> Tensor:
    """The equilibria of the measurements, by a descent from x."""
    with torch.no_grad():
        sigma, reg = net.strengths(m)
        bound, target = net.energy.at(sigma, x), m.adjoint()

        def smooth(u: Tensor) -> tuple[Tensor, Tensor]:
            value, gradient = bound.fn_and_grad(u)
            return reg.flatten().double() * value.double(), reg * gradient

        objective = Objective(
            lambda u: m.normal(u) - target,
            smooth,
            lambda u: reg.flatten().double() * bound.fn(u).double(),
            torch.full((1,), 100.0, device=x.device),
            lambda v, _: v,
        )
        solver = Descent().bind(lambda: objective)
        state = solver.init(x)
        for _ in range(most):
            state = solver.step(lambda u: u, state)
            if bool((per_image_norm(state.change) < rtol * per_image_norm(state.u)).all()):
                break
        return state.u


def implicit_loss(
    net: Trained, m: Measured, x: Tensor, adjoint: Tensor, rtol: float = _ADJOINT, products: int = _PRODUCTS
) -> tuple[Tensor, Tensor]:
    """The loss at the equilibria x, with its implicit gradient, and the adjoint w, found from `adjoint`."""
    weight = m.weight()
    error = (x - m.clean).square() * weight
    value = error.mean()
    wanted = 2 * weight * (x - m.clean) / error.numel()
    sigma, reg = net.strengths(m)
    bound = net.energy.at(sigma, x)
    hessian, plain = bound.hessian(x), reg.detach()
    w = conjugate_gradients(lambda p: m.normal(p) + plain * hessian(p), wanted, adjoint, rtol, products)
    implicit = -(w * reg * bound.grad(x)).sum()
    return value + implicit - implicit.detach(), w


@torch.no_grad()
def validate(net: Trained, crops: Tensor, seed: int, device: str, line: list[str]) -> float:
    """Mean PSNR of noise alone at σ = 25/255, at rest. `line` gets that of every kind."""
    m = draw([*crops], len(crops) * 3, crops.shape[-1], seed, 1).to(device)
    psnr = PSNR()(rest(net, m, m.start, 100), m.clean)
    line[:] = [f"{name} {float(psnr[m.kind == i].mean()):.2f}" for i, name in enumerate(KINDS)]
    noise = torch.randn(crops.shape, generator=torch.Generator().manual_seed(seed))
    y = crops + 25 / 255 * noise
    ones = torch.ones(len(crops), 1, *crops.shape[-2:])
    level = torch.full((len(crops), 1, 1, 1), 25 / 255)
    none = torch.zeros(len(crops), dtype=torch.long)
    alone = Measured(crops, y, y, torch.fft.rfft2(_dirac(ones)), ones, level, none).to(device)
    return float(PSNR()(rest(net, alone, alone.y, 100), alone.clean).mean())


def _flat(net: nn.Module) -> Tensor:
    """All weights in one vector, a copy."""
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@torch.no_grad()
def _fill(net: nn.Module, values: Tensor) -> None:
    """Put the weights back."""
    parameters = list(net.parameters())
    for p, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        p.copy_(part.view(p.shape))


def _dirac(ones: Tensor) -> Tensor:
    kernel = torch.zeros_like(ones)
    kernel[..., 0, 0] = 1
    return kernel


def main(
    name: Annotated[str, typer.Option(help="Weights to begin with: energy-gray, energy-color, or a file.")],
    data: Data,
    out: Out = None,
    work: Work = None,
    steps: Steps = 5_000,
    batch: Batch = 8,
    crop: Crop = 72,
    lr: Rate = 5e-4,
    seed: Seed = 0,
    device: Device = "cpu",
    noise_alone: Annotated[float, typer.Option(min=0, max=1, help="Share of the crops that have noise alone.")] = 0.5,
    at_rest: Annotated[bool, typer.Option(help="The weights were trained at an equilibrium before.")] = False,
) -> None:
    """Train, or continue where a run of the same name was interrupted, and write the weights."""
    energy = weights.load(name)
    assert isinstance(energy, EnergyNet)
    first = weights.load(name).requires_grad_(False).to(device)
    if not at_rest:
        with torch.no_grad():
            energy.head.weight /= _NARROWER
            for p in energy.tail.parameters():
                p *= _WEAKER**0.5
    net = Trained(energy.requires_grad_(True)).to(device)
    images = split(data, "train", energy.channels)
    held_out = torch.stack([x[:, 64:160, 64:160] for x in split(data, "val", energy.channels)[::6]])
    shape = (_SLOTS, batch, energy.channels, crop, crop)
    mean = _flat(net)
    memory = {"image": torch.zeros(shape), "adjoint": torch.zeros(shape), "mean": mean}
    line: list[str] = []

    def loss(step: int) -> Tensor:
        turn, slot = divmod(step - 1, _SLOTS)
        generation, visit = divmod(turn, _VISITS)
        m = draw(images, batch, crop, seed, generation * _SLOTS + slot, noise_alone).to(device)
        known = visit > 0
        # A clone, because a descent without any step returns its start, which is overwritten below.
        x = rest(net, m, memory["image"][slot].clone().to(device) if known else first(m.start, m.noise))
        adjoint = memory["adjoint"][slot].clone().to(device) if known else torch.zeros_like(x)
        value, w = implicit_loss(net, m, x, adjoint)
        memory["image"][slot], memory["adjoint"][slot] = x.cpu(), w.cpu()
        mean.lerp_(_flat(net), 1 - min(_DECAY, step / (step + 10)))
        return value

    def measured() -> float:
        now = _flat(net)
        _fill(net, mean)
        found = validate(net, held_out, seed, device, line)
        table = [[round(v, 3) for v in row] for row in net.table.tolist()]
        _fill(net, now)
        typer.echo(f"{', '.join(line)}; strengths {table[1:]}")
        return found

    target, folder = places(Path(name).stem, out, work)
    settings = {"name": name, "seed": seed, "batch": batch, "crop": crop, "images": fingerprint(images)}
    settings["noise_alone"] = noise_alone
    budget = Budget(steps, lr, report_every=500)
    faster = {id(net.table): 20.0}  # these numbers are about 1 and have a long way to go
    train(
        net, loss, measured, budget, folder, settings=settings, memory=memory, tables=lambda p: faster.get(id(p), 1.0)
    )
    command = (
        f"python -m recipes.equilibrium --name {name} --data FOLDER --steps {steps} "
        f"--batch {batch} --crop {crop} --lr {lr} --seed {seed} --noise-alone {noise_alone}"
    )
    _fill(net, mean)
    typer.echo(f"a, b, c, d (about σ_n = 0.03) of {', '.join(KINDS)}: {net.table.tolist()}")
    write(net.energy, target, command)


if __name__ == "__main__":
    typer.run(main)
