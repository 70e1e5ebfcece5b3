"""The settings that decide the course of a training. A continued run must have the same settings."""

from __future__ import annotations

import json
from typing import Any

from deepinv.loss import Loss
from torch import nn

from retune.errors import InvalidParameterError
from retune.model import Restarted
from retune.training.data import TrainingData
from retune.training.options import FitOptions
from retune.training.warm import WarmStart

__all__ = ["called", "decisive"]


def decisive(
    net: Restarted, data: TrainingData, options: FitOptions, criterion: Loss, warm: WarmStart | None, processes: int
) -> dict[str, Any]:
    """The settings by name, as plain data."""
    found = {
        "steps": options.steps,
        "batch_size": options.batch_size,
        "crop": options.crop,
        "lr": options.lr,
        "lr_network": options.lr_network,
        "loss": called(criterion),
        "seed": options.seed,
        "validate_every": options.validation_interval,
        "processes": processes,
        "problem": data.problem.identity(),
        "network": _described(net),
        "images": data.fingerprint,
        "validation": data.validation_fingerprint,
    }
    unusual = (("flips", options.flips), ("stop", repr(options.stop)))
    found |= {k: v for k, v in unusual if v not in (True, "None")}
    return found | ({} if warm is None else {"warm_start": f"rtol={warm.rtol:g}, adjoint={warm.adjoint}"})


def _described(net: Restarted) -> str:
    """The settings of the iterations, apart from the weights. A map that cannot be saved counts by its class only.

    Values that a training changes are left out, so that the network of an interrupted training still has them.
    """
    fixed = {"gradient": net.gradient.describe(), "solver": net.training_solver.describe(), "stop": repr(net.stop)}
    fixed |= {"depth": net.depth, "restarts": net.restarts} if net.auto is None else {}
    if net.auto is not None:
        del fixed["gradient"]  # its blocks are chosen, too
    try:
        fixed["map"] = _without_values(net.map.describe())
    except InvalidParameterError:
        fixed["map"] = type(net.map).__name__
    return json.dumps(fixed, sort_keys=True)


def _without_values(description: Any) -> Any:
    """The description of a map without noise levels and strengths, which training may have changed."""
    if not isinstance(description, dict):
        return description
    return {k: _without_values(v) for k, v in description.items() if k not in ("sigma", "strength")}


def called(criterion: nn.Module) -> str:
    """The name of a loss with its settings, and with the name of its metric or inner loss."""
    inner = next(
        (m for m in (getattr(criterion, k, None) for k in ("metric", "loss")) if isinstance(m, nn.Module)), None
    )
    settings = getattr(criterion, "settings", "")
    told = " ".join(s for s in (settings, "" if inner is None else called(inner)) if s)
    return type(criterion).__name__ + (f"({told})" if told else "")
