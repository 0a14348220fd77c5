"""Libraries that count as not installed in a command, until a file of the user's is run."""

import sys
from pathlib import Path

import pytest

from lowtax.common import unused
from lowtax.common.registry import resolve


def test_a_file_of_the_user_can_import_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(unused, "NAMES", ("sndhdr_of_ours", "json"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sndhdr_of_ours.py").write_text("ANSWER = 42\n")
    (tmp_path / "own.py").write_text("from sndhdr_of_ours import ANSWER\nclass Judge: answer = ANSWER\n")
    monkeypatch.setitem(sys.modules, "sndhdr_of_ours", sys)  # restored at the end
    monkeypatch.delitem(sys.modules, "sndhdr_of_ours")
    unused.leave_out()
    with pytest.raises(ImportError):
        import sndhdr_of_ours  # noqa: F401
    import json

    assert json.loads("1") == 1  # what is there stays
    assert resolve("judge", f"{tmp_path}/own.py:Judge", {}).answer == 42
