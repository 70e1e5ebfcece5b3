"""The list of slow tests names tests that exist, and leaves some of every package to a quick run."""

import ast
import functools

import public_names
import slow_tests

FILES = list(slow_tests.TESTS.rglob("test_*.py"))


@functools.cache
def definitions_in(path):
    """Names of the tests of a file, those in a class as `Class::test`; and whether each has the marker itself."""
    return list(_definitions_in(path))


def _definitions_in(path):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inside = node.body if isinstance(node, ast.ClassDef) else [node]
        before = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        for test in inside:
            if isinstance(test, ast.FunctionDef) and test.name.startswith("test"):
                yield before + test.name, any("mark.slow" in ast.unparse(d) for d in test.decorator_list)


def relative(path):
    return path.relative_to(slow_tests.TESTS.parent).as_posix()


def test_every_entry_is_a_test():
    existing = {(relative(path), name) for path in FILES for name, _ in definitions_in(path)}
    assert sorted(slow_tests.listed() - existing) == []


def test_every_package_has_quick_tests():
    """The folder tests/PACKAGE, or tests/test_MODULE.py, has tests that a quick run takes."""
    tests = {(relative(path), name) for path in FILES for name, marked in definitions_in(path) if not marked}
    quick = {file for file, _ in tests - slow_tests.listed()}
    tested = {part for path in quick for part in (path.split("/")[1], path.split("/")[-1][5:-3])}
    # The first three are tested through the command line, the others wherever their objects are raised or returned.
    through_others = {"demo", "plugins", "records", "equilibrium", "errors", "guarantee"}
    assert sorted(public_names.modules() - tested - through_others) == []


def test_the_list_is_applied(request):
    listed = slow_tests.listed()
    for item in request.session.items:
        if (relative(item.path), item.nodeid.split("[")[0].partition("::")[2]) in listed:
            assert item.get_closest_marker("slow"), item.nodeid


REPORT = """
============ slowest durations ============
0.10s call     tests/a/test_b.py::test_often[one two]
0.05s setup    tests/a/test_b.py::test_often[3]
0.10s call     tests/a/test_b.py::Class::test_seldom[1]
0.01s call     tests/test_c.py::test_that_became_quick
"""


def test_the_list_is_measured_again():
    before = {("tests/test_c.py", "test_that_became_quick"), ("tests/test_d.py", "test_that_did_not_run")}
    after = {("tests/a/test_b.py", "test_often"), ("tests/test_d.py", "test_that_did_not_run")}
    assert slow_tests.measured_again(REPORT, before) == after
