"""Files on disk, written so that a kill at any moment loses nothing, and nothing outside of a folder is touched.

A JSONL file is only ever appended to, one whole line a write. A line that a kill cut short has no newline; the next
append drops it, and its row is made again. Every other file or folder is written beside its place, under a name that
nobody else has, and renamed into it.

A folder may be a stranger's work: what is written to it goes through no link, and `lowtax.common.names` checks the
names in its files.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import ValidationError

from lowtax.common.borders import parse_json, read_bytes, reason
from lowtax.common.errors import FULL_DISK, Busy, UserError
from lowtax.common.names import is_link, refuse_links
from lowtax.common.records import Row

R = TypeVar("R", bound=Row)
MAKE_AGAIN = "delete it and repeat the command that makes it"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ROW_START = b'{"id":'
LOCK = ".lock"
MOMENT = 0.01  # seconds
TRIES = 10  # to make a file that other processes remove at once
NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # the errors of a name that cannot be replaced as it is


def read_rows(path: Path, kind: type[R]) -> dict[str, R]:
    """Return the rows of a JSONL file by id; the last row with an id counts. Empty if the file does not exist.

    Raises:
        UserError: the path is no file, or a line is not a row of this kind.
    """
    rows: dict[str, R] = {}
    if not path.exists():
        return rows
    whole, _, last = read_bytes(path).rpartition(b"\n")
    lines = whole.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    _require_cut(last, path, kind)
    for number, line in enumerate(lines, start=1):
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


def append_rows(path: Path, rows: Iterable[Row], flush: bool = True) -> None:
    """Append whole lines and flush them to disk; a last line that a kill cut short is dropped first.

    Args:
        flush: False for a log, whose last lines may be lost when the machine stops.

    Raises:
        UserError: the path is a link, or its last line is cut short and no row.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    with _open(path) as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - 1))
        if rows and size and handle.read(1) != b"\n":
            handle.seek(0)
            whole, newline, last = handle.read().rpartition(b"\n")
            _require_cut(last, path, type(rows[0]))
            handle.truncate(len(whole) + len(newline))
        handle.write(b"".join(row.model_dump_json().encode() + b"\n" for row in rows))
        handle.flush()
        if flush:
            os.fsync(handle.fileno())


def _require_cut(last: bytes, path: Path, kind: type[Row]) -> None:
    """Check that the text after the last newline of a file of rows is the beginning of a row, which may be dropped.

    Raises:
        UserError: it is something else, so that lowtax did not write it.
    """
    text = last.removeprefix(BYTE_ORDER_MARK).strip(b"\0 \r\t")  # zeros are what a crash of the machine may leave
    if not text or ROW_START.startswith(text):
        return
    if text.startswith(ROW_START):
        try:
            json.loads(text)
            kind.model_validate_json(text)
        except ValidationError:
            pass  # a whole object of another kind
        except (ValueError, RecursionError):
            return  # cut
        else:
            return  # a whole row that lacks its newline alone
    raise UserError(
        f"The last line of {path} is no {kind.__name__} row of lowtax: choose another --out, or move that file away."
    )


def _open(path: Path) -> IO[bytes]:
    """Open a file for reading and appending; it is made if it is absent.

    Raises:
        UserError: it is a link, or no file.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        number = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise is_link(path) from error
    kind = os.fstat(number).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISCHR(kind)):
        os.close(number)
        raise UserError(f"{path} is no file: choose another --out, or move it away.")
    return os.fdopen(number, "ab+")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file as a whole or not at all: yield a path beside it, which replaces it at the end of the block.

    If the block raises, `path` is unchanged and nothing is left beside it.
    """
    with beside(path, folder=False) as work:
        yield work
        with work.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(work, path)


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Write a folder as a whole or not at all: yield an empty one beside it, renamed to it at the end of the block.

    If the block raises, `path` is unchanged and nothing is left beside it.

    Args:
        path: the folder to write; absent or empty, unless it may be replaced.
        replace: delete an existing folder after the new one has its name.
    """
    with beside(path) as work:
        yield work
        if replace:
            _put(work, path)
        else:
            os.replace(work, path)


def _put(work: Path, path: Path) -> None:
    """Give a folder the name of another one, which is deleted afterwards; also while other processes do the same."""
    for _ in range(TRIES):
        try:
            os.replace(work, path)
        except OSError as error:
            if error.errno not in NOT_EMPTY:
                raise
        else:
            return
        try:
            old = path.with_name(_temporary_name(path, os.lstat(path).st_ino))
            os.replace(path, old)
        except FileNotFoundError:  # another process has just moved it away
            continue
        except OSError as error:
            if error.errno not in NOT_EMPTY:
                raise
            continue  # another process moved that folder there, and has put its own in its place
        try:
            os.replace(work, path)
        except BaseException as error:
            if not os.path.lexists(path):
                os.replace(old, path)
                raise
            if not isinstance(error, OSError) or error.errno not in NOT_EMPTY:
                raise
        else:
            return
        finally:
            _remove(old)  # absent if it was put back
    raise Busy(f"Other processes keep writing {path}: wait for them, or choose another folder.")


@contextmanager
def beside(path: Path, *, folder: bool = True) -> Iterator[Path]:
    """Make a new file or folder beside a path, and remove it at the end if it is still there.

    Its name has a hash of its inode, by which what a killed process left is known as ours, and removed by the next one
    that writes to the path. It is locked meanwhile, so that no other process takes it for such a rest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_rests(path)
    number, work = _begin(path, folder)
    try:
        yield work
    finally:
        _remove(work)
        os.close(number)


def _begin(path: Path, folder: bool) -> tuple[int, Path]:
    """Make an empty file or folder beside a path, locked and with its temporary name; return its descriptor and name.

    Its inode is known only once it is there, so it has a first name for a moment.
    """
    for _ in range(TRIES):
        first = path.with_name(_first_name(secrets.token_hex(8)))
        if folder:
            first.mkdir()
            try:
                number = os.open(first, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:  # another process took it for a rest
                continue
        else:
            number = os.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work = path.with_name(_temporary_name(path, os.fstat(number).st_ino))
        if os.path.lexists(work):
            return number, first
        try:
            os.rename(first, work)
        except FileNotFoundError:  # another process took it for a rest
            os.close(number)
            continue
        except BaseException:
            _remove(first)
            os.close(number)
            raise
        return number, work
    raise FileNotFoundError(f"{path.parent} loses the files that are made in it.")


def _first_name(token: str) -> str:
    """Return the name of a file or folder that was just made, for a random token."""
    return f".{token}.{hashlib.sha256(f'lowtax {token}'.encode()).hexdigest()[:8]}.tmp"


def _temporary_name(path: Path, inode: int) -> str:
    """Return the name of an unfinished file or folder that will become `path`."""
    start = path.name.encode(errors="surrogateescape")[:100].decode(errors="ignore")
    proof = hashlib.sha256(f"lowtax {inode} {path.name}".encode(errors="surrogateescape")).hexdigest()[:16]
    return f".{start}.{proof}.tmp"


def _remove_rests(path: Path) -> None:
    """Remove what killed processes left of unfinished versions of a path."""
    with os.scandir(path.parent) as entries:
        unfinished = [e for e in entries if e.name.endswith(".tmp")]
    rests = [e for e in unfinished if e.name == _temporary_name(path, e.inode())]
    just_made = [e for e in unfinished if e.name == _first_name(e.name[1:17])]
    for entry in [*rests, *just_made]:
        with suppress(OSError), ExitStack() as stack:
            number = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            stack.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its writer lives
            if entry in rests:
                _remove(Path(entry.path))
            elif entry.is_dir(follow_symlinks=False):
                os.rmdir(entry.path)  # fails if something is in it
            elif not os.fstat(number).st_size:
                os.unlink(entry.path)


def _remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(IsADirectoryError):  # another process has just moved its folder there, and removes it
        path.unlink(missing_ok=True)


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

    Two locks are held, of `.lock` in the folder and of the folder itself, which stays when that file is deleted.

    Raises:
        Busy: another process holds it.
        UserError: it cannot be a folder that is written to, or links lead out of it.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, number)
            handle = stack.enter_context(_open(folder / LOCK))
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            raise unwritable(folder, error) from error
        try:
            _lock(handle.fileno())
            _lock_folder(number)
        except BlockingIOError as error:
            raise Busy(
                f"Another lowtax process is working in {folder}; wait for it, or choose another folder."
            ) from error
        refuse_links(folder)
        yield


def is_locked(folder: Path) -> bool:
    """Return True if a process works in a folder: it holds the lock of `locked`."""
    try:
        number = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go at once
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(number)
    return False


def _lock(number: int) -> None:
    """Lock an open file; `is_locked` of another process holds it for a moment, which is waited for.

    Raises:
        BlockingIOError: another process holds it.
    """
    for _ in range(TRIES):
        with suppress(BlockingIOError):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(MOMENT)
    fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_folder(number: int) -> None:
    """Lock a folder itself, where its file system has such locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # NFS locks files only
        return


def unwritable(folder: Path, error: OSError) -> UserError:
    """Return the error for an output folder that cannot be made or written to."""
    if os.path.islink(folder) and not os.path.exists(folder):
        reason = f"it is a link to {os.readlink(folder)}, which does not exist"
    elif isinstance(error, FileExistsError | NotADirectoryError):
        reason = "it, or a folder above it, is a file"
    else:
        reason = error.strerror or str(error)
    return UserError(f"The output folder {folder} cannot be used ({reason}): choose another --out.")
