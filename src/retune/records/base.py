"""What all result files share: they are checked, written whole, and faults are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Strict, ValidationError

from retune._files import write_atomically
from retune.errors import InvalidParameterError

__all__ = ["Number", "Record"]

#: A number that may be unknown; text and truth values are not numbers.
Number = Annotated[float | None, Strict()]

_EXPECTED = {
    "dict_type": "a table",
    "model_type": "a table",
    "list_type": "a list",
    "float_type": "a number or null",
    "string_type": "text",
    "bool_type": "true or false",
    "missing": "a value",
    "too_short": "at least one entry",
}


class Record(BaseModel):
    """A table of a result file.

    Entries that this version does not know are kept as they are: a newer version, or a plug-in, may have written them.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=False, use_attribute_docstrings=True)

    @classmethod
    def checked(cls, values: Any, source: str) -> Self:
        """The record that plain data describe.

        Args:
            values: what was read from a file.
            source: how an error message calls it.

        Raises:
            InvalidParameterError: the message names the entry, its value, and what was expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidParameterError(f"{source}: {_fault(error)}") from error

    def plain(self) -> dict[str, Any]:
        """What the file contains: the entries that were given."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            ValueError: a number is infinite or not a number, which JSON cannot hold.
        """
        write_atomically(path, json.dumps(self.plain(), indent=1, allow_nan=False).encode())


def _fault(error: ValidationError) -> str:
    """The first fault: its place in the file, the value, and what was expected."""
    fault = error.errors()[0]
    place = ""
    for part in fault["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    if fault["type"] == "value_error":
        return f"{place}: {fault['msg'].removeprefix('Value error, ')}"
    shown = "missing" if fault["type"] == "missing" else repr(fault["input"])
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{place} is {shown}, expected {_EXPECTED.get(fault['type'], fault['msg'])}"
