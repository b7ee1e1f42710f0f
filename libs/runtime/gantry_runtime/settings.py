"""Reads settings: one frozen dataclass per service, filled from a mapping. All problems are reported together.

The field `nats_url` is the setting `GANTRY_NATS_URL`. The documentation's list of settings is made with `describe`.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class SettingsError(Exception):
    """One or more settings are invalid; the message has one line per problem."""


def setting(default: Any, doc: str) -> Any:
    """Declare a setting.

    Args:
        default: value when the setting is absent or empty.
        doc: a sentence that says what the setting does, with its unit.
    """
    return dataclasses.field(default=default, metadata={"doc": doc})


def load(cls: type[T], environment: Mapping[str, str]) -> T:
    """Return a settings dataclass, filled from the GANTRY_* names of a mapping.

    Raises:
        SettingsError: a value cannot be converted to its type, or `cls` raised ValueError.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = f"GANTRY_{field.name.upper()}"
        text = environment.get(name)
        if text is None or text == "":
            continue
        try:
            values[field.name] = _parse(text, hints[field.name])
        except ValueError as error:
            problems.append(f"{name}={text!r}: {error}")
    if not problems:
        try:
            return cls(**values)
        except ValueError as error:
            problems.append(str(error))
    raise SettingsError("\n".join(problems))


def _parse(text: str, hint: Any) -> Any:
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("expected true or false")
        return text.lower() == "true"
    if typing.get_origin(hint) is typing.Literal:
        choices = typing.get_args(hint)
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text
    if typing.get_origin(hint) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if isinstance(hint, types.UnionType):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if hint is int else 'a number'}") from None
    return Path(text) if hint is Path else text


def describe(cls: type) -> list[tuple[str, str, str]]:
    """Return (name, default, description) of each setting of a dataclass."""
    return [
        (f"GANTRY_{f.name.upper()}", "" if f.default is dataclasses.MISSING else str(f.default), str(f.metadata.get("doc", "")))
        for f in dataclasses.fields(cls)
    ]
