"""The maps ``T`` of the iteration."""

from retune.maps.base import AbstractMap, BoundMap
from retune.maps.douglas_rachford import DouglasRachford
from retune.maps.forward_backward import ForwardBackward
from retune.maps.gradient_step import GradientStep
from retune.maps.half_quadratic import HalfQuadratic
from retune.maps.mirror_descent import MirrorDescent
from retune.maps.primal_dual import PrimalDual
from retune.maps.three_operators import ThreeOperators
from retune.parameters import Bounded, Positive

__all__ = [
    "AbstractMap",
    "BoundMap",
    "Bounded",
    "DouglasRachford",
    "ForwardBackward",
    "GradientStep",
    "HalfQuadratic",
    "MirrorDescent",
    "Positive",
    "PrimalDual",
    "ThreeOperators",
]
