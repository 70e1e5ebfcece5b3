"""The sections of a run, and the allowed values of each field."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from retune.config.comparison import CompareConfig
from retune.config.fields import (
    FAMILIES,
    NETWORKS,
    Count,
    Crops,
    FidelityName,
    Layers,
    Level,
    Levels,
    MapName,
    Positive,
    PriorName,
    RuleName,
    Section,
    Share,
    SolverName,
)

__all__ = [
    "Config",
    "DataConfig",
    "FidelityConfig",
    "GradientConfig",
    "MapConfig",
    "ModelConfig",
    "OptimiserConfig",
    "PriorConfig",
    "ProblemConfig",
]


class ProblemConfig(Section):
    """The problem of the measurements: y = A x + noise."""

    name: str = "deblur"
    """denoise, inpaint, deblur or superres; a registered problem; or any deepinv physics as module:function."""
    sigma: Level | list[Level] | Literal["estimate"] = 0.05
    """Noise standard deviation ≥ 0, one or one per channel, intensities in [0, 1]; or "estimate" (tune only)."""
    noise: str | None = None
    """Noise that grows with brightness, in place of sigma: poisson:GAIN,READ (denoise, deblur, superres)."""
    kernel: str | None = None
    """Blur kernel: gaussian:SIGMA, uniform:SIDE, motion:LENGTH@DEGREES, three-motions, or a file (deblur, superres)."""
    kernel_background: Annotated[float, Field(strict=True, allow_inf_nan=False)] | Literal["auto"] | None = None
    """Level of the kernel's border that is subtracted, in the units of its file, or "auto" (deblur, superres)."""
    centre_kernel: bool | None = None
    """Whether to move the kernel's centre of mass to the middle of its array (deblur, superres)."""
    boundary: Literal["reflect", "circular", "valid"] | None = None
    """Boundary of the blur: reflect, circular, or (deblur) valid if light from beyond the image reached the sensor."""
    keep: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Share of measured pixels (inpaint), if no mask is given."""
    mask: str | None = None
    """Image file, black where nothing was measured (inpaint)."""
    factor: Literal[2, 3, 4] | None = None
    """Magnification (superres): 2, 3 or 4."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of your own physics (module:function) or of a registered problem: a table [problem.options]."""

    #: fields that earlier versions do not know; what they wrote stays equal, byte for byte, where these are not used
    _later: ClassVar[tuple[str, ...]] = ("noise", "kernel_background", "centre_kernel")

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        told = {k: v for k, v in serialise(self).items() if v is not None or k not in self._later}
        if "noise" in told and told.get("sigma") != "estimate":  # the noise replaces the level
            told.pop("sigma", None)
        return told

    @model_validator(mode="after")
    def _noise_once(self) -> ProblemConfig:
        if self.noise is not None and "sigma" in self.model_fields_set and self.sigma != "estimate":
            raise ValueError(f"sigma = {self.sigma} and noise = {self.noise} say the noise twice: give one of them")
        return self

    def has(self, name: str) -> bool:
        """Whether the field applies: noise that grows with brightness replaces its level."""
        return name != "sigma" or self.noise is None or self.sigma == "estimate"

    @field_validator("sigma")
    @classmethod
    def _some_level(cls, sigma: Any) -> Any:
        if sigma == []:
            raise ValueError("Input should be one number, or one per channel")
        return sigma

    @field_validator("noise")
    @classmethod
    def _known_noise(cls, noise: str | None) -> str | None:
        if noise is not None:
            from retune.problems.counts import parse_noise

            parse_noise(noise)  # its error is a ValueError, and names the expected form
        return noise


#: the types of prior that have each field; every prior has a type
_KINDS = {
    "norm": ("wavelet",),
    "wavelet": ("wavelet",),
    "levels": ("wavelet",),
    "margin": ("wavelet",),
    "weights_per_channel": ("wavelet",),
    "coarse": ("wavelet",),
    "weights": NETWORKS,
    "learn_weights": NETWORKS,
    "sigma": NETWORKS,
    "learn_sigma": NETWORKS,
    "strength": ("denoiser",),
    "learn_strength": ("denoiser",),
    "bfloat16": ("denoiser", "red"),
    "lipschitz": ("red",),
    "box": ("red", "ridge", "energy"),
}


class PriorConfig(Section):
    """The prior: a weighted norm of wavelet coefficients, a denoiser, a ridge regulariser, or a learned energy."""

    type: PriorName = "wavelet"
    """wavelet; denoiser: Plug-and-Play; red: x − D(x); ridge; energy; tv, tgv, undecimated_wavelet; or your own."""
    norm: Literal["l12", "l1"] = "l12"
    """l12 groups the channels and bands of a position; l1 treats every coefficient separately (wavelet)."""
    wavelet: str | list[str] = "db4"
    """An orthogonal wavelet (haar, db2 … db38, sym2 …, coif1 …), or several for a union of bases."""
    levels: Levels = 5
    """Number of scales (wavelet); crops need sides of 2**levels pixels."""
    weights_per_channel: StrictBool = True
    """Whether every colour channel has separate weights (wavelet)."""
    coarse: StrictBool = False
    """Whether the coarse approximation is also penalised (wavelet)."""
    margin: Annotated[StrictInt, Field(ge=0, le=1000)] = 0
    """Minimum number of pixels restored beyond the borders; 0 may make opposite borders adjacent (wavelet)."""
    weights: str | None = None
    """Weights of a network: a shipped name (denoiser-color, ridge-convex-gray, …) or a file; default: what fits."""
    learn_weights: StrictBool = False
    """Whether the weights of the network are trained, at optimiser.lr_network, or frozen (all but wavelet)."""
    sigma: Positive | list[Positive] = 0.05
    """Noise level of the network for intensities in [0, 1]: one, or one per layer of an untied cycle."""
    learn_sigma: StrictBool = True
    """Whether this noise level is learned."""
    strength: Share | list[Share] | None = None
    """α of (1 − α)x + αD(x), one or one per layer (denoiser); default: 1."""
    learn_strength: StrictBool = True
    """Whether α is learned."""
    bfloat16: StrictBool = False
    """Whether the network computes in bfloat16 during training, which is faster (denoiser, red)."""
    lipschitz: Positive = 2.0
    """The Lipschitz constant of x − D(x) for the step size (red); it is not checked."""
    box: StrictBool = False
    """Whether intensities are restricted to [0, 1] (red, ridge, energy)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of a registered prior: a table [prior.options]."""

    def has(self, name: str) -> bool:
        """Whether this type of prior has the field."""
        return self.type in _KINDS.get(name, (self.type,))

    @field_validator("options")
    @classmethod
    def _of_a_class(cls, options: dict, info: ValidationInfo) -> dict:
        if options and info.data.get("type") in FAMILIES:
            raise ValueError(f'a prior of type "{info.data["type"]}" has its own fields instead of options')
        return options

    @field_validator(*_KINDS)
    @classmethod
    def _of_this_type(cls, value: Any, info: ValidationInfo) -> Any:
        # Only given fields come here, not defaults; an unknown type was already reported.
        kind, kinds = info.data.get("type"), _KINDS[str(info.field_name)]
        if kind is not None and kind not in kinds:
            raise ValueError(f'a prior of type "{kind}" has no {info.field_name} (type = {" or ".join(kinds)} has)')
        if value == [] and info.field_name != "wavelet":
            raise ValueError("Input should be one number, or one per layer")
        if kind in ("ridge", "energy") and info.field_name == "sigma" and isinstance(value, list):
            raise ValueError(f"Input should be one number: the layers share one {kind}")
        return value


class MapConfig(Section):
    """The map of the iteration."""

    spoken = False

    type: MapName = "auto"
    """auto (by the prior), or forward_backward, gradient_step, primal_dual, douglas_rachford, half_quadratic, …"""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the map: a table [map.options]."""


class FidelityConfig(Section):
    """The data fidelity: the distance between an image and the measurement."""

    spoken = False

    type: FidelityName = "l2"
    """l2: half the squared distance; or a registered data fidelity."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the data fidelity, such as sigma: a table [data_fidelity.options]."""


class ModelConfig(Section):
    """The number of iterations, and the initial parameters."""

    depth: Layers = 10
    """K, layers in a block, which is differentiated at once. More layers: more exact gradients, more memory."""
    restarts: Annotated[StrictInt, Field(ge=0, le=100_000)] = 10
    """R, blocks in training before the differentiated one. More restarts come closer to the equilibrium."""
    layers: Annotated[StrictInt, Field(ge=1, le=1000)] = 1
    """Number of different layers in a cycle: 1 ties all weights."""
    step_size: Share = 0.9
    """s in (0, 1); the step size is 2s/L."""
    learn_step_size: StrictBool = True
    """Whether the step size is learned."""
    reg: Positive = 0.05
    """Initial λ, the strength of the prior; Plug-and-Play has no λ."""
    learn_reg: StrictBool = True
    """Whether the strength is learned."""
    solver: SolverName = "auto"
    """picard (plain restarts), damped, anderson, inertial, quasi_newton or your own; auto: the fastest sound one."""
    solver_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the solver: a table [model.solver_options]."""
    rtol: Annotated[float, Field(ge=0, lt=1, strict=True)] = 1e-4
    """Relative change over a block below which a restoration is settled."""
    max_layers: Annotated[StrictInt, Field(ge=1, le=100_000)] = 2000
    """Maximum number of layers of a restoration."""
    coarse_start: StrictBool | Literal["auto"] = "auto"
    """Whether denoisers compute in bfloat16 far from the equilibrium; auto: if the processor is fast with it."""

    @field_validator("solver_options")
    @classmethod
    def _of_a_solver(cls, options: dict, info: ValidationInfo) -> dict:
        if options and info.data.get("solver") == "auto":
            raise ValueError("options need a solver: name one as model.solver")
        return options


class GradientConfig(Section):
    """The rule for the derivative of the equilibrium."""

    rule: RuleName = "truncated"
    """truncated is ReTune; unrolled trains the output after K layers; implicit solves for the adjoint; or your own."""
    blocks: Layers = 1
    """Number of pull-backs through the recorded block (truncated): more blocks are more exact."""
    rtol: Share | None = None
    """Required relative error of the adjoint, in place of a number of blocks."""
    options: dict[str, Any] = Field(default_factory=dict)
    """More arguments of the rule: a table [gradient.options]."""


class DataConfig(Section):
    """The training data."""

    train: str = "photographs"
    """Folder or file of sharp images; "photographs" uses some from scikit-image."""
    validation: str | None = None
    """Folder or file of images that decide which weights are kept; without them the last weights are kept."""
    white: Positive | None = None
    """Intensity that counts as 1 in the files; default: the largest value of an integer type, and 1 for floats."""
    crop: Count = 64
    """Side of the random square crops."""
    batch_size: Crops = 4
    """Crops per step."""
    grey: StrictBool = False
    """Whether colour images are converted to grey."""


class OptimiserConfig(Section):
    """The training: Adam with a cosine schedule."""

    steps: Count = 200
    """Training steps."""
    lr: Positive = 0.05
    """Learning rate of step sizes, strengths and weights (on a logarithmic scale)."""
    lr_network: Positive = 1e-4
    """Learning rate of all other parameters."""
    loss: Literal["mse", "snr"] = "mse"
    """mse: mean squared error; snr: decibels, which give easy and difficult crops the same weight."""
    penalty: Level = 0.0
    """Weight in the loss of the spectral norm of the denoiser's Jacobian (denoiser, red); 0 switches it off."""
    warm_start: StrictBool = False
    """Whether each training image remembers its equilibrium: fewer restarts, larger checkpoints (retune train only)."""
    validate_every: Count | None = None
    """Steps between validations; default: a fifth of all steps."""
    checkpoint_every: Count = 20
    """Steps between checkpoints: at most these are lost in a power failure."""


class Config(Section):
    """A run."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**62)] = 0
    """Seed of crops, operators and noise."""
    problem: ProblemConfig = ProblemConfig()
    """The problem of the measurements."""
    prior: PriorConfig = PriorConfig()
    """The prior of the images."""
    map: MapConfig = MapConfig()
    """The map of the iteration."""
    data_fidelity: FidelityConfig = FidelityConfig()
    """The data fidelity."""
    model: ModelConfig = ModelConfig()
    """The number of iterations."""
    gradient: GradientConfig = GradientConfig()
    """The gradient rule."""
    data: DataConfig = DataConfig()
    """The training data."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """The training."""
    compare: CompareConfig = CompareConfig()
    """The comparison."""

    @model_validator(mode="after")
    def _penalised(self) -> Config:
        if self.optimiser.penalty and self.prior.type not in ("denoiser", "red"):
            raise ValueError(
                f"optimiser.penalty = {self.optimiser.penalty}: the penalty applies to denoisers only, and the prior "
                "has "
                f'type "{self.prior.type}"; leave the penalty out, or set prior.type to denoiser or red'
            )
        return self
