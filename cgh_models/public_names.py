"""Public names of a package that are loaded on first use: importing the package stays light."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def public_names(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package's ``__init__.py``.

    Args:
        package: its ``__name__``.
        homes: the module of the package that each public name lives in.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it offers {', '.join(homes)}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get, lambda: sorted(homes)
