"""Priors beyond those of deepinv. Each is also an ordinary deepinv ``Prior``."""

from retune.priors.base import AbstractPrior, Analysis, BoundPrior, SynthesisPrior
from retune.priors.capabilities import adapt, priors_of
from retune.priors.denoiser import Denoiser
from retune.priors.energy import Energy
from retune.priors.generalised_variation import TGV
from retune.priors.red import RED
from retune.priors.ridge import Ridge
from retune.priors.sums import Sum
from retune.priors.total_variation import TV
from retune.priors.undecimated import UndecimatedWavelet
from retune.priors.wavelet import WaveletL1, WaveletL12
from retune.priors.wavelet_basis import WaveletBasis, WaveletFrame, max_levels

__all__ = [
    "RED",
    "TGV",
    "TV",
    "AbstractPrior",
    "Analysis",
    "BoundPrior",
    "Denoiser",
    "Energy",
    "Ridge",
    "Sum",
    "SynthesisPrior",
    "UndecimatedWavelet",
    "WaveletBasis",
    "WaveletFrame",
    "WaveletL1",
    "WaveletL12",
    "adapt",
    "max_levels",
    "priors_of",
]
