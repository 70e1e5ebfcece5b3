"""A prior of somebody's: small images are likely, and how much so is learned."""

from deepinv.optim.prior import Prior

import retune
from retune.maps import Positive


@retune.register
class Quadratic(Prior):
    """``g(x) = ½ w ‖x‖²``, with the exact prox ``x / (1 + γ w)``."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.explicit_prior = True
        self.weight = Positive(weight, name="weight")

    def fn(self, x, *args, **kwargs):
        return 0.5 * self.weight() * x.square().flatten(1).sum(1)

    def prox(self, x, *args, gamma=1.0, **kwargs):
        return x / (1 + gamma * self.weight())

    def convexity(self):
        return retune.Convexity(0.0, "½ w ‖x‖² with w > 0")
