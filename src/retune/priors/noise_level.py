"""Reading and checking the noise level of a denoiser."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from retune._torch.batch import over_images
from retune.errors import DoubtfulWarning, InvalidParameterError, advice, require_real, wrong_type

__all__ = ["check_range", "doubt_noise_level", "noise_level"]


def doubt_noise_level(sigma: float | Sequence[float], stacklevel: int = 4) -> None:
    """Warn of a standard deviation above 1, that is, above the whole range [0, 1] of intensities.

    Args:
        sigma: one level or several.
        stacklevel: how many calls above here the user's line is.

    Warns:
        DoubtfulWarning: one that was probably meant on a scale of 0…255.
    """
    levels = [sigma] if isinstance(sigma, int | float) else list(sigma)
    largest = max(levels, default=0.0)
    if largest > 1:
        warnings.warn(
            f"sigma={largest:g} is more noise than the whole range [0, 1] of intensities: for a level of {largest:g} "
            + advice(
                f"on images of 0…255 give sigma={largest:g}/255 = {largest / 255:.4f}, and divide the images by 255 "
                "too",
                f"in 8-bit files give --sigma {largest / 255:.4f} (that is {largest:g}/255)",
            ),
            DoubtfulWarning,
            stacklevel=stacklevel,
        )


def noise_level(sigma: float | Tensor, x: Tensor) -> Tensor:
    """σ as a tensor (1 or B, 1, 1, 1) of the dtype and device of `x` (B, C, H, W).

    Raises:
        InvalidParameterError: negative, NaN or infinite; a tensor that is neither a scalar nor one number per image.
            (Values of a tensor on an accelerator are not checked: that would stall every iteration.)
    """
    if not isinstance(sigma, Tensor):
        value = require_real("sigma", sigma)
        if not 0 <= value < math.inf:
            raise InvalidParameterError(f"sigma must be a finite number ≥ 0 on the scale of the image, got {value}")
        return torch.full((1, 1, 1, 1), value, dtype=x.dtype, device=x.device)
    if sigma.numel() not in (1, len(x)) or (sigma.ndim > 1 and sigma.numel() != sigma.shape[0]):
        raise InvalidParameterError(
            f"sigma must be one number, or one per image of the batch of {len(x)}, got shape {tuple(sigma.shape)}"
        )
    looked_at = sigma.device.type == "cpu" and not torch.compiler.is_compiling()  # a look breaks the graph
    if looked_at and not bool(((sigma >= 0) & torch.isfinite(sigma)).all()):
        raise InvalidParameterError(
            f"sigma must be finite and ≥ 0 on the scale of the image, got values from {float(sigma.min())} to "
            f"{float(sigma.max())}"
        )
    return over_images(sigma.to(x.device, x.dtype), x.ndim)


def check_range(sigma: Any, low: float, high: float) -> None:
    """Refuse noise levels that a denoiser does not support.

    Raises: InvalidParameterError: a level is not a number, or outside [low, high].
    """
    try:
        levels = torch.as_tensor(sigma, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong_type("sigma", sigma, "a number, or a tensor with one for each image") from error
    slack = 1e-6 * (high - low)  # 50/255 in float32 lies above 50/255
    if not bool(((levels >= low - slack) & (levels <= high + slack)).all()):
        raise InvalidParameterError(
            f"sigma={sigma} is outside the range of this denoiser, {low:.4g} ≤ sigma ≤ {high:.4g} on the scale of the "
            "image (images are in [0, 1]: divide a level on 0…255 by 255); the argument sigma_range overrides this "
            "range"
        )
