"""A ridge regulariser as a denoiser: it solves its denoising problem to a tolerance."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from deepinv.models import Denoiser
from torch import Tensor
from torch.nn.functional import pad

from retune._registry.describe import by_arguments
from retune._registry.entries import register
from retune._torch.batch import over_images
from retune.errors import NotConvergedWarning, NotFiniteError
from retune.gradients import GradientRule, Truncated
from retune.maps.base import BoundMap
from retune.networks._layout import ON_EACH, require_channels
from retune.priors.ridge import BoundRidge, Ridge
from retune.solve import Solution, Stop, solve
from retune.solvers import AbstractSolver, Anderson

__all__ = ["Denoising", "RidgeDenoiser"]


@register
class RidgeDenoiser(Denoiser):
    r"""``D_σ(y) = argmin_x ½‖x − y‖² + R_σ(x)`` for a ridge regulariser R.

    The problem is convex (R is convex or 1-weakly convex). Its solution is the proximity operator of R: it is unique,
    and for convex R it is firmly nonexpansive.

    The image is extended at its border by the reach of the filters (by reflection, or by repetition if it is too
    small), so the margin is regularised like the interior. The problem is solved on the extended image. A change near
    the border also changes the extension, so D_σ as a whole is firmly nonexpansive only for changes further inside.

    With a graph (in training, or if the image or the noise level requires a gradient), the gradient rule differentiates
    the equilibrium. In eval mode, the first denoising that has not settled after the maximum number of layers warns.

    Args:
        prior: the trained regulariser, which other maps can use, too. A run with a prior of type "ridge" takes the
            regulariser of any denoiser that has one, with a gradient and a noise level.
        depth: K, number of differentiated layers.
        gradient: the gradient rule, ``Truncated(rtol=0.02)`` by default.
        solver: accelerates the gradient descent; Anderson by default.
        stop: relative change of one layer below which an image is settled.
    """

    def __init__(
        self,
        prior: Ridge,
        depth: int = 5,
        gradient: GradientRule | None = None,
        solver: AbstractSolver | None = None,
        stop: Stop | None = None,
    ):
        super().__init__()
        self.prior, self.depth = prior, depth
        self.gradient = Truncated(rtol=0.02) if gradient is None else gradient
        self.solver = Anderson() if solver is None else solver
        self.stop = Stop(rtol=2e-5, max_layers=1000) if stop is None else stop
        self._warned = False

    @property
    def channels(self) -> int:
        """Number of channels of the images."""
        return self.prior.channels

    def describe(self) -> dict:
        """The architecture of the weights, as plain data."""
        return by_arguments(self, stop={"rtol": self.stop.rtol, "max_layers": self.stop.max_layers})

    @classmethod
    def rebuild(cls, stop: dict[str, Any], **options: Any) -> RidgeDenoiser:
        """The network from the result of [`describe`][retune.networks.RidgeDenoiser.describe], with fresh weights."""
        return cls(stop=Stop(**stop), **options)

    def forward(self, x: Tensor, sigma: float | Tensor, **_ignored) -> Tensor:
        """Denoise.

        Args:
            x: images (B, C, H, W), any height and width.
            sigma: noise level on the scale of x: a number, or a tensor () or (B,).

        Raises:
            ShapeError: wrong number of channels.
            NotFiniteError: NaN or Inf in the images.
        """
        require_channels(x, self.channels, "this regulariser is for", ON_EACH)
        height, width = x.shape[-2:]
        reach = self.prior.filters.reach
        mode = "reflect" if min(height, width) > reach else "replicate"
        y = pad(x, (reach,) * 4, mode=mode)
        asked = x.requires_grad or (isinstance(sigma, Tensor) and sigma.requires_grad)
        graph = torch.is_grad_enabled() and (self.training or asked)
        with torch.set_grad_enabled(graph):
            bound = Denoising(self.prior.at(sigma, y), y)
            with torch.no_grad():
                reached = self._solve(bound, y)
            u = self.gradient(bound, self.depth, lambda: reached.u)[0] if graph else reached.u
        return u[..., reach : reach + height, reach : reach + width]

    def _solve(self, bound: Denoising, y: Tensor) -> Solution:
        solution = solve(bound.layer, y, solver=self.solver, depth=1, stop=self.stop)
        if any(s.failed for s in solution.status):
            raise NotFiniteError(
                "the denoising problem has no finite solution: the image or the weights contain NaN or Inf"
            )
        if not self.training and not self._warned and any(s.unsettled for s in solution.status):
            self._warned = True  # inside another iteration every layer would repeat the warning
            warnings.warn(
                f"the denoising problem had not settled after {self.stop.max_layers} layers (largest relative change "
                f"{float(solution.residual.max()):.1e} per layer, tolerance {self.stop.rtol:.1e}); raise max_layers or "
                "loosen rtol of stop=Stop(...). This warning is shown once",
                NotConvergedWarning,
                stacklevel=2,
            )
        return solution


class Denoising(BoundMap):
    """Gradient descent on ``½‖x − y‖² + R(x)``, which is m-strongly convex with M-Lipschitz gradient."""

    layers = 1

    def __init__(self, prior: BoundRidge, y: Tensor):
        self.prior, self._y = prior, y
        low = (1 - prior.weak_convexity).clamp_min(0)
        high = 1 + prior.profile.curvature[1]
        # 2/(m + M) is the fastest constant step; a slightly smaller step stays below 2/M even if m vanishes.
        self._step = over_images(1.95 / (low + high), y.ndim)

    def init(self) -> Tensor:
        """The image to denoise."""
        return self._y

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """One step of gradient descent."""
        return u - self._step * (u - self._y + self.prior.grad(u))

    def image(self, u: Tensor) -> Tensor:
        """The state is the image."""
        return u

    def state(self, image: Tensor) -> Tensor:
        """The image is the state."""
        return image
