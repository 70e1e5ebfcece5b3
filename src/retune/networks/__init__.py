"""Denoisers of our own: what [`weights`][retune.weights] has trained weights for."""

from retune.networks.ridge import RidgeDenoiser
from retune.networks.unet import SmallUNet

__all__ = ["RidgeDenoiser", "SmallUNet"]
