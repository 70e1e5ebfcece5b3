"""The list `slow.txt`: the tests that are marked `slow`, by measured time."""

from pathlib import Path

TESTS = Path(__file__).parent


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
