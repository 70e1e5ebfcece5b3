"""Examine an operator and a measurement before training on them."""

from retune.diagnosis.doctor import doctor
from retune.diagnosis.findings import Diagnosis, Finding, Severity

__all__ = ["Diagnosis", "Finding", "Severity", "doctor"]
