"""The demo: one shipped comparison for each of four problems on photographs, and a common report."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from retune._files import make_folder
from retune._terminal import clean
from retune._torch.devices import check_device
from retune.comparison.naming import title_of
from retune.comparison.rows import require_own, write_results
from retune.comparison.run import compare
from retune.comparison.verdicts import verdicts
from retune.config import Config, load
from retune.errors import unknown_name
from retune.jobs.workers import workers as processes
from retune.records import ProblemResult, Results
from retune.report import terminal_table, write_all

__all__ = ["METHODS", "PROBLEMS", "run", "run_of"]

PROBLEMS = ("inpaint", "deblur", "denoise", "superres")
METHODS = ("variational", "unrolled", "jfb", "implicit", "retune")
#: The longest comes first, so that no core waits at the end.
_LONGEST_FIRST = ("deblur", "inpaint", "denoise", "superres")
#: The settings of a quick demo.
_QUICK = (
    "model.depth=5", "model.restarts=3", "model.rtol=1e-4", "optimiser.steps=5", "optimiser.validate_every=5",
    "data.batch_size=2", "data.crop=48", "compare.grid=5", "compare.crop=64", "compare.validation_crop=64",
)  # fmt: skip


def run_of(problem: str, *, quick: bool = False, seed: int = 0) -> Config:
    """The comparison that ships for a problem of the demo.

    Raises:
        UnknownNameError: the demo has no such problem.
    """
    if problem not in PROBLEMS:
        raise unknown_name("problem", problem, PROBLEMS)
    return load(f"demo-{problem}", [f"seed={seed}", *(_QUICK if quick else ())])


def run(
    problems: Sequence[str] | None = None,
    out: Path = Path("retune-demo"),
    *,
    quick: bool = False,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> Results:
    """Compare the methods on each problem; write ``results.json``, the figures and ``report.html`` into `out`.

    The results of a problem are written as soon as it is done. Its networks and its progress are in a subfolder of
    `out` with its name.

    Args:
        problems: some of ``PROBLEMS``; all by default.
        out: folder of the results.
        quick: small images and few steps, too few for conclusions.
        seed: seed of crops, masks and noise.
        resume: continue an interrupted demo in `out`; otherwise start from the beginning.
        device: "auto", "cpu", "cuda", …
        console: where to print; the terminal by default.

    Returns:
        The results, as in ``results.json``.

    Raises:
        UnknownNameError: the demo has no such problem.
        InvalidParameterError: the device is not available.
        CheckpointError: the demo to resume in `out` has other settings.
    """
    console = Console() if console is None else console
    runs = {name: run_of(name, quick=quick, seed=seed) for name in problems or PROBLEMS}
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    check_device(device)
    require_own(out)
    make_folder(out)
    if not resume:
        for name in runs:
            _forget(out / name)
    start = time.perf_counter()
    finished: dict[str, ProblemResult] = {}
    results = None
    with closing(_comparisons(runs, out, device, console)) as comparisons:
        for name, found in comparisons:
            finished |= _placed(found.problems, name)
            ordered = {n: finished[n] for n in runs if n in finished}
            results = found.model_copy(
                update={
                    "command": "retune demo" + " --quick" * quick + f" --seed {seed}" * (seed != 0),
                    "quick": quick,
                    "seconds": time.perf_counter() - start,
                    "problems": ordered,
                    "verdicts": [] if quick else [v for n, p in ordered.items() for v in verdicts(n, p.methods)],
                }
            )
            write_results(results, out)
            console.print(f"{title_of(name)} done after {results.seconds:.0f} s", style="dim")
    assert results is not None
    report = write_all(results, out)
    terminal_table(results, console)
    # As text, not as markup: a folder may be called "[red]x".
    place = (clean(str(report)), "bold")
    console.print(Text.assemble("\nOpen ", place, " in a browser; the figures and results.json are beside it."))
    return results


def _forget(folder: Path) -> None:
    """Remove the results of an earlier demo. Its progress, which shows that they are its own, is removed last."""
    if (folder / "progress.json").is_file():
        for name in ("training", "images", "models"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "progress.json").unlink()


def _placed(problems: dict[str, ProblemResult], folder: str) -> dict[str, ProblemResult]:
    """The results of a comparison in a subfolder of the demo, with paths to its pictures there."""
    for problem in problems.values():
        if problem.images:
            problem.images.truth = [f"{folder}/{path}" for path in problem.images.truth]
            problem.images.measurement = [f"{folder}/{path}" for path in problem.images.measurement]
        for method in problem.methods.values():
            method.images = [f"{folder}/{path}" for path in method.images or ()]
    return problems


def _comparisons(
    runs: dict[str, Config], out: Path, device: str, console: Console
) -> Generator[tuple[str, Results], None, None]:
    """The results of each problem, as soon as it is done. On a CPU there is one process per core.

    The images are small, so two single-threaded processes do twice the work of one process with two threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(runs), cores) if device == "cpu" else 1
    if workers == 1:
        with _status(console) as note:
            for name, run in runs.items():
                yield name, _one(run, out / name, device, lambda text, n=name: note(f"{title_of(n)}: {text}"))
        return
    threads = max(1, cores // workers)
    with _status(console) as note, processes(workers, torch.set_num_threads, threads, module=__name__) as submit:
        waiting = {submit(_one, runs[name], out / name, device): name for name in _LONGEST_FIRST if name in runs}
        note(f"{', '.join(title_of(n).lower() for n in runs)}, {workers} at a time")
        for job in as_completed(waiting):
            yield waiting[job], job.result()


def _one(run: Config, out: Path, device: str, note: Callable[[str], None] = lambda _: None) -> Results:
    return compare(run, out, methods=METHODS, resume=True, device=device, note=note)


@contextlib.contextmanager
def _status(console: Console):
    """A status line on a terminal; nothing in a log."""
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield status.update
