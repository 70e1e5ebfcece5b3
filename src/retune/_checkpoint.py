"""Reading and writing of checkpoints: safetensors with a readable description; nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from retune._files import write_atomically
from retune._version import __version__
from retune.errors import CheckpointError

#: Raised when a checkpoint of an older kind could no longer be read.
FORMAT = 1


def write(path: str | Path, tensors: dict[str, Tensor], description: dict, notes: dict[str, str]) -> None:
    """Write atomically: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    metadata = {
        "retune_format": str(FORMAT),
        "retune_version": __version__,
        "description": json.dumps(description),
        "notes": json.dumps({k: str(v) for k, v in notes.items()}),
    }
    write_atomically(path, serialise({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata))


def serialise(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file whose bytes follow from its content.

    The library writes the metadata in the order of a hash table, another one at every call; here they are sorted, so
    that equal networks are equal files.
    """
    content = save(tensors, metadata)
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the tensors at 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors, description and notes.

    Raises:
        CheckpointError: not a file, truncated, not written by ReTune, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; retune train and retune tune write one into the folder of their run, "
            "net.save(path) does in Python"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "retune_format" not in metadata:
                raise CheckpointError(
                    f"{path} is a safetensors file, but not a ReTune checkpoint (it has no description); "
                    "expected a file written by net.save(path)"
                )
            if metadata["retune_format"] != str(FORMAT):
                raise CheckpointError(
                    f"{path} has checkpoint format {metadata['retune_format']} (written by ReTune "
                    f"{metadata.get('retune_version', 'unknown')}), this is ReTune {__version__} and reads format "
                    f"{FORMAT}: install the version that wrote it, or train again"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        description, notes = json.loads(metadata["description"]), json.loads(metadata.get("notes", "{}"))
        if not isinstance(description, dict) or not isinstance(notes, dict):
            raise ValueError("its description is none")
        return tensors, description, notes
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({path.stat().st_size} bytes): «{error}». It is truncated or not "
            "a safetensors file; copy it again, or save it again with net.save(path)"
        ) from error
