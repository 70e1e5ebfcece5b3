"""The folder of results: one image and one record per file, and the check that the files belong to ReTune."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retune._files import write_atomically
from retune._version import __version__
from retune.errors import InvalidParameterError
from retune.records import RestoredImage

__all__ = ["Result", "digest_of"]

FORMAT = 1


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Result:
    """The result of one file in a folder: the image ``NAME`` and its record ``NAME.json``.

    A record marks a result as ours. It is written before the image, with the status "being written", and again after
    it. So the image always has a record, even if the process is killed at any moment.

    Args:
        folder: folder of the results.
        name: name of the file.

    Raises:
        InvalidParameterError: the folder has a file of that name without a record of ReTune, so it is the user's.
        OSError: the folder cannot be read, or the name is too long.
    """

    def __init__(self, folder: Path, name: str):
        self.image, self._record = folder / name, folder / f"{name}.json"
        self._name = name
        self.before = self._read()
        if self.before is None:
            for path in (self.image, self._record):
                if path.is_symlink() or path.exists():
                    raise InvalidParameterError(
                        f"{path} already exists, and no record says that it is a result of retune restore, so it was "
                        "not changed. Choose another folder with --out, or move the file"
                    )

    def _read(self) -> RestoredImage | None:
        """The record in the folder, if it is one of ours."""
        if not self._record.is_file():  # reading a pipe may never end
            return None
        try:
            self._content = self._record.read_bytes()
        except FileNotFoundError:
            return None
        return RestoredImage.of(self._content, self._name)

    def is_of(self, facts: RestoredImage, certified: bool) -> bool:
        """Whether the image exists, was made with the same facts, and has the requested certificate."""
        before = self.before
        if before is None or not self.image.is_file() or (certified and before.certificate is None):
            return False
        return before.made_as(facts)

    def require_unchanged(self) -> None:
        """Refuse to replace an image that somebody changed after it was written.

        Raises:
            InvalidParameterError: the image differs from the one that its record describes.
        """
        written = None if self.before is None else self.before.result_sha256
        if written is not None and self.image.is_file() and digest_of(self.image) != written:
            raise InvalidParameterError(
                f"{self.image} was changed after retune restore wrote it, so it was not replaced. Choose another "
                "folder with --out, or move the file"
            )

    @contextmanager
    def being_written(self) -> Iterator[None]:
        """Mark the image as being written. If writing fails, restore the previous record."""
        self.record(RestoredImage(format=FORMAT, retune=__version__, file=self._name, status="being written"))
        try:
            yield
        except BaseException:
            if self.before is None:
                self._record.unlink(missing_ok=True)
            else:
                write_atomically(self._record, self._content)
            raise

    @property
    def content(self) -> bytes:
        """The content of the previous record; empty if there was none."""
        return b"" if self.before is None else self._content

    def record(self, told: RestoredImage) -> None:
        """Write the record."""
        told.write(self._record)
