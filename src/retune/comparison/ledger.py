"""What a long job has computed already, so that nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retune._files import write_atomically
from retune._plain import RECORDS, parse_json
from retune.errors import CheckpointError, InvalidParameterError

__all__ = ["Ledger"]

#: What the file is; version 0.1.0 wrote none.
FORMAT = 2


class Ledger:
    """Results by name in one JSON file, which is replaced, atomically, whenever one is added.

    Args:
        path: the file.
        settings: what decides the results; a job is only continued with the same.
        resume: continue with what is in the file; start if there is none.

    Raises:
        InvalidParameterError: the file is there, and is not to be continued.
        CheckpointError: it cannot be read, or is of a job with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool):
        self.path, self.settings = path, settings
        self.entries: dict[str, Any] = {}
        if not path.exists():
            return
        if not resume:
            raise InvalidParameterError(
                f"{path.parent} holds results already; continue them with --resume, or choose another folder with --out"
            )
        try:
            saved = parse_json(path.read_bytes(), RECORDS)
            form, before, self.entries = saved.get("format"), saved["settings"], saved["entries"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); choose another folder with --out") from error
        if form != FORMAT:
            raise CheckpointError(_of_another_version(path, form))
        names = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        if names:
            raise CheckpointError(
                f"{path} is of other settings, so it cannot be continued: {', '.join(names)} changed. Use the same, or "
                "another folder with --out"
            )

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of that name; computed, and kept, if it is not there."""
        if name not in self.entries:
            self.entries[name] = compute()
            content = {"format": FORMAT, "settings": self.settings, "entries": self.entries}
            write_atomically(self.path, json.dumps(content, allow_nan=False).encode())
        return self.entries[name]


def _of_another_version(path: Path, form: object) -> str:
    begun = "ReTune 0.1.0" if form is None else f"another version of ReTune (format {form}, this one has {FORMAT})"
    earlier = ", with  pip install retune-imaging==0.1.0" if form is None else ""
    return (
        f"{path} is of a comparison that was begun with {begun}. This version computes other things for the same run, "
        f"so it cannot continue it. Finish it with the version that began it{earlier}, or begin again with "
        f"another --out. What is in {path.parent} stays as it is, and networks that were trained there can "
        f"be scored as they are: --model {path.parent / 'models' / 'retune.safetensors'}"
    )
