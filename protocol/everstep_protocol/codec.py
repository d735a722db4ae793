"""Dataclasses to JSON and back. Unknown keys are ignored on reading, so that version N-1 reads what N writes."""

import dataclasses
import json
import types
import typing
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


class BadMessage(ValueError):
    """A message that cannot be read as what it claims to be."""


def encode(message: Any) -> dict[str, Any]:
    """A JSON-ready dict of a dataclass instance."""
    return dataclasses.asdict(message)


def dumps(message: Any) -> bytes:
    return json.dumps(encode(message), separators=(",", ":")).encode()


def loads(cls: type[T], text: str | bytes) -> T:
    """Read a dataclass from JSON text.

    Raises:
        BadMessage: not JSON, not an object, or a field is missing or of the wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"{cls.__name__}: not JSON: {error}") from None
    return decode(cls, data)


def decode(cls: type[T], data: Any) -> T:
    """Build a dataclass from plain JSON data, checking types on the way.

    Raises:
        BadMessage: a field is missing or of the wrong type.
    """
    if not isinstance(data, dict):
        raise BadMessage(f"{cls.__name__}: expected an object, got {type(data).__name__}")
    values: dict[str, Any] = {}
    for name, hint, required in _fields(typing.cast(type, cls)):
        if name in data:
            values[name] = _value(hint, data[name], f"{cls.__name__}.{name}")
        elif required:
            raise BadMessage(f"{cls.__name__}: field {name!r} is missing")
    return cls(**values)


@cache
def _fields(cls: type) -> list[tuple[str, Any, bool]]:
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return [
        (f.name, hints[f.name], f.default is missing and f.default_factory is missing)
        for f in dataclasses.fields(cls)
        if f.init
    ]


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        return _value(next(o for o in options if o is not type(None)), value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise BadMessage(f"{where}: expected a list, got {type(value).__name__}")
        return origin(_value(get_args(hint)[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise BadMessage(f"{where}: expected an object, got {type(value).__name__}")
        return {key: _value(get_args(hint)[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type, hint), value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and issubclass(hint, str) and hint is not str:  # StrEnum
        try:
            return hint(value)
        except ValueError:
            raise BadMessage(f"{where}: {value!r} is none of {[str(m) for m in hint]}") from None  # type: ignore[attr-defined]
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise BadMessage(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value
