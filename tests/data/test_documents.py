"""Plain texts from files, folders, rows and built-in sets; mistakes are one sentence."""

import gzip
import json
from pathlib import Path

import pytest

from lowtax.common.errors import UserError
from lowtax.data import documents


def test_a_text_file_is_one_document_and_a_folder_has_one_for_each_file(tmp_path: Path):
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfSecond,\n\nin two parts.")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"not listed: another suffix"))
    (tmp_path / "a.txt").write_text("First.")
    one = documents.read(str(tmp_path / "b.txt"))
    assert (one.texts, one.origin) == (["Second,\n\nin two parts."], "b.txt")
    assert documents.read(str(tmp_path / "a.txt.gz")).texts == ["not listed: another suffix"]
    whole = documents.read(str(tmp_path))
    assert whole.texts == ["First.", "Second,\n\nin two parts."]
    assert documents.read(f"{tmp_path},n=1").texts == ["First."]
    assert whole.describe()["documents"] == 2
    assert whole.describe()["sha256"] != one.describe()["sha256"]


def test_rows_have_their_text_in_a_column(tmp_path: Path):
    rows = [{"text": "one", "note": "x"}, {"text": None, "note": "y"}, {"text": 3, "note": "z"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert documents.read(str(tmp_path / "rows.jsonl")).texts == ["one", "", "3"]
    assert documents.read(f"{tmp_path / 'rows.jsonl'},column=note,n=2").texts == ["x", "y"]
    builtin = documents.read("builtin:chat,column=answer,n=5")
    assert len(builtin.texts) == 5
    assert all(builtin.texts)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("FOLDER/rows.jsonl", r"no column text or content or document; .* body, list: add the one"),
        ("FOLDER/rows.jsonl,column=txt", "no column txt"),
        ("FOLDER/rows.jsonl,colum=body", r"unknown key 'colum'.*column"),
        ("FOLDER/rows.jsonl,n=0", "n: Input should be greater than 0"),
        ("FOLDER/rows.jsonl,column=list", "row 1: the column 'list' holds a list, not text"),
        ("FOLDER/rows.jsonl,column=body,split=test", "no documents in split 'test'"),
        ("FOLDER/plain.txt,column=text", "is plain text, which has no column: remove column="),
        ("FOLDER/latin.txt", r"is not UTF-8 \(byte 3\)"),
        ("FOLDER/absent.txt", "cannot be read"),
        ("FOLDER,", "no key=value|is no key|not key=value"),
        ("builtin:nothing", "no built-in data set 'nothing'"),
        ("", "names no source"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, line: str, sentence: str):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"body": "one", "list": ["one"]}))
    (tmp_path / "plain.txt").write_text("one")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=sentence):
        documents.read(line.replace("FOLDER", str(tmp_path)))
