"""Public names of a package that are loaded on first use: importing the package stays light."""

TYPE_CHECKING = False  # importing typing would slow every interpreter with `cgh autoload on`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def public_names(
    package: str, modules: dict[str, str]
) -> "tuple[Callable[[str], Any], Callable[[], list[str]]]":
    """Returns ``__getattr__`` and ``__dir__`` for a package's ``__init__.py``.

    Args:
        package: its ``__name__``.
        modules: for each public name the module of the package that defines it.
    """

    def get(name: str) -> "Any":
        if name not in modules:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it offers {', '.join(modules)}"
            )
        from importlib import import_module

        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules)
