"""docs/guides/training.md: its program runs."""

import re
import subprocess
import sys
from pathlib import Path

from places import ROOT
from tiny import make_model

PAGE = ROOT / "docs/guides/training.md"


def test_the_program_runs(tmp_path: Path):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    code = code.replace("builtin:smollm2-135m-reasoner", str(make_model(tmp_path / "m", layers=20)))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-10" in done.stdout
