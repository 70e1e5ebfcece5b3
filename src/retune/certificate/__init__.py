"""Certificates: how far a restoration is from its equilibrium, how wrong its learning gradient is, and why."""

from retune.certificate.certify import certify
from retune.certificate.claims import Certificate, Claim, ImageCertificate, Number

__all__ = ["Certificate", "Claim", "ImageCertificate", "Number", "certify"]
