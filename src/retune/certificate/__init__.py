"""Certificates: how far a restoration is from its equilibrium, how wrong its learning gradient is, and why."""

from retune.certificate.certify import certify
from retune.certificate.claims import Claim, Number
from retune.certificate.document import Certificate, ImageCertificate

__all__ = ["Certificate", "Claim", "ImageCertificate", "Number", "certify"]
