"""Rules for the gradient through the equilibrium; one rule per file."""

from retune.gradients.base import AdjointMemory, GradientRule
from retune.gradients.implicit import Implicit
from retune.gradients.truncated import Truncated
from retune.gradients.unrolled import Unrolled

__all__ = ["AdjointMemory", "GradientRule", "Implicit", "Truncated", "Unrolled"]
