"""Maps, solvers and gradient rules are independent: every combination reaches the known answer and gradient."""

import pytest
import torch

from known_answers import CASES, rand
from retune import Anderson, Damped, Implicit, Picard, Restarted, Stop, Truncated, Unrolled

RULES = {
    "unrolled": lambda: Unrolled(),
    "truncated": lambda: Truncated(),
    "blocks": lambda: Truncated(blocks=3),
    "rtol": lambda: Truncated(rtol=1e-9),
    "implicit": lambda: Implicit(rtol=1e-9),
}
SOLVERS = {"picard": Picard, "anderson": Anderson, "damped": Damped}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_known_image_and_gradient(case, rule, solver, float64):
    case = CASES[case]()
    net = Restarted(case.map, depth=60, restarts=3, gradient=RULES[rule](), solver=SOLVERS[solver]())
    weights = rand(*case.answer().shape, seed=9)
    parameters = list(net.parameters())

    expected = case.answer()
    exact = torch.autograd.grad((weights * expected).sum(), parameters, allow_unused=True)
    image = net.train()(case.y, case.physics)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-7)
    found = torch.autograd.grad((weights * image).sum(), parameters)
    scale = max(float(g.abs().max()) for g in exact if g is not None)
    for name, e, f in zip((n for n, _ in net.named_parameters()), exact, found, strict=True):
        e = torch.zeros_like(f) if e is None else e
        assert float((e - f).abs().max()) < 1e-6 * scale, name


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("case", CASES)
def test_eval_mode_reaches_the_known_image(case, solver, float64):
    case = CASES[case]()
    net = Restarted(case.map, depth=4, solver=SOLVERS[solver](), stop=Stop(rtol=1e-11)).eval()
    result = net.solve(case.y, case.physics)
    assert bool(result.converged.all())
    torch.testing.assert_close(result.image, case.answer(), rtol=0, atol=1e-9)
    assert not result.image.requires_grad
