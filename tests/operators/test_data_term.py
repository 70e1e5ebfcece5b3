"""The problem: its gradient, and what is refused, with what was given and what to do in the message."""

import pytest
import torch
from deepinv.optim import L2, DataFidelity, LogPoissonLikelihood, PoissonLikelihood
from deepinv.optim.prior import L1Prior
from deepinv.physics import Blur, Denoising, Inpainting, LinearPhysics, Physics
from deepinv.physics.forward import StackedLinearPhysics
from deepinv.utils import TensorList

from retune import DataTerm, FidelityFacts, ForwardBackward
from retune.errors import InvalidParameterError, NotFiniteError, PhysicsError, RetuneError, ShapeError
from small_parts import Rounded, dense, rand


@pytest.mark.parametrize("fidelity", [None, L2(), L2(sigma=0.3)], ids=["none", "L2", "L2(0.3)"])
def test_gradient_is_that_of_the_data_term(fidelity, float64):
    problem = DataTerm(rand(2, 1, 1, 15), dense(rand(15, 12), (1, 3, 4)), fidelity)
    x = rand(2, 1, 3, 4, seed=2).requires_grad_()
    (expected,) = torch.autograd.grad(problem.fn(x).sum(), x)
    torch.testing.assert_close(problem.grad(x), expected)
    assert problem.quadratic
    sigma = 0.3 if fidelity is not None and problem.inverse_variance != 1 else 1.0
    torch.testing.assert_close(problem.lipschitz, problem.sqnorm / sigma**2)


def test_lipschitz_bounds_the_gradient(float64):
    problem = DataTerm(rand(1, 1, 1, 15), dense(rand(15, 12), (1, 3, 4)), L2(sigma=0.5))
    for seed in range(20):
        a, b = rand(1, 1, 3, 4, seed=seed), rand(1, 1, 3, 4, seed=seed + 100)
        assert float((problem.grad(a) - problem.grad(b)).norm()) <= float(problem.lipschitz * (a - b).norm())


def test_other_fidelity_needs_its_constant(float64):
    y, physics = rand(1, 1, 4, 4), Denoising()
    with pytest.raises(InvalidParameterError, match=r"Lipschitz constant of Rounded .*lipschitz="):
        DataTerm(y, physics, Rounded())
    problem = DataTerm(y, physics, Rounded(), lipschitz=3.0)
    assert not problem.quadratic
    assert float(problem.lipschitz) == 3.0
    x = rand(1, 1, 4, 4, seed=1)
    torch.testing.assert_close(problem.grad(x), (x - y) / (1 + (x - y) ** 2).sqrt())
    assert not x.requires_grad  # the caller's tensor is left as it was


def test_stacked_physics(float64):
    physics = StackedLinearPhysics([Denoising(), Inpainting((1, 4, 4), mask=0.5)])
    x = rand(1, 1, 4, 4)
    problem = DataTerm(physics.A(x), physics)
    torch.testing.assert_close(problem.normal(x), physics.A_adjoint(physics.A(x)))
    assert 2 <= float(problem.sqnorm) <= 2 * 1.06


def test_nothing_given_is_modified():
    y = rand(1, 1, 4, 4)
    kept = y.clone()
    physics = Inpainting((1, 4, 4), mask=0.5)
    state = {k: v.clone() for k, v in physics.state_dict().items()}
    problem = DataTerm(y, physics)
    problem.grad(y)
    problem.fn(y)
    assert torch.equal(y, kept)
    assert all(torch.equal(v, physics.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_measurement(bad):
    y = rand(1, 1, 4, 4)
    y[0, 0, 1, 2] = bad
    with pytest.raises(NotFiniteError, match=r"1 of 16 values of the measurement y are NaN or Inf.*mask them"):
        DataTerm(y, Denoising())


def test_not_finite_part_of_a_list():
    physics = StackedLinearPhysics([Denoising(), Denoising()])
    with pytest.raises(NotFiniteError):
        DataTerm(TensorList([rand(1, 1, 4, 4), torch.full((1, 1, 4, 4), float("nan"))]), physics)


def affine(x, **_):
    return x + 1


def saturated(x, **_):
    return x.clamp(-1, 1)


@pytest.mark.parametrize("A", [affine, saturated])
def test_secretly_not_linear(A):
    with pytest.raises(PhysicsError, match=r"LinearPhysics is not linear.*move offsets"):
        DataTerm(rand(1, 1, 4, 4), LinearPhysics(A=A, A_adjoint=lambda y, **_: y))


def test_physics_that_is_not_linear_by_type():
    with pytest.raises(PhysicsError, match=r"deepinv LinearPhysics, got Physics; wrap"):
        DataTerm(rand(1, 1, 4, 4), Physics(A=torch.tanh))
    with pytest.raises(PhysicsError, match="got Conv2d"):
        DataTerm(rand(1, 1, 4, 4), torch.nn.Conv2d(1, 1, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda y, **_: 2 * y,
        lambda y, **_: 1.02 * y,
        lambda y, **_: y.flip(-1),
        lambda y, **_: y.mT,
        lambda y, **_: -y,
        lambda y, **_: 0 * y,
    ],
    ids=["scaled", "2 % too large", "flipped", "transposed", "sign", "zero"],
)
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 3, 128, 128), (2, 3, 256, 256)], ids=str)
def test_wrong_adjoint(wrong, shape):
    """Of small images and of real ones, where independent random images are all but orthogonal."""
    gains = torch.rand(shape[-3:], generator=torch.Generator().manual_seed(0)) + 0.5
    physics = LinearPhysics(A=lambda x, **_: gains * x, A_adjoint=lambda y, **_: wrong(gains * y))
    with pytest.raises(PhysicsError, match=r"not the adjoint.*⟨Aa, Ac⟩.*deepinv derives"):
        DataTerm(torch.randn(shape), physics)


def test_linearity_is_not_called_checked_where_the_norm_is_given():
    physics = LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda y, **_: y)
    owner = ForwardBackward(L1Prior())
    for norm, checked in ((None, True), (1.0, False)):
        linear = owner.guarantee(DataTerm(rand(1, 1, 4, 4), physics, sqnorm=norm)).assumptions[0]
        assert linear.statement == "A is linear, and A_adjoint is its adjoint"
        assert linear.checked is checked


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adjoint_that_is_almost_one_is_not_called_checked(dtype):
    """Wrong in two pixels of 128×128: small on random images, and far above rounding."""
    gains = rand(1, 128, 128, dtype=dtype).abs() + 0.5
    wrong = gains.clone()
    wrong[0, 3, 4:6] *= -1
    for adjoint, checked in ((gains, True), (wrong, False)):
        physics = LinearPhysics(A=lambda x, **_: gains * x, A_adjoint=lambda y, g=adjoint, **_: g * y)
        y = torch.ones(1, 1, 128, 128, dtype=dtype)
        guarantee = ForwardBackward(L1Prior()).guarantee(DataTerm(y, physics))
        linear = guarantee.assumptions[0]
        assert linear.checked is checked, linear
        assert ("more than rounding" in linear.how) is not checked
        assert guarantee.checked is checked


def test_adjoint_that_returns_nan():
    physics = LinearPhysics(A=lambda x, **_: x, A_adjoint=lambda y, **_: y / 0)
    with pytest.raises(NotFiniteError, match="adjoint of the physics is broken"):
        DataTerm(rand(1, 1, 4, 4), physics)


def test_zero_operator():
    with pytest.raises(PhysicsError, match=r"forward operator is zero"):
        DataTerm(rand(1, 1, 4, 4), Inpainting((1, 4, 4), mask=torch.zeros(1, 4, 4)))
    with pytest.raises(PhysicsError, match=r"forward operator is zero"):
        DataTerm(rand(1, 1, 1, 3), dense(torch.zeros(3, 4), (1, 2, 2)))


def test_measurement_of_another_size():
    with pytest.raises(ShapeError, match=r"\(1, 1, 5, 5\) does not fit Inpainting.*physics\(x\)"):
        DataTerm(rand(1, 1, 5, 5), Inpainting((1, 4, 4), mask=0.5))
    with pytest.raises(ShapeError, match=r"\(1, 1, 1, 7\) does not fit LinearPhysics"):
        DataTerm(rand(1, 1, 1, 7), dense(rand(6, 4), (1, 2, 2)))


def test_measurement_that_contradicts_A():
    """The adjoint accepts it, but A would never have made it."""
    physics = LinearPhysics(A=lambda x, **_: x[..., ::2], A_adjoint=lambda y, **_: y)
    with pytest.raises(PhysicsError, match=r"contradicts the measurement.*\(1, 4, 2\).*\(1, 4, 4\)"):
        DataTerm(rand(1, 1, 4, 4), physics)


@pytest.mark.parametrize("channels", [1, 2])
def test_channels_that_do_not_fit_the_mask(channels):
    """A grey measurement must not be silently broadcast to colour."""
    with pytest.raises(RetuneError):
        DataTerm(rand(1, channels, 4, 4), Inpainting((3, 4, 4), mask=0.5))


def test_batch_that_does_not_fit_the_mask():
    mask = (torch.rand(3, 1, 4, 4) > 0.5).float()
    with pytest.raises(RetuneError):
        DataTerm(rand(2, 1, 4, 4), Inpainting((1, 4, 4), mask=mask))
    with pytest.raises(RetuneError):
        DataTerm(rand(1, 1, 4, 4), Inpainting((1, 4, 4), mask=mask))


def test_channels_that_do_not_fit_the_blur():
    with pytest.raises(RetuneError):
        DataTerm(rand(1, 2, 8, 8), Blur(torch.ones(1, 3, 3, 3) / 9, padding="circular"))


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4)])
def test_not_a_batch_of_images(shape):
    with pytest.raises(ShapeError, match=r"\(B, C, H, W\).*missing batch or channel|does not fit"):
        DataTerm(rand(*shape), Denoising())


@pytest.mark.parametrize("y", [None, 3, "y", [], [1, 2]])
def test_not_a_tensor(y):
    with pytest.raises(ShapeError, match=r"must be a tensor \(B, \.\.\.\) or a deepinv TensorList, got"):
        DataTerm(y, Denoising())


def test_empty_batch():
    with pytest.raises(RetuneError):
        DataTerm(torch.zeros(0, 1, 4, 4), Denoising())


def test_mask_not_set():
    with pytest.raises((PhysicsError, ShapeError)):
        DataTerm(rand(1, 1, 4, 4), Blur(None))


@pytest.mark.parametrize(
    "fidelity",
    [
        L2(0.3),
        PoissonLikelihood(gain=0.1, bkg=0.2),
        PoissonLikelihood(gain=3.0, bkg=0.2, denormalize=True),
        LogPoissonLikelihood(N0=50.0, mu=0.5),
    ],
)
def test_the_value_is_that_of_the_gradient_for_each_image(fidelity, float64):
    """deepinv's Poisson fidelity sums over the batch, and its gradient is gain² times that of its value."""
    generator = torch.Generator().manual_seed(0)
    y, x, v = (0.1 + torch.rand(2, 1, 4, 5, generator=generator) for _ in range(3))
    term = DataTerm(y, Denoising(), fidelity)
    assert term.fn(x).shape == (2,)
    slope = (term.fn(x + 1e-5 * v) - term.fn(x - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(slope, (term.grad(x) * v).flatten(1).sum(1), rtol=1e-6, atol=1e-8)


class _OfTheBatch(DataFidelity):
    def fn(self, x, y, physics, *args, **kwargs):
        return 0.5 * (physics.A(x) - y).square().sum()

    def grad(self, x, y, physics, *args, **kwargs):
        return physics.A_adjoint(physics.A(x) - y)

    def facts(self, y):
        return FidelityFacts(lipschitz=1.0)


def test_a_value_of_the_whole_batch_is_refused(float64):
    y = torch.rand(2, 1, 4, 5)
    with pytest.raises(InvalidParameterError, match=r"one value per image, shape \(2,\)"):
        DataTerm(y, Denoising(), _OfTheBatch()).fn(y)
