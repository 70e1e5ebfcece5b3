"""Shared fixtures. Tests run on small seeded problems; everything stochastic has a seed of its own."""

from __future__ import annotations

import os
import sys
import warnings

import pytest
import torch

import slow_tests

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what other packages say while they are imported
    import deepinv  # noqa: F401


torch.set_num_threads(1)  # on problems this small, threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for the commands that tests start


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _what_a_file_registers_is_forgotten():
    """No test sees the plug-ins of another file, in whatever order the files are taken."""
    from retune import plugins
    from retune._registry import entries

    known, modules = set(entries._BY_NAME), set(plugins._modules)
    functions, loaded = set(plugins._functions), list(plugins._loaded)
    yield
    for name in set(entries._BY_NAME) - known:
        if not entries._BY_NAME[name].ours:  # ours are registered once, when their module is first imported
            entries._BY_CLASS.pop(entries._BY_NAME.pop(name).cls, None)
    for name in set(plugins._modules) - modules:
        del plugins._modules[name]
        sys.modules.pop(name, None)  # a file that is loaded again registers its classes again
    plugins._functions.intersection_update(functions)
    plugins._loaded[:] = loaded


@pytest.fixture
def float64():
    """Everything that is built inside the test is in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def pytest_collection_modifyitems(config, items):
    slow = slow_tests.listed()
    for item in items:
        file = item.path.relative_to(slow_tests.TESTS.parent).as_posix()
        if (file, item.nodeid.split("[")[0].partition("::")[2]) in slow:
            item.add_marker(pytest.mark.slow)
    if hasattr(config, "workerinput"):
        # Several processes share the tests. Files with slow ones come first, so that all processes end together.
        files = {item.path for item in items if "slow" in item.keywords}
        items.sort(key=lambda item: item.path not in files)
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device, none is here")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
