"""The values that the fields of a run take: bounded numbers, and names of registered classes."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
)

from retune.errors import did_you_mean

__all__ = [
    "FAMILIES",
    "NETWORKS",
    "Count",
    "Crops",
    "FidelityName",
    "Layers",
    "Level",
    "Levels",
    "MapName",
    "Multiple",
    "Positive",
    "PriorName",
    "RuleName",
    "Section",
    "Share",
    "SolverName",
]

Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False, strict=True)]
Level = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)]
Share = Annotated[float, Field(gt=0, lt=1, strict=True)]
# Counts are bounded far above useful values: beyond, a run would take hours or fill the memory.
Count = Annotated[StrictInt, Field(ge=1, le=10_000_000)]
Layers = Annotated[StrictInt, Field(ge=1, le=10_000)]
Levels = Annotated[StrictInt, Field(ge=1, le=32)]
Crops = Annotated[StrictInt, Field(ge=1, le=100_000)]
Multiple = Annotated[StrictInt, Field(ge=2, le=10_000)]


class Section(BaseModel):
    """A table of a run."""

    # The sentence below each field is its description, also in the commented TOML file and in the documentation.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    #: whether to write the section if every field has its default
    spoken: ClassVar[bool] = True

    def has(self, name: str) -> bool:
        """Whether the field applies, given the other fields."""
        return True


NETWORKS = ("denoiser", "red", "ridge", "energy")
#: the types of prior with their own fields here; any other type is a registered class with options
FAMILIES = ("wavelet", *NETWORKS)


def _registered(kind: str, name: str, also: tuple[str, ...] = ("auto",)) -> str:
    """The name as written in runs, if a class of the kind is registered under it."""
    if name in also:
        return name
    # Imported here, so that a run without class names does not wait until all classes are loaded.
    from retune.registry import known_name, names

    found = known_name(name, kind)
    if found is None:
        known = [*also, *(n for n in names(kind) if n not in also)]
        listed = " or ".join([", ".join(f"'{n}'" for n in known[:-1])] * (len(known) > 1) + [f"'{known[-1]}'"])
        raise ValueError(
            f"Input should be {listed}{did_you_mean(name, known)} (your own {kind} must be registered: on the command "
            "line add --plugin FILE.py)"
        )
    return found


PriorName = Annotated[str, AfterValidator(lambda name: _registered("prior", name, FAMILIES))]
MapName = Annotated[str, AfterValidator(lambda name: _registered("map", name))]
FidelityName = Annotated[str, AfterValidator(lambda name: _registered("fidelity", name, ()))]
SolverName = Annotated[str, AfterValidator(lambda name: _registered("solver", name))]
RuleName = Annotated[str, AfterValidator(lambda name: _registered("rule", name, ()))]
