"""What ``retune demo`` does: three problems on photographs, every method, one report."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import deepinv
import imageio.v3 as iio
import torch
from rich.console import Console
from torch import Tensor

from retune import problems as named
from retune._files import write_atomically
from retune._version import __version__
from retune.comparison import Settings, compare, settings_as_data, verdicts
from retune.data import photograph
from retune.errors import InvalidParameterError, unknown_name
from retune.jobs.workers import workers as processes
from retune.problems import Problem
from retune.report import terminal_table, write_all

__all__ = ["run"]

TRAIN, VALIDATION, TEST = ("chelsea", "coffee"), ("motorcycle",), ("astronaut", "rocket")

FULL = Settings()
QUICK = Settings(depth=5, restarts=3, steps=5, batch_size=2, crop=48, grid=5, rtol=1e-4)
# Where the photographs have something to restore: (row, column) of the middle of the crop.
_MIDDLES = {"astronaut": (95, 220), "rocket": (190, 320), "motorcycle": (214, 314)}

# The longest first, so that no core is left waiting at the end.
_COST = {"deblur": 0, "inpaint": 1, "denoise": 2}

_TITLES = {
    "inpaint": ("Inpainting", "Half of the pixels are missing; the others carry noise of standard deviation 0.05."),
    "deblur": (
        "Deblurring",
        "A 25-pixel motion blur, vertical in the red channel, horizontal in the green, diagonal in the blue one, "
        "and noise of standard deviation 0.05.",
    ),
    "denoise": (
        "Denoising",
        "Noise of standard deviation 0.1 in the red channel, 0.25 in the green, 0.5 in the blue one.",
    ),
}


def demo_problems() -> dict[str, Problem]:
    """The three problems of the demo."""
    return {"inpaint": named.inpaint(), "deblur": named.deblur(), "denoise": named.denoise()}


def run(
    problems: Sequence[str] | None = None,
    out: Path = Path("retune-demo"),
    *,
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
    console: Console | None = None,
) -> dict:
    """Run the demo and write ``results.json``, the figures and ``report.html`` into `out`; the results are returned.

    Each problem is written as soon as it is done, so that an interruption loses at most the one in work.
    """
    console = Console() if console is None else console
    available = demo_problems()
    chosen = list(available) if not problems else list(dict.fromkeys(problems))
    for name in chosen:
        if name not in available:
            raise unknown_name("problem", name, available)
    device = _device(device)
    out.mkdir(parents=True, exist_ok=True)
    settings = replace(QUICK if quick else FULL, seed=seed)
    size = 64 if quick else 128
    start = time.perf_counter()
    results = _header(settings, quick, seed, device, size)
    finished: dict[str, dict] = {}
    with closing(_comparisons(chosen, settings, size, device, console)) as comparisons:
        for name, result, images in comparisons:
            result["title"], result["description"] = _TITLES[name]
            result["images"] = _write_images(out, name, images, result)
            finished[name] = result
            results["problems"] = {n: finished[n] for n in chosen if n in finished}
            results["verdicts"] = [] if quick else [v for n, r in results["problems"].items() for v in verdicts(n, r)]
            results["seconds"] = time.perf_counter() - start
            write_atomically(out / "results.json", json.dumps(results, indent=1, allow_nan=False).encode())
            console.print(f"{_TITLES[name][0]} done after {results['seconds']:.0f} s", style="dim")
    report = write_all(results, out)
    terminal_table(results, console)
    console.print(f"\nOpen [bold]{report}[/] in a browser; the figures and results.json are beside it.")
    return results


def _comparisons(
    chosen: Sequence[str], settings: Settings, size: int, device: str, console: Console
) -> Generator[tuple[str, dict, dict[str, Tensor]], None, None]:
    """The results of each problem as it is done; on a CPU, one process per core.

    The images are small, so two single-threaded processes do twice the work of one process with two threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(len(chosen), cores) if device == "cpu" else 1
    if workers == 1:
        with _status(console) as note:
            for name in chosen:
                yield (name, *_one(name, settings, size, device, lambda text, n=name: note(f"{_TITLES[n][0]}: {text}")))
        return
    threads = max(1, cores // workers)
    with _status(console) as note, processes(workers, torch.set_num_threads, threads) as submit:
        waiting = {submit(_one, name, settings, size, device): name for name in sorted(chosen, key=_COST.__getitem__)}
        note(f"{', '.join(_TITLES[n][0].lower() for n in chosen)}, {workers} at a time")
        for job in as_completed(waiting):
            yield (waiting[job], *job.result())


def _one(
    name: str, settings: Settings, size: int, device: str, note: Callable[[str], None] = lambda _: None
) -> tuple[dict, dict[str, Tensor]]:
    train = [photograph(n) for n in TRAIN]
    validation = torch.stack([_part(n, size) for n in VALIDATION])
    test = torch.stack([_part(n, size) for n in TEST])
    return compare(demo_problems()[name], train, validation, test, settings, device=device, note=note)


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidParameterError(
            f"device {device!r} is not available here; use auto, cpu, cuda or cuda:N ({str(error).splitlines()[0]})"
        ) from error
    return device


def _part(name: str, size: int) -> Tensor:
    """A square part of a photograph."""
    image = photograph(name)
    top, left = (middle - size // 2 for middle in _MIDDLES[name])
    return image[:, top : top + size, left : left + size].clone()


def _header(settings: Settings, quick: bool, seed: int, device: str, size: int) -> dict:
    return {
        "format": 1,
        "retune": __version__,
        "command": "retune demo" + (" --quick" if quick else "") + (f" --seed {seed}" if seed else ""),
        "quick": quick,
        "seed": seed,
        "seconds": None,
        "device": device,
        "versions": {"torch": torch.__version__, "deepinv": deepinv.__version__},
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "settings": settings_as_data(settings)
        | {"test_size": size, "train": list(TRAIN), "validation": list(VALIDATION), "test": list(TEST)},
        "problems": {},
        "verdicts": [],
    }


def _write_images(out: Path, name: str, images: dict[str, Tensor], result: dict) -> dict:
    written: dict[str, list[str]] = {}
    for key, batch in images.items():
        for i, image in enumerate(batch):
            path = f"images/{name}-{i}-{key}.png"
            pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
            write_atomically(out / path, iio.imwrite("<bytes>", pixels, extension=".png"))
            written.setdefault(key, []).append(path)
    for key, row in result["methods"].items():
        row["images"] = written[key]
    return {"names": list(TEST), "truth": written["truth"], "measurement": written["measurement"]}


@contextlib.contextmanager
def _status(console: Console):
    """A line that says what is being done, on a terminal; nothing in a log."""
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("starting") as status:
        yield status.update
