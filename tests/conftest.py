"""Shared fixtures. Tests run on small seeded problems; everything stochastic has a seed of its own."""

from __future__ import annotations

import os
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
