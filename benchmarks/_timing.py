"""Interleaved timing, and how the benchmarks report it."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

CONSOLE = Console()


@dataclass(frozen=True)
class Timing:
    """Seconds of each contender in each round; the rounds are paired."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """Median over the rounds of `name` ÷ `reference`: both meet whatever else the machine does in that round."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[reference], strict=True))


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> Timing:
    """Run A B C, then B C A, …: a machine that slows down for a while slows all contenders alike.

    The first round warms up and is dropped.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for r in range(rounds + 1):
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            synchronize(device)
            start = time.perf_counter()
            contenders[name]()
            synchronize(device)
            if r > 0:
                seconds[name].append(time.perf_counter() - start)
    return Timing(seconds)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Column:
    """A comparison with one contender: how many times faster than it, or what share of its time.

    Args:
        against: name of the contender.
        faster: speed-up if True (to be at least `bar`), share if False (to be at most `bar`).
        bar: what is asked for, if anything is.
        only: the comparison is made for contenders whose name starts so.
        asked: the bar holds for contenders whose name starts so; others are compared without one.
        bars: other bars, by problem.
    """

    against: str
    faster: bool
    bar: float | None = None
    only: str = ""
    asked: str = ""
    bars: Mapping[str, float] = field(default_factory=dict)

    @property
    def heading(self) -> str:
        sign = "≥" if self.faster else "≤"
        bar = "" if self.bar is None else f"\n(bar {sign} {self.bar:g}×)"
        others = "".join(f"\n({case}: {sign} {value:g}×)" for case, value in self.bars.items())
        return f"{'faster than' if self.faster else 'time ÷'}\n{self.against}{bar}{others}"

    def ratio(self, timing: Timing, name: str) -> float:
        return timing.ratio(self.against, name) if self.faster else timing.ratio(name, self.against)

    def met(self, ratio: float, name: str, case: str) -> bool | None:
        bar = self.bars.get(case, self.bar)
        if bar is None or not name.startswith(self.asked):
            return None
        return ratio >= bar if self.faster else ratio <= bar


def arguments(description: str | None, **more: dict) -> argparse.Namespace:
    """The options of every benchmark, and ``--name`` with the given keywords of `more`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: a look, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for all contenders (default 1)")
    for name, keywords in more.items():
        parser.add_argument(f"--{name}", **keywords)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


def report(
    title: str,
    cases: Mapping[str, Timing],
    columns: Sequence[Column],
    options: argparse.Namespace,
    *,
    scale: float,
    unit: str,
) -> None:
    """Print the table of medians and ratios, and write them to ``--json``."""
    table = Table(title=f"{title}\n{where(options)}")
    for heading in ("problem", "", f"median\n({unit})", *(c.heading for c in columns)):
        table.add_column(heading, justify="left" if heading in ("problem", "") else "right")
    records = []
    for case, timing in cases.items():
        for name in timing.seconds:
            cells = []
            record = {"problem": case, "contender": name, "median": timing.median(name) * scale, "unit": unit}
            for column in columns:
                if name == column.against or not name.startswith(column.only):
                    cells.append("")
                    continue
                ratio = column.ratio(timing, name)
                met = column.met(ratio, name, case)
                cells.append(f"{ratio:.2f}{verdict(met)}")
                kind = "times faster than" if column.faster else "share of"
                record[f"{kind} {column.against}"] = ratio
            records.append(record)
            table.add_row(case, name, f"{timing.median(name) * scale:.3g}", *cells)
        table.add_section()
    CONSOLE.print(table)
    write(options, title, records)


def verdict(met: bool | None) -> str:
    return {None: "", True: " [green]✓[/]", False: " [red]✗[/]"}[met]


def where(options: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"cpu, {options.threads} thread(s)"
    return f"torch {torch.__version__}, {device}"


def write(options: argparse.Namespace, title: str, records: list[dict]) -> None:
    if options.json:
        content = {"title": title, "where": where(options), "quick": options.quick, "rows": records}
        options.json.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
