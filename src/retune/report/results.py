"""Reading and checking of result files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from retune.errors import InvalidParameterError
from retune.report.numbers import horizons

#: The form of results.json that this version reads.
FORMAT = 1

#: Numbers of a method; each may be absent or null.
NUMBERS = (
    "psnr",
    "ssim",
    "psnr_trained",
    "layers_trained",
    "residual",
    "gradient_error",
    "seconds",
    "distance",
    "seconds_restoring",
    "memory",
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_EXPECTED = 'expected a results.json written by "retune demo" or "retune compare"'


def read_results(where: str | Path) -> dict[str, Any]:
    """Read the results in a folder, or in a file.

    Args:
        where: an output folder with ``results.json`` in it, or such a file.

    Raises:
        InvalidParameterError: there is none, it is truncated, of another format, or something else.
    """
    where = Path(where)
    path = where / "results.json" if where.is_dir() else where
    if not path.is_file():
        raise InvalidParameterError(f'there is no result file {path}; "retune demo --out FOLDER" writes one')
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InvalidParameterError(
            f"{path} cannot be read ({path.stat().st_size} bytes): «{error}». It is truncated or not JSON; {_EXPECTED}"
        ) from error
    return check_results(results, str(path))


def check_results(results: Any, source: str = "results") -> dict[str, Any]:
    """Return `results` if they have the form that the report reads.

    Args:
        results: what was read.
        source: how an error message calls them.

    Raises:
        InvalidParameterError: the message names the entry, what it is and what was expected.
    """
    if not isinstance(results, dict) or "format" not in results:
        raise InvalidParameterError(f"{source} is not a result file of ReTune (it has no «format»); {_EXPECTED}")
    if results["format"] != FORMAT:
        raise InvalidParameterError(
            f"{source} has format {results['format']!r} (written by ReTune {results.get('retune', 'unknown')}), this "
            f"version reads format {FORMAT}: use the version that wrote it, or run the command again"
        )
    check = _Check(source)
    for name, problem in check.table(results, "problems", required=True).items():
        check.name(name, "problems")
        check.table(results["problems"], name, f"problems.{name}", required=True)
        check.problem(problem, f"problems.{name}")
    for key in ("versions", "settings"):
        check.table(results, key)
    for i, verdict in enumerate(check.sequence(results, "verdicts", "verdicts")):
        if not isinstance(verdict, dict) or "claim" not in verdict or not isinstance(verdict.get("holds"), bool):
            check.fail(f"verdicts[{i}]", verdict, "a table with «claim» and «holds» true or false")
    return results


class _Check:
    """Checks of single entries; each failure names the entry."""

    def __init__(self, source: str):
        self.source = source

    def fail(self, entry: str, value: object, expected: str) -> NoReturn:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise InvalidParameterError(f"{self.source}: {entry} is {shown}, expected {expected}")

    def table(self, owner: dict, key: str, entry: str = "", required: bool = False) -> dict:
        value = owner.get(key)
        if value is None and not required:
            return {}
        if not isinstance(value, dict) or (required and not value):
            self.fail(entry or key, value, "a non-empty table" if required else "a table")
        return value

    def sequence(self, owner: dict, key: str, entry: str) -> list:
        value = owner.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(entry, value, "a list")
        return value

    def number(self, owner: dict, key: str, entry: str) -> None:
        value = owner.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.fail(f"{entry}.{key}", value, "a number or null")

    def name(self, value: str, entry: str) -> None:
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            self.fail(f"a name in {entry}", value, "letters, digits, «_», «-» and «.» (it becomes a file name)")

    def problem(self, problem: dict, entry: str) -> None:
        self.number(problem, "psnr_measurement", entry)
        images = self.table(problem, "images", f"{entry}.images")
        count = len(self.sequence(images, "truth", f"{entry}.images.truth"))
        for key in ("names", "measurement"):
            self.count(images, key, f"{entry}.images", count)
        for name, method in self.table(problem, "methods", f"{entry}.methods", required=True).items():
            self.name(name, f"{entry}.methods")
            self.table(problem["methods"], name, f"{entry}.methods.{name}", required=True)
            self.method(method, f"{entry}.methods.{name}", count)

    def method(self, method: dict, entry: str, count: int) -> None:
        for key in (*NUMBERS, *(f"{k}_{f}x" for f in horizons([method]) for k in ("psnr", "residual"))):
            self.number(method, key, entry)
        self.count(method, "images", entry, count)
        self.count(method, "psnr_per_image", entry, count, more=True)  # pictures may be of the first images only
        curve = self.table(method, "curve", f"{entry}.curve")
        length = len(self.sequence(curve, "layers", f"{entry}.curve.layers"))
        for key in ("layers", "psnr", "residual"):
            self.numbers(curve, key, f"{entry}.curve", length)
        self.numbers(self.table(method, "training", f"{entry}.training"), "loss", f"{entry}.training")
        self.table(method, "learned", f"{entry}.learned")
        self.certificate(self.table(method, "certificate", f"{entry}.certificate"), f"{entry}.certificate")

    def certificate(self, certificate: dict, entry: str) -> None:
        for i, image in enumerate(self.sequence(certificate, "images", f"{entry}.images")):
            here = f"{entry}.images[{i}]"
            if not isinstance(image, dict):
                self.fail(here, image, "a table, as Certificate.to_dict() writes it")
            for name in self.table(image, "claims", f"{here}.claims"):
                for number in self.sequence(image["claims"], name, f"{here}.claims.{name}"):
                    if not isinstance(number, dict) or not {"value", "kind", "how"} <= set(number):
                        self.fail(f"{here}.claims.{name}", number, "a table with «value», «kind» and «how»")
                    self.number(number, "value", f"{here}.claims.{name}")

    def count(self, owner: dict, key: str, entry: str, count: int, *, more: bool = False) -> None:
        values = self.sequence(owner, key, f"{entry}.{key}")
        if values and count and (len(values) < count or (len(values) > count and not more)):
            least = "at least " if more else ""
            self.fail(f"{entry}.{key}", values, f"{least}{count} entries, one per test image")

    def numbers(self, owner: dict, key: str, entry: str, length: int | None = None) -> None:
        values = self.sequence(owner, key, f"{entry}.{key}")
        if values and length is not None and len(values) != length:
            self.fail(f"the length of {entry}.{key}", len(values), f"{length}, one number per entry of «layers»")
        for i, value in enumerate(values):
            self.number({str(i): value}, str(i), f"{entry}.{key}")
