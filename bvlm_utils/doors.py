"""Doors: names that a package gives out by itself, each looked up in its module when somebody first asks."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def door(package: str, exports: Mapping[str, tuple[str, ...]]) -> Callable[[str], Any]:
    """A package's `__getattr__`. exports: module, below bvlm_utils -> the names that it holds."""
    modules = {name: module for module, names in exports.items() for name in names}

    def look_up(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"bvlm_utils.{modules[name]}"), name)

    return look_up
