"""The files of each user of the page, in a folder that is removed when the user leaves."""

from __future__ import annotations

import io
import re
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from retune.app.settings import OUT, TUNED, Settings
from retune.errors import InvalidParameterError

__all__ = ["Desk", "Desks", "safe_name"]

#: So many desks are open at a time; the one that was not used for the longest time is cleared for another.
_MOST = 32
#: Seconds for which an upload waits for the page that sent it.
_WAITS = 120.0
_NAME = re.compile(r"[^\w.\-+ ()]", re.ASCII)
_KINDS = {
    "image": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"),
    "blur": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"),
    "mask": (".png", ".tif", ".tiff", ".bmp", ".npy"),
    "network": (".safetensors",),
}


def safe_name(name: str) -> str:
    """The last part of a file's name, with letters, digits and a few signs only."""
    last = PureWindowsPath(name).name  # which knows both kinds of slashes
    stem, dot, suffix = last.rpartition(".")
    stem, suffix = (_NAME.sub("_", part) for part in (stem if dot else last, suffix if dot else ""))
    stem = stem.strip(" .-_")[:80] or "file"
    return f"{stem}.{suffix[:12].lower()}" if suffix else stem


@dataclass(frozen=True)
class Restored:
    """The origin of the results on a desk.

    Attributes:
        page: the page that is shown, from 0.
        settings: the settings with which all pages were restored.
        tuned: whether the network was tuned on the image.
        solves: the change and the objective of each solve, as plain data.
    """

    page: int
    settings: Settings
    tuned: bool
    solves: list[dict[str, Any]]


@dataclass
class Desk:
    """The files of one user.

    Attributes:
        key: its secret name.
        folder: the folder of the files.
        image: name of the image.
        kernel, mask, network: names of further files, "" for none.
        known: facts about the image; see `retune.app.work.look`.
        looked: the page and the settings of these facts; None before the first look.
        restored: the origin of the results; None if there are none.
        stopped: whether its next computation shall not begin.
        used: time of the last use.
    """

    key: str
    folder: Path
    image: str = ""
    kernel: str = ""
    mask: str = ""
    network: str = ""
    known: dict[str, Any] = field(default_factory=dict)
    looked: Any = None
    restored: Restored | None = None
    stopped: bool = False
    used: float = field(default_factory=time.monotonic)

    def files(self) -> set[str]:
        """The names of the user's own files."""
        return {path.name for path in self.folder.iterdir() if path.is_file()}

    def clear(self) -> None:
        """Remove the image, its mask and its results, before another image arrives."""
        self.forget_results()
        for path in self.folder.iterdir():
            if path.name == self.image or path.stem == "mask":
                path.unlink(missing_ok=True)
        self.image = self.mask = ""
        self.known, self.looked = {}, None

    def forget_results(self) -> None:
        """Remove the results of another restoration of the image."""
        self.restored = None
        for name in (OUT, TUNED):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def results(self) -> dict[str, Path]:
        """The files to download, by name."""
        found = {
            self.image: self.folder / OUT / self.image,
            "report.html": self.folder / OUT / "report.html",
            "record.json": self.folder / OUT / f"{self.image}.json",
            "model.safetensors": self.folder / TUNED / "model.safetensors",
            "mask.png": self.folder / "mask.png",
        }
        return {name: path for name, path in found.items() if name and path.is_file()}

    def bundle(self) -> bytes:
        """The folder of the tuned network, which ``retune restore`` takes, as a ZIP file."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            for path in sorted((self.folder / TUNED).iterdir()):
                if path.name in ("model.safetensors", "tune.json", "mask.png") or path.suffix in _KINDS["blur"]:
                    file.write(path, path.name)
        return out.getvalue()


class Desks:
    """All desks, in a temporary folder."""

    def __init__(self):
        self._root = Path(tempfile.mkdtemp(prefix="retune-app-"))
        self._lock = threading.Lock()
        self._desks: dict[str, Desk] = {}
        self._waiting: dict[str, tuple[Path, str, float]] = {}

    @property
    def root(self) -> Path:
        """The folder of all files."""
        return self._root

    def open(self) -> Desk:
        """A new desk."""
        with self._lock:
            while len(self._desks) >= _MOST:
                oldest = min(self._desks.values(), key=lambda desk: desk.used)
                shutil.rmtree(self._desks.pop(oldest.key).folder, ignore_errors=True)
            key = secrets.token_urlsafe(18)
            folder = self._root / secrets.token_hex(8)
            folder.mkdir(mode=0o700)
            self._desks[key] = Desk(key, folder)
            return self._desks[key]

    def get(self, key: str) -> Desk:
        """The desk of a name.

        Raises:
            InvalidParameterError: the desk was closed.
        """
        desk = self._desks.get(key)
        if desk is None:
            raise InvalidParameterError("This page was left alone for too long: load it again.")
        desk.used = time.monotonic()
        return desk

    def close(self, key: str) -> None:
        """Remove a desk, with its files."""
        with self._lock:
            desk = self._desks.pop(key, None)
        if desk is not None:
            shutil.rmtree(desk.folder, ignore_errors=True)

    def keep(self, name: str) -> tuple[str, Path]:
        """A place for a file that is being sent: its secret name, and its path."""
        self._drop_old()
        token = secrets.token_urlsafe(18)
        path = self._root / f"upload-{secrets.token_hex(8)}"
        with self._lock:
            self._waiting[token] = (path, safe_name(name), time.monotonic())
        return token, path

    def drop(self, token: str) -> None:
        """Remove a file that nobody has taken."""
        with self._lock:
            found = self._waiting.pop(token, None)
        if found is not None:
            found[0].unlink(missing_ok=True)

    def take(self, desk: Desk, token: str, kind: str) -> str:
        """Put a file that was sent on a desk. Returns its name there.

        Raises:
            InvalidParameterError: there is no such file, or a file of this kind is of no use.
        """
        with self._lock:
            found = self._waiting.pop(token, None)
        if found is None or not found[0].is_file():
            raise InvalidParameterError("The file did not arrive. Send it again.")
        path, name, _ = found
        suffix = Path(name).suffix
        if kind not in _KINDS or suffix not in _KINDS[kind]:
            path.unlink(missing_ok=True)
            known = ", ".join(s[1:].upper() for s in _KINDS.get(kind, ()))
            raise InvalidParameterError(f"{name} has an unsupported format. Supported here: {known}.")
        if kind == "image":
            desk.clear()
            desk.image = name
        else:
            name = f"mask{suffix}" if kind == "mask" else name
            name = f"{kind}-{name}" if name == desk.image else name
        path.replace(desk.folder / name)
        return name

    def _drop_old(self) -> None:
        now = time.monotonic()
        for token in [t for t, (_, _, since) in self._waiting.items() if now - since > _WAITS]:
            self.drop(token)

    def __iter__(self) -> Iterator[Desk]:
        return iter(list(self._desks.values()))

    def remove(self) -> None:
        """Remove all files."""
        shutil.rmtree(self._root, ignore_errors=True)
