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
                f"{path.parent} already contains results; continue them with --resume, or choose another folder with "
                "--out"
            )
        try:
            saved = parse_json(path.read_bytes(), RECORDS)
            before, self.entries = saved["settings"], saved["entries"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); choose another folder with --out") from error
        names = [k for k in {**before, **settings} if before.get(k) != settings.get(k)]
        if names:
            raise CheckpointError(
                f"{path} has other settings, so it cannot be continued: {', '.join(names)} changed. Use the same "
                "settings, or another folder with --out"
            )

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of that name; computed, and kept, if it is not there."""
        if name not in self.entries:
            self.entries[name] = compute()
            content = {"settings": self.settings, "entries": self.entries}
            write_atomically(self.path, json.dumps(content, allow_nan=False).encode())
        return self.entries[name]
