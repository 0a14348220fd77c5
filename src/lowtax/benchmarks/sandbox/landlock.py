"""Landlock: a process gives up, for good and without privileges, all files but some.

It runs inside the server process (`starter`), so only the standard library is imported. Not confined by Landlock are
the names, sizes and times of files, and changing their modes, owners and times (see `attributes` in `calls.GROUPS`).

Sources: landlock(7), the kernel's userspace-api/landlock.
"""

import ctypes
import os
import struct
from collections.abc import Iterable, Iterator

from . import kernel

MAKE_RULES, ADD_RULE, RESTRICT = 444, 445, 446  # the numbers are the same on every machine
WRITE, READ, LIST, CHARACTER_DEVICE, SOCKET, BLOCK_DEVICE = 1 << 1, 1 << 2, 1 << 3, 1 << 6, 1 << 9, 1 << 11
EXECUTE, TRUNCATE = 1 << 0, 1 << 14
CALL = kernel.LIBC.syscall
TRUNCATES, SIGNALS = 3, 6  # the versions that first confine truncate(2), and signals


def version() -> int:
    """Return the version of Landlock in this kernel, 0 if there is none."""
    return max(0, int(CALL(ctypes.c_long(MAKE_RULES), None, ctypes.c_size_t(0), ctypes.c_long(1))))


def every_right(version: int) -> int:
    """Return all rights to files that a version confines."""
    return (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1


def readable(paths: Iterable[str], hidden: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Return the files and folders to open, and the rights to each: all of the paths but what is hidden in them.

    Of a folder that has hidden ones below it, names can be listed; its other parts are returned one by one.
    """
    hidden = list(hidden)
    for path in paths:
        if os.path.islink(path) or path in hidden:
            continue
        if path.startswith("/dev/"):
            yield path, READ | WRITE | TRUNCATE
        elif not os.path.isdir(path):
            yield path, READ
        elif any(part.startswith(path + "/") for part in hidden):
            yield path, LIST
            yield from readable((os.path.join(path, name) for name in os.listdir(path)), hidden)
        else:
            yield path, READ | LIST


def confine(version: int, rules: Iterable[tuple[int, int]], folder: int) -> None:
    """Leave this process and all that it starts the files of the rules, and one folder to write in.

    Sockets to the network are closed from version 4 on; signals and abstract sockets of others from version 6 on.

    Args:
        version: of Landlock.
        rules: open handles and the rights to them and to what is below.
        folder: an open handle.
    """
    every = every_right(version)
    size = 8 if version < 4 else 16 if version < SIGNALS else 24
    attributes = struct.pack("QQQ", every, 3, 3)[:size]
    made = CALL(ctypes.c_long(MAKE_RULES), attributes, ctypes.c_size_t(size), ctypes.c_long(0))
    handle = kernel.checked(made, "landlock_create_ruleset")
    for place, rights in (*rules, (folder, every & ~(EXECUTE | CHARACTER_DEVICE | BLOCK_DEVICE | SOCKET))):
        rule = struct.pack("=Qi", rights & every, place)
        added = CALL(ctypes.c_long(ADD_RULE), ctypes.c_long(handle), ctypes.c_long(1), rule, ctypes.c_long(0))
        kernel.checked(added, "landlock_add_rule")
    kernel.prctl(kernel.NO_NEW_PRIVS, 1)
    kernel.checked(CALL(ctypes.c_long(RESTRICT), ctypes.c_long(handle), ctypes.c_long(0)), "landlock_restrict_self")
    os.close(handle)
