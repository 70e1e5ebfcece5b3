"""Several processes: what the others say when one of them has ended."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from retune.errors import ProcessLostError
from retune.training.devices import other_processes

TWO = SimpleNamespace(world_size=2, global_rank=1)


@pytest.mark.parametrize(
    "told",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
        "NCCL error: remote process exited or there was a network error",
        "Broken pipe",
    ],
)
def test_a_lost_process_is_one_sentence(told):
    with (
        pytest.raises(ProcessLostError, match=r"process 1 of 2 stopped .*--resume .*in my-run"),
        other_processes(TWO, "my-run"),
    ):
        raise RuntimeError(told)
    with pytest.raises(ProcessLostError, match="start again"), other_processes(TWO, None):
        raise RuntimeError(told)


def test_other_errors_are_left_as_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), other_processes(TWO, "my-run"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    alone = SimpleNamespace(world_size=1, global_rank=0)
    with pytest.raises(RuntimeError, match="Broken pipe"), other_processes(alone, "my-run"):
        raise RuntimeError("Broken pipe")
