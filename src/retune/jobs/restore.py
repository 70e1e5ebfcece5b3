"""Restore the images of a user: one result, and one record of how it went, for each file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from pathlib import Path

import torch

from retune._files import make_folder, remove_leftovers
from retune.bound import Moment
from retune.diagnosis.psf import kernel_doubts
from retune.errors import DoubtfulWarning, InvalidParameterError
from retune.jobs.failures import failure
from retune.jobs.instant import InstantModel
from retune.jobs.opened import OpenedModel
from retune.jobs.pictures import DETAILED, FOLDER
from retune.jobs.restored_file import WHOLE, FileJob, Options, Row
from retune.jobs.workers import workers as processes

__all__ = ["WHOLE", "Options", "Row", "restore"]


def restore(
    model: OpenedModel | InstantModel,
    files: Sequence[Path],
    options: Options,
    workers: int = 1,
    note: Callable[[Row], None] = lambda row: None,
    watch: Callable[[Moment], None] | None = None,
) -> list[Row]:
    """Restore files; a broken one does not stop the others.

    Each result is written atomically into the folder, under the name of its file, with a record beside it
    (``NAME.json``): status, residual, layers, certificate, problem, and fingerprints of image and model. An image whose
    record has the same fingerprints is not restored again. A file without a record belongs to the user and is never
    replaced. Several jobs may write into one folder at the same time.

    Args:
        model: the network, with its problem; see ``retune.jobs.opened.open_model``.
        files: images.
        options: how.
        workers: processes that restore files at the same time.
        note: called with each file when it is done.
        watch: called at the checks of each solve; in one process only.

    Returns:
        One row a file, in the order of the files.

    Raises:
        RetuneError, OSError: nothing can be restored: the folder cannot be written, two files have one name, results
            would replace the images.

    Warns:
        DoubtfulWarning: a kernel with a background or off its centre, …; once for all files.
    """
    names: dict[str, Path] = {}
    for file in files:
        if file.name in names:
            raise InvalidParameterError(
                f"{names[file.name]} and {file} have the same name, so one result would replace the other; restore "
                "them into different folders"
            )
        names[file.name] = file
        if Path(os.path.realpath(file)).parent == Path(os.path.realpath(options.out)):
            raise InvalidParameterError(
                f"the result of {file} would replace the file itself; choose another folder with --out"
            )
    if workers < 1:
        raise InvalidParameterError(f"workers must be at least 1, got {workers}")
    job = FileJob(model, options, frozenset(sorted(names)[:DETAILED]), watch)
    for doubt in kernel_doubts(job.problem):
        warnings.warn(doubt, DoubtfulWarning, stacklevel=2)
    make_folder(options.out)
    rows: dict[Path, Row] = {}
    remove_leftovers(options.out, options.out / FOLDER)
    with closing(_rows(files, job, workers)) as found:  # the processes are stopped in any case
        for row in found:
            rows[row.file] = row
            note(row)
    remove_leftovers(options.out, options.out / FOLDER)  # of a worker that was killed
    return [rows[file] for file in files]


def _rows(files: Sequence[Path], job: FileJob, workers: int) -> Generator[Row, None, None]:
    if workers == 1 or len(files) < 2:
        yield from (job.run(file) for file in files)
        return
    threads = max(1, torch.get_num_threads() // workers)
    with processes(workers, _start, job.model, job.options, job.detailed, threads) as submit:
        waiting = {submit(_run, file): file for file in files}
        for done in as_completed(waiting):
            try:
                yield done.result()
            except Exception as error:  # the process that restored it was killed
                yield Row(waiting[done], "failed", failure(error))


_worker: list[FileJob] = []


def _start(model: OpenedModel | InstantModel, options: Options, detailed: frozenset[str], threads: int) -> None:
    torch.set_num_threads(threads)
    _worker.append(FileJob(model, options, detailed))


def _run(file: Path) -> Row:
    return _worker[0].run(file)
