"""The state of a training run in one safetensors file. It is written atomically and read without unpickling."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from retune._files import require_file, write_atomically
from retune._plain import RECORDS, parse_json
from retune.errors import CheckpointError, InvalidParameterError

__all__ = ["load_state", "save_state"]

_KIND = "retune training state 1"


def save_state(
    path: str | Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    facts: dict,
    extra: dict[str, Tensor] | None = None,
) -> None:
    """Write weights, optimiser, `facts` (plain data: the step, the seed, the best so far, …) and further tensors."""
    tensors: dict[str, Tensor] = {f"model/{k}": v for k, v in model.state_dict().items()}
    plain: dict[str, dict] = {}
    state = optimiser.state_dict()
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser/{index}/{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    tensors |= {f"extra/{k}": v for k, v in (extra or {}).items()}
    metadata = {"kind": _KIND, "facts": json.dumps(facts), "plain": json.dumps(plain)}
    content = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata)
    write_atomically(path, content)


def load_state(
    path: str | Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    extra: dict[str, Tensor] | None = None,
) -> dict:
    """Restore the state. Returns the facts, and stores further tensors in `extra`.

    Learning rates and other settings of the optimiser stay unchanged: they follow from the step.

    Raises:
        CheckpointError: the file is of another kind, truncated, or belongs to another network.
    """
    try:
        require_file(Path(path), "a checkpoint")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != _KIND:
                raise CheckpointError(f"{path} is not the state of a training run of this version of ReTune")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model/")})
        state: dict[int, dict] = {int(i): dict(e) for i, e in parse_json(metadata["plain"], RECORDS).items()}
        for name, value in tensors.items():
            if name.startswith("optimiser/"):
                _, index, key = name.split("/", 2)
                state.setdefault(int(index), {})[key] = value
        if extra is not None:
            extra.update({k[6:]: v for k, v in tensors.items() if k.startswith("extra/")})
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        return parse_json(metadata["facts"], RECORDS)
    except InvalidParameterError as error:
        raise CheckpointError(f"the run cannot continue: {error}; remove it to start again") from error
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"the run cannot continue from {path}: «{error}». The file is truncated, or belongs to another network; "
            "delete it to start again"
        ) from error
