"""Functions of the reference project, for tests of parity; none of its code is kept here."""

import ast
import functools
import os
import re
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest

FOLDER = "lm-evaluation-harness"


@functools.cache
def _functions(folder: str, name: str) -> dict[str, Any]:
    done = subprocess.run(
        ["git", "-C", folder, "show", f"HEAD:{FOLDER}/{name}"], capture_output=True, text=True, check=True
    )
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(done.stdout)
    kept = [n for n in tree.body if isinstance(n, ast.FunctionDef) and "dataset" not in ast.unparse(n.args)]
    space: dict[str, Any] = {"re": re, "Dict": dict, "List": list, "print": lambda *_: None}
    exec(compile(ast.Module(kept, []), name, "exec"), space)
    return space


def functions(name: str) -> dict[str, Any]:
    """The functions that a file of the reference defines, from the clone that LOWTAX_REFERENCE names; else a skip."""
    folder = os.environ.get("LOWTAX_REFERENCE", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("LOWTAX_REFERENCE names no clone of YihaoXue/lora-safety-reasoning")
    return _functions(folder, name)
