"""Libraries that others import where they are installed, and that no command of lowtax uses.

transformers imports scikit-learn for assisted decoding, which takes four of the ten seconds of a command's start, and
SciPy for a loss of object detection. In a process of the command line, a worker, and a process of a group that trains
they count as not installed, until a file of the user's is run, which may import anything.
Python has a mark for it: a module that is None in `sys.modules` cannot be imported.
"""

import sys

NAMES = ("sklearn", "scipy")


def leave_out() -> None:
    """Make the libraries impossible to import in this process, unless they are already there."""
    for name in NAMES:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def let_in() -> None:
    """Make them possible to import again."""
    for name in NAMES:
        if name in sys.modules and sys.modules[name] is None:
            del sys.modules[name]
