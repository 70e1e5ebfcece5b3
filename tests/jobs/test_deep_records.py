"""Records in the folder of a stranger may be nested without end: one sentence, and no traceback."""

from __future__ import annotations

import pytest

from retune.comparison.ledger import Ledger
from retune.errors import RetuneError
from retune.jobs.folder import FACTS, facts_of
from retune.jobs.tune import earlier
from retune.records import Results

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (FACTS, lambda folder: facts_of(folder)),
        (FACTS, lambda folder: earlier(folder)),
        ("results.json", lambda folder: Results.read(folder)),
        ("progress.json", lambda folder: Ledger(folder / "progress.json", {}, True)),
    ],
    ids=["a run", "a tune", "results", "a comparison"],
)
def test_nesting_without_end_is_named(name, read, tmp_path):
    (tmp_path / name).write_text(DEEP)
    with pytest.raises(RetuneError):
        read(tmp_path)
