"""ReTune: image restoration learned at equilibrium.

A network of K proximal layers is restarted on its own output until it reaches the fixed point of a variational
problem. The K layers are then differentiated there. See https://arxiv.org/abs/2506.13239.

The public names are listed in `__init__.pyi`. Each is loaded on first use, so `import retune` does not load torch.
"""

from __future__ import annotations

import lazy_loader

from retune._version import __version__ as __version__

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str):
    if name == "Problem":
        return _renamed_problem()
    try:
        return _load(name)
    except AttributeError:
        if name in __all__:
            raise  # the fault lies inside the module that has the name
        raise AttributeError(f"module 'retune' has no attribute {name!r}") from None


def _renamed_problem():
    """`retune.Problem` of 0.1.0: the class is called `DataTerm` now."""
    import warnings

    warnings.warn(
        "retune.Problem is now called retune.DataTerm: use it (retune.problems.Problem is a kind of measurement)",
        DeprecationWarning,
        stacklevel=3,
    )
    return _load("DataTerm")
