"""Modules that a library imports and this process does not use: they load when somebody first asks for something in them.

Nothing of them changes but that moment. It is for helper processes, before they import the library: `scipy.stats` alone is .6 of the 2.3 CPU
seconds of Great Expectations' import, for expectations that few suites have.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_one = threading.RLock()  # that loads, others wait


class _Later(ModuleType):
    """A module that is there by name. What it lacks makes it load; then it is an ordinary module."""

    def __getattr__(self, name: str) -> Any:
        with _one:
            loader = self.__dict__.pop("__waiting__", None)
            if loader is not None:
                try:
                    loader.exec_module(self)
                except BaseException:
                    sys.modules.pop(self.__name__, None)
                    raise
                self.__class__ = ModuleType
            elif isinstance(self, _Later):  # asked in the course of its own import
                raise AttributeError(f"partially initialized module '{self.__name__}' has no attribute '{name}'")
        return getattr(self, name)


def later(*names: str) -> None:
    """Put modules off; one that is imported already, or is not there, is left alone.

    Only for modules that are imported whole (`import a`, `from a import b` of a module b): to import a name from one loads it at once. A
    package whose own modules are imported by name (`from a.b import c`) may do that from the middle of their import, so it is not for those.
    """
    for name in names:
        spec = None if name in sys.modules else _found(name)
        if spec is not None:
            module = importlib.util.module_from_spec(spec)
            module.__dict__["__waiting__"] = spec.loader
            module.__class__ = _Later
            sys.modules[name] = module


def _found(name: str) -> ModuleSpec | None:
    """The module's spec; the packages around it are not imported for that."""
    package, _, _ = name.rpartition(".")
    around = _found(package) if package else None
    if package and (around is None or around.submodule_search_locations is None):
        return None
    return PathFinder.find_spec(name, around.submodule_search_locations if around else None)
