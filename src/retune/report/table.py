"""The tables in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retune.report.numbers import MISSING, about, best_methods, columns_of, falls, label, remarks, title
from retune.report.palette import EMPHASISED
from retune.report.results import check_results

#: For terminals that cannot show them.
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


def terminal_table(results: dict, console: Console) -> None:
    """Print a table per problem, and whether each claim holds.

    Args:
        results: what ``results.json`` contains.
        console: where to print.

    Raises:
        InvalidParameterError: `results` is not of the expected form.
    """
    check_results(results)
    for name, problem in results["problems"].items():
        console.print()
        console.print(_table(problem, title(problem, name), console))
        for remark in remarks(problem):
            console.print(_text(remark, console, "yellow"))
    if results.get("verdicts"):
        console.print()
        for verdict in results["verdicts"]:
            console.print(_verdict(results, verdict, console))


def _text(text: str, console: Console, look: str = "") -> Text:
    """Text as it is (labels are no markup), in characters that the terminal has."""
    if not console.encoding.lower().startswith("utf"):
        for sign, plain in _ASCII.items():
            text = text.replace(sign, plain)
        text = text.encode(console.encoding, "replace").decode(console.encoding)
    return Text(text, style=look)


def _table(problem: dict, heading: str, console: Console) -> Table:
    table = Table(
        title=_text(f"{heading} (PSNR in dB)", console, "bold"),
        title_justify="left",
        caption=_text(str(problem.get("description") or ""), console, "dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1 if console.width >= 100 else 0),
    )
    table.add_column("\nmethod", overflow="fold", min_width=12)
    columns = columns_of([problem])
    for column in columns:
        short = column.short if "\n" in column.short else f"\n{column.short}"
        table.add_column(_text(short, console), justify="right", overflow="fold", no_wrap=False)
    methods = problem["methods"]
    best = {column.short: best_methods(methods, column) for column in columns}
    for name, method in methods.items():
        cells = [_text(label(method, name), console)]
        for column in columns:
            cells.append(_text(column.text(method), console, "bold" if name in best[column.short] else ""))
            if column.short.startswith("change") and falls(method):
                cells[-1].stylize("bold red")
        table.add_row(*cells, style="cyan" if name == EMPHASISED else "")
    return table


def _verdict(results: dict, verdict: dict, console: Console) -> Text:
    holds = verdict["holds"]
    line = _text("✓ " if holds else "✗ ", console, "bold green" if holds else "bold red")
    where = about(results, verdict)
    line.append(_text(f"{where}: " if where else "", console, "dim"))
    line.append(_text(str(verdict["claim"]), console, "" if holds else "bold red"))
    if verdict.get("detail"):
        line.append(_text(f" ({verdict['detail']})", console, "dim" if holds else "red"))
    return line
