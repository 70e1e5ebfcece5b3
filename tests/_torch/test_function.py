"""Functions with derivatives of their own: the same through every door, recorded or not."""

import pytest
import torch
from torch.autograd import forward_ad

from retune._torch.function import Function


class Cube(Function):
    """x³, with a derivative that shows by its sign that it is used: −3x²."""

    calls = 0

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        Cube.calls += 1
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return -3 * x**2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return -3 * x**2 * tangent


def test_nothing_is_recorded_where_nothing_is_differentiated():
    before, x = Cube.calls, torch.tensor([2.0], requires_grad=True)
    with torch.no_grad():
        assert Cube.run(x).item() == 8
    assert Cube.calls == before
    assert Cube.run(x).item() == 8
    assert Cube.calls == before + 1


@pytest.mark.parametrize("recorded", [True, False])
def test_its_own_derivative_in_every_mode(recorded):
    x = torch.tensor([2.0])
    (slope,) = torch.autograd.grad(Cube.run(y := x.clone().requires_grad_()), y)
    assert slope.item() == -12
    with torch.set_grad_enabled(recorded):
        assert torch.func.jvp(Cube.run, (x,), (torch.ones(1),))[1].item() == -12
        assert torch.func.grad(lambda t: Cube.run(t).sum())(x).item() == -12
        with forward_ad.dual_level():
            dual = Cube.run(forward_ad.make_dual(x, torch.ones(1)))
            assert forward_ad.unpack_dual(dual).tangent.item() == -12
