"""The list `slow.txt`: the tests that are marked `slow`, by measured time.

As a program it measures again: ``pytest -n 0 -vv --durations=0 > report.txt``, then
``python tests/slow_tests.py report.txt``. Tests that the report does not name stay as they are.
"""

import re
import sys
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
#: Seconds that a test may take in a quick run, with all its parameters and its fixtures.
LIMIT = 0.1
_LINE = re.compile(r"([\d.]+)s (?:setup|call|teardown) +(\S+?\.py)::([^\[\s]+)")


def listed() -> set[tuple[str, str]]:
    """Pairs (file, test); a test in a class is written `Class::test`."""
    pairs, file = set(), ""
    for line in (TESTS / "slow.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith(" "):
            pairs.add((file, line.strip()))
        else:
            file = line.strip()
    return pairs


def measured_again(report: str, before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """The list after a report of ``pytest --durations=0``."""
    seconds = Counter()
    for time, file, test in _LINE.findall(report):
        seconds[file, test] += float(time)
    return {pair for pair in before if pair not in seconds} | {p for p, s in seconds.items() if s > LIMIT}


def write(pairs: set[tuple[str, str]]) -> None:
    """Write the list. The comment above it stays."""
    path = TESTS / "slow.txt"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for file in sorted({file for file, _ in pairs}):
        lines += ["", file, *(f"    {test}" for test in sorted(test for of, test in pairs if of == file))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(measured_again(Path(sys.argv[1]).read_text(encoding="utf-8"), listed()))
