"""Borders for files that others wrote: whatever such a file makes a parser raise is one sentence for the user.

    with border(f"The tokenizer in {folder} cannot be read", "download it again"):
        tokenizer = AutoTokenizer.from_pretrained(folder)      # UserError, whatever the library raises

Each kind of file has one reader, which uses this module: JSON and rows in `common.files` (rows one at a time, for the
page of a study, in `common.row_files`), YAML in `common.yaml_files`, tables in `data.tables`, safetensors in
`models.tensor_files`, PEFT's folders in `models.adapters`, everything that transformers reads in `models.loading`,
saved states in `training.checkpoints`. Text is read as regular files only: a pipe or a device would be waited for,
perhaps for ever.
"""

import json
import re
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from lowtax.common.errors import UserError

DEEPEST = 100  # brackets inside each other; deeper values cannot be written again by every library
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def reason(error: BaseException, most: int = 200) -> str:
    """Return the message of an error on one line, without control characters and a full stop; else its name."""
    lines = [line for text in str(error).splitlines() if (line := CONTROL.sub(" ", text).strip())]
    return shorten(lines[0], most).removesuffix(".") if lines else type(error).__name__


@contextmanager
def border(sentence: str, advice: str) -> Iterator[None]:
    """Turn whatever a library raises within the block into one sentence.

    Args:
        sentence: which file cannot be used, without a full stop.
        advice: what to do, without a full stop.

    Raises:
        UserError: the block raises anything but a UserError, Ctrl-C or the end of the process.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{sentence} ({reason(error)}); {advice}.") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of a library in Rust, which is no Exception
            raise
        raise UserError(f"{sentence} ({reason(error)}); {advice}.") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read.
        UserError: it is a folder, a pipe or a device.
    """
    require_regular(path)
    return path.read_bytes()


def require_regular(path: Path) -> None:
    """Refuse a path that is a folder, a pipe, a socket or a device.

    Raises:
        OSError: there is no such path, or it cannot be looked at.
        UserError: it is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except ValueError as error:  # a name with a zero byte
        raise UserError(f"{str(path)!r} cannot be the name of a file: {reason(error)}.") from error
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in KINDS if is_kind(mode)), "no file")
        raise UserError(f"{path} cannot be read: it is {kind}, not a file; write its content to a file and give that.")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` replaced by the home folder; that of an unknown user stays as it is written."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def exists(path: Path) -> bool:
    """Return True if there is something at a path; False also for a name that cannot be one, such as a long text."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def read_text(path: Path, what: str = "") -> str:
    """Return the text of a regular file in UTF-8, without its byte-order mark.

    Args:
        what: the file in errors, such as `The recipe 'x.yaml'`; its path if empty.

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{what or path} cannot be read: {error.strerror or reason(error)}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{what or path} is not UTF-8 text (byte {error.start}): save it as UTF-8.") from error


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or has a number with too many digits; `reason` says which.
    """
    try:
        plain = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        value = json.loads(plain)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError("a number has too many digits") from error
    if plain.count("[") + plain.count("{") > DEEPEST and _deep(value):
        raise ValueError("its brackets are nested too deeply")
    return value


def _deep(value: Any) -> bool:
    """Return True if lists and objects are inside each other more than `DEEPEST` times."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST):
        inner = [part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer)]
        level = [part for part in inner if isinstance(part, dict | list)]
        if not level:
            return False
    return True


def brief(value: Any) -> str:
    """Return a value as it is written in Python, shortened: a few items, and the first characters of texts."""
    shortening = reprlib.Repr()
    shortening.maxlevel, shortening.maxstring, shortening.maxother, shortening.maxlong = 3, 80, 80, 40
    return shortening.repr(value)
