"""The sections of a run, and what each field may be."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from retune.errors import did_you_mean

__all__ = [
    "CompareConfig",
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

Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False, strict=True)]
Level = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
# Counts are bounded far above anything useful: beyond, a run would give no answer for hours, or fill the memory.
Count = Annotated[StrictInt, Field(ge=1, le=10_000_000)]
Layers = Annotated[StrictInt, Field(ge=1, le=10_000)]
Levels = Annotated[StrictInt, Field(ge=1, le=32)]
Crops = Annotated[StrictInt, Field(ge=1, le=100_000)]
Multiple = Annotated[StrictInt, Field(ge=2, le=10_000)]


class Section(BaseModel):
    """A table of a run."""

    # The sentence below each field is its description, here, in the starting point and in the documentation.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    #: whether the section is written where every field has its default
    spoken: ClassVar[bool] = True

    def has(self, name: str) -> bool:
        """Whether the field means anything, given the others."""
        return True


class ProblemConfig(Section):
    """What was measured: y = A x + noise."""

    name: str = "deblur"
    """denoise, inpaint, deblur or superres; a registered problem; or any deepinv physics as module:function."""
    sigma: Level | list[Level] | Literal["estimate"] = 0.05
    """Noise standard deviation ≥ 0, one or one per channel, intensities in [0, 1]; or "estimate" (tune only)."""
    kernel: str | None = None
    """Blur kernel: gaussian:SIGMA, uniform:SIDE, motion:LENGTH@DEGREES, three-motions, or a file (deblur, superres)."""
    boundary: Literal["reflect", "circular", "valid"] | None = None
    """What the blur sees beyond the border: reflect, circular, or (deblur) valid if the sensor saw more."""
    keep: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Share of pixels that are measured (inpaint), where no mask is given."""
    mask: str | None = None
    """Image file, black where nothing was measured (inpaint)."""
    factor: Literal[2, 3, 4] | None = None
    """Magnification (superres): 2, 3 or 4."""
    options: dict[str, Any] = {}
    """Arguments of your own physics (module:function) or of a registered problem: a table [problem.options]."""

    @field_validator("sigma")
    @classmethod
    def _some_level(cls, sigma: Any) -> Any:
        if sigma == []:
            raise ValueError("Input should be one number, or one per channel")
        return sigma


def _registered(kind: str, name: str, also: tuple[str, ...] = ("auto",)) -> str:
    """The name as a run writes it, if a class of the kind is registered under it."""
    if name in also:
        return name
    # Here and not above: whoever names no class need not wait until all of them are loaded.
    from retune.registry import known_name, names

    found = known_name(name, kind)
    if found is None:
        known = [*also, *(n for n in names(kind) if n not in also)]
        listed = " or ".join([", ".join(f"'{n}'" for n in known[:-1])] * (len(known) > 1) + [f"'{known[-1]}'"])
        raise ValueError(
            f"Input should be {listed}{did_you_mean(name, known)} (a {kind} of your own is known once it is "
            "registered: on the command line add --plugin FILE.py)"
        )
    return found


_NETWORKS = ("denoiser", "red", "ridge")
#: the kinds of prior that have fields of their own here; any other is a registered class with options
_FAMILIES = ("wavelet", *_NETWORKS)
#: the kinds of prior that have each field; type belongs to all
_KINDS = {
    "norm": ("wavelet",),
    "wavelet": ("wavelet",),
    "levels": ("wavelet",),
    "margin": ("wavelet",),
    "weights_per_channel": ("wavelet",),
    "coarse": ("wavelet",),
    "weights": _NETWORKS,
    "learn_weights": _NETWORKS,
    "sigma": _NETWORKS,
    "learn_sigma": _NETWORKS,
    "strength": ("denoiser",),
    "learn_strength": ("denoiser",),
    "bfloat16": ("denoiser", "red"),
    "lipschitz": ("red",),
    "box": ("red", "ridge"),
}


class PriorConfig(Section):
    """What is known of images: a weighted norm of wavelet coefficients, a denoiser, or a ridge regulariser."""

    type: str = "wavelet"
    """wavelet; denoiser: Plug-and-Play; red: a step along x − D(x); ridge: learned filters; or a registered prior."""
    norm: Literal["l12", "l1"] = "l12"
    """l12 groups channels and bands of a position; l1 takes every coefficient by itself (wavelet)."""
    wavelet: str | list[str] = "db4"
    """An orthogonal wavelet (haar, db2 … db38, sym2 …, coif1 …), or several for a union of bases."""
    levels: Levels = 5
    """Scales (wavelet); crops need 2**levels pixels on a side."""
    weights_per_channel: StrictBool = True
    """Whether every colour channel has weights of its own (wavelet)."""
    coarse: StrictBool = False
    """Whether the coarse approximation is penalised too (wavelet)."""
    margin: Annotated[StrictInt, Field(ge=0, le=10_000)] = 0
    """Pixels restored beyond the borders, at least; with 0, wavelets may make opposite borders adjacent (wavelet)."""
    weights: str | None = None
    """Of a network: a name that ships (denoiser-color, ridge-convex-gray, …), or a file; by default what fits."""
    learn_weights: StrictBool = False
    """Whether the weights of the network are trained, at optimiser.lr_network, or frozen (denoiser, red, ridge)."""
    sigma: Positive | list[Positive] = 0.05
    """Noise level that the network takes, intensities in [0, 1]: one, or one per layer of an untied cycle."""
    learn_sigma: StrictBool = True
    """Whether this noise level is learned."""
    strength: Share | list[Share] | None = None
    """α of (1 − α)x + αD(x), one or one per layer (denoiser); the denoiser as it is by default."""
    learn_strength: StrictBool = True
    """Whether α is learned."""
    bfloat16: StrictBool = False
    """Whether the network computes in bfloat16 while it is trained, which is faster (denoiser, red)."""
    lipschitz: Positive = 2.0
    """What is taken as the Lipschitz constant of x − D(x) for the step size (red); it is not checked."""
    box: StrictBool = False
    """Whether intensities are held in [0, 1] (red, ridge)."""
    options: dict[str, Any] = {}
    """Arguments of a registered prior: a table [prior.options]."""

    def has(self, name: str) -> bool:
        """Whether this type of prior has the field."""
        return self.type in _KINDS.get(name, (self.type,))

    @field_validator("type")
    @classmethod
    def _registered(cls, name: str) -> str:
        return _registered("prior", name, _FAMILIES)

    @field_validator("options")
    @classmethod
    def _of_a_class(cls, options: dict, info: ValidationInfo) -> dict:
        if options and info.data.get("type") in _FAMILIES:
            raise ValueError(f'a prior of type "{info.data["type"]}" has fields of its own instead of options')
        return options

    @field_validator(*_KINDS)
    @classmethod
    def _of_this_type(cls, value: Any, info: ValidationInfo) -> Any:
        # Only what was given comes here, not the defaults; a type that is none has been named already.
        kind, kinds = info.data.get("type"), _KINDS[str(info.field_name)]
        if kind is not None and kind not in kinds:
            raise ValueError(f'a prior of type "{kind}" has no {info.field_name} (type = {" or ".join(kinds)} has)')
        if value == [] and info.field_name != "wavelet":
            raise ValueError("Input should be one number, or one per layer")
        if kind == "ridge" and info.field_name == "sigma" and isinstance(value, list):
            raise ValueError("Input should be one number: the layers share a ridge regulariser")
        return value


class MapConfig(Section):
    """Which map is iterated."""

    spoken = False

    type: str = "auto"
    """forward_backward, gradient_step or a registered map; auto takes what suits the prior."""
    options: dict[str, Any] = {}
    """More arguments of the map: a table [map.options]."""

    @field_validator("type")
    @classmethod
    def _registered(cls, name: str) -> str:
        return _registered("map", name)


class FidelityConfig(Section):
    """How far an image may be from the measurement."""

    spoken = False

    type: str = "l2"
    """l2: half the squared distance; or a registered data fidelity."""
    options: dict[str, Any] = {}
    """Arguments of the data fidelity, such as sigma: a table [data_fidelity.options]."""

    @field_validator("type")
    @classmethod
    def _registered(cls, name: str) -> str:
        return _registered("fidelity", name, ())


class ModelConfig(Section):
    """How often the map is iterated, and where its parameters start."""

    depth: Layers = 10
    """K, layers in a block: what is differentiated at once. More layers, more exact gradients, more memory."""
    restarts: Annotated[StrictInt, Field(ge=0, le=100_000)] = 10
    """R, blocks run in training before the one that is differentiated. More restarts, closer to the equilibrium."""
    layers: Layers = 1
    """Different layers in a cycle: 1 ties all weights."""
    step_size: Share = 0.9
    """s, where the step is 2s/L: between 0 and 1."""
    learn_step_size: StrictBool = True
    """Whether the step size is learned."""
    reg: Positive = 0.05
    """λ, the strength of the prior, at the start; Plug-and-Play has none."""
    learn_reg: StrictBool = True
    """Whether the strength is learned."""
    solver: str = "auto"
    """picard (plain restarts), damped, anderson, inertial or a registered solver; auto damps where a map may expand."""
    solver_options: dict[str, Any] = {}
    """Arguments of the solver: a table [model.solver_options]."""
    rtol: Annotated[float, Field(ge=0, lt=1, strict=True)] = 1e-4
    """Relative change over a block below which a restoration is settled."""
    max_layers: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 2000
    """Layers after which a restoration is given up as not settled."""

    @field_validator("solver")
    @classmethod
    def _registered(cls, name: str) -> str:
        return _registered("solver", name)

    @field_validator("solver_options")
    @classmethod
    def _of_a_solver(cls, options: dict, info: ValidationInfo) -> dict:
        if options and info.data.get("solver") == "auto":
            raise ValueError("options need a solver: name one as model.solver")
        return options


class GradientConfig(Section):
    """How the derivative of the equilibrium is formed."""

    rule: str = "truncated"
    """truncated is ReTune; unrolled trains the output after K layers; implicit solves the adjoint; or one of yours."""
    blocks: Layers = 1
    """How often the recorded block is pulled back (truncated): more blocks, more exact."""
    rtol: Share | None = None
    """Relative error of the adjoint to reach, instead of a number of blocks."""
    options: dict[str, Any] = {}
    """More arguments of the rule: a table [gradient.options]."""

    @field_validator("rule")
    @classmethod
    def _registered(cls, name: str) -> str:
        return _registered("rule", name, ())


class DataConfig(Section):
    """What it is learned from."""

    train: str = "photographs"
    """Folder or file of sharp images; "photographs" takes some that ship inside scikit-image."""
    validation: str | None = None
    """Folder or file of images that decide which weights are kept; none keeps the last."""
    white: Positive | None = None
    """Intensity that counts as 1 in the files; by default the largest of an integer type, and 1 for floats."""
    crop: Count = 64
    """Side of the random square crops."""
    batch_size: Crops = 4
    """Crops per step."""
    grey: StrictBool = False
    """Whether colour images are made grey first."""


class OptimiserConfig(Section):
    """How it is learned: Adam with a cosine schedule."""

    steps: Count = 200
    """Training steps."""
    lr: Positive = 0.05
    """Learning rate of step sizes, strengths and weights (on a logarithmic scale)."""
    lr_network: Positive = 1e-4
    """Learning rate of all other parameters."""
    loss: Literal["mse", "snr"] = "mse"
    """mse: mean squared error; snr: decibels, in which easy and difficult crops weigh the same."""
    penalty: Level = 0.0
    """Weight of the spectral norm of the denoiser's Jacobian in the loss (denoiser, red); 0 for none."""
    warm_start: StrictBool = False
    """Whether each training image remembers its equilibrium: fewer restarts, larger checkpoints (retune train only)."""
    validate_every: Count | None = None
    """Steps between validations; a fifth of all by default."""
    checkpoint_every: Count = 20
    """Steps between checkpoints: what is lost at most when the power fails."""


class CompareConfig(Section):
    """What retune compare reports on, and the effort that each method may spend."""

    test: str = "photographs"
    """Folder or file of sharp images that no method sees before; "photographs" takes two that ship."""
    every: Count = 1
    """Report on every n-th of them."""
    crop: Count | None = None
    """Side of the central part of each of them; whole images by default."""
    validation_every: Count = 1
    """Tune on every n-th validation image."""
    validation_crop: Count = 128
    """Side of the central part of each validation image."""
    grid: Annotated[StrictInt, Field(ge=4, le=10_000)] = 12
    """Values tried by each grid search."""
    lr: list[Positive] = []
    """Learning rates that every learned method is trained with, the best is kept; only optimiser.lr if empty."""
    reg_range: tuple[Positive, Positive] = (5e-4, 5.0)
    """Smallest and largest λ of the grid search."""
    far: Multiple | Annotated[list[Multiple], Field(min_length=1, max_length=100)] = 10
    """How many times longer than in training every method is run, to see whether it stays: a number, or several."""
    run_on: list[str] = []
    """Methods that are run on even after they have settled, which takes longer and shows that they stay."""
    certify: Annotated[StrictInt, Field(ge=0, le=1_000_000)] = 1
    """Test images whose distance to the equilibrium is certified, the first ones."""
    certified: list[str] = []
    """Methods whose restorations are certified; all by default."""
    memory: StrictBool = True
    """Whether the memory of a training step is measured."""
    about: str = ""
    """A sentence about the measurements, for the report."""

    @field_validator("reg_range")
    @classmethod
    def _ascending(cls, reg_range: tuple[float, float]) -> tuple[float, float]:
        if reg_range[0] >= reg_range[1]:
            raise ValueError("the first number should be less than the second")
        return reg_range

    @property
    def multiples(self) -> tuple[int, ...]:
        """The values of `far`, in ascending order."""
        return tuple(sorted(set(self.far if isinstance(self.far, list) else [self.far])))


class Config(Section):
    """A run."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**62)] = 0
    """Decides crops, operators and noise."""
    problem: ProblemConfig = ProblemConfig()
    """What was measured."""
    prior: PriorConfig = PriorConfig()
    """What is known of images."""
    map: MapConfig = MapConfig()
    """Which map is iterated."""
    data_fidelity: FidelityConfig = FidelityConfig()
    """How the measurement is fitted."""
    model: ModelConfig = ModelConfig()
    """How often it is iterated."""
    gradient: GradientConfig = GradientConfig()
    """How the derivative is formed."""
    data: DataConfig = DataConfig()
    """What it is learned from."""
    optimiser: OptimiserConfig = OptimiserConfig()
    """How it is learned."""
    compare: CompareConfig = CompareConfig()
    """What methods are compared on."""

    @model_validator(mode="after")
    def _penalised(self) -> Config:
        if self.optimiser.penalty and self.prior.type not in ("denoiser", "red"):
            raise ValueError(
                f"optimiser.penalty = {self.optimiser.penalty}: the penalty is one on a denoiser, and the prior is of "
                f'type "{self.prior.type}"; leave it out, or set prior.type to denoiser or red'
            )
        return self
