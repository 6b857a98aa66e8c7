"""The kinds of values that flags take, and flags that are made of the fields of a config."""

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar, get_type_hints

import docstring_parser
from tyro.conf import Positional, arg

T = TypeVar("T")


def _default(value: str) -> str:
    """What the help says of a flag's default: nothing if it is empty."""
    return f"(default: {value})" if value.strip("'") else ""


Folder = Annotated[str, arg(metavar="FOLDER", help_behavior_hint=_default)]
File = Annotated[str, arg(metavar="FILE", help_behavior_hint=_default)]
Name = Annotated[str, arg(metavar="NAME", help_behavior_hint=_default)]
Text = Annotated[str, arg(metavar="TEXT", help_behavior_hint=_default)]
RunFolder = Annotated[Positional[str], arg(metavar="RUN")]
Weights = Annotated[Positional[str], arg(metavar="WEIGHTS")]
Pattern = Annotated[Positional[str], arg(metavar="PATTERN", help_behavior_hint=_default)]
Recipe = Literal["imagenet", "cifar", "tiny"]
OfRecipe = Annotated[T | None, arg(help_behavior_hint="(default: the recipe's)")]
METAVARS = {"device": "NAME", "eval_data": "FOLDER"}


def flags_of(config: type, default_of: Callable[[str], str], left_out: Collection[str] = ()) -> Any:
    """A TypedDict with the fields of a config; a flag that is not given is a key that is missing.

    Args:
        config: a dataclass whose fields have docstrings, which become the help.
        default_of: what the help says of the default of the field of this name.
        left_out: fields that get no flag.
    """
    kinds = get_type_hints(config)
    flags: dict[str, Any] = {}
    for field in docstring_parser.parse_from_object(config).params:
        name = field.arg_name
        text = " ".join((field.description or "").split())
        hint = f"(default: {default_of(name)})"
        if name not in left_out:
            details = arg(help=text, help_behavior_hint=hint, metavar=METAVARS.get(name))
            flags[name] = Annotated[kinds[name], details]
    return TypedDict(config.__name__, flags, total=False)  # pyright: ignore


def defaults_by_recipe(configs: Mapping[str, object]) -> Callable[[str], str]:
    """Says the default of a field: the first config's, then the others' by name if they differ."""

    def default_of(field: str) -> str:
        values = {name: getattr(config, field) for name, config in configs.items()}
        default = next(iter(values.values()))
        others = [name for name, value in values.items() if value not in (default, name)]
        return "; ".join([_typed(default), *(f"{name} {_typed(values[name])}" for name in others)])

    return default_of


def _typed(value: object) -> str:
    """A value as it is typed on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value) or "none"
