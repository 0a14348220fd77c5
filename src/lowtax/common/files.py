"""Files on disk, written so that a kill at any moment loses nothing.

A JSONL file is only ever appended to, one whole line a write. A line that a kill cut short has no newline; the next
append drops it, and its row is made again. Every other file or folder is written beside its place and renamed into it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from lowtax.common.borders import parse_json, read_bytes, reason
from lowtax.common.errors import FULL_DISK, UserError
from lowtax.common.records import Row

R = TypeVar("R", bound=Row)
MAKE_AGAIN = "delete it and repeat the command that makes it"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_rows(path: Path, kind: type[R]) -> dict[str, R]:
    """Return the rows of a JSONL file by id; the last row with an id counts. Empty if the file does not exist.

    Raises:
        UserError: the path is no file, or a line is not a row of this kind.
    """
    rows: dict[str, R] = {}
    if not path.exists():
        return rows
    text = read_bytes(path)
    whole, _, _ = text.rpartition(b"\n")
    for number, line in enumerate(whole.removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not line.strip():
            continue  # editors leave blank lines, and some of them a byte-order mark
        try:
            row = kind.model_validate_json(line)
        except ValidationError as error:
            raise UserError(
                f"{path}, line {number} is not a {kind.__name__} row ({error.errors()[0]['msg']}); "
                "delete that line and repeat the command, which makes the row again."
            ) from error
        rows[row.id] = row
    return rows


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Append whole lines and flush them to disk; a last line that a kill cut short is dropped first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 1))
        if size and handle.read(1) != b"\n":
            handle.seek(0)
            handle.truncate(handle.read().rfind(b"\n") + 1)
        handle.write(b"".join(row.model_dump_json().encode() + b"\n" for row in rows))
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all: yield a path beside it, which replaces it at the end of the block.

    If the block raises, `path` is unchanged and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.tmp")
    try:
        yield work
        with work.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(work, path)
    finally:
        work.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Write a folder as a whole or not at all: yield an empty one beside it, renamed to it at the end of the block.

    If the block raises, `path` is unchanged and nothing is left beside it. One writer at a time: what a killed one
    left beside it is deleted.

    Args:
        path: the folder to write; absent or empty, unless it may be replaced.
        replace: delete an existing folder before the renaming.
    """
    work = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        yield work
        if replace:
            shutil.rmtree(path, ignore_errors=True)
        os.replace(work, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    with atomic_file(path) as work:
        work.write_text(text)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as a whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, advice: str = MAKE_AGAIN) -> Any:
    """Return the content of a JSON file.

    Args:
        advice: what to do with a damaged file, for its error.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return parse_json(read_bytes(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({reason(error)}); {advice}.") from error


def read_mapping(path: Path, *keys: str, advice: str = MAKE_AGAIN) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Args:
        keys: that the object must have.
        advice: what to do with a damaged file, for its error.

    Raises:
        UserError: the file cannot be read, is not JSON, holds something else, or lacks a key.
    """
    value = read_json(path, advice)
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds a {type(value).__name__} and not an object; {advice}.")
    if missing := [key for key in keys if key not in value]:
        raise UserError(f"{path} is damaged: it has no {missing[0]!r}; {advice}.")
    return value


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run folder and lock it for this process; the kernel releases the lock if the process ends.

    Raises:
        UserError: another process holds it, or it cannot be a folder that is written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w")
    except OSError as error:
        if error.errno in FULL_DISK:
            raise
        raise unwritable(folder, error) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another lowtax process is working in {folder}; wait for it, or choose another folder."
            ) from error
        yield


def unwritable(folder: Path, error: OSError) -> UserError:
    """Return the error for an output folder that cannot be made or written to."""
    if os.path.islink(folder) and not os.path.exists(folder):
        reason = f"it is a link to {os.readlink(folder)}, which does not exist"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        reason = "it, or a folder above it, is a file"
    else:
        reason = error.strerror or str(error)
    return UserError(f"The output folder {folder} cannot be used ({reason}): choose another --out.")
