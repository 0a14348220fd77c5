"""Errors for users: one sentence with what is wrong, what was found and what to do."""

import difflib
import errno
from collections.abc import Iterable

LONGEST = 100  # characters of a name that are compared with known ones
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """An error that the user can fix. The command line prints it without a traceback and exits with code 2."""


class Busy(UserError):
    """The folder is locked by another process."""


class Stopped(KeyboardInterrupt):
    """The end of a run that a signal stopped, with its state saved. The exit code is 128 + `number`, as in a shell.

    number: of the signal: 2 of Ctrl-C, 15 of SIGTERM.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:LONGEST], names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}."
