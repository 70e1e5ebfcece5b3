"""The three claims of ReTune, measured: beyond unrolled networks, beyond Plug-and-Play, and settled.

Each setting is a shipped run. All methods of a setting get the same start, the same crops, and the same time of
training (``compare.seconds``, measured as processor time of one thread). The starts of a setting come from one grid
search on validation images. Each seed draws crops, kernels, masks and noise anew. The table compares the methods on the
same images with the same noise: the mean difference, and its 95 % confidence interval over the images.

    python benchmarks/claims.py run --data FOLDER --out claims              # FOLDER/train, val, test; resumable
    python benchmarks/claims.py run --data FOLDER --out claims --only energy-inpaint
    python benchmarks/claims.py tables --out claims                         # each setting that is finished, as Markdown
    python benchmarks/claims.py claims --out claims                         # one table for each claim
    python benchmarks/claims.py picture --out claims                        # claims/claims.png: the first test image
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import torch
from rich.console import Console

from retune.comparison import compare
from retune.comparison.paired import Difference, paired
from retune.config import load
from retune.records import ImageScores, Progress, Results

CONSOLE = Console()


@dataclass(frozen=True)
class Setting:
    """One row of the claims.

    Attributes:
        family: what is learned.
        run: the name of a shipped run.
        methods: keys of the methods. With a cycle of K layers JFB is ReTune, and is left out.
        seconds: time of training of each method and seed.
        more: fields of the run that differ.
    """

    family: str
    run: str
    methods: tuple[str, ...]
    seconds: float
    more: tuple[str, ...] = ()


_LEARNED = ("unrolled", "jfb", "implicit", "retune")
_FIVE = ("model.rtol=1e-4", "model.max_layers=450", "compare.grid=8", "compare.reg_range=[0.05, 1.0]")
_WEIGHTS = ("optimiser.lr_network=2e-4",)
#: few steps fit into the time, so they are large ones
_OF_STEPS = (*_FIVE, "optimiser.lr=0.1")
_FREE = "a free denoiser, all its weights"
_ENERGY = "an energy, all its weights"
_OF_ENERGIES = (*_FIVE, *_WEIGHTS, "compare.validation_every=4")

SETTINGS = {
    "norm-denoise": Setting("weights of a norm", "paper-denoise", ("variational", *_LEARNED), 20),
    "norm-inpaint": Setting("weights of a norm", "paper-inpaint", ("variational", *_LEARNED), 20),
    "norm-deblur": Setting("weights of a norm", "paper-deblur", ("variational", *_LEARNED), 20),
    "pnp-inpaint": Setting(
        "parameters of Plug-and-Play", "paper-pnp-inpaint", ("pnp", "unrolled", "implicit", "retune"), 60, _OF_STEPS
    ),
    "pnp-deblur": Setting(
        "parameters of Plug-and-Play", "paper-pnp-deblur", ("pnp", "unrolled", "implicit", "retune"), 60, _OF_STEPS
    ),
    "free-inpaint": Setting(
        _FREE, "paper-embedded-inpaint", ("pnp", "unrolled", "jfb", "retune"), 90, (*_FIVE, *_WEIGHTS)
    ),
    "free-deblur": Setting(
        _FREE, "paper-embedded-deblur", ("pnp", "unrolled", "jfb", "retune"), 90, (*_FIVE, *_WEIGHTS)
    ),
    "energy-inpaint": Setting(_ENERGY, "paper-embedded-energy-inpaint", ("pnp", *_LEARNED), 120, _OF_ENERGIES),
    "energy-deblur": Setting(_ENERGY, "paper-embedded-energy-deblur", ("pnp", *_LEARNED), 120, _OF_ENERGIES),
}


LABELS = {
    "variational": "best single λ",
    "pnp": "Plug-and-Play, tuned",
    "unrolled": "unrolled",
    "jfb": "JFB",
    "implicit": "implicit",
    "retune": "ReTune",
}


def main() -> None:
    options = arguments()
    names = options.only or list(SETTINGS)
    if options.what == "run":
        torch.set_num_threads(1)
        for name in names:
            for seed in range(options.seeds):
                run(name, seed, options)
    {"run": tables, "tables": tables, "claims": claims, "picture": picture}[options.what](names, options)


def run(name: str, seed: int, options: argparse.Namespace) -> None:
    """Compare the methods of a setting with one seed, or continue."""
    setting, data = SETTINGS[name], options.data
    config = load(
        setting.run,
        (
            f"seed={seed}",
            f"data.train={data / 'train'}",
            f"data.validation={data / 'val'}",
            f"compare.test={data / 'test'}",
            f"compare.every={options.every}",
            f"compare.crop={options.crop}",
            "compare.validation_every=8",
            "compare.validation_crop=64",
            f"compare.seconds={options.scale * setting.seconds}",
            "compare.certify=0",
            "compare.memory=false",
            *setting.more,
        ),
    )
    folder = options.out / name / str(seed)
    CONSOLE.print(f"{name}, seed {seed}")
    results = compare(config, folder, methods=setting.methods, resume=True, note=CONSOLE.print)
    results.write(folder / "results.json")


@dataclass(frozen=True)
class Row:
    """A method in all seeds: one list of values per seed, with one value per image.

    Attributes:
        rest: PSNR of the result.
        far: PSNR after ten times the trained depth.
        best: PSNR at the number of layers with the best mean on the test images.
        after: PSNR after K layers (key 1) and after about 50 K layers (key 50).
        change: mean relative change in the last of 50 blocks of K layers, one value per seed.
        settled: images that settled, of `count`.
        steps: training steps of each seed.
        error: gradient error at the end of each training.
        failures: what failed.
    """

    rest: list[list[float]]
    far: list[list[float]]
    best: list[list[float]]
    after: dict[int, list[list[float]]]
    change: list[float]
    settled: int
    count: int
    steps: list[int]
    error: list[float]
    failures: list[str]


def row(folders: Sequence[Path], key: str, depth: int) -> Row:
    """Read the scores of a method; `depth` is K."""
    found = Row([], [], [], {1: [], 50: []}, [], 0, 0, [], [], [])
    settled = count = 0
    for folder in folders:
        entries = Progress.parsed((folder / "progress.json").read_bytes(), str(folder)).entries
        images = [ImageScores.model_validate(v) for k, v in entries.items() if k.startswith(f"image/{key}/")]
        curves = [i.curve for i in images if i.curve is not None]
        layers = sorted(set.intersection(*(set(c.layers) for c in curves)))
        by_layers = {n: [float(c.psnr[c.layers.index(n)] or 0) for c in curves] for n in layers}
        found.rest.append([float(i.psnr) for i in images if i.psnr is not None])
        found.best.append(max([*by_layers.values(), found.rest[-1]], key=fmean))
        for times, scores in found.after.items():
            scores.append(by_layers[nearest(layers, times * depth)])
        last = nearest(layers, 50 * depth)
        changes = [c.residual[c.layers.index(last)] for c in curves]
        found.change.append(fmean(0.0 if r is None else r for r in changes))
        found.far.append([float((i.model_extra or {})["psnr_10x"]) for i in images])
        statuses = [s for i in images for s in i.status or []]
        settled, count = settled + statuses.count("converged"), count + len(images)
        method = next(iter(Results.read(folder / "results.json").problems.values())).methods[key]
        if method.steps is not None:
            found.steps.append(method.steps)
        if method.gradient_error is not None:
            found.error.append(method.gradient_error)
        if method.failure is not None:
            found.failures.append(method.failure)
    return replace(found, settled=settled, count=count)


def nearest(layers: Sequence[int], wanted: int) -> int:
    """The number of layers whose logarithm is nearest to that of the wanted number."""
    return min(layers, key=lambda n: abs(math.log(n / wanted)))


def finished(names: Sequence[str], options: argparse.Namespace) -> Iterator[tuple[str, Setting, dict[str, Row]]]:
    """The settings with a finished seed, and their methods."""
    for name in names:
        setting = SETTINGS[name]
        folders = [options.out / name / str(seed) for seed in range(options.seeds)]
        folders = [f for f in folders if (f / "results.json").exists()]
        if folders:
            depth = load(setting.run, setting.more).model.depth
            yield name, setting, {key: row(folders, key, depth) for key in setting.methods}


def tables(names: Sequence[str], options: argparse.Namespace) -> None:
    """Print a table for each setting with a finished seed."""
    columns = ("method", "steps", "gradient error", "PSNR", "seeds", "at 10×", "settled")
    columns += ("ReTune ahead by", "at its best depth")
    for name, setting, rows in finished(names, options):
        ours = rows["retune"]
        print(f"\n### {name}: {setting.family}\n")
        print(
            f"{len(ours.rest)} seeds, {len(ours.rest[0])} images, {options.scale * setting.seconds:g} s of "
            "training for each method and seed.\n"
        )
        heading(columns)
        for key, r in rows.items():
            means = [fmean(v) for v in r.rest]
            same = key == "retune"
            line(
                LABELS[key],
                f"{fmean(r.steps):.0f}" if r.steps else "",
                f"{fmean(r.error):.2g}" if r.error else "",
                f"{fmean(means):.2f}",
                f"{min(means):.2f} to {max(means):.2f}",
                f"{mean(r.far):.2f}",
                f"{r.settled} of {r.count}",
                "" if same else words(paired(ours.rest, r.rest)),
                "" if same else words(paired(ours.rest, r.best)),
            )
            for failure in r.failures:
                print(f"\n{LABELS[key]}: {failure}\n")


def claims(names: Sequence[str], options: argparse.Namespace) -> None:
    """Print a table for each of the three claims."""
    found = list(finished(names, options))
    print("\n### Beyond traditional learning: ReTune ahead by, in dB\n")
    others = ("variational", "pnp", "unrolled", "jfb", "implicit")
    heading(("setting", "seeds", "ReTune", *(LABELS[k] for k in others), "unrolled, at its best depth"))
    for name, _, rows in found:
        ours = rows["retune"]
        cells = [words(paired(ours.rest, rows[k].rest)) if k in rows else "" for k in others]
        best = words(paired(ours.rest, rows["unrolled"].best))
        line(name, str(len(ours.rest)), f"{mean(ours.rest):.2f}", *cells, best)

    print("\n### Better than Plug-and-Play, both at rest\n")
    heading(("setting", "seeds", "Plug-and-Play", "settled", "ReTune", "settled", "ReTune ahead by", "in all seeds"))
    for name, _, rows in found:
        if "pnp" in rows:
            ours, theirs = rows["retune"], rows["pnp"]
            d = paired(ours.rest, theirs.rest)
            each = " / ".join(f"{v:+.2f}" for v in d.seeds)
            counts = [f"{r.settled} of {r.count}" for r in (theirs, ours)]
            line(
                name,
                str(len(ours.rest)),
                f"{mean(theirs.rest):.2f}",
                counts[0],
                f"{mean(ours.rest):.2f}",
                counts[1],
                words(d),
                each,
            )

    print("\n### Stronger guarantees\n")
    heading(("setting", "method", "settled", "PSNR after K layers", "after 50 K", "change in the last K"))
    for name, _, rows in found:
        for key, r in rows.items():
            if key in ("unrolled", "pnp", "variational", "retune"):
                psnr = [f"{mean(r.after[times]):.2f}" for times in (1, 50)]
                line(name, LABELS[key], f"{r.settled} of {r.count}", *psnr, f"{fmean(r.change):.0e}")


def picture(names: Sequence[str], options: argparse.Namespace) -> None:
    """Write the first test image of each setting, with the first seed: measurement, restorations and truth."""
    shown = ("measurement", "pnp", "unrolled", "implicit", "retune", "truth")
    found = [(name, rows) for name, _, rows in finished(names, options)]
    figure, axes = plt.subplots(len(found), len(shown), figsize=(2.2 * len(shown), 2.5 * len(found)), squeeze=False)
    for (name, rows), line_of_axes in zip(found, axes, strict=True):
        for key, ax in zip(shown, line_of_axes, strict=True):
            path = options.out / name / "0" / "images" / f"0-{key}.png"
            ax.axis("off")
            if path.exists():
                ax.imshow(plt.imread(path), interpolation="nearest")
                score = f", {rows[key].rest[0][0]:.2f} dB" if key in rows else ""
                ax.set_title(f"{LABELS.get(key, key)}{score}", fontsize=8)
        line_of_axes[0].set_title(f"{name}: measurement", fontsize=8)
    figure.tight_layout()
    figure.savefig(options.out / "claims.png", dpi=110)
    CONSOLE.print(options.out / "claims.png")


def heading(columns: Sequence[str]) -> None:
    """Print the head of a table in Markdown."""
    line(*columns)
    print("|---" * len(columns) + "|")


def line(*cells: str) -> None:
    """Print a row of a table in Markdown."""
    print(f"| {' | '.join(cells)} |")


def mean(scores: Sequence[Sequence[float]]) -> float:
    """The mean over images and seeds."""
    return fmean(fmean(v) for v in scores)


def words(d: Difference) -> str:
    """The difference and its interval: bold if ReTune is ahead, slanted if it is behind (see `paired`)."""
    text = f"{d.mean:+.2f} ({d.low:+.2f} to {d.high:+.2f})"
    return f"**{text}**" if d.ahead else f"*{text}*" if d.behind else text


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "tables", "claims", "picture"])
    parser.add_argument("--data", type=Path, help="folder with train, val and test")
    parser.add_argument("--out", type=Path, default=Path("claims"))
    parser.add_argument("--only", nargs="+", choices=sorted(SETTINGS), help="settings (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=4, help="report on every n-th test image")
    parser.add_argument("--crop", type=int, default=96, help="side of the central part of each image")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the time of training")
    options = parser.parse_args()
    if options.what == "run" and options.data is None:
        parser.error("run needs --data FOLDER, with train, val and test in it")
    return options


if __name__ == "__main__":
    main()
