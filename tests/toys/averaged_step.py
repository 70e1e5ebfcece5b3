"""A map of somebody's: half a step of forward–backward."""

import retune
from retune.maps import Bounded


@retune.register
class AveragedStep(retune.AbstractMap):
    """``T(x) = ½ (x + prox_{τg}(x − τ ∇f(x)))``, ``τ = 2s/L``."""

    def __init__(self, prior, step_size=0.5):
        super().__init__()
        self.prior, self.step_size = prior, Bounded(step_size, name="step_size")

    def bind(self, data_term):
        return _Bound(self, data_term)


class _Bound(retune.BoundMap):
    layers = 1

    def __init__(self, owner, data_term):
        self.prior, self.data_term = owner.prior, data_term
        self.tau = (2 * owner.step_size() / data_term.lipschitz).reshape(-1, 1, 1, 1)

    def init(self):
        return self.data_term.adjoint_y / self.data_term.sqnorm.reshape(-1, 1, 1, 1)

    def layer(self, u, k=0):
        step = self.prior.prox(u - self.tau * self.data_term.grad(u), gamma=self.tau)
        return 0.5 * (u + step)

    def image(self, u):
        return u

    def state(self, image):
        return image
