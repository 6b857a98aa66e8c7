"""Dataclasses to and from the JSON of runs and weights. Light: no torch, no timm."""

import dataclasses
import difflib
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from .errors import InputError

Config = TypeVar("Config")

# What runs and weights did that are older than a field of this name, of TrainConfig or a method.
BEFORE = {
    "pixel_range": "16-bit",
    "zero_init_last": True,
    "eval_interpolation": "bicubic",
    "split_hypercolumn": False,
    "exempt_head_norms": False,
    "wide_crops": False,
}


def from_dict(config_class: type[Config], values: dict[str, Any], complete: bool = True) -> Config:
    """A dataclass from JSON values; unless ``complete``, keys that have a default may be missing.

    Raises:
        InputError: an unknown key, a value of another type, or a missing key.
    """
    name = config_class.__qualname__
    kinds = get_type_hints(config_class)
    fields = dataclasses.fields(config_class)  # pyright: ignore[reportArgumentType]
    needed = {f.name for f in fields if f.default is f.default_factory}  # neither is there
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for key, value in values.items():
        if key not in kinds:
            near = difflib.get_close_matches(key, kinds, n=1)
            names = ", ".join(list(kinds)[:12]) + (", ..." if len(kinds) > 12 else "")
            hint = f"did you mean {near[0]}?" if near else f"the keys are {names}"
            raise InputError(f"{name}: there is no key {key!r}, {hint}")
        kind = kinds[key]
        if not _is_of_type(value, kind):
            expected = str(kind).removeprefix("typing.") if get_origin(kind) else kind.__name__
            raise InputError(f"{name}: {key}={value!r}: expected {expected}")
    if missing := [k for k in kinds if k not in values and (complete or k in needed)]:
        raise InputError(f"{name}: the keys {', '.join(missing)} are missing")
    return config_class(**values)


def meant_before(config_class: type) -> dict[str, object]:
    """JSON values that a file without these fields meant, as it is older than they are.

    That is a field's value in `BEFORE`, else its default.
    """
    values = {f.name: BEFORE.get(f.name, f.default) for f in dataclasses.fields(config_class)}
    values = {key: value for key, value in values.items() if value is not dataclasses.MISSING}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def from_older(config_class: type[Config], values: dict[str, object]) -> Config:
    """`from_dict` of a file that may be older than some fields of the dataclass."""
    return from_dict(config_class, meant_before(config_class) | values, complete=False)


def _is_of_type(value: object, kind: object) -> bool:
    """Whether a JSON value is an int, float, bool, str, Literal or tuple as annotated."""
    kinds = get_args(kind)
    if get_origin(kind) is Literal:
        return value in kinds
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if kinds[1:] == (...,):
            kinds = kinds[:1] * len(value)
        return len(value) == len(kinds) and all(map(_is_of_type, value, kinds))
    return type(value) is kind or (kind is float and type(value) is int)


def to_dict(config: object) -> dict[str, Any]:
    """JSON values of a dataclass."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(config).items()}
