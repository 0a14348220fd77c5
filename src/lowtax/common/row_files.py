"""Rows of a large JSONL file, read one at a time: a page about a study never holds all its replies in memory.

`files.read_rows` refuses a damaged file, since results are computed from it. Here a damaged line is counted and left
out: what is read is shown to people, with the number.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Generic, TypeVar

from pydantic import ValidationError

from lowtax.common.borders import require_regular
from lowtax.common.errors import UserError
from lowtax.common.files import BYTE_ORDER_MARK
from lowtax.common.records import Row

R = TypeVar("R", bound=Row)
LONGEST = 64 * 2**20  # bytes of a line


class RowFile(Generic[R]):
    """A JSONL file of rows of one kind, open for reading.

    path, kind: the file, and the class of its rows.
    damaged: the number of lines that are no such row, of those that were read so far.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        """Open the file.

        Raises:
            UserError: it is no regular file, or cannot be read.
        """
        self.path, self.kind, self.damaged = path, kind, 0
        try:
            require_regular(path)
            self._handle: IO[bytes] = path.open("rb")
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error

    def __enter__(self) -> "RowFile[R]":
        """Return the open file."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._handle.close()

    def __iter__(self) -> Iterator[tuple[int, R]]:
        """Yield the place of every row, in bytes from the start of the file, and the row."""
        place = 0
        self._handle.seek(0)
        while line := self._handle.readline(LONGEST):
            if (row := self._row(line if place else line.removeprefix(BYTE_ORDER_MARK))) is not None:
                yield place, row
            place += len(line)
            self._handle.seek(place)  # a reader may have called `at` meanwhile

    def at(self, place: int) -> R:
        """Return the row at a place.

        Raises:
            UserError: there is no row, since the file has changed.
        """
        self._handle.seek(place)
        line = self._handle.readline(LONGEST)
        row = self._row(line if place else line.removeprefix(BYTE_ORDER_MARK))
        if row is None:
            raise UserError(f"{self.path} changed while it was read: repeat the command.")
        return row

    def _row(self, line: bytes) -> R | None:
        if not line.strip(b"\0 \r\n\t"):
            return None
        try:
            return self.kind.model_validate_json(line)
        except ValidationError:
            self.damaged += 1
            return None
