"""The recipe in the folder of a study: recipe.yaml, or study.yaml beside a recipe.yaml of the user's own."""

import os
from pathlib import Path
from typing import Any

import yaml

from lowtax.common.yaml_files import parse_yaml

STORED, STORED_BESIDE = "recipe.yaml", "study.yaml"
"""The recipe in the folder of a study; the second name where the first is a file of the user's own."""


def stored_in(out: Path) -> Path | None:
    """Return the file of a folder that has the recipe of its study; None if it has none."""
    names = (STORED_BESIDE, STORED)
    return next((out / name for name in names if os.path.exists(out / name)), None)  # also where a name is too long


def place_in(out: Path, begun: bool) -> Path:
    """Return the file of a folder to which the recipe of its study is written; a user's own recipe is never replaced.

    A recipe.yaml is the user's own where no study has begun, and where it is not as lowtax writes it: with comments.

    Args:
        begun: the folder has a study.
    """
    own, beside = out / STORED, out / STORED_BESIDE
    if os.path.exists(beside) or (os.path.exists(own) and not (begun and is_as_dumped(own))):
        return beside
    return own


def dumped(values: Any) -> str:
    """Return the values of a recipe as lowtax writes them to a file."""
    return str(yaml.safe_dump(values, sort_keys=False))


def is_as_dumped(path: Path) -> bool:
    """Return whether a recipe is written as lowtax writes them, without comments."""
    try:
        text = path.read_text()
        return dumped(parse_yaml(text)) == text
    except (OSError, ValueError):
        return False
