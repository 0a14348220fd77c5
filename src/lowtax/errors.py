"""The one exception a user is meant to see: what is wrong, what was found, what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback, exit code 2."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(names)}."
