"""Forward–backward iterations on a prior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from deepinv.optim.data_fidelity import DataFidelity
from deepinv.optim.prior import Prior
from deepinv.physics import LinearPhysics
from torch import Tensor, nn

from retune._registry.describe import by_arguments, description
from retune._registry.entries import register
from retune._torch.batch import over_images
from retune._torch.function import Function
from retune.errors import InvalidParameterError, require_whole, wrong_type
from retune.guarantee import Guarantee
from retune.maps.base import AbstractMap, BoundMap
from retune.maps.guarantees.proximal import forward_backward_guarantee
from retune.maps.with_prior import BoundWithPrior, fidelity_of
from retune.operators.data_term import DataTerm
from retune.operators.holes import fill
from retune.parameters import Bounded, Positive, require_damping
from retune.priors.base import is_complete
from retune.priors.capabilities import adapt, bind_cycle, part_of, require_prox
from retune.priors.origin import is_ours
from retune.solvers.base import Objective

__all__ = ["ForwardBackward"]


@register
class ForwardBackward(AbstractMap):
    r"""``T(u) = prox_{τλg}(u − τ (Dᵀ∇f(Du) + εu))``, ``x = D u``.

    The step size is ``τ = 2s/L``. A sigmoid keeps the learned s in (0, 1), and ``L = ‖A‖²/σ² + ε`` comes from the
    problem, so training cannot leave ``0 < τ < 2/L``. For convex g the map is averaged. With tied weights its iterates
    converge to a minimiser of ``f + λg`` (Combettes and Wajs, *Multiscale Model. Simul.* 4(4), 2005). An untied cycle
    is averaged, too; its iterates converge to a fixed point of the composition, if one exists.

    For ReTune's synthesis priors D is their tight frame (``‖D‖ = 1``, so L does not grow). For any other deepinv prior
    D is the identity. With [`Denoiser`][retune.priors.Denoiser] the prox is a denoiser (Plug-and-Play): λ has no effect
    and is not learned, and convergence is not guaranteed.

    If A is a multiple of the identity, and D crops images in an orthonormal basis W, then y is continued by its mirror
    image to all pixels of that basis: ``f(u) = ½‖Wᵀu − y‖²``. So denoising is a contraction for images of any size.

    Args:
        prior: a prior with an exact ``prox``, or a denoiser; for untied layers a sequence, one prior per layer.
        data_fidelity: deepinv ``DataFidelity`` with a Lipschitz gradient, ``L2()`` by default.
        step_size: s in ``τ = 2s/L``, strictly between 0 and 1; one number or one per layer.
        reg: λ > 0; one number or one per layer.
        layers: number of different layers in a cycle: 1 ties the weights, K gives each of K layers its own weights.
        learn_step_size: whether s is trained.
        learn_reg: whether λ is trained.
        lipschitz: Lipschitz constant of the gradient of ``d(·, y)``, for a fidelity that does not state it.
        strong_convexity: ε ≥ 0 adds ``½ε‖u‖²`` to the objective. For convex g the map is then a contraction for any A,
            with factor at most ``max(|1 − τε|, |1 − τL|)``. The term pulls the state (all wavelet coefficients, also
            the coarse ones) towards 0, so keep ε small compared with ``‖A‖²/σ²``.

    Raises:
        InvalidParameterError: a parameter out of range, or a prior without a prox.
    """

    in_state_dict = ("step_size", "reg")
    added_later = ("lipschitz",)

    def __init__(
        self,
        prior: Prior | Sequence[Prior],
        data_fidelity: DataFidelity | None = None,
        step_size: float | Sequence[float] = 0.9,
        reg: float | Sequence[float] = 0.1,
        layers: int = 1,
        *,
        learn_step_size: bool = True,
        learn_reg: bool = True,
        lipschitz: float | None = None,
        strong_convexity: float = 0.0,
    ):
        super().__init__()
        layers = require_whole("layers", layers)
        strong_convexity = require_damping(strong_convexity)
        data_fidelity = fidelity_of(data_fidelity)
        if layers < 1:
            raise InvalidParameterError(f"layers must be at least 1 (tied weights), got {layers}")
        self.layers = layers
        self.data_fidelity = data_fidelity
        self.lipschitz, self.strong_convexity = lipschitz, strong_convexity
        self.priors = nn.ModuleList(_priors(prior, layers))
        self.step_size = Bounded(step_size, (layers,), learn=learn_step_size, name="step_size")
        able = [adapt(p) for p in self.priors]
        self.nonexpansive = not any(p.may_expand for p in able)
        self.symmetric = self.nonexpansive and layers == 1
        learn_reg = learn_reg and any(p.uses_strength for p in able)
        self.reg = Positive(reg, (layers,), learn=learn_reg, name="reg")

    @property
    def per_image(self) -> bool:  # type: ignore[override]
        """Whether the priors treat every image of a batch independently of the others."""
        return all(adapt(p).per_image for p in self.priors)

    def describe(self) -> dict:
        """See [`AbstractMap`][retune.AbstractMap]."""
        first = adapt(self.priors[0])
        if len(self.priors) > 1 and first.shares_layers:
            raise InvalidParameterError(
                "a checkpoint cannot describe a cycle of several denoisers: give one retune.priors.Denoiser, shared "
                "by all layers, or save net.state_dict() and rebuild the network in Python"
            )
        return by_arguments(self, prior=self.priors[0])

    def extra_repr(self) -> str:
        """The settings outside of submodules, for ``repr``."""
        return f"strong_convexity={self.strong_convexity:g}" if self.strong_convexity else ""

    def data_term(self, y: Tensor, physics: LinearPhysics) -> DataTerm:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return DataTerm(y, physics, self.data_fidelity, lipschitz=self.lipschitz)

    def bind(self, data_term: DataTerm) -> BoundMap:
        """See [`AbstractMap`][retune.AbstractMap]."""
        return _BoundForwardBackward(self, data_term)

    def guarantee(self, data_term: DataTerm) -> Guarantee:
        """The proved facts, if every g is known to be convex with an exact prox; otherwise nothing is proved.

        For ``F = f∘D + ½ε‖·‖²``, L = ``‖A‖²/σ² + ε``. If A is diagonalised and D is orthonormal (or the identity), μ =
        ``min |m|²/σ² + ε``; otherwise μ = ε, because ``AD`` does not see some directions of a redundant frame.
        """
        return forward_backward_guarantee(self, data_term)


class _GradientStep(Function):
    """``u − τ r``, like ``addcmul``; its derivative in τ needs no temporary of the size of a state."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u, r, minus_step):
        return torch.addcmul(u, r, minus_step)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        r, minus_step = ctx.saved_tensors
        grad_step = None
        if ctx.needs_input_grad[2]:
            inner = torch.bmm(grad.flatten(1).unsqueeze(1), r.flatten(1).unsqueeze(2))  # ⟨grad, r⟩ per image
            grad_step = inner.unsqueeze(3).sum_to_size(minus_step.shape)
        return grad, grad * minus_step if ctx.needs_input_grad[1] else None, grad_step


@dataclass(frozen=True)
class _Layer:
    minus_step: Tensor  # −τ
    prox: Callable[[Tensor], Tensor]


class _BoundForwardBackward(BoundWithPrior):
    """Cost per layer: the normal operator, the frame in both directions, the prox, and two vector operations."""

    def __init__(self, owner: ForwardBackward, data_term: DataTerm):
        super().__init__(owner, data_term)
        self._normal_operator, self._damping = data_term.normal, owner.strong_convexity
        taus, gammas = self._strengths(owner, data_term)
        bound = bind_cycle(list(owner.priors), data_term.shape, gammas)  # type: ignore[arg-type]
        self._frame, self._bound, self._gamma = bound[0].frame, bound[0], gammas[0]
        self._prior, self._reg = owner.priors[0], owner.reg()[0].detach().to(data_term.device, data_term.dtype)
        self._layers = [_Layer(-tau, part_of(owner.priors[0], b, "prox")) for tau, b in zip(taus, bound, strict=True)]

        quadratic = data_term.quadratic
        self._weight = data_term.inverse_variance if quadratic else 1.0
        # In an orthonormal basis a multiple of the identity stays one, so denoising needs no transform. Where D crops
        # images of such a basis, the measurement is continued to all of their pixels.
        denoises = quadratic and data_term.normal_scale is not None
        self._scalar = data_term.normal_scale if denoises and is_complete(self._frame) else None
        back = self.image_adjoint if self._scalar is None else self.state
        self._target = self._scaled(back(data_term.adjoint_y)) if quadratic else None
        # u − τ (c u − Aᵀy) with τ c = 1 is the same for any u.
        if self.layers == 1 and self._scalar is not None and not owner.step_size.learned and is_ours(owner):
            full = self._scalar * self._weight + self._damping
            self.constant = bool((taus[0] * full == 1).all())
        self._start_scale = over_images(1 / (data_term.lipschitz if quadratic else data_term.sqnorm))
        # A denoiser fills black holes slowly, and with a small σ never, so the start has its holes filled.
        self._holes = None if owner.nonexpansive else data_term.holes

    @staticmethod
    def _strengths(owner: ForwardBackward, data_term: DataTerm) -> tuple[list[Tensor], list[Tensor]]:
        """τ and γ = τλ of every layer, (1 or B, 1, 1, 1)."""
        steps = 2 * owner.step_size().to(data_term.device, data_term.dtype)
        regs = owner.reg().to(data_term.device, data_term.dtype)
        inverse_l = over_images(1 / (data_term.lipschitz + owner.strong_convexity))
        taus = [steps[k] * inverse_l for k in range(owner.layers)]
        return taus, [tau * regs[k] for k, tau in enumerate(taus)]

    def init(self) -> Tensor:
        """``Aᵀy/‖A‖²``, the scaled back-projection. For a denoiser the holes of a mask are filled in."""
        if self._target is None:
            start = self.state(self.data_term.adjoint_y * self._start_scale)
            return start if self._holes is None else fill(start, self._holes)
        if self._scalar is not None or self._frame is None or not self._frame.cropped:
            start = self._target * self._start_scale
            return start if self._holes is None else fill(start, self._holes)
        return self._frame.extension(self._frame.synthesis(self._target) * self._start_scale)  # D Dᵀ = I

    def layer(self, u: Tensor, k: int = 0) -> Tensor:
        """``prox(u − τ (Dᵀ AᵀA D u + εu − c))`` with ``c = DᵀAᵀy`` for quadratic f."""
        step = self._layers[k % self.layers]
        if self._target is None:
            gradient = self.image_adjoint(self._gradient(self.image(u)))
            if self._damping:
                gradient = gradient + self._damping * u
        else:
            gradient = self._normal(u) - self._target
        # Autograd keeps the gradient (for τ) and the output of the prox: two states a layer.
        return step.prox(_GradientStep.run(u, gradient, step.minus_step))  # type: ignore[arg-type]

    def objective(self) -> Objective | None:
        """See [`BoundMap`][retune.BoundMap]: ``f(Du) + λg(u) + ½ε‖u‖²``, for one layer and a prior with a value."""
        term, value = self.data_term, self._bound.fn
        if self.layers > 1 or value is None:
            return None
        prior, reg, gamma = self._prior, self._reg, self._gamma.detach().flatten()

        def backward(v: Tensor, step: Tensor) -> Tensor:
            (bound,) = bind_cycle([prior], (len(v), *term.shape[1:]), [step * reg])  # type: ignore[list-item]
            assert bound.prox is not None
            return bound.prox(v)

        def select(index: Tensor) -> Objective | None:
            part = self.select(index)
            return None if part is None else part.objective()

        def gradient(u: Tensor) -> Tensor:
            """``∇(f∘D + ½ε‖·‖²)``, or without f where that is no quadratic form."""
            if self._target is not None:
                return self._normal(u) - self._target
            return self._damping * u

        def smooth_value(u: Tensor) -> Tensor:
            if self._target is not None:
                return u.new_zeros(len(u), dtype=torch.float64)
            return term.fn(self.image(u)).double()

        def smooth(u: Tensor) -> tuple[Tensor, Tensor]:
            if self._target is not None:
                return smooth_value(u), torch.zeros_like(u)
            return smooth_value(u), self.image_adjoint(self._gradient(self.image(u)))

        return Objective(
            quadratic=gradient,
            smooth=smooth,
            smooth_value=smooth_value,
            lipschitz=term.lipschitz + self._damping,
            backward=backward,
            rest=lambda u: value(u).double() * (reg.double() / gamma.double()),
            select=select,
        )

    def _normal(self, u: Tensor) -> Tensor:
        """``Dᵀ AᵀA D u / σ² + εu``."""
        if self._scalar is not None:
            scale = self._scalar * self._weight + self._damping
            return u if scale == 1 else u * scale
        normal = self._scaled(self.image_adjoint(self._normal_operator(self.image(u))))
        return torch.add(normal, u, alpha=self._damping) if self._damping else normal

    def _scaled(self, r: Tensor) -> Tensor:
        return r if self._weight == 1 else r * self._weight

    def image(self, u: Tensor) -> Tensor:
        return u if self._frame is None else self._frame.synthesis(u)

    def state(self, image: Tensor) -> Tensor:
        image = self._require(image)
        return image if self._frame is None else self._frame.extension(image)

    def image_adjoint(self, image: Tensor) -> Tensor:
        return image if self._frame is None else self._frame.analysis(image)


def _priors(prior: Prior | Sequence[Prior], layers: int) -> Sequence[Prior]:
    if isinstance(prior, str | type):
        hint = 'for example retune.priors.WaveletL12("db4", levels=4)'
        raise wrong_type("prior", prior, "a deepinv Prior with an exact prox", hint)
    if isinstance(prior, Sequence):
        if len(prior) != layers:
            raise InvalidParameterError(f"give one prior, or {layers} priors (one for each layer); got {len(prior)}")
        priors = list(prior)
    else:
        priors = require_prox(prior, "ForwardBackward").per_layer(layers)
    able = [require_prox(p, "ForwardBackward") for p in priors]
    on_coefficients = [p for p in able if p.on_coefficients]
    if 0 < len(on_coefficients) < len(able):
        raise InvalidParameterError("the layers of a cycle must all work on images, or all on coefficients")
    if any(description(p) != description(on_coefficients[0]) for p in on_coefficients[1:]):
        kinds = "; ".join(str(description(p)) for p in on_coefficients)
        raise InvalidParameterError(
            f"the priors of a cycle share one frame, so they may differ in their weights only, got {kinds}"
        )
    return priors
