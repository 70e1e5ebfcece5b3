"""Certificates of restorations: of parts the worst, without graph, at a bounded cost."""

import pytest
import torch
from deepinv.optim.prior import L1Prior
from deepinv.physics import Denoising

from known_answers import quadratic
from retune import ForwardBackward, Restarted, Stop, Truncated, certify
from retune.certificate.parts import worst_part
from retune.certificate.quick import certificate_of, in_a_line
from retune.errors import InvalidParameterError
from retune.maps.base import AbstractMap, BoundMap
from retune.records import CertifiedImage
from small_parts import Transparent, rand


def image_of(case, layers=6, **options):
    net = Restarted(case.map, 3, 2, gradient=Truncated(), stop=Stop(0.0, layers))
    return certify(net, case.y, case.physics, iterations=40, **{"starts": 2, **options})[0]


def test_without_graph_it_says_the_same_of_the_restoration(float64):
    """Rate by finite differences against dense linear algebra; bounds and distances are those with graph."""
    case = quadratic(batch=1, low=0.4)
    full, light = image_of(case), image_of(case, learning=False)
    bound = case.map.requires_grad_(False).bind(case.map.data_term(case.y, case.physics))
    jacobian = torch.func.jacrev(bound.layer)(case.answer().detach()).reshape(20, 20)
    rate = float(torch.linalg.eigvals(jacobian).abs().max())
    assert light.rate.estimated.value == pytest.approx(rate, rel=5e-3)
    assert "finite differences, 200 iterations" in light.rate.estimated.how
    for name in ("step_size", "layer_factor", "block_factor", "distance", "rmse"):
        assert light.claims[name].proved == full.claims[name].proved
    assert light.layer_factor.estimated is light.block_factor.estimated is None
    assert light.gradient_error.numbers == ()
    assert light.rmse.estimated.value == pytest.approx(full.rmse.estimated.value, rel=0.05)


def test_a_map_that_cuts_the_graph_can_be_restored_from_and_certified(float64):
    net = Restarted(ForwardBackward(Transparent(lambda v: v.detach() * 0.5)), 2, 2)
    image = certify(net, rand(1, 1, 3, 3), Denoising(), iterations=4, learning=False)[0]
    assert image.rate.estimated.value == pytest.approx(0.5 * 0.8, rel=1e-3)
    assert all(c.proved is None for name, c in image.claims.items() if name != "step_size")


def test_the_worst_part_speaks_for_all(float64):
    near, far = (image_of(quadratic(batch=1, low=0.4), layers) for layers in (60, 6))
    whole = worst_part([near, far])
    assert whole.parts == 2
    assert whole.layers == 60
    assert near.rmse.proved.value < far.rmse.proved.value == whole.rmse.proved.value
    assert whole.residual.measured.value == far.residual.measured.value
    assert whole.rmse.proved.how.startswith("the worst of 2 parts:")
    assert "each of its 2 parts is within" in whole.verdict
    assert whole.to_dict()["parts"] == 2
    assert worst_part([near]) is near


def test_failures_of_the_parts_add_up():
    case = quadratic(batch=1)
    net = Restarted(ForwardBackward(L1Prior(), reg=0.1, strong_convexity=0.1), 3, 2)
    one = certify(net, case.y, case.physics, iterations=2, starts=1)[0]
    assert one.rmse.proved.kind == "proved with probability 1 − 1e-06"
    assert worst_part([one] * 5).rmse.proved.kind == "proved with probability 1 − 5e-06"


def test_a_bound_that_one_part_lacks_is_none(float64):
    proved = image_of(quadratic(batch=1))
    free = certify(
        Restarted(ForwardBackward(Transparent(torch.sin), step_size=0.3), 3, 2), rand(1, 1, 3, 3), Denoising()
    )[0]
    whole = worst_part([proved, free])
    assert whole.rmse.proved is whole.block_factor.proved is None
    assert whole.rmse.estimated.value == max(proved.rmse.estimated.value, free.rmse.estimated.value)
    assert whole.row == "any denoiser"
    assert whole.verdict.startswith("Nothing is proved")


class Counted(AbstractMap):
    """Counts the layers of a map."""

    def __init__(self, owner):
        super().__init__()
        self.owner, self.count = owner, 0

    def describe(self):
        return {}

    def guarantee(self, problem):
        return self.owner.guarantee(problem)

    def bind(self, problem):
        inner, outer = self.owner.bind(problem), self

        class Bound(BoundMap):
            layers = inner.layers

            def init(self):
                return inner.init()

            def layer(self, u, k=0):
                outer.count += 1
                return inner.layer(u, k)

            def image(self, u):
                return inner.image(u)

            def state(self, image):
                return inner.state(image)

        return Bound()


@pytest.mark.parametrize("rtol", [1e-2, 1e-5, 1e-9])
def test_certifying_costs_an_eighth_of_the_layers_of_restoring(rtol, float64):
    case = quadratic(batch=1, low=0.15, step_size=0.5, reg=0.02)
    net = Restarted(Counted(case.map), 5, 2, stop=Stop(rtol, 5000)).eval()
    found = net.solve(case.y, case.physics)
    took, net.map.count = int(found.layers[0]), 0
    image = certificate_of(net, case.y, case.physics, found)
    assert 0 < net.map.count <= took / 8 + net.depth
    assert "movements of" in image.rate.estimated.how
    true = (found.image - case.answer().detach()).square().mean().sqrt()
    assert image.rmse.estimated.value == pytest.approx(float(true), rel=0.05)
    assert "RMSE from its equilibrium" in in_a_line(CertifiedImage.model_validate(image.to_dict()))


def test_the_rate_is_seen_in_the_movements_of_the_layers(float64):
    """Against dense linear algebra: near the equilibrium the movements are a power iteration."""
    case = quadratic(batch=1, low=0.4)
    seen = image_of(case, layers=60, learning=False, starts=0).rate.estimated
    bound = case.map.requires_grad_(False).bind(case.map.data_term(case.y, case.physics))
    jacobian = torch.func.jacrev(bound.layer)(case.answer().detach()).reshape(20, 20)
    assert seen.value == pytest.approx(float(torch.linalg.eigvals(jacobian).abs().max()), rel=5e-3)
    assert seen.how.startswith("movements of")


def test_movements_that_are_rounding_show_no_rate():
    """In float32, at rest: the power iteration of finite differences finds the rate."""
    case = quadratic(batch=1, low=0.4)
    seen = image_of(case, layers=400, learning=False, starts=0).rate.estimated
    assert "finite differences" in seen.how
    assert seen.value < 0.9


@pytest.mark.parametrize(
    ("prox", "step_size", "layers"),
    [
        (lambda v: torch.full_like(v, 0.5), 0.3, 3),  # one beyond the result, one more, and one of a finite difference
        (lambda v: 0.5 * v, 0.5, 1),  # by its guarantee (the counter is not `constant`): A = I, and the step is 1/L
    ],
)
def test_a_layer_that_does_not_depend_on_its_state_needs_few(prox, step_size, layers):
    map_ = ForwardBackward(Transparent(prox), step_size=step_size)
    net = Restarted(Counted(map_), 1, 1, stop=Stop(1e-4, 2))
    y = rand(1, 1, 8, 8)
    found = net.eval().solve(y, Denoising())
    assert int(found.layers[0]) == 2
    net.map.count = 0
    image = certificate_of(net, y, Denoising(), found)
    assert net.map.count == layers
    assert image.rate.estimated.value < 1e-2
    assert image.rmse.estimated.value < 1e-6
    assert (image.rmse.proved is not None) == (layers == 1)


def test_no_start_is_for_a_certificate_without_graph():
    with pytest.raises(InvalidParameterError, match="starts must be at least 1, got 0"):
        image_of(quadratic(batch=1), starts=0)
