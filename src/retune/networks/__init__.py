"""ReTune's own denoisers; [`weights`][retune.weights] has trained weights for them."""

from retune.networks.energy import BoundEnergy, EnergyNet
from retune.networks.ridge import RidgeDenoiser
from retune.networks.stabilised import Stabilised
from retune.networks.unet import SmallUNet

__all__ = ["BoundEnergy", "EnergyNet", "RidgeDenoiser", "SmallUNet", "Stabilised"]
