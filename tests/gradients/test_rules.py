"""The gradient rules, against dense linear algebra, against each other, and against finite differences."""

import pytest
import torch
from deepinv.physics import Denoising, Inpainting
from torch import nn

from known_answers import CASES, Case, denoise_l12, quadratic, tikhonov, untied
from retune import DataTerm, ForwardBackward, Implicit, Restarted, Stop, Truncated, Unrolled
from retune.equilibrium import GradientReport
from retune.errors import CutGradientError, InvalidParameterError
from retune.gradients._adjoint import AdjointBlocks
from retune.priors import WaveletL12
from small_parts import Transparent, rand, spectrum

TIGHT = Stop(rtol=0.0, max_layers=100)


class Dense:
    """J, B and the equilibrium of a case with one image, as matrices."""

    def __init__(self, case: Case):
        self.case = case
        self.parameters = list(case.map.parameters())
        self.bound = case.bind()
        with torch.no_grad():
            u = self.bound.init()
            for _ in range(300):
                u = self.bound.layer(u)
        self.u = u
        n = u.numel()
        self.J = torch.func.jacrev(self.bound.layer)(u)
        self.J = self.J.reshape(n, n).detach()
        self.B = self.rows(self.bound.layer(u).flatten())
        self.v = rand(n, seed=5)
        self.exact = self.B.T @ torch.linalg.solve(torch.eye(n) - self.J.T, self.v)
        self.rho = float(torch.linalg.matrix_norm(self.J, 2))

    def rows(self, outputs):
        """The Jacobian of a vector with respect to all parameters, (n, p)."""
        grads = [torch.autograd.grad(o, self.parameters, retain_graph=True, allow_unused=True) for o in outputs]
        return torch.stack([self.flatten(g) for g in grads])

    def flatten(self, grads):
        zeros = (torch.zeros_like(p) for p in self.parameters)
        return torch.cat([(z if g is None else g).flatten() for g, z in zip(grads, zeros, strict=True)])

    def gradient(self, rule, depth):
        """The rule's gradient of ⟨v, u*⟩, and its report, with the solve given as a function."""
        state, report = rule(self.case.bind(), depth, lambda: self.u)
        for p in self.parameters:
            p.grad = None
        (self.v * state.flatten()).sum().backward()
        return self.flatten([p.grad for p in self.parameters]), report

    def truncated(self, depth):
        return sum(self.B.T @ torch.linalg.matrix_power(self.J.T, k) @ self.v for k in range(depth))


@pytest.fixture
def dense(float64):
    return Dense(quadratic(batch=1, low=0.4))


def small_group_problem(**options) -> Case:
    """Inpainting with learned per-channel weights: nonsmooth, with a wavelet state."""
    mask = (rand(1, 1, 4, 4, seed=3) > -0.5).to(torch.get_default_dtype()) * 0.7 + 0.3
    weights = torch.tensor([[[0.5, 1.0, 1.5]], [[1.0, 0.3, 1.0]]])
    prior = WaveletL12("haar", 2, channels=2, weights=weights)
    net = ForwardBackward(prior, step_size=0.5, reg=0.3, **options)
    return Case(net, rand(1, 2, 4, 4, seed=1), Inpainting((2, 4, 4), mask=mask), lambda: torch.empty(0))


@pytest.mark.parametrize("make", [lambda: quadratic(batch=1, low=0.4), small_group_problem], ids=["quadratic", "l12"])
def test_identities_of_the_truncated_gradient(make, float64):
    """d_K = (Σ J^k B)ᵀv, d_K − ∇L = −(∂x*)ᵀ(J^K)ᵀv, and ‖d_K − ∇L‖ ≤ ρ^K ‖∂x*‖ ‖v‖."""
    dense = Dense(make())
    eye = torch.eye(len(dense.J))
    sensitivity = torch.linalg.solve(eye - dense.J, dense.B)  # ∂x*/∂θ
    assert dense.rho < 1
    for depth in (1, 2, 5, 12):
        found, _ = dense.gradient(Truncated(), depth)
        power = torch.linalg.matrix_power(dense.J, depth)
        torch.testing.assert_close(found, dense.truncated(depth), rtol=0, atol=1e-10)
        torch.testing.assert_close(found - dense.exact, -sensitivity.T @ power.T @ dense.v, rtol=0, atol=1e-10)
        bound = dense.rho**depth * torch.linalg.matrix_norm(sensitivity, 2) * dense.v.norm()
        assert float((found - dense.exact).norm()) <= float(bound) * (1 + 1e-10)


@pytest.mark.parametrize(("depth", "blocks"), [(1, 7), (3, 4), (5, 2), (4, 1)])
@pytest.mark.parametrize("make", [lambda: quadratic(batch=1, low=0.4), small_group_problem], ids=["quadratic", "l12"])
def test_blocks_are_depth(make, depth, blocks, float64):
    """M blocks of K layers give the gradient of K·M layers."""
    dense = Dense(make())
    many, report = dense.gradient(Truncated(blocks=blocks), depth)
    one, _ = dense.gradient(Truncated(), depth * blocks)
    assert float((many - one).norm()) <= 1e-8 * float(one.norm())
    assert report.blocks == blocks


def test_blocks_are_depth_for_a_cycle_of_different_layers(float64):
    case = untied(batch=1)
    grads = []
    for depth, blocks in ((2, 6), (12, 1), (4, 3)):
        net = Restarted(case.map, depth, restarts=200, gradient=Truncated(blocks=blocks)).train()
        net(case.y, case.physics).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten().clone() for p in net.parameters()]))
        net.zero_grad()
    for other in grads[1:]:
        assert float((grads[0] - other).norm()) <= 1e-8 * float(other.norm())


def test_gradient_error_follows_rho_to_the_depth(dense):
    """The decay of ‖d_K − ∇L‖ from K to K + 1 approaches ρ, the modulus of the map."""
    rho = float(torch.linalg.eigvals(dense.J).abs().max())
    errors = {k: float((dense.gradient(Truncated(), k)[0] - dense.exact).norm()) for k in (1, 5, 10, 20, 40)}
    measured = (errors[40] / errors[20]) ** (1 / 20)
    assert measured == pytest.approx(rho, rel=0.02)
    assert errors[40] < 1e-3 * errors[1]


@pytest.mark.parametrize("rtol", [1e-1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    "rule",
    [lambda t: Truncated(rtol=t, memory=0), lambda t: Implicit(rtol=t, memory=0)],
    ids=["truncated", "implicit"],
)
def test_rtol_bounds_the_true_error(dense, rule, rtol):
    """Of the adjoint w, hence of the gradient: ‖d − ∇L‖ ≤ error · ‖Σ J^k B‖ ‖w‖."""
    depth = 3
    found, report = dense.gradient(rule(rtol), depth)
    depth = depth if report.rule.startswith("Truncated") else 1
    powers = [torch.linalg.matrix_power(dense.J, k) for k in range(depth + 1)]
    whole = torch.linalg.solve(torch.eye(20) - powers[depth].T, dense.v)
    partial = sum(torch.linalg.matrix_power(powers[depth].T, m) @ dense.v for m in range(report.blocks))
    block = sum(powers[:depth]) @ dense.B
    torch.testing.assert_close(found, block.T @ partial, rtol=0, atol=1e-10)
    assert float((whole - partial).norm()) <= 2 * rtol * float(whole.norm())
    assert float((found - dense.exact).norm()) <= 2 * rtol * float(torch.linalg.matrix_norm(block, 2) * whole.norm())
    assert report.blocks > 1


@pytest.mark.parametrize("depth", [1, 4, 10])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_reported_error_is_the_true_one(dense, depth, blocks):
    """Relative error of the adjoint state w after M blocks, against the whole series (I − J^K)^{-T} v."""
    _, report = dense.gradient(Truncated(blocks=blocks), depth)
    power = torch.linalg.matrix_power(dense.J.T, depth)
    whole = torch.linalg.solve(torch.eye(len(power)) - power, dense.v)
    partial = sum(torch.linalg.matrix_power(power, m) @ dense.v for m in range(blocks))
    true = float((whole - partial).norm() / whole.norm())
    assert 0.5 * true <= float(report.relative_error) <= 2 * true
    last = torch.linalg.matrix_power(power, blocks - 1) @ dense.v
    assert float(report.decay) == pytest.approx(float((power @ last).norm() / last.norm()), rel=1e-6)


def test_report_is_per_image(float64):
    """Two images, one with a well-conditioned operator, one not: the errors differ as they do alone."""
    mask = torch.stack([torch.full((1, 3, 3), 1.0), torch.full((1, 3, 3), 0.5)])
    mask[0, 0, 0, 0], mask[1, 0, 0, 0] = 0.95, 1.0  # not the identity, so not a number
    y, prior = rand(2, 1, 3, 3), WaveletL12("haar", 1)
    reports = []
    for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
        net = Restarted(ForwardBackward(prior, step_size=0.4, reg=1e-3), 3, 100).train()
        physics = Inpainting((1, 3, 3), mask=mask[rows])
        problem = DataTerm(y[rows], physics)
        assert len(problem.sqnorm) == rows.stop - rows.start
        result = net.solve(y[rows], physics)
        result.image.square().flatten(1).sum(1).sum().backward()
        reports.append(result.gradient.relative_error)
    torch.testing.assert_close(reports[0], torch.cat(reports[1:]), rtol=1e-6, atol=1e-12)
    assert float(reports[0][1]) > 10 * float(reports[0][0])


def test_implicit_is_dense_implicit_differentiation(dense):
    found, report = dense.gradient(Implicit(rtol=1e-13), 1)
    assert float((found - dense.exact).norm()) <= 1e-11 * float(dense.exact.norm())
    assert report.rule == "Implicit"


@pytest.mark.parametrize("case", CASES)
def test_implicit_agrees_with_finite_differences_of_the_equilibrium(case, float64):
    case = CASES[case](batch=1)
    net = Restarted(case.map, 2, 50, gradient=Implicit(rtol=1e-12))
    weights = rand(*case.answer().shape, seed=4)

    def loss():
        with torch.no_grad():
            return float((weights * net.eval().solve(case.y, case.physics, stop=TIGHT).image).sum())

    (weights * net.train()(case.y, case.physics)).sum().backward()
    step = 1e-6
    learned = {n: p for n, p in net.named_parameters() if p.requires_grad}
    for name, p in learned.items():
        flat, grad = p.data.view(-1), p.grad.flatten()
        for i in {0, p.numel() // 2, p.numel() - 1}:
            kept = float(flat[i])
            flat[i] = kept + step
            above = loss()
            flat[i] = kept - step
            below = loss()
            flat[i] = kept
            assert float(grad[i]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7), (name, i)


def test_gradient_with_respect_to_the_measurement(float64):
    case = quadratic(batch=1)
    y = case.y.clone().requires_grad_()
    net = Restarted(case.map, 1, 200, gradient=Implicit(rtol=1e-12)).train()
    weights = rand(1, 1, 4, 5, seed=4)
    (found,) = torch.autograd.grad((weights * net(y, case.physics)).sum(), y)
    A = torch.func.jacrev(case.physics.A)(torch.zeros(1, 1, 4, 5)).reshape(24, 20)
    prior = case.map.priors[0]
    system = A.T @ A + case.map.reg()[0] * (2 * prior.log_weight).exp().flatten().diag()
    expected = A @ torch.linalg.solve(system, weights.flatten())
    torch.testing.assert_close(found.flatten(), expected.detach(), rtol=0, atol=1e-9)


def test_one_step_denoising_derivative(float64):
    """∂u*/∂λ = −sign(u*), with one layer and no restart."""
    case = CASES["denoise_l1"](batch=1, step_size=0.5)
    bound = case.bind()
    u = bound.layer(bound.init())
    torch.testing.assert_close(bound.image(u), case.answer(), rtol=0, atol=1e-12)
    prior = case.map.priors[0]
    (slope,) = torch.autograd.grad(u.sum(), case.map.reg.raw)
    weights = (prior.weights()[..., None] * prior._scales_by_position(bound._frame)[0]).flatten(-2)
    cut = weights.shape[-1]
    expected = -(u[..., :cut].sign() * weights).sum() * case.map.reg()
    torch.testing.assert_close(slope, expected.detach())


def test_no_restart_is_unrolling(float64):
    """R = 0: K differentiated layers from the start, whatever the rule is called (tested away from the limit)."""
    case = quadratic()
    grads = {}
    for name, rule in (("truncated", Truncated()), ("unrolled", Unrolled())):
        net = Restarted(case.map, 3, 0, gradient=rule).train()
        net.zero_grad()
        image = net(case.y, case.physics)
        image.square().sum().backward()
        grads[name] = [image.detach(), *(p.grad.clone() for p in net.parameters())]
    for a, b in zip(grads["truncated"], grads["unrolled"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_unrolled_gradient_against_finite_differences(float64):
    case = quadratic(batch=1)

    def loss():
        bound = case.bind()
        return Unrolled()(bound, 3, bound.init)[0].square().sum()

    (grad,) = torch.autograd.grad(loss(), case.map.reg.raw)
    values = []
    for shift in (1e-6, -2e-6):
        case.map.reg.raw.data += shift
        values.append(loss().item())
    assert float(grad) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-7)


@pytest.mark.parametrize("rule", [Truncated, lambda: Truncated(blocks=3), Implicit], ids=["one", "blocks", "implicit"])
def test_backward_twice_gives_the_same(rule, float64):
    case = quadratic()
    net = Restarted(case.map, 2, 30, gradient=rule()).train()
    loss = net(case.y, case.physics).square().sum()
    first = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("rule", [Truncated, lambda: Truncated(blocks=3), Implicit], ids=["one", "blocks", "implicit"])
@pytest.mark.parametrize("asked", ["all", "one", "y"])
@pytest.mark.parametrize("make", [quadratic, tikhonov], ids=["prox", "gradient"])
def test_the_report_is_the_same_without_backward(rule, asked, make, float64):
    """``torch.autograd.grad`` walks only the paths to what it is asked for; the error is measured all the same."""
    case = make()
    y = case.y.clone().requires_grad_(asked == "y")
    net = Restarted(case.map, 2, 5, gradient=rule()).train()
    first, second = net.solve(y, case.physics), net.solve(y, case.physics)
    first.image.square().sum().backward()
    kept = [p.grad.clone() for p in net.parameters()]
    wanted = {"all": list(net.parameters()), "one": [case.map.reg.raw], "y": [y]}[asked]
    grads = torch.autograd.grad(second.image.square().sum(), wanted)
    assert torch.equal(first.gradient.relative_error, second.gradient.relative_error)
    assert torch.equal(first.gradient.decay, second.gradient.decay)
    assert bool((first.gradient.decay > 0).all())
    expected = {"all": kept, "one": [case.map.reg.raw.grad], "y": [y.grad]}[asked]
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def saved(net, y, physics):
    """(number, total entries) of the tensors that autograd keeps for the backward pass."""
    seen = []

    def pack(t):
        seen.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        net(y, physics)
    return len(seen), sum(seen)


@pytest.mark.parametrize("rule", [Truncated, lambda: Truncated(blocks=4), lambda: Truncated(rtol=1e-3), Implicit])
def test_memory_does_not_depend_on_the_restarts(rule):
    case = denoise_l12()
    counts = {r: saved(Restarted(case.map, 5, r, gradient=rule()).train(), case.y, case.physics) for r in (0, 1, 50)}
    assert counts[0] == counts[1] == counts[50]
    plain = saved(Restarted(case.map, 5, 1, gradient=Truncated()).train(), case.y, case.physics)
    assert counts[0] <= plain  # K layers and nothing more, whatever accuracy is asked for
    deeper = saved(Restarted(case.map, 10, 1, gradient=Truncated()).train(), case.y, case.physics)
    assert deeper[0] > counts[0][0]  # the count does see the layers


@pytest.mark.parametrize(
    "rule", [Unrolled, Truncated, lambda: Truncated(blocks=2), lambda: Truncated(rtol=1e-3), Implicit]
)
@pytest.mark.parametrize("kind", ["output", "input"])
def test_a_map_that_cuts_the_gradient_is_refused(rule, kind):
    """A prior that detaches what it returns, or only what it is given (its own weights still get a gradient)."""
    gain = nn.Parameter(torch.tensor(0.5))
    prox = {"output": lambda v: (gain * v).detach(), "input": lambda v: gain * v.detach()}[kind]
    net = Restarted(ForwardBackward(Transparent(prox, gain)), 2, 2, gradient=rule()).train()
    y = rand(1, 1, 4, 4)
    with pytest.raises(CutGradientError, match=r"detach.*eval mode"):
        net(y, Denoising())
    assert torch.isfinite(net.eval()(y, Denoising())).all()


@pytest.mark.parametrize("rule", [Unrolled, Truncated, Implicit])
def test_train_mode_without_gradient(rule):
    """Under no_grad, and with nothing to learn: the image, no complaint."""
    case = quadratic()
    net = Restarted(case.map, 4, 4, gradient=rule()).train()
    with torch.no_grad():
        image = net(case.y, case.physics)
    assert not image.requires_grad
    net.requires_grad_(False)
    torch.testing.assert_close(net(case.y, case.physics).detach(), image)


def test_an_expansive_block_gives_a_finite_gradient_and_says_so(float64):
    """The reported error is infinite where the block is no contraction; other images keep theirs."""
    gain = nn.Parameter(torch.tensor(1.0))
    factors = torch.tensor([0.5, 3.0]).reshape(2, 1, 1, 1)
    map_ = ForwardBackward(Transparent(lambda v: gain * factors * v, gain), step_size=0.01)
    bound = map_.bind(DataTerm(rand(2, 1, 3, 3), Denoising()))
    for rule in (Truncated(rtol=1e-6), Implicit(rtol=1e-6, max_blocks=500), Truncated(blocks=40)):
        state, report = rule(bound, 1, lambda: rand(2, 1, 3, 3, seed=2))
        state.sum().backward(retain_graph=True)
        assert bool(torch.isfinite(gain.grad))
        assert float(report.relative_error[1]) == float("inf")
        assert float(report.relative_error[0]) < 1e-5


def test_rules_leave_no_gradient_in_the_state_they_were_given(dense):
    reached = dense.u.clone()
    dense.gradient(Truncated(blocks=3), 2)
    assert torch.equal(dense.u, reached)
    assert not dense.u.requires_grad


def test_spectral_norm_of_the_problem(float64):
    """The problem above is what it says: singular values in [0.4, 1.1]."""
    values = torch.linalg.svdvals(spectrum(24, 20, 0.4, 1.1))
    assert float(values[0]) == pytest.approx(1.1)
    assert float(values[-1]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: Truncated(blocks=0), "got 0 and"),
        (lambda: Truncated(max_blocks=0), "got 1 and 0"),
        (lambda: Truncated(rtol=0.0), "got 0.0"),
        (lambda: Truncated(rtol=1.0), "got 1.0"),
        (lambda: Truncated(rtol=float("nan")), "got nan"),
        (lambda: Implicit(rtol=0), "rtol=0"),
        (lambda: Implicit(rtol=float("nan")), "rtol=nan"),
        (lambda: Implicit(max_blocks=0), "max_blocks=0"),
    ],
)
def test_bad_options(make, given):
    with pytest.raises(InvalidParameterError, match=given):
        make()


def test_terms_that_have_sunk_to_rounding_are_no_error():
    """A batch of a quick and a slow image in single precision: the quick one's terms end long before the slow one's."""
    rate = torch.tensor([0.7, 0.95])[:, None]
    report = GradientReport("test", depth=1)
    blocks = AdjointBlocks(report, None, 1e-3, 500)
    offset = torch.zeros(2, 20, requires_grad=True)
    u_in = blocks.enter(rand(2, 20, seed=1).float())
    u_out = blocks.leave(u_in, rate * u_in + offset)
    v = rand(2, 20, seed=2).float()
    (u_out * v).sum().backward()
    assert offset.grad is not None
    assert report.blocks > 60  # the slow one went on
    assert bool((report.relative_error < 2e-3).all()), report.relative_error
    torch.testing.assert_close(offset.grad, v / (1 - rate), rtol=2e-3, atol=0)
