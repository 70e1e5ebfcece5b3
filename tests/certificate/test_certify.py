"""What a certificate says of which map, and in which words; the bounds themselves are in test_bounds.py."""

import json
from dataclasses import replace

import pytest
import torch
from deepinv.optim.prior import L1Prior, ZeroPrior
from deepinv.physics import Denoising, Inpainting
from torch import nn

from known_answers import quadratic, untied
from retune import (
    Anderson,
    DataTerm,
    ForwardBackward,
    GradientStep,
    Implicit,
    Picard,
    Restarted,
    Status,
    Stop,
    Truncated,
    Unrolled,
    certify,
)
from retune.certificate.quick import certificate_of
from retune.errors import CutGradientError, InvalidParameterError, ShapeError
from retune.maps.base import AbstractMap
from retune.maps.linearised import Linearised, spectral_norm, spectral_radius
from retune.weights import load
from small_parts import Transparent, rand

QUICK = {"iterations": 5, "starts": 2}


class Halved(nn.Module):
    """A smooth layer, not the prox of anything convex."""

    def forward(self, v):
        return 0.5 * v + 0.2 * torch.sin(v)


def denoiser_net(depth=4, **options):
    return Restarted(ForwardBackward(Transparent(Halved()), step_size=0.3), depth, 2, **options)


def test_a_free_denoiser_is_never_proved(float64):
    certificate = certify(denoiser_net(), rand(2, 1, 4, 4), Denoising(), **QUICK)
    for image in certificate:
        numbers = [n for claim in image.claims.values() for n in claim.numbers]
        bounds = {name for name, claim in image.claims.items() if claim.proved}
        assert bounds == {"step_size"}  # a fact of the map, from which nothing follows here
        assert {n.kind for n in numbers} >= {"estimated", "measured"}
        assert image.row == "any denoiser"
        assert image.statement == ""
        assert image.verdict.startswith("Nothing is proved about this map in advance; estimated:")


def test_a_step_that_depends_on_the_measurement_only_is_proved(float64):
    """With A = I and τ = 1/L a layer is D(y) for any state: one layer restores, and none is needed to certify it."""
    step = ForwardBackward(Transparent(Halved()), step_size=0.5, learn_step_size=False)
    net = Restarted(step, 1, 1, stop=Stop(1e-9, 5)).eval()
    y, calls, physics = rand(1, 1, 4, 4), [], Denoising()
    bound = net.bind(y, physics)
    found = net.solve(y, physics, bound=bound)
    torch.testing.assert_close(found.image, Halved()(y))
    net.map.priors[0]._function.register_forward_hook(lambda *_: calls.append(1))
    image = certificate_of(net, y, physics, found, bound)
    assert not calls
    assert found.layers.tolist() == [1]
    assert found.status == (Status.CONVERGED,)
    assert image.row == "any denoiser, a step that depends on the measurement only"
    assert float(image.layer_factor.proved.value) == 0
    assert image.relative_distance.proved.value < 1e-12
    assert [a.checked for a in image.assumptions if "random numbers" in a.statement] == [False]  # it is not of ReTune
    moved = Restarted(ForwardBackward(Transparent(Halved()), step_size=0.4), 1, 1).eval()
    assert certificate_of(moved, y, Denoising(), moved.solve(y, Denoising())).row == "any denoiser"
    assert certificate_of(net, y, half(4), net.solve(y, half(4))).row == "any denoiser"


def test_a_state_of_somebody_else_is_not_taken_for_the_result_of_that_step(float64):
    """A layer is run, and shows how far it moves: for a changed state, and for a changed network."""
    net = Restarted(ForwardBackward(Transparent(Halved()), step_size=0.5, learn_step_size=False), 1, 1).eval()
    y, physics = rand(1, 1, 4, 4), Denoising()
    bound = net.bind(y, physics)
    found = net.solve(y, physics, bound=bound)
    assert certificate_of(net, y, physics, found, bound).residual.measured.value < 1e-12
    moved = replace(found, state=found.state + 1)
    assert certificate_of(net, y, physics, moved, bound).residual.measured.value > 0.1
    found.state.add_(1)  # the same tensor
    assert certificate_of(net, y, physics, found, bound).residual.measured.value > 0.1
    again = net.solve(y, physics)
    other = Restarted(ForwardBackward(Transparent(lambda v: 0.3 * v), step_size=0.5, learn_step_size=False), 1, 1)
    assert certificate_of(other.eval(), y, physics, again).residual.measured.value > 0.1


def test_the_statement_is_about_the_solver_that_ran(float64):
    """The certificate of plain layers, and of inertial ones, of the same network."""
    y = rand(1, 1, 12, 12)
    plain, inertial = Stop(0.0, 40), Stop(1e-9, 5000)
    ridge = GradientStep(shipped_ridge("weakly-convex"), reg=0.3)
    physics = half(12)
    for own, used, words in ((inertial, plain, "the objective decreases"), (plain, inertial, "with plain steps")):
        net = Restarted(ridge, 3, 1, stop=own).eval()
        found = net.solve(y, physics, stop=used)
        image = certify(net, y, physics, result=found, iterations=3, starts=1, max_layers=30)[0]
        assert image.statement.startswith(words)


def shipped_ridge(kind):
    return load(f"ridge-{kind}-gray").double().prior


class Relaxed(ForwardBackward):
    """A map of a user, whose layers go a fifth of the way."""

    def bind(self, data_term):
        bound = super().bind(data_term)
        inner = bound.layer
        bound.layer = lambda u, k=0: u + 0.2 * (inner(u, k) - u)
        return bound


def test_a_changed_map_has_no_constant_layer(float64):
    net = Restarted(Relaxed(Transparent(Halved()), step_size=0.5, learn_step_size=False), 1, 1).eval()
    y = rand(1, 1, 4, 4)
    found = net.solve(y, Denoising(), stop=Stop(1e-9, 500))
    assert int(found.layers) > 10
    torch.testing.assert_close(found.image, Halved()(y))


def half(side):
    mask = torch.ones(1, side, side)
    mask[..., ::2] = 0
    return Inpainting((1, side, side), mask=mask)


class Bare(AbstractMap):
    """A map that states nothing."""

    def __init__(self, owner):
        super().__init__()
        self.owner = owner

    def bind(self, problem):
        return self.owner.bind(problem)

    def describe(self):
        return {}


def test_by_default_a_map_proves_nothing(float64):
    case = quadratic(batch=1)
    assert Bare(case.map).guarantee(DataTerm(case.y, case.physics)).factors() is None
    image = certify(Restarted(Bare(case.map), 3, 2), case.y, case.physics, **QUICK)[0]
    assert all(claim.proved is None for claim in image.claims.values())
    assert image.rmse.estimated.value < 1e-3


def test_estimates_are_those_of_dense_linear_algebra(float64):
    """Norm, radius, distance and gradient error at the equilibrium; the norm from below."""
    case = quadratic(batch=1, low=0.4)
    net = Restarted(case.map, 3, 2, gradient=Truncated(blocks=2), stop=Stop(0.0, 9))
    image = certify(net, case.y, case.physics, iterations=60, starts=3)[0]
    bound = case.map.requires_grad_(False).bind(DataTerm(case.y, case.physics))
    jacobian = torch.func.jacrev(bound.layer)(case.answer().detach()).reshape(20, 20)
    norm = float(torch.linalg.matrix_norm(jacobian, 2))
    power = torch.linalg.matrix_power(jacobian, 3)
    assert image.layer_factor.estimated.value == pytest.approx(norm, rel=1e-3)
    assert image.layer_factor.estimated.value <= norm * (1 + 1e-12)
    assert image.block_factor.estimated.value == pytest.approx(float(torch.linalg.matrix_norm(power, 2)), rel=1e-3)
    assert image.rate.estimated.value == pytest.approx(float(torch.linalg.eigvals(jacobian).abs().max()), rel=5e-3)
    u = net.eval().solve(case.y, case.physics).state
    true = float((u - case.answer()).norm().detach())
    assert image.distance.estimated.value == pytest.approx(true, rel=0.1)
    assert image.relative_distance.estimated.value == pytest.approx(true / float(u.norm()), rel=0.1)
    assert image.rmse.estimated.value == pytest.approx(true / 20**0.5, rel=0.1)
    after = bound.block(u, 3)
    assert image.residual.measured.value == pytest.approx(float((after - u).norm() / after.norm()))
    worst = 0.0
    for seed in range(3):
        v = torch.randn(1, 4, 5, generator=torch.Generator().manual_seed(1000 + seed)).flatten()
        whole = torch.linalg.solve(torch.eye(20) - power.T, v)
        worst = max(worst, float((whole - v - power.T @ v).norm() / whole.norm()))
    assert image.gradient_error.estimated.value == pytest.approx(worst, rel=5e-3)


def test_what_is_not_normal(float64):
    """A rotation with a shear: norm and radius differ, and the eigenvalues are complex."""
    matrix = 0.6 * torch.tensor([[0.0, -2.0], [0.5, 0.0]])

    class Bound:
        layers = 1

        def block(self, u, depth):
            for _ in range(depth):
                u = (u.flatten(1) @ matrix.T).reshape(u.shape)
            return u

        def visible(self, v, u):
            return v

    jacobian = Linearised(Bound(), rand(2, 1, 1, 2))
    assert spectral_norm(jacobian).value.tolist() == pytest.approx([1.2, 1.2])
    assert spectral_radius(jacobian).value.tolist() == pytest.approx([0.6, 0.6])
    square = spectral_norm(jacobian, cycles=2)
    assert square.value.tolist() == pytest.approx([0.36, 0.36])


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v):
        ctx.save_for_backward(v)
        return torch.tanh(v)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - torch.tanh(ctx.saved_tensors[0]) ** 2)


def test_layers_that_cannot_be_differentiated_twice(float64):
    """Jv is then a finite difference, and the certificate says so."""
    found = {}
    for name, prox in (("once", _Once.apply), ("twice", torch.tanh)):
        net = Restarted(ForwardBackward(Transparent(prox), step_size=0.4), 3, 2)
        found[name] = certify(net, rand(1, 1, 3, 3), Denoising(), **QUICK)[0].block_factor.estimated
    assert "finite differences" in found["once"].how
    assert "finite differences" not in found["twice"].how
    assert found["once"].value == pytest.approx(found["twice"].value, rel=1e-5)


def test_a_map_without_gradient_is_refused():
    net = Restarted(ForwardBackward(Transparent(lambda v: v.detach() * 0.5)), 2, 2)
    with pytest.raises(CutGradientError, match="cannot be measured"):
        certify(net, rand(1, 1, 3, 3), Denoising())


def test_an_image_that_overflowed_does_not_take_the_others_with_it():
    net = Restarted(ForwardBackward(Transparent(lambda v: 10 * v), step_size=0.05), 2, 2, stop=Stop(1e-4, 400))
    certificate = certify(net, rand(2, 1, 4, 4), Denoising(), **QUICK)
    assert all(image.verdict.startswith("The iteration failed") for image in certificate)


def test_the_precision_switches_of_the_caller_are_left_as_they_were():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        certify(denoiser_net(), rand(1, 1, 4, 4), Denoising(), **QUICK)
        assert torch.is_autocast_enabled("cpu")
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_what_is_proved_of_plain_iterates_is_not_said_of_others(float64):
    y = rand(1, 1, 8, 8)
    for solver, words in ((Picard(), "the iterates converge"), (Anderson(), "plain iterates converge")):
        net = Restarted(ForwardBackward(L1Prior(), reg=0.1), 4, 4, solver=solver)
        image = certify(net, y, Inpainting((1, 8, 8), mask=0.5), **QUICK)[0]
        assert image.statement.startswith(words)
        assert ("for Anderson this is measured" in image.verdict) is isinstance(solver, Anderson)


def test_a_series_that_is_cut_short_is_completed_by_its_slowest_mode(float64):
    """T = (1 − τε) I where nothing is thresholded: K layers leave (1 − τε)^K of the adjoint, 0.996 of it."""
    mask = torch.zeros(1, 8, 8)
    mask[0, 0, 0] = 1
    case = ForwardBackward(ZeroPrior(), step_size=0.5, strong_convexity=1e-3)
    net = Restarted(case, 4, 4)
    image = certify(net, rand(1, 1, 8, 8), Inpainting((1, 8, 8), mask=mask), iterations=20, starts=2)[0]
    true = (1 - 1e-3 / 1.001) ** 4
    assert image.gradient_error.estimated.value == pytest.approx(true, abs=1e-3)


def test_a_factor_near_one_is_told_by_its_distance_from_it(float64):
    net = Restarted(ForwardBackward(ZeroPrior(), step_size=0.5, strong_convexity=1e-5), 4, 4)
    mask = torch.zeros(1, 8, 8)
    mask[0, 0, 0] = 1
    text = str(certify(net, rand(1, 1, 8, 8), Inpainting((1, 8, 8), mask=mask), max_layers=8, **QUICK))
    assert "1 − 1.0e-05" in text
    assert "  1  " not in text


def test_the_error_of_a_gradient_where_errors_grow_is_infinite(float64):
    net = Restarted(ForwardBackward(Transparent(lambda v: 1.5 * v), step_size=0.05), 2, 2, stop=Stop(0.0, 4))
    image = certify(net, rand(1, 1, 4, 4), Denoising(), iterations=5, starts=1, max_layers=20)[0]
    assert image.gradient_error.estimated.value == float("inf")
    assert "nan" not in str(image.to_dict()).lower()


def test_the_rate_of_a_slow_image_is_found_with_a_graph_too():
    """One slow mode of many: random starts hold a thousandth of it, the last change is nothing else."""
    mask = torch.full((1, 32, 32), 0.1**0.5)
    mask[0, 0, 0], mask[0, 5, 7] = 1.0, 0.05**0.5
    net = Restarted(ForwardBackward(ZeroPrior(), step_size=0.5), 10, 4, stop=Stop(1e-4, 500))
    y = Inpainting((1, 32, 32), mask=mask).A(rand(1, 1, 32, 32))
    y[0, 0, 5, 7] += 5
    for learning in (True, False):
        image = certify(net, y, Inpainting((1, 32, 32), mask=mask), iterations=2, starts=1, learning=learning)[0]
        assert image.rate.estimated.value == pytest.approx(1 - 0.05, rel=2e-3), learning


def test_at_rest_the_distance_is_that_of_rounding():
    """In float32 an equilibrium is known up to rounding, not exactly."""
    y = rand(1, 1, 16, 16)
    net = Restarted(ForwardBackward(ZeroPrior(), step_size=0.5), 4, 4, stop=Stop(1e-12, 400))
    image = certify(net, y, Denoising(), **QUICK)[0]
    assert image.relative_distance.estimated.value >= torch.finfo(torch.float32).eps
    assert image.relative_distance.estimated.value <= image.relative_distance.proved.value
    assert f"ε = {torch.finfo(torch.float32).eps:.1e}" in image.rounding
    assert image.rounding in str(certify(net, y, Denoising(), **QUICK))


def test_inference_mode_and_results_of_another_batch_are_named():
    net, y = denoiser_net().eval(), rand(2, 1, 4, 4)
    with torch.inference_mode():
        made = y * 1.0
        result = net.solve(made, Denoising())
        with pytest.raises(InvalidParameterError, match=r"inference_mode.*learning=False"):
            certify(net, made, Denoising(), **QUICK)
        assert len(certify(net, made, Denoising(), learning=False, **QUICK)) == 2
    assert len(certify(net, made, Denoising(), result=result, **QUICK)) == 2
    with pytest.raises(ShapeError, match=r"result has a state of shape \(2, 1, 4, 4\).*\(1, 1, 4, 4\)"):
        certify(net, y[:1], Denoising(), result=result, **QUICK)


def test_a_cycle_of_different_layers(float64):
    case = untied(batch=1)
    net = Restarted(case.map, 4, 2, stop=Stop(0.0, 8))
    image = certify(net, case.y, case.physics, **QUICK)[0]
    factors = case.map.guarantee(DataTerm(case.y, case.physics)).factors()
    assert factors.shape == (2, 1)
    assert image.layer_factor.proved.value == pytest.approx(float(factors.max()))
    assert image.block_factor.proved.value == pytest.approx(float(factors.prod()) ** 2)
    true = float((net.eval().solve(case.y, case.physics).state - case.answer()).norm().detach())
    assert true <= image.distance.proved.value <= 3 * true + 1e-12


def test_images_are_certified_each_for_itself(float64):
    mask = torch.stack([torch.full((1, 4, 4), 0.5), torch.full((1, 4, 4), 0.9)])
    mask[:, 0, 0, 0] = 1.0
    y = rand(2, 1, 4, 4)
    net = Restarted(ForwardBackward(L1Prior(), step_size=0.5, reg=0.1), 3, 2, stop=Stop(0.0, 6))
    both = certify(net, y, Inpainting((1, 4, 4), mask=mask), iterations=20, starts=2)
    for i in range(2):
        alone = certify(net, y[i : i + 1], Inpainting((1, 4, 4), mask=mask[i : i + 1]), iterations=20, starts=2)[0]
        for name in ("layer_factor", "block_factor", "gradient_error"):
            assert both[i].claims[name].proved.value == pytest.approx(alone.claims[name].proved.value)
        assert both[i].rate.estimated.value == pytest.approx(alone.rate.estimated.value, rel=1e-3)
    assert both[0].block_factor.proved.value > both[1].block_factor.proved.value


def test_which_gradient_error_is_claimed(float64):
    y = rand(1, 1, 4, 4)
    claims = {}
    for rule in (Truncated(), Truncated(blocks=3), Truncated(rtol=1e-3), Implicit(rtol=1e-4), Unrolled()):
        map_ = ForwardBackward(L1Prior(), step_size=0.3, reg=0.1)
        claims[repr(rule)] = certify(Restarted(map_, 2, 2, rule), y, Denoising(), **QUICK)[0].gradient_error
    one, three, rtol, implicit, unrolled = claims.values()
    assert one.proved.value == pytest.approx(0.4**2)
    assert three.proved.value == pytest.approx(0.4**6)
    assert three.estimated.value <= three.proved.value
    assert rtol.proved is implicit.proved is None
    assert (rtol.estimated.value, implicit.estimated.value) == (1e-3, 1e-4)
    assert unrolled.numbers == ()


@pytest.mark.parametrize("rule", [Truncated(rtol=1e-4, max_blocks=1), Implicit(rtol=1e-4, max_blocks=1)], ids=repr)
def test_an_accuracy_that_the_allowed_blocks_do_not_reach_is_not_claimed(rule, float64):
    """T = (1 − τ) I beyond the threshold: one block of two layers leaves 0.4² = 0.16 of the adjoint, not 1e-4."""
    net = Restarted(ForwardBackward(L1Prior(), step_size=0.3, reg=0.01), 2, 2, rule)
    claim = certify(net, 1 + rand(1, 1, 4, 4), Denoising(), **QUICK)[0].gradient_error
    assert claim.proved is None
    assert claim.estimated.value == pytest.approx(0.16, rel=1e-2)
    assert "do not reach" in claim.estimated.how


def test_an_image_that_fails_is_said_to_fail():
    net = Restarted(ForwardBackward(Transparent(lambda v: 3 * v)), 5, 2)
    image = certify(net, rand(1, 1, 4, 4), Denoising(), **QUICK)[0]
    assert image.verdict == "The iteration failed (diverged): nothing can be said about this image."
    assert all(c.proved is None and c.estimated is None for c in image.claims.values())


def test_where_errors_grow_that_is_said(float64):
    net = Restarted(ForwardBackward(Transparent(lambda v: 1.5 * v), step_size=0.05), 2, 2, stop=Stop(0.0, 4))
    image = certify(net, rand(1, 1, 4, 4), Denoising(), iterations=5, starts=1, max_layers=20)[0]
    assert image.rate.estimated.value == pytest.approx(1.35)
    assert "not an attracting equilibrium" in image.verdict
    assert "None" in str(image.to_dict()["claims"]["rmse"][0]["value"])


def test_it_is_plain_data_and_leaves_the_network_alone():
    net = denoiser_net().train()
    y = rand(2, 1, 4, 4)
    result = net.eval().solve(y, Denoising())
    net.train()
    certificate = certify(net, y, Denoising(), result=result, **QUICK)
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    content = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert [i["verdict"] for i in content["images"]] == [i.verdict for i in certificate]
    assert content["images"][0]["claims"]["residual"][0]["kind"] == "measured"
    assert content["depth"] == 4
    assert str(certificate).count("Certificate of image") == len(certificate) == 2
    assert result.layers.tolist() == [i.layers for i in certificate]


@pytest.mark.parametrize("options", [{"iterations": 0}, {"starts": 0}, {"max_layers": 0}])
def test_refused_options(options):
    with pytest.raises(InvalidParameterError, match="at least 1"):
        certify(denoiser_net(), rand(1, 1, 4, 4), Denoising(), **options)


class Longer(Picard):
    """It inherits the words of plain steps, not the steps."""

    def step(self, block, state):
        state = super().step(block, state)
        return state._replace(u=state.u + 0.5 * state.change)


def replaced():
    solver = Picard()
    own = solver.step
    solver.step = lambda block, state: own(block, state)._replace(change=0 * state.u)
    return solver


@pytest.mark.parametrize("make", [Longer, replaced])
def test_a_changed_solver_has_no_plain_iterates(make, float64):
    net = Restarted(ForwardBackward(L1Prior(), reg=0.1), 4, 4, solver=make())
    image = certify(net, rand(1, 1, 8, 8), Inpainting((1, 8, 8), mask=0.5), **QUICK)[0]
    assert image.statement.startswith("plain iterates converge")
    assert "this is measured, not proved" in image.verdict


class Turning(nn.Module):
    """It turns pairs of pixels by a seventh of a circle, and pulls their length towards 3: nothing settles."""

    def forward(self, v):
        a, b = v.chunk(2, -1)
        length = (a.square() + b.square()).sqrt().clamp_min(1e-9)
        pull = (1 + 0.3 * (1 - length / 3)).clamp(0.2, 1.8)
        angle = torch.tensor(2 * torch.pi / 7, dtype=v.dtype)
        return torch.cat([angle.cos() * a - angle.sin() * b, angle.sin() * a + angle.cos() * b], -1) * pull.repeat(
            1, 1, 1, 2
        )


@pytest.mark.parametrize("max_layers", [200, 2000])
def test_an_orbit_that_never_settles_has_no_distance(max_layers):
    """The Jacobian at one of its states contracts, but the movement does not fall."""
    torch.manual_seed(0)
    y, physics = torch.rand(2, 1, 8, 8), Denoising()
    net = Restarted(ForwardBackward(Transparent(Turning())), 10, solver=Picard(), stop=Stop(1e-4, 401)).eval()
    for image in certify(net, y, physics, max_layers=max_layers, learning=False, **QUICK):
        assert image.status != "converged"
        assert image.jumps > 0.1
        assert "from its equilibrium" not in image.verdict
