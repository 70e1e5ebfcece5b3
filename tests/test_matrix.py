"""Maps, priors, solvers and gradient rules are independent: every combination reaches the known answer and gradient.

The matrix is complete by itself: whatever class of ours is registered, and whatever a prior can do or lack, has a place
in it. The first tests below fail where one is missing.
"""

import pytest
import torch

import retune
from known_answers import CASES
from retune import (
    Anderson,
    Damped,
    Descent,
    Implicit,
    Inertial,
    Picard,
    QuasiNewton,
    Restarted,
    Stop,
    Truncated,
    Unrolled,
    registry,
)
from retune.errors import InvalidParameterError
from retune.priors import adapt, priors_of
from small_parts import rand

RULES = {
    "unrolled": lambda: Unrolled(),
    "truncated": lambda: Truncated(),
    "blocks": lambda: Truncated(blocks=3),
    "rtol": lambda: Truncated(rtol=1e-9),
    "implicit": lambda: Implicit(rtol=1e-9),
}
SOLVERS = {
    "picard": Picard,
    "anderson": Anderson,
    "damped": Damped,
    "inertial": Inertial,
    "descent": Descent,
    "quasi_newton": QuasiNewton,
}
PRESENT = {
    "map": lambda: {type(made().map) for made in CASES.values()},
    "prior": lambda: {type(p) for made in CASES.values() for p in priors_of(made().map)},
    "solver": lambda: {type(made()) for made in SOLVERS.values()},
    "rule": lambda: {type(made()) for made in RULES.values()},
}
#: What a prior declares, and what no equilibrium depends on: the cuts of tiles; precisions.
CAPABILITIES = {n for n, v in vars(retune.AbstractPrior).items() if isinstance(v, bool | int) and not n.startswith("_")}
ELSEWHERE = {"alignment", "coarsens", "trains_in_bfloat16"}
#: Its own tests compare it with a known answer: no small problem with it settles within the layers that are run here.
SLOW = {"TGV"}


@pytest.mark.parametrize("kind", PRESENT)
def test_whatever_is_registered_has_a_place(kind):
    """Toys that other tests register do not count."""
    ours = {registry.find(name, kind).cls for name in registry.names(kind) if registry.is_ours(name)}
    assert ours
    assert {c.__name__ for c in ours - PRESENT[kind]()} - SLOW == set()


@pytest.mark.parametrize("capability", sorted(CAPABILITIES - ELSEWHERE))
def test_priors_with_and_without_each_capability_have_a_place(capability):
    found = {getattr(adapt(p), capability) for made in CASES.values() for p in priors_of(made().map)}
    assert found == {True, False}


def test_no_capability_is_forgotten():
    assert {"has_prox", "has_grad", "may_expand", "on_coefficients"} | ELSEWHERE <= CAPABILITIES


def require_place(case, solver):
    """A solver that keeps an objective from rising refuses maps that have none; that is their place in the matrix."""
    made = SOLVERS[solver]()
    if not made.monotone or case.bind().objective() is not None:
        return
    net = Restarted(case.map, depth=2, restarts=1, solver=made)
    with pytest.raises(InvalidParameterError, match="needs the value of the objective"):
        net(case.y, case.physics)
    pytest.skip("refused: the map has no objective")


def test_maps_with_and_without_an_objective_have_a_place(float64):
    assert {made().bind().objective() is None for made in CASES.values()} == {True, False}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_known_image_and_gradient(case, rule, solver, float64):
    case = CASES[case]()
    require_place(case, solver)
    net = Restarted(case.map, depth=60, restarts=3, gradient=RULES[rule](), solver=SOLVERS[solver]())
    weights = rand(*case.answer().shape, seed=9)
    learned = {n: p for n, p in net.named_parameters() if p.requires_grad}
    parameters = list(learned.values())

    expected = case.answer()
    exact = torch.autograd.grad((weights * expected).sum(), parameters, allow_unused=True)
    image = net.train()(case.y, case.physics)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-7)
    found = torch.autograd.grad((weights * image).sum(), parameters)
    scale = max(float(g.abs().max()) for g in exact if g is not None)
    for name, e, f in zip(learned, exact, found, strict=True):
        e = torch.zeros_like(f) if e is None else e
        assert float((e - f).abs().max()) < 1e-6 * scale, name


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", CASES)
def test_eval_mode_reaches_the_known_image(case, solver, float64):
    case = CASES[case]()
    require_place(case, solver)
    net = Restarted(case.map, depth=4, solver=SOLVERS[solver](), stop=Stop(rtol=1e-11)).eval()
    result = net.solve(case.y, case.physics)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.image, case.answer(), rtol=0, atol=1e-9)
    assert not result.image.requires_grad
