"""A dataclass from JSON that nobody has checked: types, limits, no key too few or too many."""

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union


@dataclass(frozen=True)
class Limits:
    """Least and most of a number, or of the length of a text or a list; a text's pattern."""

    low: float = -1e15
    high: float = 1e15
    pattern: str = ""
    above: float = -math.inf  # a number has to be more than this

    def allow(self, value: float | str | list[object]) -> bool:
        size = len(value) if isinstance(value, (str, list)) else value
        if not self.low <= size <= self.high or size <= self.above:
            return False
        return not self.pattern or re.fullmatch(self.pattern, str(value)) is not None

    def __str__(self) -> str:
        if self.pattern:
            return f"a text like {self.pattern}"
        least = f"more than {self.above:g}" if math.isfinite(self.above) else f"{self.low:g}"
        return f"{least} to {self.high:g}"


def parse(kind: Any, value: Any, key: str = "") -> Any:
    """The JSON ``value`` as ``kind``: a dataclass, or what its fields are annotated with.

    A field whose metadata say ``optional`` may be missing; a default is none for JSON. `Limits`
    stand in ``Annotated``.

    Raises:
        ValueError: "key 'a.b': <value>, expected <what>".
    """
    origin = typing.get_origin(kind)
    inner = typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        parsed = parse(inner[0], value, key)
        if value is not None and not inner[1].allow(value):
            raise refused(key, value, str(inner[1]))
        return parsed
    if origin in (Union, types.UnionType):  # X | None
        return None if value is None else parse(inner[0], value, key)
    if origin is Literal:
        if value not in inner or type(value) is not str:
            raise refused(key, value, f"one of {', '.join(inner)}")
        return value
    if origin is list and isinstance(value, list):
        return [parse(inner[0], item, f"{key}.{number}") for number, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {name: parse(inner[1], item, _join(key, name)) for name, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _parse_fields(kind, value, key)
    if kind is float and type(value) in (int, float) and abs(value) <= 1e300:
        return value
    if kind in (int, str) and type(value) is kind:
        return value
    raise refused(key, value, _NAMES.get(origin or kind, "an object"))


_NAMES = {int: "a whole number", float: "a number", str: "a text", list: "a list"}


def _parse_fields(kind: Any, values: dict[str, object], key: str) -> object:
    hints = typing.get_type_hints(kind, include_extras=True)
    for name in values.keys() - hints.keys():
        raise ValueError(f"key {_join(key, name)!r} is not one of {', '.join(hints)}"[:300])
    for field in dataclasses.fields(kind):
        optional = field.metadata.get("optional")
        if field.name not in values and not optional:
            raise ValueError(f"key {_join(key, field.name)!r} is missing")
        if optional and values.get(field.name, ...) is None:
            raise refused(_join(key, field.name), None, "an object, or not this key")
    parsed = {name: parse(hints[name], item, _join(key, name)) for name, item in values.items()}
    return kind(**parsed)


def refused(key: str, value: object, expected: str) -> ValueError:
    """The error for a value of a key."""
    shown = json.dumps(value, default=str)[:60]
    place = f"key {key!r}: " if key else ""
    return ValueError(f"{place}{shown}, expected {expected}")


def _join(key: str, name: str) -> str:
    return f"{key}.{name[:60]}" if key else name[:60]
