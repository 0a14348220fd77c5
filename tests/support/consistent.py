"""Cells of a consistency study in this process: the command line of a cell without the start of a process."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lowtax.cli.main import app
from lowtax.common.errors import UserError


class InThisProcess:
    """Runs the command lines of cells, and remembers them."""

    def __init__(self) -> None:
        self.cells: list[str] = []

    def __call__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> str | None:
        self.cells.append(Path(command[1]).stem)
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            app(list(command), standalone_mode=False)
        except UserError as error:
            return str(error)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        return None


def stamps(folder: Path, *patterns: str) -> dict[str, tuple[int, int]]:
    """Inode and time of the files that match, by path in the folder."""
    paths = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}
