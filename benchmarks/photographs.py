"""``retune restore`` of many photographs by each prior, with its defaults: seconds, memory, and where the time goes.

Noise (σ = 0.1) and a blur (Gaussian, 1.6 pixels, noise of 0.02), floating-point TIFF files. Each row is one process
that restores all photographs with its certificate and its page, as a user would start it. "restore, no model" is the
command without a network; the other networks are not trained: they have the strength in this file, and every other
option has its default. The command itself runs in this file only to count the processor seconds of its parts:

- start-up: until the first file is opened;
- solve: the map is bound to the measurement, and iterated;
- certificate;
- files: reading, writing, fingerprints;
- page: the sections of ``report.html``, and the page itself.

``--data FOLDER`` names the photographs (for the documentation: the 68 of the test part of BSDS500). Finished rows are
kept in ``--kept FOLDER``, so a run that was stopped continues. Run ``OMP_NUM_THREADS=1 python benchmarks/photographs.py
--data FOLDER``, with ``--files 10`` for fewer photographs, with ``--only NAME`` for some rows, and with ``--megapixels
24`` for one large image.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

NOISE, BLUR, BLURRED_NOISE = 0.1, 1.6, 0.02
PROBLEMS: dict[str, dict[str, Any]] = {
    "noise": {"name": "denoise", "sigma": NOISE},
    "blur": {"name": "deblur", "kernel": f"gaussian:{BLUR}", "boundary": "reflect", "sigma": BLURRED_NOISE},
}
PARTS = ("start-up", "solve", "certificate", "files", "page")
#: The section [prior] of each row, and its strength λ for noise and for a blur; None leaves the row out. They are near
#: the best of 0.35, 0.5, 0.7, 1, 1.4, 2 and 2.8 times a guess, on parts of three validation images of BSDS500.
PRIORS: dict[str, tuple[dict[str, Any] | None, float | None, float | None]] = {
    "restore, no model": (None, 0.0, 0.0),
    "wavelets (ℓ1,2)": ({"type": "wavelet"}, 0.28, 0.007),
    "wavelets (ℓ1)": ({"type": "wavelet", "norm": "l1"}, 0.14, 0.004),
    "wavelets (ℓ1,2), margin": ({"type": "wavelet", "levels": 3, "margin": 8}, 0.28, 0.007),
    "total variation": ({"type": "tv"}, 0.1, 0.002),
    "ridge": ({"type": "ridge", "sigma": 0.1}, 1.0, 0.035),
    "undecimated wavelets": ({"type": "undecimated_wavelet"}, 0.1, 0.002),
    "denoiser": ({"type": "denoiser", "sigma": 0.025}, None, 1.0),
}


@dataclass(frozen=True)
class Row:
    """One process: processor seconds and their parts, seconds by the clock, peak MiB, mean PSNR and layers a file."""

    problem: str
    prior: str
    files: int
    clock: float
    seconds: float
    memory: float
    psnr: float
    layers: float
    parts: dict[str, float]


class Clock:
    """Processor seconds of the outermost of nested functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self._inside = False

    def time(self, place: Any, name: str, part: str) -> None:
        """Count the calls of `place.name` as a part."""
        call: Callable[..., Any] = getattr(place, name)

        def timed(*given: Any, **named: Any) -> Any:
            if self._inside:
                return call(*given, **named)
            if not self.seconds["start-up"]:
                self.seconds["start-up"] = time.process_time()
            self._inside, start = True, time.process_time()
            try:
                return call(*given, **named)
            finally:
                self.seconds[part] += time.process_time() - start
                self._inside = False

        setattr(place, name, timed)


def command(told: str, arguments: list[str]) -> None:
    """``retune`` with these arguments in this process; the parts of its time go to the file `told`."""
    from retune import io
    from retune.cli import _page
    from retune.cli.main import app
    from retune.jobs import restored_file, results, tiles
    from retune.model import Restarted

    clock = Clock()
    clock.time(Restarted, "bind", "solve")
    clock.time(Restarted, "solve", "solve")
    clock.time(tiles, "certificate_of", "certificate")
    for place, name in ((restored_file, "digest_of"), (io, "read"), (io, "write"), (results.Result, "record")):
        clock.time(place, name, "files")
    clock.time(restored_file, "section_of", "page")
    clock.time(_page, "tell_page", "page")
    try:
        app(arguments, prog_name="retune")
    finally:
        Path(told).write_text(json.dumps(clock.seconds))


def network(problem: str, prior: dict[str, Any], reg: float | None, out: Path) -> Path:
    """A network that is not trained."""
    from retune.build import network_of
    from retune.config import from_dict
    from retune.jobs.folder import save_model

    model = {} if prior["type"] == "denoiser" else {"model": {"reg": reg}}
    config = from_dict({"problem": PROBLEMS[problem], "prior": prior, **model}, (), "a row")
    save_model(network_of(config, 3), out, config.problem)
    return out


def measured(problem: str, photographs: list[Path], pixels: int, out: Path) -> dict[str, np.ndarray]:
    """The truth for the name of each file, which is written."""
    import tifffile
    import torch
    from PIL import Image

    from retune import problems

    made = problems.denoise(NOISE) if problem == "noise" else problems.deblur(f"gaussian:{BLUR}", sigma=BLURRED_NOISE)
    torch.manual_seed(0)
    truths = {}
    for file in photographs:
        x = np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 255
        if pixels:
            height = round((pixels * 2 / 3) ** 0.5)
            sides = (height, pixels // height)
            x = np.pad(x, [*((0, n - m) for n, m in zip(sides, x.shape, strict=False)), (0, 0)], mode="symmetric")
        y, _ = made.measure(torch.as_tensor(x).permute(2, 0, 1)[None])
        tifffile.imwrite(out / f"{file.stem}.tif", y[0].permute(1, 2, 0).numpy(), photometric="rgb")
        truths[f"{file.stem}.tif"] = x
    return truths


def row(problem: str, name: str, truths: dict[str, np.ndarray], folder: Path, place: Path) -> Row:
    """Restore all files of a folder."""
    import tifffile

    prior, noise, blur = PRIORS[name]
    out, told = place / "out", place / "parts.json"
    if prior is None:
        fields = {k: v for k, v in PROBLEMS[problem].items() if k not in ("name", "boundary")}
        model = ["--problem", PROBLEMS[problem]["name"], *(w for k, v in fields.items() for w in (f"--{k}", str(v)))]
    else:
        model = [str(network(problem, prior, noise if problem == "noise" else blur, place / "model.safetensors"))]
    first = [] if prior is None else model
    last = model if prior is None else []
    arguments = ["restore", *first, str(folder), *last, "--out", str(out)]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, __file__, "--command", str(told), *arguments], stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{arguments}\n{said.read().decode()[-2000:]}")
    errors, layers = [], []
    for file, truth in truths.items():
        errors.append(-10 * np.log10(np.mean((tifffile.imread(out / file).clip(0, 1) - truth) ** 2)))
        layers.append(json.loads((out / f"{file}.json").read_text())["layers"])
    return Row(
        problem,
        name,
        len(truths),
        time.perf_counter() - start,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss / 1024,
        float(np.mean(errors)),
        float(np.mean(layers)),
        json.loads(told.read_text()),
    )


def table(rows: list[Row]) -> str:
    """One line a row."""
    lines = [
        "| | photographs | PSNR (dB) | layers | processor s | s a photograph | peak MiB | "
        f"{' | '.join(PARTS)} | other |",
        "|---" * (8 + len(PARTS)) + "|",
    ]
    for r in rows:
        shares = [r.parts[p] / r.seconds for p in PARTS]
        cells = " | ".join(f"{100 * s:.0f} %" for s in (*shares, 1 - sum(shares)))
        each = (r.seconds - r.parts["start-up"]) / r.files
        lines.append(
            f"| {r.problem}: {r.prior} | {r.files} | {r.psnr:.2f} | {r.layers:.0f} | {r.seconds:.1f} | {each:.2f} | "
            f"{r.memory:.0f} | {cells} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--files", type=int, default=40, help="number of photographs")
    parser.add_argument("--megapixels", type=float, default=0.0, help="one photograph, mirrored to this size, instead")
    parser.add_argument("--only", action="append", default=[], help="rows whose name begins so, such as noise: wav")
    parser.add_argument("--kept", type=Path, help="folder in which finished rows are kept")
    options = parser.parse_args()
    pixels = round(1e6 * options.megapixels)
    found = sorted(f for f in options.data.iterdir() if f.suffix in (".jpg", ".png"))
    photographs = found[: 1 if pixels else options.files]
    rows = []
    for problem in PROBLEMS:
        for name, (_, *strengths) in PRIORS.items():
            wanted = not options.only or any(f"{problem}: {name}".startswith(o) for o in options.only)
            if not wanted or strengths[problem == "blur"] is None:
                continue
            words = f"{problem}-{name}-{len(photographs)}-{pixels}".replace(" ", "").replace(",", "-")
            kept = None if options.kept is None else options.kept / f"{words}.json"
            if kept is not None and kept.is_file():
                rows.append(Row(**json.loads(kept.read_text())))
                continue
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "files"
                folder.mkdir()
                rows.append(row(problem, name, measured(problem, photographs, pixels, folder), folder, Path(place)))
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(asdict(rows[-1])))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--command"]:
        command(sys.argv[2], sys.argv[3:])
    else:
        main()
