"""A restoration at once: the learned energy that ships, at the strength that the noise calls for."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from retune import weights
from retune.build import network_of, problem_of
from retune.config import Config, ProblemConfig, from_dict
from retune.data import as_images
from retune.errors import DoubtfulWarning, InvalidParameterError, ShapeError, require
from retune.maps.forward_backward import ForwardBackward
from retune.model import Restarted
from retune.networks.stabilised import Stabilised
from retune.priors.denoiser import Denoiser
from retune.problems.base import Problem
from retune.problems.given import as_problem
from retune.solve import Stop

#: Version of the rule for the strengths: results of another one are not continued.
RULE = 7

__all__ = ["RULE", "calibrated", "instant_network", "noise_of", "restore"]

#: Noise levels of the energy for which its weights were trained.
_LEVELS = (2 / 255, 55 / 255)
#: Where more than noise has to be undone: the noise level of the energy as a multiple of that of the measurement, with
#: its bounds, and c in the strength ``λ = c σ_n/σ``. Beyond a noise level, c grows with the noise, up to a factor.
#: Chosen on 32 blurred crops of the validation images, and confirmed on 16 of them with missing pixels. Later, and on
#: blurred crops alone: σ is not below the noise, as far as the energy was trained. A smaller σ gave more stripes (see
#: below), and else the same PSNR.
_TIMES, _FROM, _TO, _FACTOR = 2.0, 0.015, 0.03, 0.25
_STRONGER, _STRONGEST = 0.015, 4.0
#: ε in ``½ε‖x − x₀‖²``, where a known blur with ``‖A‖ = 1`` has to be undone. Without it, the minimum of some crops has
#: strong stripes at a frequency that a straight motion cannot see. 0.0006 did not remove all of them; 0.004 costs up to
#: 0.25 dB. A pull towards 0 darkens what lies beyond the border, and flat parts get up to 8 dB worse.
_PULL = 0.001
#: The same for counts, where the energy sees the root of the image: the bounds are relative to the root of white. They
#: were chosen on five scenes of spots, fibres, cells and stars, other than those of the tables.
_ROOT_TIMES, _ROOT_FROM, _ROOT_TO, _ROOT_FACTOR = 1.0, 0.035, 0.3, 0.35
#: Smaller noise is taken for this level: an energy of strength 0 would leave what A has removed undetermined.
_LEAST = 0.002
#: A measurement may fall below black by so many standard deviations of its noise; below that, images may be negative.
_BELOW = 6.0
#: Largest intensity that a positive image may have.
_HIGHEST = 1e4
#: A brighter measurement is doubted: it is probably in counts, or on the scale of its file.
_BRIGHT = 4.0


def restore(image: Any, problem: Problem | LinearPhysics, *, device: str = "cpu") -> Any:
    """Restore a measurement with the networks that ship, without any training.

    Noise alone (`denoise`) is removed by a denoiser. For counts it sees an image whose noise is even (Mäkitalo, Foi,
    IEEE TIP 22(1), 2013).

    Otherwise the restoration minimises ``f(x; y) + λ R_σ(x)`` over images that are not negative. f is the data term
    that fits the noise of the problem, R the [`Energy`][retune.priors.Energy]. σ and λ follow from the noise level. For
    a blur, ``½ε‖x − x₀‖²`` is added (see `calibrated`), so that no stripes are invented which the blur cannot see. The
    objective never rises ([`QuasiNewton`][retune.QuasiNewton]), and the result is a stationary point of it, up to the
    tolerance. Nothing is assumed about the scene beyond the border of a blurred image, unless the blur is periodic.

    ```python
    import retune

    problem = retune.problems.deblur("gaussian:1.6", sigma=0.02)
    blurred, _ = problem.measure(retune.data.photograph("chelsea")[None, :, :64, :64])
    sharp = retune.restore(blurred, problem)
    ```

    Args:
        image: the measurement, intensities on the scale where 1 is white: an array (h, w) or (h, w, C), or a tensor
            (C, h, w) or (B, C, h, w). Arrays of integers are scaled. The images of a batch share one strength.
        problem: a [`Problem`][retune.problems.Problem] with its noise, or a deepinv ``LinearPhysics``.
        device: "cpu", "cuda", …

    Returns:
        The restored image, of the kind and layout of `image`.

    Raises:
        InvalidParameterError, ShapeError: no image, or one that does not fit the problem; a random operator.
        NotFiniteError: NaN or Inf in the measurement.

    Warns:
        DoubtfulWarning: intensities far above 1.
    """
    made = as_problem(problem).borderless()
    made.require_known()
    y = _measured(image).detach().to(torch.get_default_dtype()).to(device)
    brightest = float(y.max()) if math.isfinite(float(y.max())) else 0.0
    if brightest > _BRIGHT:
        warnings.warn(
            f"the brightest value is {brightest:.4g}, but the learned energy expects intensities where 1 is white: "
            "divide the image and its noise (sigma; gain, read and offset) by the intensity that is white",
            DoubtfulWarning,
            stacklevel=2,
        )
    net, _ = instant_network(Config(), made, y)
    with torch.no_grad():
        x = made.frame(net.to(device).solve(y, made.operator(y)).image)
    if isinstance(image, Tensor):
        return x.reshape(*image.shape[:-3], *x.shape[-3:]).to(image.dtype)
    array = x[0].cpu().numpy().astype(image.dtype if image.dtype.kind == "f" else np.float32)
    return array[0] if image.ndim == 2 else np.moveaxis(array, 0, -1)


def _measured(image: Any) -> Tensor:
    """The measurement as a tensor (B, C, h, w)."""
    kinds = "an array (h, w) or (h, w, C), or a tensor (C, h, w) or (B, C, h, w)"
    if isinstance(image, Tensor):
        if image.ndim not in (3, 4):
            raise ShapeError(f"image must be {kinds}, got a tensor {tuple(image.shape)}")
        if not image.is_floating_point():
            raise InvalidParameterError(f"a tensor must be of floats, got {image.dtype}: scale it so that 1 is white")
        return image if image.ndim == 4 else image[None]
    require("image", image, np.ndarray, kinds, "retune.io.read reads a file")
    if image.ndim not in (2, 3):
        raise ShapeError(f"image must be {kinds}, got an array {image.shape}")
    return torch.stack(as_images(image))


def instant_network(config: Config, problem: Problem, y: Tensor) -> tuple[Restarted, Config]:
    """The network for a measurement (B, C, h, w) without training, and the run that describes it.

    Noise alone is removed by the denoiser that ships: ``x = D(x − ∇½‖x − y‖²) = D(y)`` is an equilibrium that one layer
    reaches. For noise of counts, D works where the noise is even (`Stabilised`).
    """
    if problem.only_noise and "type" not in config.prior.model_fields_set:
        return _denoising(config, problem, y)
    run = calibrated(config, problem, y)
    size = problem.image_size((y.shape[1], y.shape[2], y.shape[3]))
    net = network_of(run, size[0]).eval()
    return net, run


def _denoising(config: Config, problem: Problem, y: Tensor) -> tuple[Restarted, Config]:
    """The denoiser that ships as a network whose first layer is its equilibrium, and the run that is nearest to it."""
    noise = problem.noise
    if noise is None:
        gain, read, offset = (0.0,), _many(problem.sigma), 0.0
    else:
        gain, read, offset = _many(noise.gain), _many(noise.read), noise.offset
    problem.variance(y)  # refuses noise for another number of channels
    white = _brightness(y) - offset
    read = tuple(max(r, _LEAST * white) for r in read) if not any(gain) else read
    colour = y.shape[1] == 3
    name = "denoiser-large-color" if colour else "denoiser-large-gray"
    told = {"type": "denoiser", "weights": name}
    run = from_dict({**config.model_dump(exclude_unset=True), "prior": told}, (), "the restoration")
    made = Stabilised(
        weights.load(name), gain, read, offset=offset, white=white, levels=_LEVELS, each_channel=not colour
    )
    # s = ½ is the step 1. Then x − ∇½‖x − y‖² is the measurement, for any x.
    map = ForwardBackward(Denoiser(made, sigma=None), step_size=0.5, learn_step_size=False)
    # One layer is the equilibrium (`constant`).
    return Restarted(map, depth=1, restarts=1, stop=Stop(1e-4, 2)).eval(), run


def _many(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).flatten())


def _brightness(y: Tensor) -> float:
    """What counts as white in a measurement: almost all of its values are below."""
    values = y.detach().flatten()
    kept = values[:: max(1, values.numel() // 1_000_000)]
    return max(float(kept.quantile(0.995)), float(kept.abs().mean()), 1e-9)


def calibrated(config: Config, problem: Problem, y: Tensor) -> Config:
    """A run with the learned energy, and with the strengths that the noise of a measurement calls for.

    For noise alone, ``σ = ½σ_n`` and ``λ = (σ_n/σ)²``: the energy of a smaller σ is nearer to that of sharp images. If
    A is no identity, a stronger σ with ``λ = c σ_n/σ`` restores more: what A has removed must come from the prior. c is
    0.25, and grows with the noise where that is above 0.015 of white. σ is at least σ_n, up to the largest level of the
    training. For a known blur, ``½ε‖x − x₀‖²`` with ``ε = 0.001 ‖A‖²`` is added: the energy alone may prefer strong
    stripes that the blur cannot see. x₀ is the measurement, blurred once more.
    σ_n is the root of the mean variance of the noise. Bounds on σ are relative to the brightness of the image.

    For counts, the energy is that of the root ``t = √(x + read²/gain)``, whose noise is ``σ_n = ½√gain`` everywhere
    (see `root` of [`GradientStep`][retune.GradientStep]), with ``λ = 0.35/(σ σ_n)``.

    Args:
        config: the run. What it says about the prior, the strength or the solver stays.
        problem: the problem, with known noise.
        y: measurements (B, C, h, w).
    """
    y = y.detach()
    variance = problem.variance(y)
    told = _strengths_of_counts(problem, y) or _strengths(problem, variance, y)
    values = config.model_dump(exclude_unset=True)
    if float(y.min()) > -_BELOW * math.sqrt(float(variance.max())) - 1e-6:
        told["map"]["options"]["box"] = [0.0, _HIGHEST]
    else:
        told["map"]["options"].pop("root", None)
    given = dict(values.get("map", {}))
    mine, options = dict(given.get("options", {})), told["map"]["options"]
    if "strong_convexity" in mine or given.get("type", "gradient_step") != "gradient_step":
        options.pop("towards_start", None)
        options.pop("strong_convexity", None)
    if min(mine.get("box") or [0.0]) < 0:
        options.pop("root", None)
    told = {k: v | dict(values.get(k, {})) for k, v in told.items()}
    told["map"]["options"] = options | mine
    if problem.noise is not None:
        told["problem"] = dict(values.get("problem", {})) | {"noise": str(problem.noise)}
    return from_dict({**values, **told}, (), "the restoration")


def _strengths(problem: Problem, variance: Tensor, y: Tensor) -> dict[str, dict[str, Any]]:
    """The sections of a run for noise of one level."""
    white = _brightness(y)
    noise = max(math.sqrt(float(variance.mean())), _LEAST * white)
    only_noise = problem.only_noise
    sigma = noise / 2 if only_noise else max(min(max(_TIMES * noise, _FROM * white), _TO * white), noise)
    sigma = min(max(sigma, _LEVELS[0]), _LEVELS[1])
    unit = 1.0 if problem.noise is not None else noise**2  # f is ½‖Ax − y‖², or the same divided by the variances
    grown = min(max(noise / (_STRONGER * white), 1.0), _STRONGEST)
    factor = 1.0 if only_noise else _FACTOR * grown * sigma / noise
    # Of other operators the norm is not known here. Where pixels are left out, the start is dark between them.
    blurs = getattr(problem, "kernel", None) is not None and not problem.subsamples
    options = {"strong_convexity": _PULL * unit / noise**2, "towards_start": True} if blurs else {}
    return _sections(sigma, factor * unit / sigma**2, options)


def _strengths_of_counts(problem: Problem, y: Tensor) -> dict[str, dict[str, Any]] | None:
    """The sections of a run for noise that grows, over the root of the image; None for other noise."""
    if problem.noise is None or problem.only_noise:
        return None
    gains, reads = _many(problem.noise.gain), _many(problem.noise.read)
    gain, square = sum(gains) / len(gains), sum(r**2 for r in reads) / len(reads)
    if not gain:
        return None
    root = square / gain
    noise, white = math.sqrt(gain) / 2, math.sqrt(max(_brightness(y) - problem.noise.offset, 0.0) + root)
    sigma = min(max(_ROOT_TIMES * noise, _ROOT_FROM * white), _ROOT_TO * white)
    return _sections(sigma, _ROOT_FACTOR / (sigma * noise), {"root": root})


def _sections(sigma: float, reg: float, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        "prior": {"type": "energy", "sigma": sigma, "learn_sigma": False},
        "model": {"reg": max(reg, 1e-9), "rtol": 3e-4, "max_layers": 800},
        "map": {"options": options},
    }


def noise_of(config: ProblemConfig, y: Tensor) -> Problem:
    """The problem of a measurement; its noise is estimated from the measurement if none was given."""
    given = config.noise is not None or "sigma" in config.model_fields_set
    return problem_of(config if given else config.model_copy(update={"sigma": "estimate"}), y)
