"""Imports go one way, and everything public is documented."""

import ast
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(importlib.util.find_spec("retune").origin).parent

# A module may import from its own row and the rows above it.
ORDER = [
    {
        "errors",
        "_version",
        "_allocator",
        "_autograd",
        "_function",
        "_memory",
        "equilibrium",
        "_restrict",
        "_blur",
        "_fill",
        "_operator",
        "problem",
        "guarantee",
    },
    {"maps", "priors"},
    {"solvers"},
    {"solve"},
    {"gradients"},
    {"_local", "_checkpoint", "_processes", "_states", "dial", "model"},
    {"networks"},
    {"certificate", "diagnosis", "planning", "training", "problems", "data", "io"},
    {"config", "registry"},
    {"weights"},
    {"build"},
    {"recipes"},
    {"compare", "demo", "jobs", "report"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}
# Within the first row: facts, then the operator, then the problem.
FIRST = [
    "_version",
    "errors",
    "_memory",
    "_allocator",
    "_autograd",
    "_function",
    "equilibrium",
    "_restrict",
    "_blur",
    "_fill",
    "_operator",
    "problem",
    "guarantee",
]

FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def typing_only(node: ast.If) -> bool:
    return "TYPE_CHECKING" in {n.id for n in ast.walk(node.test) if isinstance(n, ast.Name)}


def imported(tree: ast.AST, package: str):
    """(line, module) of every import of retune, inside functions too, except under TYPE_CHECKING."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and typing_only(node):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base]).rstrip(".")
            if base == "retune":
                yield from ((node.lineno, f"retune.{a.name}") for a in node.names)
            else:
                yield node.lineno, base
        waiting.extend(ast.iter_child_nodes(node))


def subject(module: str) -> str:
    parts = module.split(".")
    # the scripts that train the weights stand on everything that builds a network
    return "recipes" if parts[1:3] == ["training", "recipes"] else parts[1]


def backward_imports(source: str, module: str, is_package: bool = False) -> list[str]:
    package = module if is_package else module.rpartition(".")[0]
    here, found = subject(module), []
    for line, target in imported(ast.parse(source), package):
        if target == "retune" or not target.startswith("retune."):
            continue
        there = subject(target)
        if there not in RANK:
            import retune

            there = subject(retune._WHERE[there]) if there in retune._WHERE else there
        if there == "__version__" or there == here:
            continue
        later = RANK[there] > RANK[here]
        within_first = RANK[there] == RANK[here] == 0 and FIRST.index(there) > FIRST.index(here)
        if later or within_first:
            found.append(f"{module}:{line} imports {target}")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    module = module_name(path)
    assert subject(module) in RANK, f"give {subject(module)!r} a place in ORDER"
    assert backward_imports(path.read_text(), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from retune.solve import solve", "retune.maps.base", 1),
        ("def f():\n    import retune.model", "retune.gradients.base", 1),
        ("from ..model import Restarted", "retune.priors.wavelet", 1),
        ("from retune import Restarted", "retune.solvers.base", 1),
        ("from retune.problem import Problem", "retune._operator", 1),
        ("if TYPE_CHECKING:\n    from retune.cli import main", "retune.errors", 0),
        ("from retune.errors import RetuneError", "retune.cli.main", 0),
        ("from . import base", "retune.priors.wavelet", 0),
    ],
)
def test_the_walk_sees_what_it_should(source, module, count):
    assert len(backward_imports(source, module)) == count


def test_every_package_can_be_the_first_import():
    """One fresh process; what is forgotten between two imports is retune alone."""
    names = sorted({module_name(p) for p in FILES if p.name != "__main__.py"})
    script = (
        "import sys, importlib, warnings; warnings.simplefilter('ignore')\n"
        f"for name in {names}:\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] == 'retune']: del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def definitions(tree: ast.Module):
    """Public classes and functions, and the public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_everything_public_has_a_docstring(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module itself"
    assert [name for name, node in definitions(tree) if not ast.get_docstring(node)] == []


def test_every_exception_can_be_caught_both_ways():
    from retune import errors

    kinds = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.RetuneError)]
    assert len(kinds) > 5
    for kind in kinds:
        if kind is not errors.RetuneError:
            builtin = [b for b in kind.__mro__ if b.__module__ == "builtins" and b not in (Exception, object)]
            assert builtin, kind
        assert str(kind("a message")) == "a message"


def test_importing_the_package_does_not_load_torch():
    """`retune --help` must not wait for it."""
    code = "import sys, retune; print(retune.__version__); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
