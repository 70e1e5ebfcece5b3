"""Imports go one way, and everything public is documented."""

import ast
import functools
import importlib.util
import inspect
import subprocess
from pathlib import Path

import pytest

import public_names
from programs import python

ROOT = Path(importlib.util.find_spec("retune").origin).parent
LISTED = public_names.listed()

# A package may import from the rows above it, and not from its equals.
ORDER = [
    {"errors", "_version"},
    {"_files", "_plain", "_terminal", "_torch", "equilibrium", "guarantee", "plugins"},
    {"_registry", "records"},
    {"operators"},
    {"parameters"},
    {"priors", "solvers"},
    {"maps", "solve"},
    {"gradients"},
    {"bound", "_solver_choice"},
    {"auto", "_checkpoint", "_iteration"},
    {"model"},
    {"networks"},
    {"io"},
    {"problems", "data"},
    {"certificate", "diagnosis", "planning"},
    {"training"},
    {"registry"},
    {"config"},
    {"weights"},
    {"_building"},
    {"build"},
    {"instant"},
    {"jobs", "report"},
    {"comparison"},
    {"demo", "studies"},
    {"app"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, row in enumerate(ORDER) for name in row}

FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


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
    return parts[1]


def backward_imports(tree: ast.Module, module: str, is_package: bool = False) -> list[str]:
    package = module if is_package else module.rpartition(".")[0]
    here, found = subject(module), []
    for line, target in imported(tree, package):
        if target == "retune" or not target.startswith("retune."):
            continue
        there = subject(target)
        if there not in RANK:
            there = subject(LISTED.get(there, target))
        if there == "__version__" or there == here:
            continue
        if RANK[there] >= RANK[here]:
            found.append(f"{module}:{line} imports {target}")
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_one_way(path):
    module = module_name(path)
    assert subject(module) in RANK, f"give {subject(module)!r} a place in ORDER"
    assert backward_imports(tree_of(path), module, path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from retune.solve import solve", "retune.maps.base", 1),
        ("def f():\n    import retune.model", "retune.gradients.base", 1),
        ("from ..model import Restarted", "retune.priors.wavelet", 1),
        ("from retune import Restarted", "retune.solvers.base", 1),
        ("from retune.maps import AbstractMap", "retune.solve", 1),
        ("if TYPE_CHECKING:\n    from retune.cli import main", "retune.errors", 0),
        ("from retune.errors import RetuneError", "retune.cli.main", 0),
        ("from . import base", "retune.priors.wavelet", 0),
    ],
)
def test_the_walk_sees_what_it_should(source, module, count):
    assert len(backward_imports(ast.parse(source), module)) == count


def named_modules(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules among those given that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "relative imports are not followed"
            inner = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in modules else node.module for name in inner}
    return found & modules


def test_imports_of_every_form_are_followed():
    text = "import retune.solve\nfrom retune import model\ndef f():\n    from retune.maps.base import AbstractMap"
    known = {"retune.solve", "retune.model", "retune.maps", "retune.maps.base"}
    assert named_modules(ast.parse(text), known) == {"retune.solve", "retune.model", "retune.maps.base"}


def test_no_two_files_import_each_other():
    """Types count too: whoever names another file's type has to be read together with it."""
    modules, edges = {module_name(p) for p in FILES}, {}
    for path in FILES:
        edges[module_name(path)] = named_modules(tree_of(path), modules)

    def reach(module):
        seen, waiting = set(), [module]
        while waiting:
            new = edges[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        return seen

    assert {m: sorted(t for t in reach(m) if m in reach(t)) for m in edges if m in reach(m)} == {}


def test_every_package_can_be_the_first_import():
    """In one process; what is forgotten between two imports is retune alone.

    Packages suffice: without circles of files, the order of imports inside a package does not matter.
    """
    names = sorted({module_name(p) for p in FILES if p.name == "__init__.py"})
    assert len(names) > 15
    script = (
        "import sys, importlib, warnings; warnings.simplefilter('ignore')\n"
        f"for name in {names}:\n"
        "    for known in [m for m in sys.modules if m.split('.')[0] == 'retune']: del sys.modules[known]\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([*python(), "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def definitions(tree: ast.Module):
    """Public classes and functions, and the public methods of public classes; overloads have that of the function."""
    for node in tree.body:
        if "overload" in {d.id for d in getattr(node, "decorator_list", ()) if isinstance(d, ast.Name)}:
            continue
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_everything_public_has_a_docstring(path):
    tree = tree_of(path)
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


#: Where our own classes are asked for, and why there.
ASKED = {
    "certificate/document.py": {"Claim"},  # its fields are claims and others, and only their class tells
    # exceptions and warnings are told apart by their classes
    "cli/errors.py": {"AdjustedWarning", "DoubtfulWarning", "Interrupted", "NotConvergedWarning", "RetuneError"},
    "config/write.py": {"Section"},  # fields and sections of a run, side by side
    "jobs/failures.py": {"RetuneError"},
    "operators/data_term.py": {"Restrictable"},  # a protocol: it asks for a method
    "parameters.py": {"ScalarParameter"},  # modules say in no other way what they are
    "plugins.py": {"RetuneError"},
    "priors/capabilities.py": {"AbstractPrior"},  # deriving from it is how capabilities are declared
}


def classes_asked_for(tree: ast.AST) -> set[str]:
    """The classes in ``isinstance`` and ``issubclass``, ``type(x) is C``, ``type(x) in (C, …)`` and ``case C()``."""
    asked = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("isinstance", "issubclass"):
                asked.append(node.args[1])
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            types = [s for s in sides if isinstance(s, ast.Call) and getattr(s.func, "id", None) == "type"]
            asked += [s for s in sides if s not in types] if types else []
        elif isinstance(node, ast.MatchClass):
            asked.append(node.cls)
    parts = [part for one in asked for part in ast.walk(one)]
    return {p.id for p in parts if isinstance(p, ast.Name)} | {p.attr for p in parts if isinstance(p, ast.Attribute)}


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(x, Known)",
        "isinstance(x, base.Known | int)",
        "issubclass(kind, (int, Known))",
        "type(x) is Known",
        "type(x) in (int, Known)",
        "match x:\n    case Known():\n        pass",
    ],
)
def test_every_question_for_a_class_is_seen(source):
    assert "Known" in classes_asked_for(ast.parse(source))
    assert classes_asked_for(ast.parse("Known(x).is_known and known in Known.all()")) == set()


def test_parts_are_asked_what_they_can_do_and_not_what_class_they_are():
    trees = {path: tree_of(path) for path in FILES}
    ours = {node.name for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    ours -= {"Denoiser", "Denoising"}  # deepinv has these too
    found = {p.relative_to(ROOT).as_posix(): classes_asked_for(tree) & ours for p, tree in trees.items()}
    assert {path: names for path, names in found.items() if names} == ASKED
