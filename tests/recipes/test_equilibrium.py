"""The recipe that trains an energy at its equilibria: its measurements, its gradient, and that it can be resumed."""

from __future__ import annotations

import pytest
import torch
from recipes._pool import conjugate_gradients
from recipes._tasks import KINDS, Measured, draw
from recipes.equilibrium import Trained, implicit_loss, rest

from retune.networks import EnergyNet
from small_parts import rand


def images():
    return [0.5 + 0.2 * rand(1, 40, 44, dtype=torch.float32) for _ in range(3)]


def test_a_measurement_is_what_its_operator_and_its_noise_make():
    m = draw(images(), 48, 32, seed=1, number=3)
    assert {KINDS[k] for k in m.kind.tolist()} == set(KINDS)
    exact = m.mask * torch.fft.irfft2(torch.fft.rfft2(m.clean) * m.kernel, s=(32, 32))
    units = (m.y - exact) / m.noise
    assert float(units[m.kind == 0].std()) == pytest.approx(1, abs=0.03)
    assert float(units[m.kind == 1].std()) == pytest.approx(1, abs=0.03)
    assert bool((m.y[m.mask.expand_as(m.y) == 0] == 0).all())
    assert bool((m.start[m.mask.expand_as(m.y) == 0] != 0).any())
    sums = m.kernel[..., 0, 0].real
    torch.testing.assert_close(sums, torch.ones_like(sums))
    # ⟨AᵀA a, b⟩ = ⟨a, AᵀA b⟩, and Aᵀy of an exact y is AᵀA x
    a, b = rand(48, 1, 32, 32, dtype=torch.float32), rand(48, 1, 32, 32, dtype=torch.float32)
    torch.testing.assert_close((m.normal(a) * b).sum(), (a * m.normal(b)).sum(), rtol=1e-3, atol=1e-2)
    clean = Measured(m.clean, exact, m.start, m.kernel, m.mask, m.noise, m.kind)
    torch.testing.assert_close(clean.adjoint(), clean.normal(m.clean), atol=1e-5, rtol=1e-4)
    same = draw(images(), 48, 32, seed=1, number=3)
    assert torch.equal(m.y, same.y)


@pytest.mark.slow
def test_the_gradient_at_the_equilibrium_is_that_of_finite_differences():
    torch.manual_seed(0)
    net = Trained(EnergyNet(1, (4, 8)).double())
    net.double()
    with torch.no_grad():
        net.table[1:, 2] = 2.0  # a strong energy: the descent is quick
    drawn = draw(images(), 6, 26, seed=2, number=1)
    m = Measured(*(t.to(torch.complex128) if t.is_complex() else t.double() for t in vars(drawn).values()))
    m = Measured(m.clean, m.y, m.start, m.kernel, m.mask, m.noise.clamp_min(0.03), drawn.kind)

    def at_rest(start: torch.Tensor) -> torch.Tensor:
        return rest(net, m, start, 1000, 1e-12)

    x = at_rest(m.start)
    loss, w = implicit_loss(net, m, x, torch.zeros_like(x), 1e-8, 200)
    loss.backward()
    # From the solution, no product is left to do.
    again, _ = implicit_loss(net, m, x, w, 1e-6, 0)
    torch.testing.assert_close(again, loss)
    for parameter, index in ((net.table, (1, 2)), (net.energy.head.weight, (0, 1, 1, 1))):
        assert parameter.grad is not None
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                parameter[index] += step
                values.append(((at_rest(x) - m.clean).square() * m.weight()).mean())
                parameter[index] -= step
        measured = float(values[0] - values[1]) / 2e-3
        assert float(parameter.grad[index]) == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_conjugate_gradients_stop_where_the_matrix_is_not_positive():
    scale = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]]).reshape(2, 1, 1, 3)
    b = torch.ones(2, 1, 1, 3)
    b[1] = torch.tensor([0.1, 1.0, 0.1])  # its first direction has negative curvature
    x = conjugate_gradients(lambda p: scale * p, b, torch.zeros_like(b), 1e-6)
    torch.testing.assert_close(x[0], (b / scale)[0])
    assert bool((x[1] == 0).all())
