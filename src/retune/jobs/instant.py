"""Restoration with the networks that ship: the user needs no network, and nothing is tuned first."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from retune import weights
from retune._torch.devices import check_device
from retune.config import Config, ProblemConfig, from_dict
from retune.instant import RULE, instant_network, noise_of
from retune.jobs.inputs import require_kernel
from retune.jobs.opened import OpenedModel
from retune.problems.base import Problem
from retune.problems.noise import noise_levels

__all__ = ["InstantModel", "instant_model"]


@dataclass(frozen=True)
class InstantModel:
    """The networks that ship, as ``retune restore`` takes an opened network. Strengths follow from each image's noise.

    Attributes:
        problem: the section [problem] that the user gave.
        device: "cpu", "cuda", …
        digest: identifies the networks that ship, and the rule for their strengths.
        white, black: None: nothing was trained in any unit.
        denoises_at_once: whether noise alone takes one pass of a network.
    """

    denoises_at_once: ClassVar[bool] = True

    problem: ProblemConfig
    device: str
    digest: str
    white: float | None = None
    black: float | None = None

    def fitted(self, problem: Problem, y: Tensor) -> tuple[OpenedModel, Problem]:
        """The network for a measurement (1, C, h, w), and the problem with its noise."""
        made = noise_of(self.problem, y)
        net, run = instant_network(Config(problem=self.problem), made, y)
        told: dict[str, Any] = {"sigma": _plain(made.sigma), "noise": None if made.noise is None else str(made.noise)}
        known = self.problem.model_copy(update=told)
        return OpenedModel(Path(run.prior.type), net.to(self.device), known, None, self.digest, self.device, True), made


def instant_model(given: dict[str, Any], device: str = "cpu") -> InstantModel:
    """The networks for images of a problem (fields of the section [problem]), without training.

    Raises:
        ConfigError: a value that is not allowed, or a blur without a kernel.
        InvalidParameterError: the device is not available.
    """
    check_device(device)
    unsaid = {} if "noise" in given else {"sigma": "estimate"}
    config = from_dict({"problem": unsaid | given}, (), "the problem").problem
    require_kernel(config)
    known = weights.manifest()
    files = {name: facts["sha256"] for name, facts in known.items() if name.startswith(("energy", "denoiser"))}
    digest = hashlib.sha256(json.dumps([RULE, files], sort_keys=True).encode()).hexdigest()
    return InstantModel(config, device, digest)


def _plain(sigma: Any) -> Any:
    levels = noise_levels(sigma)
    return list(levels) if isinstance(levels, tuple) else levels
