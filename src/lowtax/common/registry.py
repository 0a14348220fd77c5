"""Classes by name: a built-in one from a table, or a user's own as `path/to/file.py:Class`.

The tables hold import paths as text, so that a class costs nothing until it is used.
"""

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from lowtax.common import unused
from lowtax.common.borders import expanded
from lowtax.common.errors import UserError, did_you_mean


def is_program(name: str) -> bool:
    """Return whether a name is that of a class in a Python file, which runs when it is resolved."""
    return name.rpartition(":")[0].endswith(".py")


def resolve(family: str, name: str, table: dict[str, str]) -> type[Any]:
    """Return the class that `name` stands for.

    Args:
        family: word for the error message, such as "engine".
        name: a key of `table`, or path/to/file.py:Class.
        table: name -> "module:Class".

    Raises:
        UserError: the table lacks the name, or the file or class does not exist.
    """
    if name in table:
        module, _, attribute = table[name].partition(":")
        return _class_of(importlib.import_module(module), attribute, name)
    if is_program(name):
        path, _, attribute = name.rpartition(":")
        return _class_of(_module_at(expanded(path), name), attribute, name)
    raise UserError(
        f"There is no {family} {name!r}; {did_you_mean(name, table)} Give a class of yours as path/to/file.py:Class."
    )


def _module_at(path: Path, name: str) -> ModuleType:
    """Return the module in a file; it is run once per process."""
    if not path.is_file():
        raise UserError(f"{name!r} names the file {path}, which does not exist; give it as path/to/file.py:Class.")
    # Registered by its whole path: two files may have the same name, and dataclasses look their module up.
    module_name = f"lowtax_file_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, path)
        if spec is None or spec.loader is None:
            raise UserError(f"Python cannot import {path}; is it a Python file?")
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        unused.let_in()
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[module_name]
            raise
    return sys.modules[module_name]


def _class_of(module: ModuleType, attribute: str, name: str) -> type[Any]:
    classes = {key: value for key, value in vars(module).items() if inspect.isclass(value)}
    if attribute not in classes:
        defined = [key for key, value in classes.items() if value.__module__ == module.__name__]
        raise UserError(f"{name!r}: the file defines no class {attribute!r}; {did_you_mean(attribute, defined)}")
    return classes[attribute]
