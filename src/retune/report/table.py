"""The tables in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retune.records import Methods, ProblemResult, Results, Verdict
from retune.report.numbers import (
    MISSING,
    Column,
    about,
    best_methods,
    columns_of,
    label,
    remarks,
    title,
    winners,
)

#: Replacements for terminals that cannot show some characters.
_ASCII = {
    "✓": "[ok]",
    "✗": "[FAILS]",
    MISSING: "-",
    "−": "-",
    "×": "x",
    "·": "*",
    "λ": "lambda",
    "∞": "inf",
    "≤": "<=",
    "≈": "~",
    "⁻": "^-",
}
_ASCII |= dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))


def terminal_table(results: Results, console: Console) -> None:
    """Print a table for each problem, and whether each claim holds.

    Args:
        results: the results.
        console: where to print.
    """
    for name, problem in results.problems.items():
        console.print()
        for table in _tables(problem, title(problem, name), console):
            console.print(table)
        for remark in remarks(problem):
            console.print(_text(remark, console, "yellow"))
    if results.verdicts:
        console.print()
        for verdict in results.verdicts:
            console.print(_verdict(results, verdict, console))


def _text(text: str, console: Console, look: str = "") -> Text:
    """Literal text (labels are not markup), in characters that the terminal supports."""
    if not console.encoding.lower().startswith("utf"):
        for sign, plain in _ASCII.items():
            text = text.replace(sign, plain)
        text = text.encode(console.encoding, "replace").decode(console.encoding)
    return Text(text, style=look)


def _tables(problem: ProblemResult, heading: str, console: Console) -> list[Table]:
    """One table, or several if the terminal is narrow. Each contains all methods."""
    methods = problem.methods
    names = {name: _text(label(method, name), console) for name, method in methods.items()}
    padding = 1 if console.width >= 100 else 0
    room = console.width - max(12, *(n.cell_len for n in names.values())) - padding
    parts = _that_fit(columns_of([*methods.values()]), methods, room, 1 + padding)  # rich adds a space to the padding
    tables, winning = [], winners(methods)
    for number, columns in enumerate(parts):
        table = Table(
            title=None if number else _text(f"{heading} (PSNR in dB)", console, "bold"),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, padding),
        )
        table.add_column("\nmethod", overflow="fold", min_width=12)
        for column in columns:
            short = column.short if "\n" in column.short else f"\n{column.short}"
            table.add_column(_text(short, console), justify="right", overflow="fold", no_wrap=False)
        best = {column.short: best_methods(methods, column) for column in columns}
        for name, method in methods.items():
            cells = [names[name].copy()]
            for column in columns:
                cells.append(_text(column.text(method), console, "bold" if name in best[column.short] else ""))
                if column.alarming(method):
                    cells[-1].stylize("bold red")
            table.add_row(*cells, style="cyan" if name in winning else "")
        tables.append(table)
    tables[-1].caption = _text(problem.description or "", console, "dim")
    return tables


def _that_fit(columns: Sequence[Column], methods: Methods, room: int, between: int) -> list[list[Column]]:
    """The columns in groups. A group has as many columns as fit, at least one."""
    parts: list[list[Column]] = [[]]
    left = room
    for column in columns:
        width = between + max([*map(len, column.short.split("\n")), *(len(column.text(m)) for m in methods.values())])
        if width > left and parts[-1]:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= width
    return parts


def _verdict(results: Results, verdict: Verdict, console: Console) -> Text:
    holds = verdict.holds
    line = _text("✓ " if holds else "✗ ", console, "bold green" if holds else "bold red")
    where = about(results, verdict)
    line.append(_text(f"{where}: " if where else "", console, "dim"))
    line.append(_text(verdict.claim, console, "" if holds else "bold red"))
    if verdict.detail:
        line.append(_text(f" ({verdict.detail})", console, "dim" if holds else "red"))
    return line
