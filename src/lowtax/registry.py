"""A name in a recipe becomes a class: one of ours from a literal table, or `path/to/file.py:Class` of an outsider.

The tables hold import paths as text, so that naming a thing costs nothing until it is used.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lowtax.errors import UserError, did_you_mean


def resolve(family: str, name: str, table: dict[str, str]) -> type[Any]:
    """The class that `name` means. `table` maps names to `module:Class`; `family` is for the error ("engine")."""
    if name in table:
        module, _, attribute = table[name].partition(":")
        return _class_of(importlib.import_module(module), attribute, name)
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _class_of(_module_at(Path(path).expanduser(), name), attribute, name)
    raise UserError(
        f"There is no {family} {name!r}; {did_you_mean(name, table)} One of your own is given as path/to/file.py:Class."
    )


def _module_at(path: Path, name: str) -> ModuleType:
    """The module in a file, run once however often it is asked for."""
    if not path.is_file():
        raise UserError(f"{name!r} names the file {path}, which does not exist; give it as path/to/file.py:Class.")
    # Registered under the whole path, so that two files of one name do not meet and dataclasses find their module.
    known_as = f"lowtax_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if known_as not in sys.modules:
        spec = importlib.util.spec_from_file_location(known_as, path)
        if spec is None or spec.loader is None:
            raise UserError(f"Python cannot import {path}; is it a Python file?")
        module = importlib.util.module_from_spec(spec)
        sys.modules[known_as] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known_as]
            raise
    return sys.modules[known_as]


def _class_of(module: ModuleType, attribute: str, name: str) -> type[Any]:
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if attribute not in classes:
        own = [key for key, value in classes.items() if value.__module__ == module.__name__]
        raise UserError(f"{name!r}: the file defines no class {attribute!r}; {did_you_mean(attribute, own)}")
    return classes[attribute]
