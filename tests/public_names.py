"""The public names: those of the stub `retune/__init__.pyi`, and those that the documentation writes out."""

import ast
import importlib.util
import re
from pathlib import Path

ROOT = Path(importlib.util.find_spec("retune").origin).parent
REPOSITORY = Path(__file__).parent.parent
_WRITTEN = re.compile(r"(?<![\w./@-])retune((?:\.[A-Za-z_]\w*)+)")


def listed() -> dict[str, str]:
    """Name -> the module that it comes from, for every name of the stub."""
    found = {}
    for node in ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.name] = f"retune.{node.module or alias.name}"
    return found


def modules() -> set[str]:
    """The modules and packages in the folder of retune whose names have no underscore in front."""
    return {p.stem for p in ROOT.iterdir() if (p.suffix == ".py" or (p / "__init__.py").is_file()) and p.stem[0] != "_"}


def documented() -> list[str]:
    """Every dotted name `retune.…` in the README and in docs/."""
    texts = [p.read_text(encoding="utf-8") for p in (REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md"))]
    return sorted({match.group(1)[1:] for text in texts for match in _WRITTEN.finditer(text)})
