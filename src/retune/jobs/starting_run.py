"""The run that is tuned if nobody gives one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retune.config import Config, from_dict, load, shipped
from retune.config.read import overridden
from retune.jobs.inputs import require_kernel

__all__ = ["starting_run"]

#: Default settings of a tuning: a minute or two for an image of 512×512 on a CPU.
_QUICK = {
    "model": {"solver": "inertial", "restarts": 12},
    "data": {"crop": 128, "batch_size": 1},
    "optimiser": {"steps": 40, "lr": 0.1},
}
#: The same for the learned energy. Only its strength is tuned; its other weights were trained on photographs.
_ENERGY = {
    "prior": {"type": "energy"},
    "model": {"restarts": 12},
    # An energy has slow modes: minimal residuals need fewer products with Jᵀ than the series.
    "gradient": {"rtol": 0.05, "options": {"max_blocks": 6, "memory": 3}},
    "data": {"crop": 96, "batch_size": 1},
    "optimiser": {"steps": 8, "lr": 0.25},
}
#: Fields of a shipped run that are not assumed for the measurements of a user.
_PRESUMED = ("sigma", "keep", "kernel")


def starting_run(problem: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The run that is tuned by default: the learned energy. For noise alone, or with fields of [prior], a wavelet norm.

    Raises:
        ConfigError: a value that is not allowed.
    """
    known = shipped().get(str(problem.get("name")))
    values = {} if known is None else load(known).model_dump(exclude_unset=True)
    said = overridden(overrides).get("prior", {})
    # A user who sets another field of the prior means the wavelet norm of the shipped runs. The energy was trained for
    # one step, so its minimum leaves too much of the noise where there is nothing but noise.
    if said in ({}, {"type": "energy"}) and (said or problem.get("name") != "denoise"):
        quick = _ENERGY
        values = {"problem": values.get("problem", {})}
    else:
        quick = _QUICK
    for section, fields in quick.items():
        values[section] = {**values.get(section, {}), **fields}
    told = {k: v for k, v in values.get("problem", {}).items() if k not in _PRESUMED}
    values["problem"] = {**told, **problem}
    if problem.get("name") == "superres":  # crops are cut from the measurement, and the restored crop is larger
        values["data"]["crop"] //= from_dict(values, overrides, "the problem").problem.factor or 1
    config = from_dict(values, overrides, "the problem")
    require_kernel(config.problem)
    return config
