"""Data files: bytes become rows, whatever their compression, encoding and layout.

A file is one of JSON lines, a JSON document (a list of objects, a list for each column, rows under a key such as
`data`), CSV with any of the usual separators, parquet, or arrow. It may be compressed and have any Unicode encoding. A
file of another kind is refused with what to do about it.
"""

import csv
import difflib
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.borders import border, exists, parse_json, reason
from lowtax.common.errors import UserError
from lowtax.data import compression
from lowtax.data.compression import COMPRESSED

Row = dict[str, Any]
TEXT_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
BINARY_FORMATS = (".parquet", ".pq", ".feather", ".arrow")
BOM = "\ufeff"  # also between files that were joined
BOMS = {  # the longer ones first: UTF-32's begins with UTF-16's
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
FOREIGN = {  # first bytes -> what the file is, and what to do
    b"PK\x03\x04": "a zip archive or an Excel workbook: unpack it, or save its sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save its sheet as CSV",
    b"SQLite format 3": "an SQLite database: export the table as CSV",
    b"\x89HDF": "an HDF5 file: write its rows as parquet or JSON lines",
    b"\x80\x04": "a pickle, which could run any program: write its rows as parquet or JSON lines",
    b"\x80\x05": "a pickle, which could run any program: write its rows as parquet or JSON lines",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a Git LFS pointer instead of the file itself: run `git lfs pull`, or download again",
    b"<!doctype html": "a web page: it was downloaded from the address of a page instead of the file's",
    b"<html": "a web page: it was downloaded from the address of a page instead of the file's",
}
WRAPPERS = {"data", "rows", "examples", "instances", "items", "records", "samples", "dataset", "train"}
NOT_UTF_8 = "is not UTF-8 text (Latin-1 or Windows-1252?)"
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # may be an escaped half of a surrogate pair
UNDECODED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8
END = "\x00"  # a last line of CSV that a quote without an end would swallow
csv.field_size_limit(1 << 30)  # a long thought exceeds csv's own limit of 131,072 characters


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    layout: words for people on how the file arranges them, if that is unusual.
    unreadable: reason -> number of lines that are no row.
    replaced: rows with half a surrogate pair, which is no character and became U+FFFD.
    """

    rows: list[Row]
    layout: str = ""
    unreadable: Counter[str] = field(default_factory=Counter)
    replaced: int = 0


class _Bad(Exception):
    """A line or an item that is no row: where it is, and the reason."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason


def format_of(path: Path) -> str:
    """Return the suffix that decides how a file is read, without that of a compression."""
    return (path.with_suffix("") if path.suffix in COMPRESSED else path).suffix.lower()


def read(path: Path, strict: bool = True) -> FileRows:
    """Read a data file. Suffix and first bytes decide its format; without either it has JSON lines.

    Args:
        path: the file.
        strict: raise an error at the first line that is no row; otherwise such lines are counted.

    Raises:
        UserError: The file cannot be read, is of another kind, is malformed or has no rows.
    """
    try:
        data = compression.content(path)
        whole = _binary(data, path) or _text(data, path, strict)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise UserError(f"The data file {str(path)!r} cannot be read: {why}{_neighbour(path)}.") from error
    if not whole.rows:
        raise UserError(f"The data file {str(path)!r} has no rows.")
    return whole


def columns(path: Path) -> list[Row]:
    """Return the rows of a parquet file; none if it has none.

    Raises:
        UserError: The file cannot be read, or is no parquet file.
    """
    try:
        return _columnar(path.read_bytes(), path, "parquet")
    except OSError as error:
        raise UserError(f"The data file {str(path)!r} cannot be read: {error.strerror or reason(error)}.") from error


def _neighbour(path: Path) -> str:
    """Return a hint at the file of the same folder that a name which does not exist may mean."""
    if exists(path) or not exists(path.parent) or not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.iterdir()], n=1, cutoff=0.8)
    return f" (is it {str(path.with_name(near[0]))!r}?)" if near else ""


def _binary(data: bytes, path: Path) -> FileRows | None:
    """Return the rows of a parquet or arrow file; None if the file is text."""
    suffix = format_of(path)
    if suffix in (".parquet", ".pq") or data.startswith(b"PAR1"):
        return FileRows(_columnar(data, path, "parquet"))
    if suffix in (".feather", ".arrow") or data.startswith((b"ARROW1", b"FEA1")):
        return FileRows(_columnar(data, path, "arrow"))
    start = data[:64].lstrip().lower()
    for magic, kind in FOREIGN.items():
        if data.startswith(magic) or start.startswith(magic.lower()):
            raise UserError(f"The data file {str(path)!r} is {kind}.")
    if data[257:262] == b"ustar":
        raise UserError(f"The data file {str(path)!r} is a tar archive: unpack it.")
    return None


def _columnar(data: bytes, path: Path, kind: str) -> list[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.feather  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    most = 1_000_000 + 100 * len(data)  # rows of a file that is not made to fill the memory
    source, article = pyarrow.BufferReader(data), "an" if kind == "arrow" else "a"
    with border(f"The data file {str(path)!r} is not {article} {kind} file", "download or write it again"):
        if kind == "parquet":
            # `read_table` reads in threads, and the one that ends last may abort the process when Python has ended.
            file = pyarrow.parquet.ParquetFile(source)
            table = file.read(use_threads=False) if file.metadata.num_rows < most else None
        elif data.startswith((b"ARROW1", b"FEA1")):
            table = pyarrow.feather.read_table(source)
        else:
            table = pyarrow.ipc.open_stream(source).read_all()
        if table is not None and table.num_rows < most:
            return list(table.to_pylist())
    raise UserError(f"The data file {str(path)!r} claims more rows than its {len(data):,} bytes can hold.")


# --- text


def _text(data: bytes, path: Path, strict: bool) -> FileRows:
    """Read JSON or CSV. Bytes that are not UTF-8 spoil the line that they are in."""
    encoding = _encoding(data)
    try:
        text = data.decode(encoding, "surrogateescape" if encoding.startswith("utf-8") else "strict")
    except UnicodeDecodeError as error:
        raise UserError(f"The data file {str(path)!r} is damaged {encoding.upper()} text ({error.reason}).") from error
    parse = _csv if format_of(path) in (".csv", ".tsv") else _json
    try:
        whole = parse(text, path, strict)
    except _Bad as bad:
        if bad.reason == NOT_UTF_8:
            raise UserError(_not_utf_8(path, bad.where)) from bad
        raise UserError(f"{path}, {bad.where} {bad.reason}; correct it.") from bad
    undecoded = sum(n for reason, n in whole.unreadable.items() if reason.endswith(NOT_UTF_8))
    if undecoded * 2 > len(whole.rows) + whole.unreadable.total():
        raise UserError(_not_utf_8(path, "most of it"))
    names = [encoding.upper()[:6]] if encoding.startswith(("utf-16", "utf-32")) else []
    layout = ", ".join(filter(None, [*names, whole.layout]))
    return FileRows(whole.rows, layout, whole.unreadable, whole.replaced)


def _not_utf_8(path: Path, where: str) -> str:
    return (
        f"The data file {str(path)!r} is not UTF-8 text ({where}); if it is Latin-1 or Windows-1252, write a copy with "
        f"`iconv -f WINDOWS-1252 -t UTF-8 {path} > copy{path.suffix}`."
    )


def _encoding(data: bytes) -> str:
    """Return the encoding that a byte-order mark, or zeros in every other byte, tell; else UTF-8."""
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return encoding
    even, odd = data[:400:2], data[1:400:2]
    for zeros, others, encoding in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros and zeros.count(0) > 0.4 * len(zeros) and not others.count(0):
            return encoding
    return "utf-8"


# --- CSV


def _csv(text: str, path: Path, strict: bool) -> FileRows:
    """Read separated values with a header; the separator is the one that the header has."""
    lines = list(io.StringIO(text, newline=""))
    while lines and not lines[0].strip():
        lines.pop(0)
    usual = "\t" if format_of(path) == ".tsv" else ","
    if lines and (stated := re.fullmatch(r"sep=(.)\s*", lines[0])):  # Excel's own line
        usual = stated[1]
        lines.pop(0)
    separator = _separator(lines[0], usual) if lines else usual
    reader = csv.reader([*lines, END], delimiter=separator)
    try:
        *table, last = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise UserError(f"The data file {str(path)!r} cannot be read: line {reader.line_num}: {error}.") from error
    if last[1] != [END]:
        start = table[-1][0] + 1 if table else 1
        raise UserError(
            f"The data file {str(path)!r} has a quote that never ends, in the row that begins in line {start}."
        )
    header = [name.strip() for name in table[0][1]] if table else []
    if repeated := [name for name, n in Counter(filter(None, header)).items() if n > 1]:
        raise UserError(f"The data file {str(path)!r} has two columns named {repeated[0]!r}; rename one.")
    rows, unreadable = list[Row](), Counter[str]()
    for number, cells in table[1:]:
        if not cells or (len(cells) == 1 < len(header) and not cells[0].strip()):
            continue
        if reason := _csv_fault(cells, header):
            if strict:
                raise _Bad(f"line {number}", reason)
            unreadable[f"a row {reason}"] += 1
            continue
        rows.append({**dict.fromkeys(header), **dict(zip(header, cells, strict=False))})
    other = {";": "separated by ;", "\t": "separated by tabs", "|": "separated by |", ",": "separated by commas"}
    return FileRows(rows, "" if separator == usual else other.get(separator, ""), unreadable)


def _csv_fault(cells: list[str], header: list[str]) -> str:
    """Return the reason why a row of CSV is none; empty if it is one. Empty cells at its end do not count."""
    if any(cells[len(header) :]):
        return f"has {len(cells)} cells, and the header {len(header)}: a cell with separators needs quotes"
    return NOT_UTF_8 if any(UNDECODED.search(cell) for cell in cells) else ""


def _separator(header: str, usual: str) -> str:
    """Return the usual separator if the header has it, else the one that splits it most."""
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in (usual, ",", ";", "\t", "|")}
    return usual if counts[usual] > 1 else max(counts, key=lambda mark: counts[mark])


# --- JSON


def _json(text: str, path: Path, strict: bool) -> FileRows:
    """Read JSON lines, a document, or objects one after the other."""
    pieces = text.split("\n" if "\n" in text else "\r")
    lines = [(number, line.removeprefix(BOM)) for number, line in enumerate(pieces, 1) if line.strip(f" \t\r{BOM}")]
    first = _parsed(lines[0][1]) if lines else None
    if isinstance(first, dict) and len(lines) > 1:
        return _json_lines(lines, strict)
    document = _parsed(text)
    if isinstance(document, dict | list):
        return _counted(_of_document(document, path), text, strict)
    if (values := list(_sequence(text))) and len(lines) > 1:
        return _counted((values, "objects one after the other"), text, strict)
    single = [value for _, line in lines[1:] if isinstance(value := _parsed(line), dict)]
    if isinstance(first, Exception) and len(lines) > 1 and not single:
        raise UserError(
            f"{path} is neither JSON lines (line {lines[0][0]} is not valid JSON) nor one JSON document ({document}): "
            "write one object a line, or a list of objects."
        )
    return _json_lines(lines, strict)


def _parsed(text: str) -> Any:
    """Return the value of a JSON text, or the error."""
    try:
        return parse_json(text)
    except ValueError as error:  # also numbers of too many digits, and too many brackets
        return error


def _sequence(text: str) -> Iterator[Any]:
    """Yield the objects that follow each other in a text; nothing if it has anything else."""
    decoder, values, end = json.JSONDecoder(), list[Any](), 0
    try:
        while text[end:].strip():
            end += len(text[end:]) - len(text[end:].lstrip())
            value, end = decoder.raw_decode(text, end)
            values.append(value)
    except (ValueError, RecursionError):
        return
    yield from values if all(isinstance(value, dict) for value in values) else ()


def _json_lines(lines: list[tuple[int, str]], strict: bool) -> FileRows:
    rows, unreadable, replaced = list[Row](), Counter[str](), 0
    for number, line in lines:
        try:
            value = _json_line(line, f"line {number}")
        except _Bad as bad:
            if strict or len(lines) == 1:
                raise
            unreadable[f"a line {bad.reason}"] += 1
            continue
        whole = _whole_characters(value) if HALF_PAIR.search(line) else value
        replaced += whole != value
        rows.append(whole)
    if not rows and unreadable:
        _json_line(lines[0][1], f"line {lines[0][0]}")  # raises the error of the first line
    return FileRows(rows, "", unreadable, replaced)


def _json_line(line: str, where: str) -> Row:
    if UNDECODED.search(line):
        raise _Bad(where, NOT_UTF_8)
    value = _parsed(line)
    if isinstance(value, json.JSONDecodeError):
        raise _Bad(where, f"is not valid JSON ({value.msg})")
    if isinstance(value, Exception):
        raise _Bad(where, "is not valid JSON (too deep, or a number of too many digits)")
    return _object(value, where)


def _object(value: Any, where: str) -> Row:
    """Return a row; a list of turns is a row with the column `messages`."""
    if isinstance(value, list) and value and all(map(is_turn, value)):
        return {"messages": value}
    if not isinstance(value, dict):
        raise _Bad(where, "is not a JSON object, as every row must be")
    return value


def is_turn(value: Any) -> bool:
    """Return whether a value looks like a turn of a conversation, with a role and a content."""
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())


def _counted(document: tuple[list[Any], str], text: str, strict: bool) -> FileRows:
    """Return the items of a document as rows, and count those that are none."""
    if UNDECODED.search(text):
        raise _Bad(f"line {text[: UNDECODED.search(text).start()].count(chr(10)) + 1}", NOT_UTF_8)  # type: ignore[union-attr]
    items, layout = document
    rows, unreadable, replaced = list[Row](), Counter[str](), 0
    pairs = HALF_PAIR.search(text) is not None
    for number, item in enumerate(items, 1):
        try:
            row = _object(item, f"item {number}")
        except _Bad as bad:
            if strict or len(items) == 1:
                raise
            unreadable[f"an item {bad.reason}"] += 1
            continue
        whole = _whole_characters(row) if pairs else row
        replaced += whole != row
        rows.append(whole)
    return FileRows(rows, layout, unreadable, replaced)


def _of_document(value: Any, path: Path) -> tuple[list[Any], str]:
    """Return the rows of a whole JSON document, and words for its layout."""
    if not isinstance(value, dict):
        return (value if isinstance(value, list) else [value]), ""
    lists = {key: inner for key, inner in value.items() if isinstance(inner, list)}
    if {"columns", "data"} <= lists.keys() and all(isinstance(row, list) for row in lists["data"]):
        columns = [*map(str, lists["columns"])]
        return [dict(zip(columns, row, strict=False)) for row in lists["data"]], "pandas' split layout"
    for key, inner in lists.items():
        wraps = len(value) == 1 or (key.lower() in WRAPPERS and format_of(path) == ".json")
        if wraps and any(isinstance(i, dict) and not is_turn(i) for i in inner):
            rows = [i["row"] if isinstance(i, dict) and {"row_idx", "row"} <= i.keys() else i for i in inner]
            return rows, f"under the key {key!r}"
    if value and all(isinstance(inner, dict) for inner in value.values()):
        return _of_objects(value)
    if lists and len(lists) == len(value) and not any(is_turn(i) for inner in lists.values() for i in inner):
        sizes = {key: len(inner) for key, inner in lists.items()}
        if len({*sizes.values()}) > 1:
            listed = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise UserError(f"{path} has a list for each column, but of different lengths ({listed}); correct it.")
        by_row = zip(*lists.values(), strict=True)
        return [dict(zip(lists, row, strict=True)) for row in by_row], "a list for each column"
    return [value], ""


def _of_objects(value: dict[str, dict[str, Any]]) -> tuple[list[Any], str]:
    """Return the rows of an object of objects: by row number, or by column and row number, as pandas writes them."""
    inner = [list(column) for column in value.values()]
    if all(key.isdigit() for key in value):
        return list(value.values()), "an object for each row number"
    if inner[0] and all(keys == inner[0] for keys in inner) and all(key.isdigit() for key in inner[0]):
        return [{name: column[key] for name, column in value.items()} for key in inner[0]], "an object for each column"
    return [value], ""


def _whole_characters(value: Any) -> Any:
    """Return a JSON value in which every half of a surrogate pair is U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(item) for item in value]
    if isinstance(value, dict):
        return {_whole_characters(key): _whole_characters(item) for key, item in value.items()}
    return value
