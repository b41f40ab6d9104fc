"""Names of a package that are imported on first access."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package whose modules import libraries that not everyone needs (PEP 562).

    Args:
        package (`str`): The `__name__` of the package.
        modules (`Mapping[str, str]`): For each name, the module of the package that defines it.
    """

    def import_name(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f".{modules[name]}", package), name)

    return import_name


__all__ = ["lazy_names"]
