"""docs/guides/training.md: its tables are those of the recipe, and its program runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from pydantic import BaseModel
from tiny import make_model

from lowtax.recipe import Execution, Train

PAGE = ROOT / "docs/guides/training.md"


def table(section: type[BaseModel]) -> str:
    """A row for every field: its name, default and description."""
    rows = [
        f"| `{name}` | {'none' if (d := field.get_default(call_default_factory=True)) in (None, []) else d} "
        f"| {field.description} |"
        for name, field in section.model_fields.items()
    ]
    return "\n".join(["| key | default | |", "|---|---|---|", *rows])


@pytest.mark.parametrize("section", [Train, Execution])
def test_tables_are_the_recipe(section: type[BaseModel]):
    mark = f"<!-- {section.__name__.lower()} -->\n"
    assert PAGE.read_text().partition(mark)[2].startswith(table(section) + "\n")


def test_the_program_runs(tmp_path: Path):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    code = code.replace("builtin:smollm2-135m-reasoner", str(make_model(tmp_path / "m", layers=20)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-10" in done.stdout
