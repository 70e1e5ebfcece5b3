"""The finished parts of a long job, so that nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from retune._files import require_file
from retune.errors import CheckpointError, InvalidParameterError
from retune.records import Progress, Record
from retune.records.settings import require_same

__all__ = ["Ledger"]

T = TypeVar("T", bound=Record | int)
#: The format of the file; version 0.1.0 wrote no format.
FORMAT = 2


class Ledger:
    """Results by name in one JSON file. Each new result replaces the file atomically.

    Args:
        path: the file.
        settings: the settings that decide the results. A job only continues with the same settings.
        resume: continue the file if it exists; otherwise start.

    Raises:
        InvalidParameterError: the file exists, but resume is False.
        CheckpointError: the file cannot be read, or belongs to a job with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any], resume: bool):
        self.path, self._progress = path, Progress(format=FORMAT, settings=settings, entries={})
        if not path.exists() and not path.is_symlink():
            # This file marks the folder as ours, so it is written before all others.
            self._progress.write(path, indent=None)
            return
        if not resume and not self._is_empty():
            raise InvalidParameterError(
                f"{path.parent} already contains results; continue them with --resume, or choose another folder with "
                "--out"
            )
        try:
            require_file(path, "the progress of a comparison")
            saved = Progress.parsed(path.read_bytes(), str(path))
        except InvalidParameterError as error:
            raise CheckpointError(f"{error}; choose another folder with --out") from error
        if saved.format != FORMAT:
            raise CheckpointError(_of_another_version(path, saved.format))
        if not saved.entries:
            self._progress.write(path, indent=None)
            return
        require_same(path, saved.settings, settings, "another folder with --out")
        self._progress = saved

    def _is_empty(self) -> bool:
        """Whether the job of the file ended before its first result."""
        try:
            require_file(self.path, "the progress of a comparison")
            saved = Progress.parsed(self.path.read_bytes(), str(self.path))
        except InvalidParameterError:
            return False
        return saved.format == FORMAT and not saved.entries

    def once(self, name: str, kind: type[T], compute: Callable[[], T]) -> T:
        """The result of that name, a record of that kind or a number. A missing result is computed and stored.

        Raises:
            CheckpointError: the stored result has another kind.
        """
        entries, form = self._progress.entries, TypeAdapter(kind)
        if name not in entries:
            found = compute()
            entries[name] = form.dump_python(found, mode="json", exclude_unset=True)
            self._progress.write(self.path, indent=None)
            return found
        try:
            return form.validate_python(entries[name])
        except ValidationError as error:
            raise CheckpointError(f"{self.path}: the entry {name!r} cannot be read; remove the file") from error


def _of_another_version(path: Path, form: int | None) -> str:
    begun = "ReTune 0.1.0" if form is None else f"another version of ReTune (format {form}, this one has {FORMAT})"
    earlier = ", with  pip install retune-imaging==0.1.0" if form is None else ""
    return (
        f"{path} belongs to a comparison that was begun with {begun}. This version computes other figures for the "
        f"same run, so it cannot continue it. Finish it with the version that began it{earlier}, or begin again with "
        f"another --out. The files in {path.parent} stay unchanged. You can score the networks that were trained "
        f"there: --model {path.parent / 'models' / 'retune.safetensors'}"
    )
