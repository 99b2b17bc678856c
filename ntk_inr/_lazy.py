"""Packages that import a name when it is asked for, from the stub beside them that type checkers read, too."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

_NAME = re.compile(r"^from (\S+) import (\w+) as \2$", re.MULTILINE)


def names_of(package: str) -> dict[str, str]:
    """Return what a package's ``__init__.pyi`` imports, each name with the module that it comes from."""
    stub = (pkgutil.get_data(package, "__init__.pyi") or b"").decode()
    return {name: module for module, name in _NAME.findall(stub)}


def attach(
    package: str, renamed: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose names are those of its stub.

    Args:
        package: its full name.
        renamed: names that it had, each with what to write instead.
    """
    places = names_of(package)
    modules = [name for name, module in places.items() if module == package]

    def getattribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(_advice(package, name, renamed or {}), name=name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        value = getattr(importlib.import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattribute, lambda: sorted(places), sorted(places.keys() - set(modules))


def _advice(package: str, name: str, renamed: Mapping[str, str]) -> str:
    """Return what to write instead of a name that a package does not have."""
    message = f"module {package!r} has no attribute {name!r}"
    if name.startswith("_"):  # Python asks for what is about to be imported, too
        return message
    known = {**_shortest_ways(package.partition(".")[0]), **renamed}
    if name in known:
        return f"{message}; it is {known[name]}."
    near = difflib.get_close_matches(name, known, n=1)
    short = package.replace("ntk_inr", "ni", 1)
    return f"{message}. Did you mean {known[near[0]]}?" if near else f"{message}; dir({short}) lists what it has."


def _shortest_ways(root: str) -> dict[str, str]:
    """Return every public name with what to write for it."""
    flat = names_of(root)
    modules = [name for name, module in flat.items() if module == root]
    inner = {name: f"ni.{module}.{name}" for module in modules for name in names_of(f"{root}.{module}")}
    return inner | {name: f"ni.{name}" for name in flat}
