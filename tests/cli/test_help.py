"""``--help`` is instant, and shows worked examples for every verb."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from retune.cli.main import app

VERBS = [c.name for c in app.registered_commands]
HEAVY = ("torch", "numpy", "deepinv", "rich", "PIL", "tifffile", "matplotlib", "lightning_fabric")


@pytest.mark.parametrize("arguments", [[], *([v] for v in VERBS)], ids=lambda a: " ".join(["retune", *a]))
def test_help_imports_nothing_heavy(arguments):
    """What makes it fast is counted, not timed: timings on a busy machine say little."""
    heavy = HEAVY if arguments else (*HEAVY, "pydantic")  # recent typers load it for the options of a verb
    code = (
        "import sys; from typer.testing import CliRunner; from retune.cli.main import app;"
        f"r = CliRunner().invoke(app, {[*arguments, '--help']}); assert r.exit_code == 0, r.output;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_two_worked_examples(verb):
    text = CliRunner().invoke(app, [verb, "--help"]).output
    shown = text[text.index("Examples:") :]
    commands = [line.strip() for line in shown.splitlines() if line.strip().startswith(f"retune {verb}")]
    assert len(commands) >= 2
    assert "--debug" in text


def test_every_verb_is_listed_with_a_line_of_its_own():
    text = CliRunner().invoke(app, ["--help"]).output
    for verb in VERBS:
        assert f"\n  {verb} " in text


def test_no_argument_shows_the_help():
    assert "Usage" in CliRunner().invoke(app, []).output


@pytest.mark.parametrize("arguments", [["trian"], ["demo", "--prolbem", "x"]])
def test_a_misspelt_verb_or_option_is_one_message(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_threads_wait_without_spinning_and_that_is_said_before_torch_is_loaded(given):
    """What the user has set is kept."""
    code = (
        "import os, sys; from typer.testing import CliRunner; from retune.cli.main import app;"
        "CliRunner().invoke(app, ['--version']); print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == [given or "PASSIVE", "False"]
