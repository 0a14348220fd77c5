"""A folder may be a stranger's: nothing outside of it is written, emptied or deleted, and nothing that is not ours."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lowtax.common import files, names, provenance
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, Verdict

ROW = Prompt(id="1", source="s", text="t")
THEIRS = b"a thesis without a newline"
PLACES = [
    ".lock",
    "replies",
    "replies/harmful.jsonl",
    "verdicts/harmful.refusal.jsonl",
    "answers",
    "grades/sums.jsonl",
    "data/star1.jsonl",
    "arms",
    "arms/r1",
    "arms/r1/seed-0",
    "arms/r1/seed-0/.prefix-0.bin",
    "arms/r1/seed-0/.state.tmp",
    "arms/r1/seed-0/checkpoint-",
    "arms/r1/seed-0/checkpoint-4x",
    "arms/r1/seed-0/steps.jsonl",
]


def test_a_folder_with_a_link_where_lowtax_writes_is_refused(tmp_path: Path):
    for number, place in enumerate(PLACES):
        for to_folder in (False, True):
            victim, study = tmp_path / f"victim{number}{to_folder}", tmp_path / f"study{number}{to_folder}"
            if to_folder:
                victim.mkdir()
            else:
                victim.write_bytes(THEIRS)
            (study / place).parent.mkdir(parents=True)
            (study / place).symlink_to(victim)
            with pytest.raises(UserError, match="link"), files.locked(study):
                pass
            assert to_folder or victim.read_bytes() == THEIRS
            assert not to_folder or not os.listdir(victim)
    study = tmp_path / "own"
    (study / "arms" / "r1" / "seed-0").mkdir(parents=True)
    (study / "arms" / "r1" / "seed-0" / "checkpoint-4").symlink_to(tmp_path)  # it is only read
    (tmp_path / "link").symlink_to(study)
    with files.locked(tmp_path / "link"):
        pass


def test_rows_go_through_no_link_and_into_nothing_but_a_file(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(THEIRS)
    (tmp_path / "link.jsonl").symlink_to(victim)
    (tmp_path / "dangling.jsonl").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("link.jsonl", "dangling.jsonl", "pipe.jsonl"):
        with pytest.raises(UserError, match=r"is a link|is no file"):
            files.append_rows(tmp_path / name, [ROW])
    assert victim.read_bytes() == THEIRS
    assert not (tmp_path / "new").exists()


def test_a_last_line_that_is_no_row_is_the_users(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    line = ROW.model_dump_json().encode()
    other = Verdict(id="2", reply_id="1", judge="j", label="safe").model_dump_json().encode()
    for theirs in (
        THEIRS,
        b'{"prompt": "x"}',
        b'{"id": "1", "prompt": "x"}',
        b"[1]",
        b"1",
        other,
        line + b"\n" + THEIRS,
    ):
        path.write_bytes(theirs)
        for act in (lambda: files.append_rows(path, [ROW]), lambda: files.read_rows(path, Prompt)):
            with pytest.raises(UserError, match="is no Prompt row"):
                act()
        assert path.read_bytes() == theirs
    for cut in (b"{", b'{"id"', line[:20], line[:-1], line, b"\0" * 300, line[:9] + b"\0\0", b" "):
        path.write_bytes(line + b"\n" + cut)
        assert list(files.read_rows(path, Prompt).values()) == [ROW]
        files.append_rows(path, [ROW])
        assert path.read_bytes() == (line + b"\n") * 2


def test_temporary_names_are_nobodys(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_bytes(THEIRS)
    out = tmp_path / "out"
    out.mkdir()
    for name in (".x.json.tmp", ".x.tmp"):
        (out / name).symlink_to(victim)
    (out / ".folder.tmp").mkdir()
    (out / ".folder.tmp" / "thesis.tex").write_bytes(THEIRS)
    with files.atomic_folder(out / "folder") as work:  # a name of ours, which proves nothing for another inode
        forged = [out / f".{name}{work.name.removeprefix('.folder')}" for name in ("folder", "x", "x.json")][1:]
    for folder in forged:
        folder.mkdir()
        (folder / "thesis.tex").write_bytes(THEIRS)
    files.write_json(out / "x.json", {})
    files.write_text(out / "x", "")
    with files.atomic_folder(out / "folder", replace=True), files.beside(out / "folder"):
        pass
    assert victim.read_bytes() == THEIRS
    assert all((folder / "thesis.tex").read_bytes() == THEIRS for folder in [out / ".folder.tmp", *forged])
    assert not [p for p in out.iterdir() if p.name.endswith(".tmp") and p not in [*forged, out / ".folder.tmp"]
                and not p.is_symlink()]  # fmt: skip


def test_files_have_the_rights_that_the_user_chose(tmp_path: Path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "x", "")
        with files.atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_lock_whose_file_is_deleted_or_replaced_still_holds(tmp_path: Path):
    with files.locked(tmp_path):
        (tmp_path / ".lock").unlink()
        for _ in range(2):  # the first one makes a new file
            with pytest.raises(UserError, match="Another"), files.locked(tmp_path):
                pass
        os.replace(tmp_path / ".lock", tmp_path / "old")
        with pytest.raises(UserError, match="Another"), files.locked(tmp_path):
            pass
    with files.locked(tmp_path):
        pass


def test_names_that_a_stranger_writes(tmp_path: Path):
    for name in ("checkpoint-1", "checkpoint-0", "checkpoint-123456789012345"):
        assert names.is_checkpoint(name)
    for name in ("", "..", "/x", "checkpoint-", "checkpoint--1", "checkpoint-1/..", "checkpoint-1\n", "checkpoint-²",
                 "checkpoint-1.0", "../checkpoint-1", "checkpoint-" + "1" * 16, None, 3, ["checkpoint-1"]):  # fmt: skip
        assert not names.is_checkpoint(name)
    assert names.below(tmp_path, "a", "alpha=0.5", "ä b") == tmp_path / "a" / "alpha=0.5" / "ä b"
    for name in ("", ".", "..", "/etc", "a/b", "a\\b", "a\0", "x" * 256):
        with pytest.raises(UserError, match="lead out of"):
            names.below(tmp_path, "a", name)
    assert names.sharing(["a", "b", "a-b", "a_b"]) is None
    assert names.sharing(["x", "a b", "a_b"]) == ("a b", "a_b")
    assert names.sharing(["GSM8K", "gsm8k"]) == ("GSM8K", "gsm8k")


def test_files_of_the_users_are_not_replaced_by_results(tmp_path: Path):
    (tmp_path / "table.md").write_bytes(THEIRS)
    with pytest.raises(UserError, match=r"already has table\.md"):
        names.refuse_foreign(tmp_path, ["base.json"], ["table.json", "table.md"])
    (tmp_path / "base.json").write_text("{}")
    names.refuse_foreign(tmp_path, ["base.json"], ["table.json", "table.md"])
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"would be replaced by the table\.md"):
        names.refuse_inputs(tmp_path / "link", ["table.md"], tmp_path / "table.md")


def test_a_repository_of_a_strangers_runs_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "x.txt").write_text("x")
    for arguments in (("init",), ("add", "."), ("commit", "-m", "x")):
        git(*arguments)
    monkeypatch.chdir(tmp_path)
    assert (provenance.provenance()["git"] or {})["clean"] is True
    (tmp_path / "x.txt").write_text("y")
    assert (provenance.provenance()["git"] or {})["clean"] is False
    (tmp_path / "evil.sh").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "evil.sh").chmod(0o755)
    git("config", "core.fsmonitor", f"{tmp_path}/evil.sh")
    assert (provenance.provenance()["git"] or {})["clean"] is False
    (tmp_path / ".gitattributes").write_text("*.txt filter=evil\n")
    (tmp_path / "included").write_text(f'[filter "evil"]\n\tclean = {tmp_path}/evil.sh\n')
    git("config", "include.path", f"{tmp_path}/included")
    assert (provenance.provenance()["git"] or {})["clean"] is None
    assert not (tmp_path / "ran").exists()


def test_what_a_kill_left_before_it_had_its_name_is_removed_while_it_is_empty(tmp_path: Path):
    """A file has a first name for a moment; a name of that form with something in it is the user's."""
    empty, full, folder, others = (
        tmp_path / files._first_name(f"{number:016x}") if number < 3 else tmp_path / f".{number:016x}.12345678.tmp"
        for number in range(4)
    )
    empty.touch()
    full.write_bytes(THEIRS)
    folder.mkdir()
    others.touch()
    files.write_text(tmp_path / "x.json", "{}")
    assert sorted(tmp_path.iterdir()) == sorted([full, others, tmp_path / "x.json"])


def test_a_file_that_another_process_takes_for_a_rest_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rename, taken = os.rename, []

    def once(first: Path, work: Path) -> None:
        if not taken:
            taken.append(first)
            os.unlink(first)
        rename(first, work)

    monkeypatch.setattr(os, "rename", once)
    files.write_text(tmp_path / "x.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_two_processes_replace_one_folder_again_and_again(tmp_path: Path):
    program = """
import sys
from pathlib import Path
from lowtax.common.files import atomic_folder
for number in range(60):
    with atomic_folder(Path(sys.argv[1]), replace=True) as work:
        (work / "one").write_text(sys.argv[2])
        (work / "two").write_text(sys.argv[2])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "folder")]
    with subprocess.Popen([*command, "a"]) as first, subprocess.Popen([*command, "b"]) as second:
        assert (first.wait(), second.wait()) == (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]
    assert (tmp_path / "folder" / "one").read_text() == (tmp_path / "folder" / "two").read_text()


Replace = Callable[[Path, Path], None]


def replaced(folder: Path, monkeypatch: pytest.MonkeyPatch, at: int, before: Callable[[Replace, Path, Path], None]):
    """Replace a folder with an old file by one with a new file; something happens before the `at`-th `os.replace`.

    The first fails, since the old folder has the name; the second moves it away, the third puts the new one there.
    """
    folder.mkdir()
    (folder / "x").write_text("old")
    replace, calls = os.replace, []

    def disturbed(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at:
            before(replace, source, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", disturbed)
    with files.atomic_folder(folder, replace=True) as work:
        (work / "x").write_text("new")


def test_a_folder_that_another_process_replaced_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def beaten(replace: Replace, source: Path, target: Path) -> None:
        """The other process moves the old folder to the same name, and its own to this one."""
        replace(source, target)
        source.mkdir()
        (source / "x").write_text("of the other")

    replaced(tmp_path / "folder", monkeypatch, 2, beaten)
    assert (tmp_path / "folder" / "x").read_text() == "new"


def test_a_stop_between_two_names_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replaced(tmp_path / "folder", monkeypatch, 3, stopped)
    assert (tmp_path / "folder" / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_lock_is_seen_by_others_and_let_go_with_its_process(tmp_path: Path):
    assert not files.is_locked(tmp_path)
    with files.locked(tmp_path):
        assert files.is_locked(tmp_path)
    assert not files.is_locked(tmp_path)
    with files.locked(tmp_path):
        pass
