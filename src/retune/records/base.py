"""The base of all result files: they are checked, written atomically, and errors name the wrong entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PlainSerializer,
    Strict,
    StringConstraints,
    ValidationError,
    WrapValidator,
)

from retune._files import write_atomically
from retune._plain import RECORDS, parse_json
from retune.errors import InvalidParameterError

__all__ = ["Number", "Record", "Text"]

#: A number that may be unknown. Text and booleans are refused. A whole number is written without a decimal point.
Number = Annotated[
    float | None,
    Strict(),
    WrapValidator(lambda value, check: value if type(value) is int else check(value)),
    PlainSerializer(lambda value: value, return_type=Any),
]
Text = Annotated[str, StringConstraints(strict=True)]

_EXPECTED = {
    "dict_type": "a table",
    "model_type": "a table",
    "list_type": "a list",
    "float_type": "a number or null",
    "string_type": "text",
    "bool_type": "true or false",
    "int_type": "a whole number or null",
    "missing": "a value",
    "too_short": "at least one entry",
}


class Record(BaseModel):
    """A table of a result file.

    Unknown entries are kept unchanged: a newer version or a plug-in may have written them.
    """

    model_config = ConfigDict(extra="allow", validate_assignment=False, use_attribute_docstrings=True)

    @classmethod
    def checked(cls, values: Any, source: str) -> Self:
        """The record that plain data describe.

        Args:
            values: content of a file.
            source: name of the file in error messages.

        Raises:
            InvalidParameterError: the message names the entry, its value, and what was expected.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidParameterError(f"{source}: {_fault(error)}") from error

    @classmethod
    def parsed(cls, content: bytes | str, source: str) -> Self:
        """The record in the content of a file.

        Raises:
            InvalidParameterError: the content is not JSON, is too large or is nested too deeply; or see ``checked``.
        """
        try:
            values = parse_json(content, RECORDS)
        except ValueError as error:
            raise InvalidParameterError(f"{source} cannot be read: «{error}»") from error
        return cls.checked(values, source)

    @classmethod
    def is_in(cls, path: Path) -> bool:
        """Whether an ordinary file contains such a record. Any other content raises nothing."""
        try:
            if not path.is_file() or path.stat().st_size > RECORDS:
                return False
            cls.parsed(path.read_bytes(), str(path))
        except (InvalidParameterError, OSError):
            return False
        return True

    def plain(self) -> dict[str, Any]:
        """The content of the file: the given entries."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path, indent: int | None = 1) -> None:
        """Write the file atomically.

        Args:
            path: the file.
            indent: spaces per level. None writes a single line, which is several times faster for long lists.

        Raises:
            ValueError: a number is infinite or NaN, which JSON cannot express.
        """
        write_atomically(path, self.content(indent))

    def content(self, indent: int | None = 1) -> bytes:
        """What ``write`` writes."""
        return json.dumps(self.plain(), indent=indent, allow_nan=False).encode()


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
    return f"{place or 'the content'} is {shown}, expected {_EXPECTED.get(fault['type'], fault['msg'])}"
