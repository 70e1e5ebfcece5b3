"""ReTune's own denoisers; [`weights`][retune.weights] has trained weights for them."""

from retune.networks.ridge import RidgeDenoiser
from retune.networks.unet import SmallUNet

__all__ = ["RidgeDenoiser", "SmallUNet"]
