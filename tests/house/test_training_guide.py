"""docs/guides/training.md: its program runs."""

import re
from pathlib import Path

import pytest
from places import ROOT
from tiny import make_model

PAGE = ROOT / "docs/guides/training.md"


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    code = code.replace("builtin:smollm2-135m-reasoner", str(make_model(tmp_path / "m", layers=20)))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    assert "checkpoint-10" in capsys.readouterr().out
