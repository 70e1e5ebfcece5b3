"""The only registry of names: what ``obj.describe()`` said becomes an object again."""

from __future__ import annotations

from typing import Any

from deepinv.optim import L2

from retune.errors import unknown_name
from retune.gradients import Implicit, Truncated, Unrolled
from retune.maps import ForwardBackward, GradientStep
from retune.model import Restarted
from retune.networks import RidgeDenoiser, SmallUNet
from retune.priors import RED, Denoiser, Ridge, WaveletL1, WaveletL12
from retune.solve import Stop
from retune.solvers import Anderson, Damped, Inertial, Picard

__all__ = ["build"]

_KNOWN: dict[str, Any] = {
    c.__name__: c
    for c in (
        Anderson,
        Damped,
        Denoiser,
        ForwardBackward,
        GradientStep,
        Implicit,
        Inertial,
        L2,
        Picard,
        RED,
        Restarted,
        Ridge,
        RidgeDenoiser,
        SmallUNet,
        Truncated,
        Unrolled,
        WaveletL1,
        WaveletL12,
    )
}


def build(description: dict) -> Any:
    """The object that ``obj.describe()`` described, with freshly initialised weights.

    Raises:
        UnknownNameError: a type that is not registered (yours? then rebuild the network in Python, and load the
            weights with ``load_state_dict``).
    """
    known = {k: build(v) if isinstance(v, dict) and "type" in v else v for k, v in description.items()}
    kind = known.pop("type", None)
    if kind not in _KNOWN:
        raise unknown_name("type", kind, _KNOWN)
    if isinstance(known.get("stop"), dict):
        known["stop"] = Stop(**known["stop"])
    if kind == "Restarted":
        return Restarted.rebuild(known.pop("auto", None), **known)
    return _KNOWN[kind](**known)
