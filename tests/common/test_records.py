"""Records and files: what is written is read back, and what a kill or a full disk leaves behind does no harm."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.common import files, provenance
from lowtax.common.errors import UserError
from lowtax.common.files import append_rows, read_json, read_rows, write_json, write_text
from lowtax.common.records import Grade, Prompt, row_id

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
    "bad", [b"{nonsense", b'{"id": "1"}', b"[1]", b"\xff", b'{"id":"1","source":"s","text":"t","more":1}']
)
def test_a_corrupt_line_in_the_middle_is_named(tmp_path: Path, bad: bytes):
    path = tmp_path / "rows.jsonl"
    lines = [row.model_dump_json().encode() for row in ROWS[:3]]
    path.write_bytes(b"\n".join([lines[0], bad, lines[2], b""]))
    with pytest.raises(UserError, match="line 2") as caught:
        read_rows(path, Prompt)
    assert str(path) in str(caught.value)


def test_what_an_editor_adds_is_no_row(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    lines = [row.model_dump_json().encode() for row in ROWS[:3]]
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join([*lines, b" ", b""]))
    assert list(read_rows(path, Prompt).values()) == ROWS[:3]


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


def test_a_file_or_folder_is_replaced_at_the_end_of_the_block_and_not_before(tmp_path: Path):
    path = tmp_path / "new" / "x.png"
    for content in (b"one", b"two"):
        with files.atomic_file(path) as work:
            work.write_bytes(content)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == content
    folder = tmp_path / "deep" / "checkpoint"
    for name in ("one", "two"):
        with files.atomic_folder(folder, replace=True) as work:
            (work / name).write_text(name)
            assert [p.name for p in folder.parent.iterdir() if p != work] == ([] if name == "one" else ["checkpoint"])
        assert [p.name for p in folder.iterdir()] == [name]
    assert os.listdir(tmp_path / "new") == ["x.png"]
    assert os.listdir(tmp_path / "deep") == ["checkpoint"]


@pytest.mark.parametrize("interrupt", [OSError("full"), KeyboardInterrupt()])
def test_a_block_that_fails_leaves_the_old_file_and_folder_and_nothing_else(tmp_path: Path, interrupt: BaseException):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder" / "x", tmp_path / "x"):
        path.write_text("old")

    def write_half() -> None:
        with (
            files.atomic_file(tmp_path / "x") as file,
            files.atomic_folder(tmp_path / "folder", replace=True) as folder,
        ):
            file.write_text("new")
            (folder / "x").write_text("new")
            raise interrupt

    with pytest.raises(type(interrupt)):
        write_half()
    assert sorted(os.listdir(tmp_path)) == ["folder", "x"]
    assert (tmp_path / "folder" / "x").read_text() == (tmp_path / "x").read_text() == "old"


def test_a_folder_in_use_is_not_replaced_unless_it_may_be(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "theirs").write_text("x")
    with pytest.raises(OSError, match="not empty"), files.atomic_folder(tmp_path / "folder") as work:
        (work / "ours").write_text("y")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["theirs"]


WRITE_FOREVER = """
import sys, time
from pathlib import Path
from lowtax.common.files import atomic_file, atomic_folder
with atomic_file(Path(sys.argv[1]) / "x") as file, atomic_folder(Path(sys.argv[1]) / "folder", replace=True) as folder:
    file.write_text("half")
    (folder / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_is_replaced_by_the_next(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "x").write_text("old")
    command = [sys.executable, "-c", WRITE_FOREVER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path / "folder") == []
    with files.atomic_file(tmp_path / "x") as file, files.atomic_folder(tmp_path / "folder", replace=True) as folder:
        file.write_text("new")
        (folder / "whole").write_text("new")
    assert (tmp_path / "x").read_text() == "new"
    assert os.listdir(tmp_path / "folder") == ["whole"]
    assert sorted(os.listdir(tmp_path)) == ["folder", "x"]


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
from lowtax.common.files import locked
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
        with pytest.raises(UserError, match="Another lowtax process"), files.locked(tmp_path):
            pass
        other.kill()
    with files.locked(tmp_path), pytest.raises(UserError, match="Another"), files.locked(tmp_path):
        pass
    with files.locked(tmp_path):
        pass


def test_ids_are_those_of_stored_studies():
    assert row_id("arm", 1, None, {"b": [0.5], "a": "\u00e9"}) == "1eebacc36637f0bc"


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
    found = provenance.provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"]
    assert found["versions"]["python"].startswith("3.")
