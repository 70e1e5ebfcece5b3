"""A problem of somebody's: images that are too dark."""

from deepinv.physics import GaussianNoise, LinearPhysics

import retune


@retune.register
class Dimmed(retune.problems.Problem):
    """``y = c x + ε``."""

    name = "dimmed"

    def __init__(self, factor=0.5, sigma=0.05):
        super().__init__(sigma)
        self.factor = factor

    def physics(self, img_size, *, batch=1, seed=0, dtype=None, device="cpu"):
        def scale(x, **kwargs):
            return self.factor * x

        return LinearPhysics(A=scale, A_adjoint=scale, noise_model=GaussianNoise(self.sigma))
