"""What is proved on a ridge regulariser: of a convex and of a weakly convex one, in grey and in colour."""

import pytest
import torch
from deepinv.physics import Denoising, Inpainting
from torch import nn

from retune import Anderson, DataTerm, GradientStep, Picard, Restarted, Stop, certify
from retune.errors import InvalidParameterError
from retune.priors import RED, Ridge
from ridges import trained
from small_parts import rand

SIDE = 9
QUICK = {"iterations": 4, "starts": 1}


def ridge(convexity, channels):
    """Filters and potentials as far from their start as no training takes them."""
    torch.manual_seed(channels)
    features, group = ((3, 5), 1) if channels == 1 else ((3, 6), 3)  # colour: potentials of several variables
    prior = Ridge(channels, features, (3, 2), knots=3, convexity=convexity, group=group)
    trained(prior.filters)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in prior.profile.parameters():
            p += 2 * torch.randn(p.shape, generator=generator).to(p)
    return prior


def inpainting(channels):
    mask = (torch.rand(1, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) > 0.4).double()
    return Inpainting((channels, SIDE, SIDE), mask=mask)


#: operator, λ, ε: strongly convex by A = I (λ leaves room for a weakly convex prior), or by ε
CASES = {
    "by A": (lambda channels: Denoising(), 0.8, 0.0),
    "by ε": (inpainting, 0.4, 0.5),
    "by both": (lambda channels: Denoising(), 1.1, 0.3),
}


@pytest.mark.parametrize("box", [None, (0.2, 0.6)], ids=["free", "box"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("convexity", ["convex", "weakly convex"])
def test_proved_bounds_hold(convexity, channels, case, box, float64):
    make, reg, damping = CASES[case]
    physics = make(channels)
    y = physics.A(0.4 + 0.3 * rand(2, channels, SIDE, SIDE, seed=7))
    owner = GradientStep(ridge(convexity, channels), reg=reg, step_size=0.8, strong_convexity=damping, box=box)
    owner.requires_grad_(False)
    net = Restarted(owner, 4, 1, stop=Stop(0.0, 8)).eval()
    problem = DataTerm(y, physics)
    bound = owner.bind(problem)

    # The reference, and that it is one: for a μ-strongly convex objective ‖x − x*‖ ≤ ‖∇‖/μ where the box is not felt,
    # and ‖T(x) − x‖/(1 − ρ) in any case.
    facts = owner.guarantee(problem)
    rho = float(facts.factors().max())
    assert facts.convex
    assert rho < 1
    exact = Restarted(owner, 4, 1, stop=Stop(1e-13, 40000), solver=Anderson()).eval().solve(y, physics).image
    off = (bound.layer(exact) - exact).flatten(1).norm(dim=1) / (1 - rho)
    assert float(off.max()) < 1e-9

    certificate = certify(net, y, physics, **QUICK)
    u = net.solve(y, physics).image
    a, b = (0.4 + rand(*u.shape, seed=s) for s in (11, 12))
    for i, image in enumerate(certificate):
        assert image.row == f"{convexity} ridge regulariser"
        assert image.rmse.proved.kind == "proved"
        assert image.verdict.startswith("Proved: the image is within")
        true = float((u[i] - exact[i]).norm())
        assert true > 1e-6
        assert true <= image.distance.proved.value + 1e-9
        assert image.distance.proved.value <= 3 * true + 1e-9
        assert true / u[i].numel() ** 0.5 <= image.rmse.proved.value + 1e-9
        for depth, claim in ((1, image.layer_factor), (4, image.block_factor)):
            moved = (bound.block(a, depth) - bound.block(b, depth))[i].norm() / (a - b)[i].norm()
            assert float(moved) <= claim.proved.value
            assert claim.estimated.value <= claim.proved.value * (1 + 1e-9)
        assert image.rate.estimated.value <= image.layer_factor.proved.value
        assert 0 < image.gradient_error.proved.value == pytest.approx(image.block_factor.proved.value)
        assert image.gradient_error.estimated.value <= image.gradient_error.proved.value


def test_every_layer_of_a_cycle_has_a_step_of_its_own_objective(float64):
    """τ_k = 2s_k/L_k with the L of its own λ: what is proved is s_k, not τ_k against the largest of them."""
    physics = inpainting(1)
    y = physics.A(rand(1, 1, SIDE, SIDE))
    owner = GradientStep(ridge("convex", 1), reg=[0.1, 10.0], step_size=[0.9, 0.7], layers=2)
    image = certify(Restarted(owner, 4, 1), y, physics, **QUICK)[0]
    assert image.step_size.proved.value == pytest.approx(0.9)
    assert image.layer_factor.proved.value == pytest.approx(1.0)


@pytest.mark.parametrize("convexity", ["convex", "weakly convex"])
def test_without_strong_convexity_no_contraction_is_proved(convexity, float64):
    physics = inpainting(1)
    y = physics.A(rand(1, 1, SIDE, SIDE))
    image = certify(Restarted(GradientStep(ridge(convexity, 1), reg=0.4), 3, 1), y, physics, **QUICK)[0]
    assert image.distance.proved is image.rmse.proved is image.gradient_error.proved is None
    assert image.strong_convexity == (0.0, "μ is unknown")
    if convexity == "convex":
        assert image.layer_factor.proved.value == pytest.approx(1.0)  # averaged, no contraction
        assert image.statement == "the iterates converge to a minimiser"
    else:
        assert image.layer_factor.proved is image.block_factor.proved is None
        assert image.statement == (
            "with plain steps instead of Inertial, the objective decreases with every layer "
            "(of Inertial nothing is proved)"
        )
        plain = Restarted(GradientStep(ridge(convexity, 1), reg=0.4), 3, 1, solver=Picard())
        image = certify(plain, y, physics, **QUICK)[0]
        assert image.statement == "the objective decreases with every layer"
    assert "no rate is proved" in image.verdict


def test_a_weakly_convex_prior_beyond_its_room_is_not_proved(float64):
    """λ = 1.5 against μ = 1 of denoising: the objective may have several minimisers."""
    facts = {}
    for reg in (0.9, 1.5):
        owner = GradientStep(ridge("weakly convex", 1), reg=reg)
        facts[reg] = owner.guarantee(owner.data_term(rand(1, 1, SIDE, SIDE), Denoising()))
    weak = float(ridge("weakly convex", 1).weak_convexity().detach())
    assert 1.5 * weak > 1 > 0.9 * weak
    assert facts[0.9].convex
    assert facts[0.9].strong_convexity_from == "A, less the weak convexity of the prior"
    assert not facts[1.5].convex
    assert facts[1.5].factors() is None


def test_red_with_a_free_denoiser_is_never_proved(float64):
    class Shrink(nn.Module):
        def forward(self, x, sigma):
            return 0.5 * x

    net = Restarted(GradientStep(RED(Shrink(), sigma=0.1, lipschitz=0.5), strong_convexity=0.5), 3, 2)
    image = certify(net, rand(1, 1, 4, 4), Denoising(), **QUICK)[0]
    bounds = {name for name, claim in image.claims.items() if claim.proved}
    assert bounds == {"step_size"}
    assert image.step_size.proved.kind == "proved if its unchecked assumptions hold"
    assert image.row == "any denoiser"
    assert image.verdict.startswith("Nothing is proved about this map in advance")


def test_added_strong_convexity_is_that_of_the_objective(float64):
    """The equilibrium has no gradient of ``f + λR + ½ε‖·‖²``."""
    physics = inpainting(1)
    y = physics.A(rand(1, 1, SIDE, SIDE))
    owner = GradientStep(ridge("convex", 1), reg=0.4, strong_convexity=0.3).requires_grad_(False)
    x = Restarted(owner, 5, 1, stop=Stop(1e-13, 20000), solver=Anderson()).eval().solve(y, physics).image
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(owner.objective(x, DataTerm(y, physics)).sum(), x)
    assert float(gradient.abs().max()) < 1e-10
    assert owner.describe()["strong_convexity"] == 0.3
    with pytest.raises(InvalidParameterError, match="strong_convexity must be finite and ≥ 0, got -1"):
        GradientStep(ridge("convex", 1), strong_convexity=-1.0)
