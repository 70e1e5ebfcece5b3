"""Reading and writing of checkpoints: safetensors with a readable description; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from retune._files import write_atomically
from retune._plain import parse_json
from retune._registry.describe import rebuild
from retune._version import __version__
from retune.errors import CheckpointError, InvalidParameterError

#: Format number; it increases when older checkpoints can no longer be read.
FORMAT = 1
#: Upper limits of numbers in a description, by name: with more layers or levels, loading would take hours.
_LARGEST = {
    "depth": 10_000,
    "layers": 1000,
    "restarts": 100_000,
    "levels": 32,
    "margin": 1000,
    "memory": 2**50,  # of "auto", in bytes
    "max_blocks": 100_000,
    "max_layers": 100_000,
}
_LARGEST_OF_ALL = 1_000_000
_LONGEST = 10_000
#: Allowed memory while a network is made: its weights, also temporary ones, and small tables.
_TIMES, _BESIDE = 8, 64 * 2**20


def write(path: str | Path, tensors: dict[str, Tensor], description: dict, notes: dict[str, str]) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it.

    Raises: InvalidParameterError: the description is one that no reader accepts.
    """
    path = Path(path)
    try:
        _require_sane(description)
    except ValueError as error:
        raise InvalidParameterError(f"{path} was not written, because it could not be read again: {error}") from error
    metadata = {
        "retune_format": str(FORMAT),
        "retune_version": __version__,
        "description": json.dumps(description),
        "notes": json.dumps({k: str(v) for k, v in notes.items()}),
    }
    write_atomically(path, serialise({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes depend only on its content.

    The library writes the metadata in the varying order of a hash table. Here they are sorted, so that equal networks
    give equal files.
    """
    content = save(tensors, metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors at 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file, from a single read.

    Attributes:
        path: the file.
        tensors: weights by name.
        description: the description from which the network is rebuilt.
        notes: short texts saved with it.
        digest: SHA-256 of the file.
    """

    path: Path
    tensors: dict[str, Tensor]
    description: dict[str, Any]
    notes: dict[str, str]
    digest: str


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors, description and notes.

    Raises:
        CheckpointError: see ``opened``.
    """
    found = opened(path)
    return found.tensors, found.description, found.notes


def opened(path: str | Path) -> Checkpoint:
    """The content of a checkpoint, from a single read of the file.

    Raises:
        CheckpointError: the file is missing, truncated, not written by ReTune, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; retune train and retune tune write one into their run folder; in Python, "
            "net.save(path) writes one"
        )
    try:
        with safe_open(path, framework="pt"):
            pass  # this refuses a file of another length than its header states, before it is in memory
        content = path.read_bytes()
        tensors = load(content)
        metadata = _metadata(content)
        if "retune_format" not in metadata:
            raise CheckpointError(
                f"{path} is a safetensors file, but not a ReTune checkpoint (it has no description); "
                "expected a file written by net.save(path)"
            )
        if metadata["retune_format"] != str(FORMAT):
            raise CheckpointError(
                f"{path} has checkpoint format {metadata['retune_format']} (written by ReTune "
                f"{metadata.get('retune_version', 'unknown')}), but this is ReTune {__version__}, which reads "
                f"format {FORMAT}: install the version that wrote it, or train again"
            )
        description, notes = parse_json(metadata["description"]), parse_json(metadata.get("notes", "{}"))
        if not isinstance(description, dict) or not isinstance(notes, dict):
            raise ValueError("its description is not a JSON object")
        _require_sane(description)
        told = {str(k): str(v) for k, v in notes.items()}
        return Checkpoint(path, tensors, description, told, hashlib.sha256(content).hexdigest())
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({path.stat().st_size} bytes): «{error}». The file is truncated, "
            "damaged or not a safetensors file of ReTune; copy it again, or save it again with net.save(path)"
        ) from error


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in the header of a safetensors file that the library has accepted."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


@contextmanager
def made_for(tensors: dict[str, Tensor]) -> Iterator[None]:
    """Inside this block, a network made from a description may not need much more memory than its file contains.

    Raises: CheckpointError: the description requires a larger network.
    """
    held = sum(t.numel() * t.element_size() for t in tensors.values())
    with _Budget(_TIMES * held + _BESIDE):
        yield


class _Budget(TorchDispatchMode):
    """Refuse a tensor larger than a number of bytes before it is made."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if any(p.name == "size" for p in func._schema.arguments):
            names = [p.name for p in func._schema.arguments]
            size = kwargs.get("size", args[names.index("size")] if len(args) > names.index("size") else ())
            count = 1
            for side in size if isinstance(size, list | tuple) else ():
                count *= max(int(side), 1)
            if 4 * count > self.most and not func.is_view:
                raise CheckpointError(
                    f"its description needs a tensor of shape {tuple(size)}, far larger than the content of the file: "
                    "the description was changed after it was saved"
                )
        return func(*args, **kwargs)


def require_loadable(told: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Rebuild the network from its description, and compare the shapes of the weights."""
    with torch.random.fork_rng(devices=[]):
        try:
            again = rebuild(told).state_dict()
        except Exception as error:  # foreign constructors may raise any error
            raise InvalidParameterError(
                f"the network cannot be saved, because it cannot be rebuilt from its description {told}: "
                f"{type(error).__name__}: {error}. Check describe(), or save net.state_dict() and rebuild it in Python"
            ) from error
    shapes = [{k: tuple(v.shape) for k, v in w.items()} for w in (weights, again)]
    differ = sorted(k for k in shapes[0].keys() | shapes[1].keys() if shapes[0].get(k) != shapes[1].get(k))
    if differ:
        raise InvalidParameterError(
            "the network cannot be saved: rebuilt from its description, it has different weights "
            f"({', '.join(differ)}). Check that describe() includes every argument of the constructors, or save "
            "net.state_dict() and rebuild it in Python"
        )


def require_fit(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Check that tensors from a file are the weights of a network.

    Args:
        own: the state of the network, with its names, shapes and dtypes.
        tensors: the tensors of the file. They may have another precision, but all the same.

    Raises:
        CheckpointError: names each tensor that is missing, unknown, or of wrong shape or dtype, with the expected
            value.
    """
    faults = [f"{name} is missing" for name in own if name not in tensors]
    faults += [f"{name} is unknown to the network" for name in tensors if name not in own]
    common = [n for n in own if n in tensors]
    floats = [tensors[n].dtype for n in common if own[n].dtype == torch.get_default_dtype()]
    usual = max(set(floats), key=floats.count) if floats else torch.get_default_dtype()
    usual = usual if usual.is_floating_point else torch.get_default_dtype()
    for name in common:
        given, expected = tensors[name], own[name].dtype
        expected = usual if expected == torch.get_default_dtype() else expected
        if given.shape != own[name].shape:
            faults.append(f"{name} has shape {tuple(given.shape)}, expected {tuple(own[name].shape)}")
        if given.dtype != expected:
            faults.append(f"{name} has dtype {_short(given.dtype)}, expected {_short(expected)}")
    if faults:
        more = f"; and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise CheckpointError(f"its tensors do not fit the description: {'; '.join(faults[:10])}{more}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _require_sane(description: dict[str, Any]) -> None:
    """Refuse numbers, texts and lists larger than in any real network, before they are used."""
    waiting: list[tuple[str, Any]] = [("description", description)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting.extend((str(k), v) for k, v in value.items())
        elif isinstance(value, list):
            waiting.extend((name, v) for v in value)
        if isinstance(value, dict | list | str) and len(value) > _LONGEST:
            raise ValueError(f"{name[:80]} in its description has {len(value)} entries, expected at most {_LONGEST}")
        most = _LARGEST.get(name, _LARGEST_OF_ALL)
        if isinstance(value, int | float) and not abs(value) <= most:
            raise ValueError(f"{name[:80]} = {str(value)[:40]} in its description, expected at most {most}")
