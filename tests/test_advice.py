"""Messages that Python and the command line share: the advice is in the words of the reader."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import retune
from commands import invoke
from retune.errors import NotFiniteError, advice, on_command_line, told_to_command


def test_advice_is_for_the_command_line_only_within_a_command():
    assert advice("sigma=0.1", "--sigma 0.1") == "sigma=0.1"
    with told_to_command():
        assert on_command_line()
        assert advice("sigma=0.1", "--sigma 0.1") == "--sigma 0.1"
        with told_to_command(False):
            assert advice("a", "b") == "a"
    assert not on_command_line()
    with pytest.raises(ValueError, match="x"), told_to_command():
        raise ValueError("x")
    assert not on_command_line()


def test_missing_values_are_masked_by_an_option_or_in_python(tmp_path):
    y = torch.rand(1, 1, 32, 32)
    y[..., 3, 3] = float("nan")
    problem = retune.problems.denoise(0.1)
    net = retune.Restarted(retune.ForwardBackward(retune.priors.WaveletL1("db2", 2)))
    with pytest.raises(NotFiniteError, match=r"deepinv\.physics\.Inpainting"):
        net.solve(y, problem.operator(y))
    with told_to_command(), pytest.raises(NotFiniteError, match="--problem inpaint --mask FILE"):
        net.solve(y, problem.operator(y))


def test_doctor_names_its_options(tmp_path):
    y = np.linspace(20, 240, 48)[:, None] + 10 * np.random.default_rng(0).normal(size=(48, 48))
    np.save(tmp_path / "y.npy", y.astype(np.float32))
    physics = retune.problems.denoise(0.1).operator(torch.zeros(1, 1, 48, 48))
    y = torch.from_numpy(np.load(tmp_path / "y.npy"))[None, None]
    assert "Divide y by 255" in " ".join(str(retune.doctor(physics, y)).split())
    result, text = invoke("doctor", tmp_path / "y.npy", "-p", "denoise", "--sigma", 0.1, lines=40)
    assert result.exit_code == 1
    text = " ".join(text.split())
    assert "--white 255" in text
    assert "Divide y" not in text
    assert "(--sigma)" in text
