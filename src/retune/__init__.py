"""ReTune: image restoration learned at equilibrium.

A K-layer proximal network is restarted on its own output until it sits at the fixed point of a variational problem;
then K layers are differentiated there. See https://arxiv.org/abs/2506.13239.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from retune._version import __version__

if TYPE_CHECKING:
    from retune import data, errors, networks, priors, problems, solvers, weights
    from retune.certificate import certify
    from retune.diagnosis import doctor
    from retune.equilibrium import Equilibrium, Status
    from retune.gradients import Implicit, Truncated, Unrolled
    from retune.maps import ForwardBackward, GradientStep
    from retune.model import Restarted
    from retune.operators.data_term import DataTerm
    from retune.planning import plan
    from retune.registry import load, register
    from retune.solve import Stop
    from retune.solvers import Anderson, Damped, Inertial, Picard
    from retune.training import WarmStart, fit

# Loaded on first use, so that `retune --help` does not wait for torch.
_WHERE = {
    "Anderson": "retune.solvers",
    "Damped": "retune.solvers",
    "Equilibrium": "retune.equilibrium",
    "ForwardBackward": "retune.maps",
    "GradientStep": "retune.maps",
    "Implicit": "retune.gradients",
    "Inertial": "retune.solvers",
    "Picard": "retune.solvers",
    "DataTerm": "retune.operators.data_term",
    "Restarted": "retune.model",
    "Status": "retune.equilibrium",
    "Stop": "retune.solve",
    "Truncated": "retune.gradients",
    "Unrolled": "retune.gradients",
    "WarmStart": "retune.training",
    "certify": "retune.certificate",
    "doctor": "retune.diagnosis",
    "fit": "retune.training",
    "load": "retune.registry",
    "plan": "retune.planning",
    "register": "retune.registry",
}
_MODULES = ("data", "errors", "networks", "priors", "problems", "solvers", "weights")

__all__ = [
    "Anderson",
    "Damped",
    "Equilibrium",
    "ForwardBackward",
    "GradientStep",
    "Implicit",
    "Inertial",
    "Picard",
    "DataTerm",
    "Restarted",
    "Status",
    "Stop",
    "Truncated",
    "Unrolled",
    "WarmStart",
    "__version__",
    "certify",
    "data",
    "doctor",
    "errors",
    "fit",
    "load",
    "networks",
    "plan",
    "priors",
    "problems",
    "register",
    "solvers",
    "weights",
]


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"retune.{name}")
    raise AttributeError(f"module 'retune' has no attribute {name!r}")


def __dir__():
    return sorted({*__all__, *globals()})
