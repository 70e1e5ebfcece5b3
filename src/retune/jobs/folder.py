"""The folder of a run: what it holds, and that a run is continued only as it was begun.

A run's kernel and mask are copied into its folder, and named there relative to it: the folder can be moved, and the
files that it was made from can go.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import deepinv
import torch

from retune._files import write_atomically
from retune._version import __version__
from retune.config import Config, ProblemConfig, load, to_toml
from retune.errors import CheckpointError, InvalidParameterError
from retune.io import SUFFIXES
from retune.model import Restarted
from retune.records import RunFacts
from retune.records.settings import changes

__all__ = ["CERTIFICATE", "FACTS", "MODEL", "RUN", "TUNED", "facts_of", "prepare", "problem_files", "save_model"]

MODEL, RUN, FACTS = "model.safetensors", "config.toml", "run.json"
CERTIFICATE, TUNED = "certificate.json", "tune.json"
#: what a run writes, beside its checkpoints
_WRITTEN = (RUN, MODEL, CERTIFICATE, TUNED, "log.csv")
#: the fields of the section [problem] that may name a file
_NAMED = ("kernel", "mask")


def prepare(config: Config, out: Path, data: str, resume: bool, **more: Any) -> None:
    """Describe a run that begins; one that is there already has to be the same.

    Raises:
        CheckpointError: the folder holds checkpoints of a run with other fields, or of another kernel or mask.
        InvalidParameterError: the folder holds files that would be replaced, and no ``run.json`` that says that they
            are of a run.
    """
    if not any(out.glob("checkpoint-*.safetensors")):
        _require_own(config, out, resume)
        _describe(config, out, data, **more)
        return
    if not resume or not (out / RUN).is_file():
        return  # left to the training, which overwrites no run
    before, now = (_decisive(c) for c in (load(out / RUN), config))
    files, recorded = problem_files(config.problem), facts_of(out).files
    changed = changes(before, now)
    changed += [f"the file of the {k} has changed" for k, digest in files.items() if recorded.get(k, digest) != digest]
    if changed:
        raise CheckpointError(
            f"{out} contains a run with other settings, so it cannot continue exactly:  {'; '.join(changed)}. Leave "
            f"these fields out (--resume --out {out} is enough), or choose another folder with --out"
        )


def _require_own(config: Config, out: Path, resume: bool) -> None:
    """Raise if a file would be replaced that is not of a run."""
    try:
        ours = "retune" in facts_of(out).versions
    except CheckpointError:
        ours = False
    if ours:
        return
    found = [name for name in (FACTS, *_WRITTEN) if (out / name).exists() or (out / name).is_symlink()]
    if resume and RUN in found and load(out / RUN) == config:
        found.remove(RUN)  # a run that was put there to be begun with --resume
    if found:
        raise InvalidParameterError(
            f"{out} contains {', '.join(found)} but no {FACTS} of a run, so these files may belong to something else "
            "and would be replaced: choose another folder with --out, or move the files"
        )


def facts_of(out: Path) -> RunFacts:
    """What a run was begun with; nothing is known of one that has no ``run.json``.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = out / FACTS
    try:
        return RunFacts.parsed(path.read_bytes(), str(path)) if path.is_file() else RunFacts()
    except InvalidParameterError as error:
        raise CheckpointError(f"{error}: restore this file, or start again in another folder") from error


def _decisive(config: Config) -> dict[str, Any]:
    """The fields that decide the course of a training, by name; files are compared by what they are, not where."""
    left_out = {"compare": True, "optimiser": {"checkpoint_every"}, "data": {"train", "validation"}}
    config = config.model_copy(
        update={"problem": config.problem.model_copy(update=dict.fromkeys(_files(config.problem), "a file"))}
    )
    plain = json.loads(config.model_dump_json(exclude=left_out))
    return {
        f"{section}.{key}" if isinstance(fields, dict) else section: value
        for section, fields in plain.items()
        for key, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    }


def problem_files(config: ProblemConfig) -> dict[str, str]:
    """SHA-256 of the files that a problem names, its kernel and mask."""
    return {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in _files(config).items()}


def save_model(net: Restarted, path: Path, problem: ProblemConfig, white: float | None = None, **notes: str) -> None:
    """Save a network with its problem, whose kernel and mask are copied beside it, and with its unit of intensity."""
    unit = {} if white is None else {"white": repr(float(white))}
    net.save(path, problem=_copied(problem, path.parent).model_dump_json(), **unit, **notes)


def _files(config: ProblemConfig) -> dict[str, Path]:
    """The files that a problem names; anything else is a kernel by name."""
    named = {key: Path(value) for key in _NAMED if (value := getattr(config, key)) is not None}
    return {key: path for key, path in named.items() if path.suffix.lower() in SUFFIXES and path.is_file()}


def _copied(config: ProblemConfig, folder: Path) -> ProblemConfig:
    """The problem with its files copied into a folder, and named relative to it.

    A copy is named by its content, so several networks in a folder share it, and none ever replaces another.
    """
    copies = {}
    for key, file in _files(config).items():
        content = file.read_bytes()
        copy = f"{key}-{hashlib.sha256(content).hexdigest()[:12]}{file.suffix}"
        if not (folder / copy).is_file():
            write_atomically(folder / copy, content)
        copies[key] = copy
    return config.model_copy(update=copies)


def _describe(config: Config, out: Path, data: str, **more: Any) -> None:
    """Write the resolved run, and its facts: seed, versions, fingerprint of the data, and what else there is."""
    facts = RunFacts(
        seed=config.seed,
        data=data,
        files=problem_files(config.problem),
        versions={
            "retune": __version__,
            "torch": torch.__version__,
            "deepinv": deepinv.__version__,
            "python": platform.python_version(),
        },
        **more,
    )
    kept = config.model_copy(update={"problem": _copied(config.problem, out)})
    # First the one that says that the folder is ours: the process may be killed between the two.
    facts.write(out / FACTS)
    write_atomically(out / RUN, to_toml(kept).encode())
