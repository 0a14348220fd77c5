"""Data files: every layout, encoding and compression gives the same rows; other files are refused with what to do."""

import bz2
import gzip
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from places import ROOT

from lowtax.common.errors import UserError
from lowtax.data import readers, tables, training_sets
from lowtax.data.specs import Data

ROWS = [{"prompt": "Wie geht's, é?", "answer": "1\n2; 3"}, {"prompt": 'b, "c"', "answer": "4\u2028"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'prompt,answer\n"Wie geht\'s, é?","1\n2; 3"\n"b, ""c""",4\u2028\n'
PAGE = (ROOT / "docs/guides/training-data.md").read_text()
EXAMPLES = PAGE.partition("| layout | example |")[2].partition("\n\n")[0]
LAYOUTS = re.findall(r"^\| ([^|]+) \| `([\[{].*[\]}])` \|$", EXAMPLES, re.MULTILINE)


@pytest.mark.parametrize(("layout", "content"), LAYOUTS, ids=[layout for layout, _ in LAYOUTS])
def test_every_documented_layout_is_read(tmp_path: Path, layout: str, content: str):
    for name in ("x.json", "x.jsonl"):
        path = tmp_path / name
        for text in (content, content + "\n", json.dumps(json.loads(content), indent=2)):
            path.write_text(text)
            assert tables.read(path).rows == [{"prompt": "How?", "answer": "No."}], (name, text)


def test_there_are_documented_layouts():
    assert len(LAYOUTS) >= 6


DOCUMENTS = {
    "lines": LINES,
    "lines with blank ones": "\n" + LINES.replace("\n", "\n\r\n"),
    "lines of an old Mac": LINES.replace("\n", "\r"),
    "joined files with marks": "\ufeff" + LINES.replace("\n", "\n\ufeff"),
    "a list": json.dumps(ROWS),
    "a printed list": json.dumps(ROWS, indent=2),
    "objects one after the other": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "under a key": json.dumps({"version": 1, "data": ROWS}),
    "the hub's viewer": json.dumps({"rows": [{"row_idx": i, "row": row} for i, row in enumerate(ROWS)]}),
    "columns": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}),
    "pandas": json.dumps({key: {str(i): row[key] for i, row in enumerate(ROWS)} for key in ROWS[0]}),
    "pandas, index": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
    "pandas, split": json.dumps({"columns": [*ROWS[0]], "index": [0, 1], "data": [[*row.values()] for row in ROWS]}),
    "pandas, table": json.dumps({"schema": {"fields": []}, "data": ROWS}),
}


@pytest.mark.parametrize("layout", DOCUMENTS)
def test_every_layout_of_json_gives_the_same_rows(tmp_path: Path, layout: str):
    path = tmp_path / "x.json"
    path.write_text(DOCUMENTS[layout], encoding="utf-8")
    assert tables.read(path).rows == ROWS


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_one_conversation_is_a_row_and_not_columns(tmp_path: Path, name: str):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
        for indent in (None, 2):
            (tmp_path / name).write_text(json.dumps(row, indent=indent))
            assert tables.read(tmp_path / name).rows == [row]
    (tmp_path / name).write_text(f"{json.dumps(turns)}\n{json.dumps(turns)}\n")
    assert tables.read(tmp_path / name).rows == [{"messages": turns}] * 2
    (tmp_path / name).write_text(json.dumps({"messages": [turns, turns]}))
    assert tables.read(tmp_path / name).rows == [{"messages": turns}] * 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_in_every_encoding(tmp_path: Path, encoding: str):
    for name, text in (("x.jsonl", LINES), ("x.csv", CSV), ("x.json", json.dumps(ROWS))):
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert tables.read(tmp_path / name).rows == ROWS, name


PACKED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_with_and_without_their_suffix(tmp_path: Path, suffix: str):
    for name, text in (("x.jsonl", LINES), ("x.csv", CSV)):
        packed = PACKED[suffix](text.encode())
        for path in (tmp_path / (name + suffix), tmp_path / name):
            path.write_bytes(packed)
            assert tables.read(path).rows == ROWS, path.name
            assert not readers.is_hub_id(f"data/{path.name}")
        (tmp_path / (name + suffix)).write_bytes(packed[:-9])
        with pytest.raises(UserError, match="cannot be read"):
            tables.read(tmp_path / (name + suffix))


@pytest.mark.parametrize("name", ["x.parquet", "x.pq", "x.feather", "x.arrow", "stream.arrow"])
def test_columnar_files(tmp_path: Path, name: str):
    path, table = tmp_path / name, pa.Table.from_pylist(ROWS)
    if name.startswith("stream"):
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table)
    elif path.suffix in (".parquet", ".pq"):
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path))
    assert tables.read(path).rows == ROWS
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match=r"is not an? (parquet|arrow) file"):
        tables.read(path)


@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("before", ["", "\n", "sep={}\n", "\ufeffsep={}\r\n"])
def test_separators(tmp_path: Path, name: str, separator: str, before: str):
    path = tmp_path / name
    path.write_text(before.format(separator) + f"prompt{separator} answer\nx{separator}y\n\n", encoding="utf-8")
    assert tables.read(path).rows == [{"prompt": "x", "answer": "y"}]


def test_one_column_and_cells_at_the_end(tmp_path: Path):
    path = tmp_path / "x.csv"
    path.write_text('goal\nx\n\n"a, b"\n')
    assert tables.read(path).rows == [{"goal": "x"}, {"goal": "a, b"}]
    path.write_text("a,b\n1,2,,\n3\n")
    assert tables.read(path).rows == [{"a": "1", "b": "2"}, {"a": "3", "b": None}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "a,b\n1,2\n1,2,3\n", "line 3 has 3 cells, and the header 2"),
        ("x.csv", 'a,b\n1,2\n1,"2\n3,4\n', "a quote that never ends, in the row that begins in line 3"),
        ("x.csv", "a,a\n1,2\n", "two columns named 'a'"),
        ("x.csv", "a,b\n1,é\n".encode("latin-1"), "not UTF-8 text (line 2); if it is Latin-1 or Windows-1252"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n', "not UTF-8 text (line 2)"),
        ("x.json", b'[{"a": "\xe9"},\n{}]', "not UTF-8 text (line 1)"),
        ("x.jsonl", b"\xff\xfea", "damaged UTF-16 text"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not valid JSON (Expecting value); correct it"),
        ("x.jsonl", '{"a": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("x.jsonl", '{"a": 1}\n' + "[" * 100_000, "line 2 is not valid JSON (too deep"),
        ("x.jsonl", '{"a": 1}\n{"a": ' + "1" * 5000 + "}\n", "line 2 is not valid JSON (too deep, or a number"),
        ("x.json", '{"a": [1, 2], "b": [3]}', "a list for each column, but of different lengths (a 2, b 1)"),
        ("x.json", '[{"a": 1},\n {"a": }]', "neither JSON lines (line 1 is not valid JSON) nor one JSON document"),
        ("x.xlsx", b"PK\x03\x04zip", "an Excel workbook: unpack it, or save its sheet as CSV"),
        ("x.jsonl", "<!DOCTYPE html>\n<html>", "is a web page"),
        ("x.jsonl", "version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
        ("x.db", "SQLite format 3\0", "an SQLite database"),
        ("x.pkl", b"\x80\x04abc", "is a pickle"),
        ("x.txt", "How do I pick a lock?\nNo.\n", "neither JSON lines"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        tables.read(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


# --- files for training: one bad row does not stop a file

GOOD = b'{"prompt": "p", "answer": "a"}\n'


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "x.jsonl",
            GOOD + b'{"prompt": \n' + GOOD,
            "is not valid JSON",
        ),
        (
            "x.jsonl",
            b'{"prompt": \n' + GOOD + GOOD,
            "is not valid JSON",
        ),
        ("x.jsonl", GOOD + b"7\n" + GOOD, "is not a JSON object"),
        ("x.jsonl", GOOD + b'{"prompt": "\xe9"}\n', "is not UTF-8 text (Latin-1"),
        ("x.json", b'[{"prompt": "p", "answer": "a"}, 7, {"prompt": "p", "answer": "a"}]', "is not a JSON object"),
        ("x.csv", b"prompt,answer\np,a\np,\xe9\n", "is not UTF-8 text (Latin-1"),
        ("x.csv", b"prompt,answer\np,a\np,a,b\n", "has 3 cells, and the header 2"),
    ],
)
def test_one_bad_row_is_counted(tmp_path: Path, name: str, content: bytes, reason: str):
    (tmp_path / name).write_bytes(content)
    loaded = training_sets.load(Data(source=str(tmp_path / name)), 0)
    assert (loaded.total - len(loaded.rows), loaded.skipped) == (1, 1)
    assert loaded.reading is not None
    note = loaded.reading.notes()[1]
    assert note.startswith(f"{name}: 1 of {loaded.total} rows is skipped: ")
    assert reason in note


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            GOOD + b"7\n7\n",
            "2 of the 3 rows of .* cannot be trained on, which is more",
        ),
        ("x.jsonl", '{"prompt": "é"}\n{"prompt": "ü"}\n{}\n'.encode("latin-1"), "iconv -f WINDOWS-1252"),
    ],
)
def test_a_file_of_bad_rows_is_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        training_sets.load(Data(source=str(tmp_path / name)), 0)


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    lines = ['{"prompt": "p", "answer": "No \\ud83d way \\ud83d\\ude00"}', '{"prompt": "p", "answer": "a"}']
    for text in ("\n".join(lines), f"[{','.join(lines)}]"):
        path.write_text(text)
        file = tables.read(path)
        assert [row["answer"] for row in file.rows] == ["No \ufffd way \U0001f600", "a"]
        assert file.replaced == 1
    loaded = training_sets.load(Data(source=str(path)), 0)
    assert loaded.reading is not None
    assert "x.jsonl: half a surrogate pair, which is no character, became U+FFFD in 1 row." in loaded.reading.notes()


def test_a_folder_of_files_with_different_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "answer": "a"}\n')
    (tmp_path / "b.jsonl").write_text('{"instruction": "q", "output": "b"}\n{"instruction": \n')
    loaded = training_sets.load(Data(source=str(tmp_path)), 0)
    assert sorted((row.prompt, row.answer) for row in loaded.rows) == [("p", "a"), ("q", "b")]
    assert loaded.reading is not None
    assert loaded.reading.skipped.total() == 1
    assert loaded.reading.forms == {"prompt and answer": 1, "Alpaca": 1}


def test_a_name_that_is_misspelled(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_bytes(GOOD)
    with pytest.raises(UserError, match=r"No such file or directory \(is it '.*/rows.jsonl'\?\)\."):
        tables.read(tmp_path / "rows.jsnl")
    with pytest.raises(UserError, match=r"No such file or directory\."):
        tables.read(tmp_path / "other.csv")


@pytest.mark.parametrize("name", ["a.pq", "a.feather", "a.jsonl.xz"])
def test_a_folder_of_files_of_any_format(tmp_path: Path, name: str):
    path, table = tmp_path / name, pa.Table.from_pylist(ROWS)
    if name.endswith(".xz"):
        path.write_bytes(lzma.compress(LINES.encode()))
    elif name.endswith(".pq"):
        pyarrow.parquet.write_table(table, path)
    else:
        pyarrow.feather.write_feather(table, str(path))
    assert readers.load(str(tmp_path)).rows == ROWS
