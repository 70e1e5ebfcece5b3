"""Priors and fidelities as plain data, for checkpoints."""

from __future__ import annotations

from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity
from torch import nn

from retune.errors import InvalidParameterError

__all__ = ["describe_fidelity", "describe_prior"]


def describe_prior(prior: nn.Module) -> dict:
    """What a prior says of itself.

    Raises:
        InvalidParameterError: a prior that is not one of ours.
    """
    describe = getattr(prior, "describe", None)
    if describe is None:
        raise _not_describable("prior", prior)
    return describe()


def describe_fidelity(fidelity: DataFidelity) -> dict:
    """deepinv's L2 as plain data.

    Raises:
        InvalidParameterError: any other fidelity.
    """
    if type(fidelity) is L2:
        return {"type": "L2", "sigma": float(fidelity.norm) ** -0.5}  # pyright: ignore[reportArgumentType]
    raise _not_describable("data fidelity", fidelity)


def _not_describable(kind: str, given: nn.Module) -> InvalidParameterError:
    return InvalidParameterError(
        f"a checkpoint cannot describe the {kind} {type(given).__name__}: only ReTune's own priors and deepinv's L2 "
        "are rebuilt by retune.load. Save net.state_dict() and rebuild the network in Python"
    )
