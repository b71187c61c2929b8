"""Strict tables: frozen sections of a TOML file that refuse unknown keys, and errors that a person can act on.

The run file and the site file are made of these. This module knows no key of either.

Example:
    >>> class Wards(Section):
    ...     beds: Positive
    >>> try:
    ...     Wards.model_validate({"beds": 3.0, "bads": 1})
    ... except ValidationError as error:
    ...     print(explain(error, source="wards.toml", model=Wards, docs="see the docs"))
    wards.toml: unknown key bads
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, ValidationError
from pydantic_core import ErrorDetails

from fedward_common.errors import ConfigError

__all__ = ["Name", "Positive", "Rate", "Section", "explain", "parse", "read_text"]

# strict: TOML has types, so true is no number and "8" is none either (an integer may stand for a float)
Positive = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
Rate = Annotated[StrictFloat, Field(gt=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]

PLAINER = {
    "tuple_type": "should be a list",
    "too_short": "should hold {min_length} or more values, not {actual_length}",
    "too_long": "should hold {max_length} or fewer values, not {actual_length}",
    "dict_type": "should be a table",
    "model_type": "should be a table",
    "model_attributes_type": "should be a table",
}
# such a message goes on from the key before it; any other is a sentence of its own, of a validator of a whole table
GOES_ON = ("should ", "is ", "names ", "allows ", "'")


class Section(BaseModel):
    """A frozen table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


S = TypeVar("S", bound=Section)


def read_text(path: Path, *, what: str, hint: str) -> str:
    """The text of a file that a person wrote.

    Raises:
      ConfigError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"cannot read {what} {path}: {reason}", hint=hint) from None


def parse(model: type[S], text: str, *, source: str, docs: str, example: str) -> S:
    """A whole file of TOML, checked.

    Args:
      model: of the whole file.
      text: its content.
      source: the file's name, for errors.
      docs: a hint where every key is explained.
      example: a hint where a whole file stands.

    Raises:
      ConfigError: with the dotted path of the first wrong key or value, or of all that are missing.
    """
    try:
        table = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or an integer of thousands of digits
        raise ConfigError(f"{source} is not TOML: {error}", hint=example) from None
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise explain(error, source=source, model=model, docs=docs) from None


def explain(error: ValidationError, *, source: str, model: type[BaseModel], docs: str) -> ConfigError:
    """What is wrong with a file, in one line: its first wrong key or value, or all that are missing.

    Args:
      error: of pydantic.
      source: the file's name.
      model: of the whole file.
      docs: a hint where every key is explained.
    """
    found = error.errors(include_url=False)
    first = next((one for one in found if one["type"] != "missing"), None)
    if first is None:
        missing = [_dotted(one["loc"]) for one in found]
        word = "is" if len(missing) == 1 else "are"
        return ConfigError(f"{source}: {', '.join(missing)} {word} missing", hint=f"fill in what is missing; {docs}")
    where = _dotted(first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(_keys_beside(first["loc"], model))
        return ConfigError(f"{source}: unknown key {where}", hint=f"known keys here: {known}")
    message = _message(first)
    between = (" " if message.startswith(GOES_ON) else ": ") if where else ""
    return ConfigError(f"{source}: {where}{between}{message}{_given(first['input'])}", hint=docs)


def _message(found: ErrorDetails) -> str:
    plainer = PLAINER.get(found["type"])
    if plainer is not None:
        return plainer.format(**found.get("ctx", {}))
    return re.sub(r"^(Value error, |Input |String )", "", found["msg"])


def _given(value: object) -> str:
    """The value as TOML spells it; lists and tables are not shown."""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f" (given: {shown})" if isinstance(value, str | int | float) else ""


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        kinds = [field.annotation for name, field in model.model_fields.items() if part in (name, field.alias)]
        model = next((inner for kind in kinds for inner in _models(kind)), model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _models(kind: Any) -> list[type[BaseModel]]:
    """The tables in an annotation: itself, or what a list of tables holds."""
    if isinstance(kind, type):
        return [kind] if issubclass(kind, BaseModel) else []
    return [inner for argument in get_args(kind) for inner in _models(argument)]
