"""Regularisation by denoising: the residual of a denoiser as a gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from retune._registry.entries import register
from retune.errors import InvalidParameterError
from retune.guarantee import Smoothness
from retune.priors.base import BoundPrior
from retune.priors.denoising import DenoiserPrior

__all__ = ["RED"]


@register
class RED(DenoiserPrior):
    r"""``∇R ← x − D_σ(x)``: regularisation by denoising, for [`GradientStep`][retune.GradientStep].

    Romano, Elad, Milanfar, *The little engine that could*, SIAM J. Imaging Sci. 10(4), 2017. For a gradient-step
    denoiser (``D = I − ∇g``) it is the gradient of g. For any other denoiser it is a map but not a gradient (Reehorst
    and Schniter, IEEE TCI 5(1), 2019): the equilibrium then need not minimise an objective.

    Args:
        denoiser: as for [`Denoiser`][retune.priors.Denoiser].
        sigma: as for [`Denoiser`][retune.priors.Denoiser].
        lipschitz: the Lipschitz constant of ``x − D_σ(x)`` for the step size. 2 is correct for a nonexpansive D. It is
            not checked.
        learn_sigma: whether σ is trained.
        learn_denoiser: whether the weights of the denoiser are trained.
        sigma_range: as for [`Denoiser`][retune.priors.Denoiser].
        bfloat16: as for [`Denoiser`][retune.priors.Denoiser].
    """

    has_grad = True

    def __init__(
        self,
        denoiser: nn.Module,
        sigma: float | Sequence[float] | None = 10 / 255,
        lipschitz: float = 2.0,
        *,
        learn_sigma: bool = True,
        learn_denoiser: bool = False,
        sigma_range: tuple[float, float] | None = None,
        bfloat16: bool = False,
    ):
        super().__init__(
            denoiser,
            sigma,
            learn_sigma=learn_sigma,
            learn_denoiser=learn_denoiser,
            sigma_range=sigma_range,
            bfloat16=bfloat16,
        )
        if not 0 < lipschitz < float("inf"):
            raise InvalidParameterError(f"lipschitz must be a positive finite number, got {lipschitz}")
        self.lipschitz_guess = float(lipschitz)

    def _function(self, shape: Sequence[int], layer: int, sigma: Tensor | None) -> Callable[[Tensor], Tensor]:
        network = self._network(shape, sigma)
        return lambda x: x - network(x)

    def bind(self, shape: Sequence[int], layer: int, gamma: Tensor) -> BoundPrior:
        """See [`AbstractPrior`][retune.AbstractPrior].

        Raises:
            ShapeError: the denoiser does not support the number of channels.
        """
        return BoundPrior(grad=self._function(shape, layer, self._sigma(layer)))

    def smoothness(self, like: Tensor) -> Smoothness:
        """The given constant, which is not checked."""
        how = f"{type(self).__name__}: the constant was given"
        return Smoothness(like.new_tensor([self.lipschitz_guess]), None, how, row="any denoiser")

    def grad(self, x: Tensor, sigma: float | Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """``x − D_σ(x)``, as deepinv's algorithms call it."""
        return self._at(x, sigma)(x)

    def describe(self) -> dict:
        """See ``DenoiserPrior``."""
        return super().describe() | {"lipschitz": self.lipschitz_guess}
