"""A data fidelity of somebody's: squared distance with a weight."""

from deepinv.optim.data_fidelity import DataFidelity

import retune


@retune.register
class Weighted(DataFidelity):
    """``½ w ‖Ax − y‖²``; the gradient of the distance has the Lipschitz constant w."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def fn(self, x, y, physics, *args, **kwargs):
        return 0.5 * self.weight * (physics.A(x) - y).square().flatten(1).sum(1)

    def grad(self, x, y, physics, *args, **kwargs):
        return self.weight * physics.A_adjoint(physics.A(x) - y)
