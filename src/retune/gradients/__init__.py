"""How the gradient through the equilibrium is formed; one rule a file."""

from retune.gradients.base import AdjointMemory, GradientRule
from retune.gradients.implicit import Implicit
from retune.gradients.truncated import Truncated
from retune.gradients.unrolled import Unrolled

__all__ = ["AdjointMemory", "GradientRule", "Implicit", "Truncated", "Unrolled"]
