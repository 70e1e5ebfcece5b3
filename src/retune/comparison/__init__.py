"""The methods on equal terms: same start, same budget, same crops, same measurements."""

from retune.comparison.batch import Settings, compare, settings_as_data, verdicts
from retune.comparison.methods import METHODS, PNP, Method

__all__ = ["METHODS", "PNP", "Method", "Settings", "compare", "settings_as_data", "verdicts"]
