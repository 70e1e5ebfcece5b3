"""A layer has no branch on data: torch.compile takes it as one graph. The backend runs the graph as it is."""

import deepinv
import pytest
import torch

import retune
from small_parts import rand

UNEQUAL = torch.linspace(0.6, 1.6, 9).reshape(3, 1, 3)


def wavelets(**options):
    return retune.ForwardBackward(retune.priors.WaveletL12("db4", 2, **options), step_size=0.9, reg=0.05)


MAPS = {
    "l1": lambda: retune.ForwardBackward(retune.priors.WaveletL1("db4", 2), step_size=0.9, reg=0.05),
    "l12": wavelets,
    "l12, learned weights": lambda: wavelets(channels=3, weights=UNEQUAL),
    "denoiser": lambda: retune.ForwardBackward(retune.priors.Denoiser(retune.weights.load("denoiser-color"), 0.1)),
    "total variation": lambda: retune.PrimalDual(retune.priors.TV(), reg=0.1),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_layer_is_one_graph(name):
    torch._dynamo.reset()
    net = retune.Restarted(MAPS[name](), depth=5, restarts=2)
    physics = deepinv.physics.Inpainting((3, 32, 32), mask=0.5)
    with torch.no_grad():
        bound = net.bind(rand(1, 3, 32, 32), physics).map
        u = bound.layer(bound.init())
        compiled = torch.compile(bound.layer, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(u), bound.layer(u), rtol=1e-5, atol=1e-5)
