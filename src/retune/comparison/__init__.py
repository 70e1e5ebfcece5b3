"""Compare methods on equal terms: same start, same budget, same crops, same measurements."""

from retune.comparison.methods import METHODS, PNP, Method
from retune.comparison.paired import Difference, paired
from retune.comparison.run import KEYS, compare
from retune.comparison.verdicts import verdicts

__all__ = ["KEYS", "METHODS", "PNP", "Difference", "Method", "compare", "paired", "verdicts"]
