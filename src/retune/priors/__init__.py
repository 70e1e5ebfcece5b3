"""Priors that deepinv lacks; every one is an ordinary deepinv ``Prior``."""

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
