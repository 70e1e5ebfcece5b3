"""The folder of a training run: its last two checkpoints, and its log."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retune._files import make_folder, remove_leftovers, write_atomically
from retune.errors import CheckpointError, Interrupted, InvalidParameterError, RetuneError
from retune.records import CheckpointFacts
from retune.records.settings import require_same
from retune.training.devices import first_process
from retune.training.lock import FolderLock
from retune.training.records import FitResult, Keeper
from retune.training.resume import load_state, save_state
from retune.training.warm import WarmStart

__all__ = ["RunFolder", "fingerprint", "stop_requests"]

_COLUMNS = ("step", "loss", "residual", "gradient_error")
_HEADER = ",".join([*_COLUMNS, "psnr_val"]) + "\n"


class RunFolder:
    """Checkpoints ``checkpoint-STEP.safetensors``, written atomically, and ``log.csv`` (and TensorBoard, if installed).

    The first process of a training holds a lock on the folder until ``close``.

    Args:
        folder: the folder of the run.
        settings: everything that determines the run. A run can continue only with the same settings.
        resume: continue from the newest checkpoint; start if there is none.

    Raises:
        InvalidParameterError: the folder contains another run or a foreign ``log.csv``, which must not be overwritten;
            or another training is active in it.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any], resume: bool):
        self.folder, self.settings = Path(folder), settings
        self._lock = FolderLock(folder) if first_process() else None
        try:
            self._prepare(resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, resume: bool) -> None:
        self._logged: int | None = None
        self._board: Any = None
        make_folder(self.folder)
        if self.saved and not resume:
            raise InvalidParameterError(
                f"{self.folder} already contains a run (its last checkpoint is {self.saved[-1].name}); continue it "
                "with "
                "resume (--resume), or choose another folder"
            )
        log = self.folder / "log.csv"
        if not self.saved and log.exists() and not _is_log(log):
            raise InvalidParameterError(
                f"{log} already exists, but is not the log of a training, and would be replaced; move it, or choose "
                "another folder"
            )
        if first_process():
            remove_leftovers(self.folder)

    @property
    def saved(self) -> list[Path]:
        """The checkpoints, oldest first."""
        return sorted(self.folder.glob("checkpoint-*.safetensors"))

    def save(
        self,
        step: int,
        net: nn.Module,
        optimiser: Any,
        result: FitResult,
        keeper: Keeper,
        seconds: float,
        warm: WarmStart | None = None,
    ) -> None:
        """Write a checkpoint, update the log, and remove all but the last two checkpoints."""
        facts = CheckpointFacts(
            step=step, seconds=seconds, settings=self.settings, best=repr(keeper.best), best_step=keeper.step
        ).plain()
        extra = {f"best/{k}": v for k, v in keeper.weights.items()} | result.tables()
        extra |= {} if warm is None else {f"warm/{k}": v for k, v in warm.state().items()}
        save_state(self.folder / f"checkpoint-{step:08d}.safetensors", net, optimiser, facts, extra)
        for old in self.saved[:-2]:
            old.unlink()
        self._log(result)

    def load(
        self, net: nn.Module, optimiser: Any, result: FitResult, keeper: Keeper, warm: WarmStart | None = None
    ) -> tuple[int, float]:
        """Restore the state of the newest readable checkpoint. Returns (step, seconds), or (0, 0) without checkpoint.

        Raises:
            CheckpointError: no checkpoint can be read, or the settings of the run differ.
        """
        try:
            return self._load(net, optimiser, result, keeper, warm)
        except BaseException:
            self.close()
            raise

    def _load(
        self, net: nn.Module, optimiser: Any, result: FitResult, keeper: Keeper, warm: WarmStart | None
    ) -> tuple[int, float]:
        failure: RetuneError | None = None
        for path in reversed(self.saved):
            extra: dict[str, Tensor] = {}
            try:
                facts = CheckpointFacts.checked(load_state(path, net, optimiser, extra), str(path))
            except (CheckpointError, InvalidParameterError) as error:  # the previous checkpoint is kept for this case
                failure = failure or error
                continue
            require_same(path, facts.settings, self.settings, "another folder")
            result.take(extra)
            keeper.best, keeper.step = float(facts.best), facts.best_step
            keeper.weights = {k: extra[f"best/{k}"].to(v.device) for k, v in net.state_dict().items()}
            if warm is not None:
                warm.take({k[5:]: v for k, v in extra.items() if k.startswith("warm/")})
            self._rewrite_log(result)
            return facts.step, facts.seconds
        if failure is not None:
            raise failure
        return 0, 0.0

    def _log(self, result: FitResult) -> None:
        path = self.folder / "log.csv"
        if self._logged is None or path.is_symlink() or not path.is_file():
            self._rewrite_log(result)
            return
        # Never append to a file that this process did not create, nor through a link.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "ab") as file:
            file.write(_rows(result, result.steps[self._logged :]).encode())
        self._to_board(result, self._logged)
        self._logged = len(result.steps)

    def _rewrite_log(self, result: FitResult) -> None:
        """Write the whole log. Rows after the checkpoint are dropped, because these steps are computed again."""
        write_atomically(self.folder / "log.csv", (_HEADER + _rows(result, result.steps)).encode())
        self._to_board(result, self._logged or 0)
        self._logged = len(result.steps)

    def _to_board(self, result: FitResult, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        if self._board is None:
            # A continued run writes all values again; they replace the earlier ones.
            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=0)
        scores = {v.step: v.psnr for v in result.validation}
        for record in result.steps[start:]:
            for name in _COLUMNS[1:]:
                self._board.add_scalar(name, getattr(record, name), record.step)
            if record.step in scores:
                self._board.add_scalar("psnr_val", scores[record.step], record.step)
        self._board.flush()

    def close(self) -> None:
        """Close all files and release the folder."""
        if self._board is not None:
            self._board.close()
        if self._lock is not None:
            self._lock.release()


def _is_log(path: Path) -> bool:
    """Whether a file begins like a log of ReTune."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_HEADER)) == _HEADER.encode()


def _rows(result: FitResult, steps: Sequence[Any]) -> str:
    scores = {v.step: f"{v.psnr:.4f}" for v in result.validation}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for s in steps:
        writer.writerow([s.step, f"{s.loss:.9g}", f"{s.residual:.4g}", f"{s.gradient_error:.4g}", scores.get(s.step)])
    return out.getvalue()


def fingerprint(images: Sequence[Tensor]) -> str:
    """SHA-256 of shapes and pixels."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.dtype}{tuple(image.shape)}".encode())
        digest.update(image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class StopRequest(threading.Event):
    """An event that a signal sets.

    Attributes:
        number: number of the signal; SIGINT if another process received it.
    """

    number: int = signal.SIGINT


@contextmanager
def stop_requests(enabled: bool) -> Iterator[StopRequest]:
    """An event set by SIGINT or SIGTERM, so that the current step can finish. A second signal stops at once."""
    asked = StopRequest()
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set():
            raise Interrupted(number)
        asked.number = number
        asked.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
