"""Small photographs, their restoration, and a mask, for tests of maps."""

import torch
from deepinv.physics import Inpainting

from retune import Restarted, Stop
from retune.data import photograph
from small_parts import rand


def scene(side, channels=3):
    return photograph("chelsea")[None, :channels, 100 : 100 + side, 100 : 100 + side].to(torch.get_default_dtype())


def holes(side):
    return Inpainting((1, side, side), mask=(rand(1, 1, side, side, seed=3) > -0.3).to(torch.get_default_dtype()))


def solved(map_, y, physics, rtol=1e-7, most=4000):
    return Restarted(map_, depth=10, stop=Stop(rtol, most)).eval().solve(y, physics).image
