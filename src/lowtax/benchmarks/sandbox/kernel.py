"""The Linux calls of the sandbox, by ctypes: namespaces, mounts, privileges. See also `calls` and `landlock`.

It runs inside the server process (`starter`), so only the standard library is imported. Every function raises OSError
where the kernel refuses.

Sources: namespaces(7), user_namespaces(7), pivot_root(2), prctl(2), capabilities(7).
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable

LIBC = ctypes.PyDLL(None, use_errno=True)  # holds the interpreter lock, which a bare clone needs
MACHINE = platform.machine()
CLONE = {"x86_64": 56, "aarch64": 220}
CAPSET = {"x86_64": 126, "aarch64": 91}
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

NEW_NS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
PDEATHSIG, DUMPABLE, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGCHLD = 17


def checked(result: int, call: str) -> int:
    """Return the result of a call, or raise its error."""
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
    return result


def unshare(flags: int) -> None:
    """Move to new namespaces, of the kinds that the flags name."""
    checked(LIBC.unshare(flags), "unshare")


def clone(flags: int) -> int:
    """Fork, as `os.fork`, into new namespaces. Only for a process with one thread."""
    if MACHINE not in CLONE:
        raise OSError(errno.ENOSYS, f"clone is unknown on {MACHINE}")
    number = ctypes.c_long(CLONE[MACHINE])
    zero = ctypes.c_long(0)
    return checked(LIBC.syscall(number, ctypes.c_long(flags | SIGCHLD), zero, zero, zero, zero), "clone")


def prctl(option: int, value: int = 0, address: int = 0) -> None:
    """Set one property of this process."""
    checked(LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(address), *[ctypes.c_ulong(0)] * 2), "prctl")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Call mount(2)."""
    result = LIBC.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    checked(result, f"mount {target}")


def map_ids(proc: int, uid: int, gid: int, outer_uid: int, outer_gid: int) -> None:
    """Map one user and one group, and no others, in a new user namespace. `proc` is an open /proc."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {outer_uid} 1"), ("gid_map", f"{gid} {outer_gid} 1")):
        handle = os.open(f"self/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(handle, text.encode())
        os.close(handle)


def new_root(folder: str, shown: Iterable[tuple[str, str]], hidden: Iterable[str]) -> None:
    """Make an empty folder the root; it shows only these (path, path inside), read-only, and a /tmp.

    Folders that are hidden are empty. /dev/shm is /tmp.
    """
    mount("none", "/", "none", REC | PRIVATE)
    mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for source, inside in shown:
        _show(source, folder + inside)
    for path in hidden:
        mount("tmpfs", folder + path, "tmpfs", RDONLY | NOSUID | NODEV | NOEXEC, "mode=755,size=4k")
    os.makedirs(folder + "/tmp", exist_ok=True)
    os.makedirs(folder + "/dev", exist_ok=True)
    os.symlink("/tmp", folder + "/dev/shm")
    os.chdir(folder)
    checked(LIBC.syscall(ctypes.c_long(PIVOT_ROOT[MACHINE]), b".", b"."), "pivot_root")
    checked(LIBC.umount2(b".", DETACH), "umount")
    os.chdir("/")
    mount("none", "/", "none", REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def _show(source: str, target: str) -> None:
    if os.path.islink(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(source), target)
        return
    is_folder = os.path.isdir(source)
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        os.close(os.open(target, os.O_CREAT, 0o644))
    mount(source, target, "none", BIND | (REC if is_folder else 0))
    device = source.startswith("/dev/")
    if not device:
        mount("none", target, "none", REMOUNT | BIND | RDONLY | NOSUID | NODEV)


def give_up_privileges(user: int | None) -> None:
    """Drop all capabilities for good, and become that user and group, if one is given."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    prctl(NO_NEW_PRIVS, 1)
    header, none = struct.pack("Ii", 0x20080522, 0), struct.pack("6I", *[0] * 6)
    if MACHINE in CAPSET:
        checked(LIBC.syscall(ctypes.c_long(CAPSET[MACHINE]), header, none), "capset")
