"""The folder of a run: its files, and the check that a run continues with the settings of its start.

The kernel and mask of a run are copied into its folder, with paths relative to it. So the folder can be moved, and
the original files can be deleted.
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
#: the files of a run, beside its checkpoints
_WRITTEN = (RUN, MODEL, CERTIFICATE, TUNED, "log.csv")
#: the fields of the section [problem] that may name a file
_NAMED = ("kernel", "mask")


def prepare(config: Config, out: Path, data: str, resume: bool, **more: Any) -> None:
    """Write the description of a new run. A run that is already in the folder must have the same settings.

    Raises:
        CheckpointError: the folder holds checkpoints of a run with other fields, another kernel or another mask.
        InvalidParameterError: the run would replace files of the folder, and no ``run.json`` says that they belong to
            a run.
    """
    if not any(out.glob("checkpoint-*.safetensors")):
        _require_own(config, out, resume)
        _describe(config, out, data, **more)
        return
    if not resume or not (out / RUN).is_file():
        return  # the training checks this case; it overwrites no run
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
    """Raise if the run would replace a file that does not belong to a run."""
    try:
        ours = "retune" in facts_of(out).versions
    except CheckpointError:
        ours = False
    if ours:
        return
    found = [name for name in (FACTS, *_WRITTEN) if (out / name).exists() or (out / name).is_symlink()]
    if resume and RUN in found and load(out / RUN) == config:
        found.remove(RUN)  # the user copied a run.json here, to start with --resume
    if found:
        raise InvalidParameterError(
            f"{out} contains {', '.join(found)} but no {FACTS} of a run, so these files may belong to something else "
            "and would be replaced: choose another folder with --out, or move the files"
        )


def facts_of(out: Path) -> RunFacts:
    """The facts at the start of a run; empty without a ``run.json``.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = out / FACTS
    try:
        return RunFacts.parsed(path.read_bytes(), str(path)) if path.is_file() else RunFacts()
    except InvalidParameterError as error:
        raise CheckpointError(f"{error}: restore this file, or start again in another folder") from error


def _decisive(config: Config) -> dict[str, Any]:
    """The fields that decide the course of a training, by name. Files count by content, not by path."""
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
    """SHA-256 of the kernel file and the mask file of a problem."""
    return {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in _files(config).items()}


def save_model(
    net: Restarted,
    path: Path,
    problem: ProblemConfig,
    white: float | None = None,
    black: float | None = None,
    **notes: str,
) -> None:
    """Save a network with its problem and its unit of intensity; the kernel and mask are copied beside it."""
    unit = {k: repr(float(v)) for k, v in (("white", white), ("black", black)) if v is not None}
    net.save(path, problem=_copied(problem, path.parent).model_dump_json(), **unit, **notes)


def _files(config: ProblemConfig) -> dict[str, Path]:
    """The files that a problem names. A kernel that is no file is a built-in name."""
    named = {key: Path(value) for key in _NAMED if (value := getattr(config, key)) is not None}
    return {key: path for key, path in named.items() if path.suffix.lower() in SUFFIXES and path.is_file()}


def _copied(config: ProblemConfig, folder: Path) -> ProblemConfig:
    """The problem with its files copied into a folder, and with paths relative to it.

    The name of a copy is a hash of its content. So networks in a folder share equal files, and no copy replaces a
    different one.
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
    """Write the resolved run and its facts: seed, versions, fingerprint of the data, and those in `more`."""
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
    # run.json marks the folder as ours, so it comes first: the process may be killed between the two writes.
    facts.write(out / FACTS)
    write_atomically(out / RUN, to_toml(kept).encode())
