"""The weights in the package: denoisers, energies and ridge regularisers, trained for ReTune.

``names()`` lists them. ``load(name)`` returns a denoiser for calls ``net(y, sigma)``. ``manifest()`` tells how and on
which data each was trained, and its quality. The training scripts are in ``recipes``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from deepinv.models import Denoiser

from retune import _checkpoint
from retune.errors import CheckpointError, unknown_name, wrong_type
from retune.registry import build

__all__ = ["load", "manifest", "names"]

_FOLDER = Path(__file__).parent


def manifest() -> dict[str, dict[str, Any]]:
    """For each name: recipe, data, sha256, number of parameters, PSNR by noise level, licence.

    Raises:
        CheckpointError: the manifest is missing or unreadable.
    """
    path = _FOLDER / "manifest.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the manifest of the weights cannot be read ({path}: {error}): install retune-imaging again"
        ) from error


def names() -> list[str]:
    """The names of the available weights."""
    return sorted(manifest())


def load(name: str | Path) -> Denoiser:
    """A trained denoiser, in eval mode, on the CPU, in float32.

    To use a U-Net as a prior, call ``retune.priors.Denoiser(net, sigma)`` or ``RED``. A ridge denoiser solves its
    denoising problem to a tolerance; its prior is ``net.prior`` (for [`GradientStep`][retune.GradientStep]).

    Args:
        name: one of [`names`][retune.weights.names], or a file from a script in ``recipes``.

    Raises:
        UnknownNameError: unknown name; the message gives similar names.
        CheckpointError: the file is missing, does not contain a denoiser, or differs from the manifest (by its hash).
    """
    if not isinstance(name, str | Path):
        raise wrong_type("name", name, "a name or a file", f"the names are {', '.join(names())}")
    if isinstance(name, Path):
        return _read(name)
    known = manifest()
    if name not in known and (Path(name).suffix or Path(name).is_file()):
        return _read(Path(name))
    if name not in known:
        raise unknown_name("weights", name, known)
    path = _FOLDER / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"the weights {name!r} are missing ({path}): install retune-imaging again")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != known[name]["sha256"]:
        raise CheckpointError(
            f"the weights {name!r} are corrupted: {path} has sha256 {digest[:12]}…, the manifest says "
            f"{known[name]['sha256'][:12]}…. Install retune-imaging again"
        )
    return _read(path)


def _read(path: Path) -> Denoiser:
    tensors, description, _ = _checkpoint.read(path)
    try:
        with _checkpoint.made_for(tensors):
            net = build(description)
        if not isinstance(net, Denoiser):
            raise CheckpointError(
                f"it contains a {type(net).__name__}, but a denoiser is needed, such as python -m recipes.denoiser "
                "writes"
            )
        _checkpoint.require_fit(net.state_dict(), tensors)
        net.load_state_dict(tensors)
    except Exception as error:  # a constructor with arguments from a foreign file may raise anything
        raise CheckpointError(f"{path} does not fit this version of ReTune: {error}") from error
    return net.eval().requires_grad_(False)
