"""Plain texts, as pre-training sees them: text files, or a column of a data file or of a data set of the hub.

    read("wiki.jsonl,column=article,n=200").texts

The form is `SOURCE[,split=S][,subset=S][,revision=R][,column=C][,n=N]`. A `.txt` file is one document, a folder of them
one for each file, in the order of their names; a row of anything else is one. `n` takes the first ones.
"""

import hashlib
import lzma
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, ValidationError

from lowtax.common.borders import exists, expanded, reason
from lowtax.common.config import MANY, Section
from lowtax.common.errors import UserError, did_you_mean
from lowtax.data import compression, readers, shipped, specs, tables

COLUMNS = ("text", "content", "document")
SUFFIX = ".txt"


class Source(Section):
    """The source of documents, from its one-line form."""

    source: str
    split: str | None = None
    subset: str | None = None
    revision: str | None = None
    column: str | None = None
    n: PositiveInt | None = Field(None, le=MANY)


@dataclass(frozen=True)
class Documents:
    """Texts in the order of their source. origin: a file, folder or hub id. revision: the commit, of a hub's data."""

    texts: list[str]
    origin: str
    revision: str | None = None

    def describe(self) -> dict[str, Any]:
        """Return what a report records of them: the origin, their number, and a hash of the texts in order."""
        whole = hashlib.sha256()
        for text in self.texts:
            whole.update(hashlib.sha256(text.encode()).digest())
        return {
            "origin": self.origin,
            "revision": self.revision,
            "documents": len(self.texts),
            "sha256": whole.hexdigest(),
        }


def read(line: str) -> Documents:
    """Read the documents that one line names.

    Raises:
        DataNotAvailable: The data set is not on this machine and cannot be downloaded.
        UserError: The line is malformed, the source cannot be read, or it has no such column.
    """
    source = _parsed(line)
    path = expanded(source.source)
    files = _text_files(path) if exists(path) else []
    if files:
        if needless := [name for name in ("split", "subset", "revision", "column") if getattr(source, name)]:
            raise UserError(f"{source.source!r} is plain text, which has no {needless[0]}: remove {needless[0]}=.")
        return Documents([_content(file) for file in files[: source.n]], path.name)
    if source.source.startswith(shipped.PREFIX):
        table = readers.Table(shipped.rows(source.source, source.split), source.source)
    else:
        table = readers.load(source.source, source.subset, source.split, source.revision)
    if not table.rows:
        raise UserError(f"{source.source} has no documents in split {source.split!r}.")
    names = (source.column,) if source.column else COLUMNS
    column = readers.require_column(
        table.rows[0], names, source.source, ": add the one that holds the texts as column=NAME"
    )
    rows = table.rows[: source.n]
    texts = [_text(row, column, f"{table.origin}, row {number}") for number, row in enumerate(rows, 1)]
    return Documents(texts, table.origin, table.revision)


def _parsed(line: str) -> Source:
    try:
        return Source.model_validate(specs.fields(line))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise UserError(
                f"The text {line!r}: unknown key {key!r}; {did_you_mean(key, Source.model_fields)}"
            ) from error
        raise UserError(f"The text {line!r}: {key}: {problem['msg']}.") from error
    except ValueError as error:
        raise UserError(f"The text {line!r}: {error}.") from error


def _text_files(path: Path) -> list[Path]:
    """Return the text files of a path: itself, or those in a folder, by name."""
    inside = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    return [file for file in inside if tables.format_of(file) == SUFFIX and not file.is_dir()]


def _content(file: Path) -> str:
    try:
        return compression.content(file).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"The text {str(file)!r} cannot be read: {reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"The text {str(file)!r} is not UTF-8 (byte {error.start}): save it in that encoding."
        ) from error


def _text(row: tables.Row, column: str, where: str) -> str:
    """Return the text of a row; an empty one if the row has none."""
    return "" if readers.is_missing(row.get(column)) else readers.text(row, column, where)
