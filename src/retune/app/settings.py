"""The user's settings for an image, and the command and the lines of Python with the same effect."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retune.config.read import absolute
from retune.errors import ConfigError

if TYPE_CHECKING:
    from retune.io.intensity import Level

__all__ = ["EXAMPLE_NAMES", "PROBLEMS", "Settings"]

#: The problems by the words of the page.
PROBLEMS = {
    "Only noise": "denoise",
    "Blur and noise": "deblur",
    "Missing pixels": "inpaint",
    "Too few pixels": "superres",
}
#: The photographs that ship; see `retune.app.work`.
EXAMPLE_NAMES = (
    "Astronaut, with noise", "Cameraman, blurred", "Cat, half of its pixels missing", "Coffee, of half the size",
)  # fmt: skip
#: Folder of the results in the command and in the lines of Python.
OUT, TUNED = "restored", "tuned"
#: The blurs by name.
_KERNEL = re.compile(r"(gaussian|uniform|motion):\d{1,4}(\.\d{0,6})?(@-?\d{1,3}(\.\d{0,6})?)?|three-motions")


@dataclass(frozen=True)
class Settings:
    """What happened to an image, and how it is restored. Files are named without their folder.

    Attributes:
        problem: "denoise", "deblur", "inpaint" or "superres".
        noise: "" for noise that is estimated; standard deviations where 1 is white, separated by commas; or
            ``poisson:GAIN,READ``.
        kernel: the blur by name (``gaussian:1.6``) or its file; "" for none.
        background: whether the pedestal of the kernel is subtracted.
        centre: whether the kernel is centred.
        boundary: "" for the default of the problem.
        mask: file of the mask, black where nothing was measured.
        factor: magnification.
        white: intensity that counts as 1, in the units of the file; "auto" finds it; "" for the usual value.
        black: intensity that counts as 0.
        network: file of a network; "" for the networks that ship.
    """

    problem: str = "denoise"
    noise: str = ""
    kernel: str = ""
    background: bool = False
    centre: bool = False
    boundary: str = ""
    mask: str = ""
    factor: int = 2
    white: str = ""
    black: str = ""
    network: str = ""

    def require_known(self, files: Collection[str]) -> None:
        """Refuse names that are neither a choice of the page nor a file of this user.

        Anybody who knows the address can reach the page, and a kernel could name any path of this machine.

        Raises:
            ConfigError: such a name.
        """
        choices = {"problem": PROBLEMS.values(), "boundary": ("", "reflect", "circular", "valid"), "factor": (2, 3, 4)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name}: expected one of {', '.join(map(str, allowed))}")
        for name in ("kernel", "mask", "network"):
            given = getattr(self, name)
            if given and given not in files and not (name == "kernel" and _KERNEL.fullmatch(given)):
                raise ConfigError(
                    f"the {name} {given[:40]!r} is neither a choice of this page nor a file that you gave"
                )

    def fields(self, folder: Path | None = None) -> dict[str, Any]:
        """The fields of the section [problem] of a run.

        Args:
            folder: the folder of the files; None leaves their names as they are.

        Raises:
            ConfigError: a blur without a kernel, missing pixels without a mask, or an invalid noise.
        """
        place: Callable[[str], Any] = (lambda name: name) if folder is None else (lambda name: absolute(name, folder))
        if self.network and self.problem == "denoise":  # a network remembers what happened to its images
            return {}
        found: dict[str, Any] = {"name": self.problem}
        if self.problem == "deblur" and not self.kernel:
            raise ConfigError("the blur is not known yet: choose its shape, or give a picture of a blurred point")
        if self.problem in ("deblur", "superres") and self.kernel:
            found["kernel"] = place(self.kernel)
            found |= {"kernel_background": "auto"} if self.background else {}
            found |= {"centre_kernel": True} if self.centre else {}
        if self.problem == "deblur" and self.boundary:
            found["boundary"] = self.boundary
        if self.problem == "superres":
            found["factor"] = self.factor
        if self.problem == "inpaint":
            if not self.mask:
                raise ConfigError(
                    "which pixels are missing is not known yet: paint them, or give a picture that is black where "
                    "pixels are missing"
                )
            found["mask"] = place(self.mask)
        return found | self.noise_fields()

    def noise_fields(self) -> dict[str, Any]:
        """The noise as fields of a problem; none of them if it is estimated."""
        said = self.noise.strip()
        if not said or self.network:  # the noise of a network is in its weights
            return {}
        if ":" in said:
            if self.problem == "inpaint":
                raise ConfigError(
                    "noise that grows with the brightness is not known for missing pixels: give one level"
                )
            return {"noise": said}
        try:
            levels = [float(part) for part in said.split(",")]
        except ValueError:
            raise ConfigError(
                f"the noise {said[:40]!r} is no number: give its standard deviation where 1 is white, such as 0.05"
            ) from None
        return {"sigma": levels[0] if len(levels) == 1 else levels}

    def levels(self) -> tuple[Level, Level]:
        """White and black.

        Raises:
            InvalidParameterError: neither a number nor auto.
        """
        from retune.io.intensity import read_level  # with torch, which the process of the page does without

        return read_level(self.white or None, "White: "), read_level(self.black or None, "Black: ")

    def options(self) -> list[str]:
        """The options of the command line that describe the measurement."""
        fields = self.fields()
        words = ["--problem", self.problem] if fields else []
        for name, option in _OPTIONS.items():
            if name in fields:
                words += [option] if fields[name] is True else [option, _typed(fields[name])]
        for level, option in ((self.white, "--white"), (self.black, "--black")):
            words += [option, level] if level else []
        return words

    def commands(self, image: str, tuned: bool = False) -> str:
        """The command line that restores the file in the same way. If the network was tuned, the tuning comes first."""
        said = self.options()
        if tuned:
            first = ["retune", "tune", image, *said, "--out", TUNED]
            return f"{shlex.join(first)}\n{shlex.join(['retune', 'restore', TUNED, image, '--out', OUT])}"
        network = [self.network] if self.network else []
        return shlex.join(["retune", "restore", *network, image, *said, "--out", OUT])

    def python(self, image: str, *, plain: bool = True, pages: int = 1, tuned: bool = False) -> str:
        """The lines of Python that restore the file in the same way.

        Args:
            image: the file.
            plain: whether ``retune.restore`` gives the same image. It does not if the image is restored in tiles,
                has its own network, or contains NaN or Inf.
            pages: number of images in the file.
            tuned: whether the network was tuned on the image.
        """
        if not plain or self.network or tuned:
            return self._as_job(image, tuned)
        fields = self.fields()
        said = ", ".join(f"{name}={_code(value)}" for name, value in fields.items() if name != "name")
        levels = bool(self.white or self.black)
        lines = [
            *(["from pathlib import Path", ""] if levels else []),
            *(["import torch", ""] if pages > 1 else []),
            "import retune",
            "from retune import io",
            *(["from retune.io.intensity import intensity_unit"] if levels else []),
            "",
            f"images, layout = io.read({image!r}{', any_integers=True' if levels else ''})",
            f"problem = retune.problems.{self.problem}({said})",
        ]
        y = "images"
        if levels:
            white, black = (_level(level) for level in (self.white, self.black))
            lines.append(f"unit = intensity_unit(Path({image!r}), images, layout, white={white}, black={black})")
            y = "unit.scaled(images)"
        made = f"retune.restore({y}, problem)"
        if pages > 1:
            made = f"torch.cat([retune.restore(image, problem) for image in {y}.split(1)])"
        lines.append(f"restored = {f'unit.stored({made})' if levels else made}")
        return "\n".join([*lines, f"io.write({'restored-' + image!r}, restored, layout)"])

    def _as_job(self, image: str, tuned: bool) -> str:
        """The lines of Python that do the work of the command."""
        said = "".join(
            f", {name}={_level(level)}" for name, level in (("white", self.white), ("black", self.black)) if level
        )
        if tuned:
            model = f"open_model(Path({TUNED!r}))"
            said = ", white=model.white, black=model.black, white_remembered=model.white is not None"
        elif self.network:
            model = f"open_model(Path({self.network!r}), {self.fields()!r})"
        else:
            model = f"instant_model({self.fields()!r})"
        source = "instant" if model.startswith("instant") else "opened"
        return "\n".join(
            [
                "from pathlib import Path",
                "",
                f"from retune.jobs.{source} import {model.partition('(')[0]}",
                "from retune.jobs.restore import Options, restore",
                "",
                *(["# after the command retune tune"] if tuned else []),
                f"model = {model}",
                f"restore(model, [Path({image!r})], Options(Path({OUT!r}){said}))",
            ]
        )


#: The options of the command line for the fields of the section [problem].
_OPTIONS = {
    "kernel": "--kernel",
    "kernel_background": "--kernel-background",
    "centre_kernel": "--centre-kernel",
    "boundary": "--boundary",
    "mask": "--mask",
    "factor": "--factor",
    "sigma": "--sigma",
    "noise": "--noise",
}


def _typed(value: Any) -> str:
    """A value in the form of the command line."""
    return ",".join(repr(v) for v in value) if isinstance(value, list) else str(value)


def _level(text: str) -> str:
    """Black or white as code: None, 'auto', or a number."""
    return repr(text) if text == "auto" else repr(float(text)) if text else "None"


def _code(value: Any) -> str:
    return repr(tuple(value)) if isinstance(value, list) else repr(value)
