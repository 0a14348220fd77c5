"""Records: what is written is read back, and what a kill or a full disk leaves behind does no harm."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax import records
from lowtax.errors import UserError
from lowtax.records import Grade, Prompt, append_rows, read_json, read_rows, row_id, write_json, write_text

ROWS = [Prompt(id=str(i), source="s", text=f"line one\nline two \u2028 {i} 日本 \x00", gold="4") for i in range(5)]


def test_round_trip(tmp_path: Path):
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, ROWS[:2])
    append_rows(path, ROWS[2:])
    assert list(read_rows(path, Prompt).values()) == ROWS
    assert len(path.read_bytes().splitlines()) == len(ROWS)


def test_no_file_has_no_rows(tmp_path: Path):
    assert read_rows(tmp_path / "none.jsonl", Prompt) == {}


def test_nothing_appended_changes_nothing(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    before = path.read_bytes()
    append_rows(path, [])
    assert path.read_bytes() == before


def test_of_rows_with_one_id_the_last_counts(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    later = ROWS[0].model_copy(update={"text": "again"})
    append_rows(path, [*ROWS, later])
    rows = read_rows(path, Prompt)
    assert len(rows) == len(ROWS)
    assert rows["0"] == later


def test_a_file_cut_short_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS[:3])
    whole = path.read_bytes()
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        kept = whole[:length].count(b"\n")
        assert list(read_rows(path, Prompt).values()) == ROWS[:kept]
        append_rows(path, ROWS[kept:])
        assert list(read_rows(path, Prompt).values()) == ROWS


@pytest.mark.parametrize(
    "bad", [b"{nonsense", b"", b'{"id": "1"}', b"[1]", b"\xff", b'{"id":"1","source":"s","text":"t","more":1}']
)
def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path, bad: bytes):
    path = tmp_path / "rows.jsonl"
    lines = [row.model_dump_json().encode() for row in ROWS[:3]]
    path.write_bytes(b"\n".join([lines[0], bad, lines[2], b""]))
    with pytest.raises(UserError, match="line 2") as caught:
        read_rows(path, Prompt)
    assert str(path) in str(caught.value)


def test_rows_of_another_kind_are_refused(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, ROWS)
    with pytest.raises(UserError, match="not a Grade row"):
        read_rows(path, Grade)


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "table.json"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_text(path, "new")
        with pytest.raises(OSError, match="No space left"):
            write_json(tmp_path / "other.json", {})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_disk_that_is_really_full():
    with pytest.raises(OSError, match="No space left"):
        append_rows(Path("/dev/full"), ROWS)


def test_json_round_trip_and_errors(tmp_path: Path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": [1, None, "é"]})
    assert read_json(path) == {"a": [1, None, "é"]}
    path.write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path / "none.json")


HOLD = """
import sys
from pathlib import Path
from lowtax.records import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_and_a_killed_one_frees_the_folder(tmp_path: Path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="Another lowtax process"), records.locked(tmp_path):
            pass
        other.kill()
    with records.locked(tmp_path), pytest.raises(UserError, match="Another"), records.locked(tmp_path):
        pass
    with records.locked(tmp_path):
        pass


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    max_leaves=8,
)


@settings(deadline=None)
@given(VALUES, VALUES)
def test_ids_are_stable_and_tell_values_apart(one: object, two: object):
    assert row_id(one) == row_id(json.loads(json.dumps(one)))
    assert len(row_id(one)) == 16
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (row_id(one) == row_id(two)) == same
    assert row_id(one, two) != row_id([one, two])


def test_versions_and_provenance_are_plain_json():
    found = records.provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"]
    assert found["versions"]["python"].startswith("3.")
