"""``python -m retune``."""

from retune.cli.main import app

app(prog_name="retune")
