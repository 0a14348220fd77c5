"""What commands share: how they speak while they work, and the folder that only one of them may write to."""

import sys
from pathlib import Path
from typing import Any

from lowtax.errors import UserError


def say(text: str) -> None:
    """A line for people; what programs read goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def own_folder(out: Path) -> Any:
    """Quiet libraries, and a folder that no other process may touch meanwhile."""
    from lowtax.files import locked
    from lowtax.quiet import quiet_libraries

    quiet_libraries()
    return locked(out)


def thinking_mode(given: str) -> Any:
    """The value of --thinking.

    Raises:
        UserError: It is none of the three.
    """
    if given not in ("default", "on", "off"):
        raise UserError(f"--thinking is default, on or off (found {given!r}).")
    return given
