"""Priors that deepinv lacks; every one is an ordinary deepinv ``Prior``."""

# The maps know the priors by type, and the priors take their parameters from maps.parameters: whichever package is
# imported first, the maps must be the ones to begin.
import retune.maps  # noqa: F401
from retune.priors.base import BoundPrior, SynthesisPrior
from retune.priors.denoiser import RED, Denoiser
from retune.priors.ridge import Ridge
from retune.priors.wavelet import WaveletL1, WaveletL12
from retune.priors.wavelet_basis import WaveletBasis, WaveletFrame, max_levels

__all__ = [
    "RED",
    "BoundPrior",
    "Denoiser",
    "Ridge",
    "SynthesisPrior",
    "WaveletBasis",
    "WaveletFrame",
    "WaveletL1",
    "WaveletL12",
    "max_levels",
]
