"""The problem that a run describes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retune.config import ProblemConfig
from retune.errors import ConfigError
from retune.plugins import require_accepted
from retune.problems import Problem
from retune.problems.detail import kept_detail
from retune.problems.found_noise import estimate_counts
from retune.problems.noise import estimate_noise
from retune.problems.own import OwnPhysics
from retune.registry import find, is_ours, make, names, takes

__all__ = ["problem_of"]


def problem_of(config: ProblemConfig, y: Tensor | None = None) -> Problem:
    """The problem that the section [problem] describes.

    Args:
        config: the section.
        y: a measurement (B, C, h, w), for ``sigma = "estimate"``.

    Raises:
        UnknownNameError: no problem has this name.
        ConfigError: the problem has no such field, or sigma is "estimate" without a measurement.
    """
    given = {k: v for k, v in config if k not in ("name", "sigma") and v not in (None, {})}
    if ":" in config.name:
        _require_fields(config.name, given, ["options"])
        require_accepted(config.name, "problem.name")
        return OwnPhysics(config.name, sigma=_sigma(config, y), **given)
    arguments = takes("problem", config.name)
    # The table of options is for arguments without a field in the section, or with a field of another type.
    of_class = ["options"] if not is_ours(config.name) or set(config.options) <= set(arguments) else []
    _require_fields(config.name, given, [*(a for a in arguments if a in ProblemConfig.model_fields), *of_class])
    options = given.pop("options", {})
    if config.noise is None and config.sigma == "estimate" and y is not None and "noise" in arguments:
        quiet = {"problem": given | {"sigma": 0.0}}  # the noise does not matter for what the operator removes
        silent = make("problem", config.name, where="problem.options", options=options, given=quiet)
        found = estimate_counts(y, detail=kept_detail(silent, y))
        if found is not None and found.grows:
            given["noise"] = str(found.noise)
    # A model of the noise replaces its level.
    noise = {} if "noise" in given else {"sigma": _sigma(config, y)}
    said = noise if config.sigma != ProblemConfig().sigma else {}
    return make(
        "problem", config.name, where="problem.options", options=options, given={"problem": given | said}, usual=noise
    )


def _require_fields(problem: str, given: dict[str, Any], has: list[str]) -> None:
    for name, value in given.items():
        if name not in has:
            having = [p for p in names("problem") if name in takes("problem", p)] or ["module:function"]
            raise ConfigError(
                f"problem.{name} = {repr(value)[:100]}: the problem {problem} has no {name} (it has: "
                f"{', '.join(dict.fromkeys(['sigma', *has]))}); {' and '.join(having)} "
                f"{'has' if len(having) == 1 else 'have'} one"
            )


def _sigma(config: ProblemConfig, y: Tensor | None) -> Any:
    if config.sigma != "estimate":
        return config.sigma
    if ":" not in config.name and find(config.name, "problem").cls.has_gaps:
        raise ConfigError('problem.sigma = "estimate": this is impossible with missing pixels; give the noise level')
    if y is None:
        raise ConfigError(
            'problem.sigma = "estimate": training makes its own measurements, so it needs a level; retune tune '
            "estimates it from yours"
        )
    return estimate_noise(y)
