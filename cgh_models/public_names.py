"""Public names of a package that are loaded on first use: importing the package stays light."""


def public_names(package: str, modules: dict[str, str]):
    """Returns ``__getattr__`` and ``__dir__`` of a package, from the module of each name in it."""

    def get(name: str):
        if name not in modules:
            offered = f"it offers {', '.join(modules)}"
            raise AttributeError(f"module {package!r} has no attribute {name!r}; {offered}")
        from importlib import import_module

        return getattr(import_module(f"{package}.{modules[name]}"), name)

    return get, lambda: sorted(modules)
