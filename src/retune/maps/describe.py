"""Data fidelities in the register: deepinv's own, which cannot describe themselves."""

from __future__ import annotations

from deepinv.optim import L2
from deepinv.optim.data_fidelity import DataFidelity

from retune._registry.entries import kind_base, register

__all__: list[str] = []

kind_base("fidelity")(DataFidelity)


def _of_l2(fidelity: L2) -> dict:
    return {"sigma": float(fidelity.norm) ** -0.5}  # pyright: ignore[reportArgumentType]


register(L2, describe=_of_l2)
