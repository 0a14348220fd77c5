"""Helpers of all commands: progress output and the lock of the output folder."""

import sys
from pathlib import Path
from typing import Any

from lowtax.errors import UserError


def say(text: str) -> None:
    """Print a line for people to the standard error; the standard output is for results."""
    print(text, file=sys.stderr, flush=True)


def own_folder(out: Path) -> Any:
    """Quiet libraries, and return a lock that keeps other processes out of a folder."""
    from lowtax.files import locked
    from lowtax.quiet import quiet_libraries

    quiet_libraries()
    return locked(out)


def thinking_mode(value: str) -> Any:
    """Return the value of --thinking.

    Raises:
        UserError: It is not default, on or off.
    """
    if value not in ("default", "on", "off"):
        raise UserError(f"--thinking must be default, on or off (found {value!r}).")
    return value
