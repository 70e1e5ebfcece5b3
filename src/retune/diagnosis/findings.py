"""The result of an examination: findings with a severity, numbers and one sentence of advice."""

from __future__ import annotations

import enum
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Diagnosis", "Finding", "Severity"]

_WIDTH = 110


class Severity(enum.Enum):
    """The severity of a finding: from OK (nothing to do) to PROBLEM (repair it first)."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    PROBLEM = "problem"

    @property
    def rank(self) -> int:
        """0 (ok) to 3 (problem)."""
        return list(Severity).index(self)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check ("adjoint", "norm", "convolution", …).
        severity: ok, note (worth knowing), warning (results will suffer) or problem (repair it before training).
        found: the observation, in words.
        advice: what to do about it, in a sentence or two; empty if there is nothing to do.
        numbers: the measured numbers by name, as plain data.
    """

    check: str
    severity: Severity
    found: str
    advice: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain data that any JSON writer takes; numbers that are not finite become None."""
        return {
            "check": self.check,
            "severity": self.severity.value,
            "found": self.found,
            "advice": self.advice,
            "numbers": _plain(self.numbers),
        }


@dataclass(frozen=True)
class Diagnosis:
    """The result of [`doctor`][retune.doctor]; prints as a short table, the most serious finding first.

    Attributes:
        subject: the subject of the examination: the physics, the image size, the precision.
        findings: in the order of the examination.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True if no finding is more serious than a note."""
        return self.worst.rank < Severity.WARNING.rank

    @property
    def worst(self) -> Severity:
        """The severity of the most serious finding."""
        return max((f.severity for f in self.findings), key=lambda s: s.rank, default=Severity.OK)

    def of(self, check: str) -> tuple[Finding, ...]:
        """The findings of one check; empty if the check was impossible or does not apply."""
        return tuple(f for f in self.findings if f.check == check)

    def to_dict(self) -> dict:
        """Plain data that any JSON writer takes."""
        return {
            "subject": self.subject,
            "ok": self.ok,
            "worst": self.worst.value,
            "findings": [f.to_dict() for f in self.findings],
        }

    def __str__(self) -> str:
        counts = [(sum(f.severity is s for f in self.findings), s.value) for s in reversed(Severity)]
        total = ", ".join(f"{n} {word}{'s' if n > 1 and word != 'ok' else ''}" for n, word in counts if n)
        lines = [self.subject, total]
        left = 2 + max((len(f.check) for f in self.findings), default=0)
        for finding in sorted(self.findings, key=lambda f: -f.severity.rank):
            head = f"  {finding.severity.value:8}{finding.check:{left}}"
            indent = " " * len(head)
            lines += textwrap.wrap(finding.found, _WIDTH, initial_indent=head, subsequent_indent=indent)
            if finding.advice:
                lines += textwrap.wrap(
                    finding.advice, _WIDTH, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  "
                )
        return "\n".join(lines)

    __repr__ = __str__


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
