"""The prox of a quadratic data term: against dense linear algebra, with its derivative and its stated accuracy."""

import pytest
import torch
from deepinv.optim import L2
from deepinv.physics import MRI, Blur, BlurFFT, Denoising, Downsampling, Inpainting, LinearPhysics
from deepinv.physics.forward import StackedLinearPhysics

from retune import DataTerm, NoiseWeighted
from retune.errors import InvalidParameterError
from small_parts import Rounded, as_matrix, dense, rand

SHAPE = (2, 6, 8)


def kernel(*size):
    k = rand(1, 1, *size, seed=3).abs()
    return k / k.sum()


def mask(channels=1):
    return rand(1, channels, *SHAPE[1:], seed=4).sigmoid()


def physics_of(name):
    if name == "mri":
        return MRI(mask=(rand(1, 2, *SHAPE[1:], seed=4)[:, :1] > -0.5).to(torch.get_default_dtype()), img_size=SHAPE)
    return {
        "denoising": lambda: Denoising(),
        "mask": lambda: Inpainting(SHAPE, mask=mask()),
        "masks": lambda: Inpainting(SHAPE, mask=torch.cat([mask(2), 2 * mask(2)])),
        "fft blur": lambda: BlurFFT(SHAPE, filter=kernel(3, 3)),
        "circular": lambda: Blur(kernel(3, 4), padding="circular"),
        "valid": lambda: Blur(kernel(3, 4), padding="valid"),
        "subsampling": lambda: Downsampling(img_size=SHAPE, filter=None, factor=2),
        "superres": lambda: Downsampling(img_size=SHAPE, filter=kernel(4, 4), factor=2, padding="circular"),
        "dense": lambda: dense(rand(40, 96, seed=5) / 10, SHAPE),
        "stacked": lambda: StackedLinearPhysics([Denoising(), Inpainting(SHAPE, mask=mask())]),
    }[name]()


EXACT = ["denoising", "mask", "masks", "fft blur", "circular", "subsampling", "mri"]
ITERATED = ["valid", "superres", "dense", "stacked"]


def expected(term, v, gamma):
    """(I + γN)⁻¹(v + γc) with dense matrices, for each image, from the gradient of f alone."""
    offset = term.grad(torch.zeros_like(v))
    found = []
    for i in range(len(v)):
        columns = torch.eye(v[0].numel()).reshape(-1, 1, *SHAPE)
        place = torch.zeros_like(v)
        rows = []
        for column in columns:
            at = place.clone()
            at[i] = column[0]
            rows.append((term.grad(at) - offset)[i].flatten())
        system = torch.eye(len(rows)) + float(gamma.expand(len(v), 1, 1, 1)[i]) * torch.stack(rows, 1)
        right = (v - gamma * offset)[i].flatten()
        found.append(torch.linalg.solve(system, right).reshape(SHAPE))
    return torch.stack(found)


@pytest.mark.parametrize("name", [*EXACT, *ITERATED])
def test_it_is_that_of_dense_linear_algebra(name, float64):
    physics = physics_of(name)
    term = DataTerm(physics.A(rand(2, *SHAPE)), physics, L2(sigma=0.7))
    v = rand(2, *SHAPE, seed=8)
    for gamma in (torch.tensor(0.3), torch.tensor([0.5, 20.0]).reshape(2, 1, 1, 1)):
        prox = term.prox_at(gamma)
        assert prox.exact is (name in EXACT)
        torch.testing.assert_close(prox(v), expected(term, v, gamma), rtol=0, atol=1e-10)
        torch.testing.assert_close(term.prox(v, gamma), prox(v), rtol=0, atol=0)


@pytest.mark.parametrize("physics", ["denoising", "dense", "valid"])
def test_weighted_squares_have_one_too(physics, float64):
    physics = physics_of(physics)
    y = physics.A(rand(2, *SHAPE)).abs() + 0.1
    term = DataTerm(y, physics, NoiseWeighted(gain=0.1, read=0.1))
    v, gamma = rand(2, *SHAPE, seed=8), torch.tensor(0.05)
    torch.testing.assert_close(term.prox(v, gamma), expected(term, v, gamma), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["valid", "superres"])
@pytest.mark.parametrize("gamma", [0.1, 1.0, 300.0])
def test_the_stated_accuracy_is_kept_in_float32(name, gamma):
    """Against the same solve in float64; and the iterations end before their bound, which is not just a ceiling."""
    physics = physics_of(name)
    y, v = physics.A(rand(3, *SHAPE)), rand(3, *SHAPE, seed=8)
    term = DataTerm(y, physics)
    prox = term.prox_at(torch.tensor(gamma))
    calls = []
    prox._normal = lambda x, normal=prox._normal: (calls.append(1), normal(x))[1]
    found = prox(v)
    assert found.dtype == torch.float32
    assert 1 < len(calls) <= prox.most + 1
    right = v + gamma * term.adjoint_y
    truth = DataTerm(y.double(), physics.double()).prox(v.double(), gamma)
    error = (found - truth).flatten(1).norm(dim=1)
    # rounding of the residual grows with the condition number
    allowed = (prox.accuracy + 8 * torch.finfo(torch.float32).eps * (1 + gamma)) * right.flatten(1).norm(dim=1)
    assert bool((error <= allowed).all()), (error / right.flatten(1).norm(dim=1)).tolist()


def test_an_image_does_not_depend_on_the_others_of_its_batch():
    physics = physics_of("valid")
    y, v = physics.A(rand(2, *SHAPE)), rand(2, *SHAPE, seed=8)
    easy = torch.cat([v, torch.zeros_like(v)])
    both = DataTerm(torch.cat([y, torch.zeros_like(y)]), physics).prox(easy, 3.0)
    torch.testing.assert_close(both[:2], DataTerm(y, physics).prox(v, 3.0), rtol=1e-6, atol=1e-6)
    assert not both[2:].any()


@pytest.mark.parametrize("name", ["mask", "circular", "valid", "dense"])
def test_its_derivative_is_that_of_finite_differences(name, float64):
    """In v, γ and y; and once more, as the products with a Jacobian need it."""
    physics = physics_of(name)
    y = physics.A(rand(2, *SHAPE)).requires_grad_()
    v = rand(2, *SHAPE, seed=8).requires_grad_()
    gamma = torch.tensor([0.6, 2.0]).reshape(2, 1, 1, 1).requires_grad_()

    def prox(v, gamma, y):
        return DataTerm(y, physics, L2(sigma=0.8)).prox(v, gamma)

    assert torch.autograd.gradcheck(prox, (v, gamma, y), atol=1e-7, rtol=1e-5, fast_mode=True)
    assert torch.autograd.gradgradcheck(prox, (v, gamma, y), atol=1e-6, rtol=1e-4, fast_mode=True)


def test_the_derivative_covers_a_learned_operator(float64):
    factor = rand(30, 96, seed=5).div(8).requires_grad_()

    def prox(factor):
        physics = LinearPhysics(
            A=lambda x, **_: (x.flatten(1) @ factor.T)[:, None, None],
            A_adjoint=lambda y, **_: (y.flatten(1) @ factor).unflatten(1, SHAPE),
        )
        return DataTerm(rand(1, 1, 1, 30), physics, sqnorm=4.0).prox(rand(1, *SHAPE, seed=8), 1.3)

    assert torch.autograd.gradcheck(prox, (factor,), atol=1e-7, rtol=1e-5, fast_mode=True)


def test_it_can_be_transformed(float64):
    """jacrev batches the backward pass, where no value can decide when to stop."""
    physics = physics_of("valid")
    term = DataTerm(physics.A(rand(1, *SHAPE)), physics)
    jacobian = torch.func.jacrev(lambda v: term.prox(v, 0.7))(rand(1, *SHAPE, seed=8)).reshape(96, 96)
    expected = torch.linalg.inv(torch.eye(96) + 0.7 * as_matrix(term.normal, SHAPE))
    torch.testing.assert_close(jacobian, expected, rtol=0, atol=1e-9)


def test_the_prox_of_some_images(float64):
    physics = physics_of("masks")
    term = DataTerm(physics.A(rand(2, *SHAPE)), physics)
    v = rand(2, *SHAPE, seed=8)
    part = term.select(torch.tensor([1]))
    assert part is not None
    torch.testing.assert_close(part.prox(v[1:], 2.0), term.prox(v, 2.0)[1:])


def test_a_fidelity_without_one_is_refused():
    term = DataTerm(rand(1, 1, 4, 4), Denoising(), Rounded(), lipschitz=1.0)
    assert not term.has_prox
    with pytest.raises(InvalidParameterError, match=r"known for least squares .*, got Rounded; .*affine=True"):
        term.prox(rand(1, 1, 4, 4))
