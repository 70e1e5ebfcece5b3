"""The operator and the measurement are examined before anybody trains on them."""

from retune.diagnosis.doctor import doctor
from retune.diagnosis.findings import Diagnosis, Finding, Severity

__all__ = ["Diagnosis", "Finding", "Severity", "doctor"]
