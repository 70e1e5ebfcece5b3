"""The loop that the recipes share: Adam, one cosine, a log, and a state from which it continues exactly."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from retune.errors import DivergedError
from retune.records.settings import require_same
from retune.training.resume import load_state, save_state

__all__ = ["Budget", "train"]


@dataclass(frozen=True)
class Budget:
    """The length of a training and its learning rate.

    Attributes:
        steps: training steps.
        lr: learning rate at the start of the cosine, which ends at a hundredth of it.
        warmup: steps over which the learning rate rises from 0.
        clip: largest norm of the gradient.
        betas: decay of the moments of Adam.
        report_every: steps between two lines of the log, each with the validation PSNR.
        save_seconds: seconds between two saved states.
    """

    steps: int
    lr: float
    warmup: int = 100
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    report_every: int = 500
    save_seconds: float = 120.0


def train(
    net: nn.Module,
    loss: Callable[[int], Tensor],
    validate: Callable[[], float],
    budget: Budget,
    work: Path,
    *,
    tables: Callable[[nn.Parameter], float] = lambda _: 1.0,
    settings: dict | None = None,
    memory: dict[str, Tensor] | None = None,
) -> None:
    """Train `net` in place, continuing from ``work/state.safetensors`` if it is there.

    Args:
        net: the network.
        loss: step number → loss; all its randomness must follow from that number.
        validate: PSNR on the validation images.
        budget: how long.
        work: folder of ``state.safetensors`` and ``log.csv``.
        tables: factor on the learning rate of a parameter.
        settings: what must be the same for a saved state to be continued (seed, batch, …), as plain data.
        memory: tensors that the loss changes from step to step; saved with the state, and put back in place.

    Raises:
        CheckpointError: the saved state belongs to a run with other settings.
        DivergedError: the loss or the gradient is no longer finite; the state is that of the last save.
    """
    console = Console()
    work.mkdir(parents=True, exist_ok=True)
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in net.parameters():
        if parameter.requires_grad:
            groups.setdefault(tables(parameter), []).append(parameter)
    optimiser = torch.optim.Adam(
        [{"params": p, "factor": f} for f, p in groups.items()], lr=budget.lr, betas=budget.betas
    )
    state = work / "state.safetensors"
    done, spent = 0, 0.0
    running: list[Tensor] = []
    asked = {"steps": budget.steps, "lr": budget.lr, **(settings or {})}
    if state.is_file():
        saved_memory: dict[str, Tensor] = {}
        facts = load_state(state, net, optimiser, saved_memory)
        require_same(state, facts.get("settings", asked), asked, "another --work to begin anew")
        for key, tensor in (memory or {}).items():
            tensor.copy_(saved_memory[key])
        done, spent = facts["step"], facts["seconds"]
        running = [torch.tensor(x) for x in facts.get("losses", [])]
        _forget_after(work / "log.csv", done)
        console.print(f"continuing after step {done} of {budget.steps}", highlight=False)
    start = saved = time.monotonic()

    def save(step: int) -> None:
        facts = {"step": step, "seconds": spent + time.monotonic() - start, "losses": [float(x) for x in running]}
        save_state(state, net, optimiser, facts | {"settings": asked}, memory)

    for step in range(done + 1, budget.steps + 1):
        net.train()
        for group in optimiser.param_groups:
            group["lr"] = budget.lr * group["factor"] * _schedule(step, budget)
        optimiser.zero_grad()
        value = loss(step)
        value.backward()
        size = nn.utils.clip_grad_norm_(net.parameters(), budget.clip)
        running.append(value.detach().cpu())
        if not bool(torch.isfinite(size) & torch.isfinite(value)):
            raise DivergedError(
                f"step {step}: the loss is {float(value.detach())}, the norm of its gradient {float(size)}"
            )
        optimiser.step()
        if step % budget.report_every == 0 or step == budget.steps:
            net.eval()
            psnr, mean = validate(), float(torch.stack(running).mean())
            running.clear()
            seconds = spent + time.monotonic() - start
            _log(work / "log.csv", step, mean, psnr, seconds)
            console.print(f"step {step:6d}  loss {mean:.3e}  val {psnr:.3f} dB  {seconds:.0f} s", highlight=False)
        if step == budget.steps or time.monotonic() - saved > budget.save_seconds:
            save(step)
            saved = time.monotonic()
    net.eval()


def _schedule(step: int, budget: Budget) -> float:
    rise = min(1.0, step / max(1, budget.warmup))
    return rise * (0.01 + 0.99 * (1 + math.cos(math.pi * (step - 1) / budget.steps)) / 2)


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be run again."""
    if path.is_file():
        with path.open(newline="") as file:
            rows = list(csv.reader(file))
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(r for r in rows if not r[0].isdecimal() or int(r[0]) <= step)


def _log(path: Path, step: int, loss: float, psnr: float, seconds: float) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["step", "loss", "psnr_val", "seconds"])
        writer.writerow([step, f"{loss:.6e}", f"{psnr:.4f}", f"{seconds:.1f}"])
