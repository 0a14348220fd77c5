"""The Linux calls of the sandbox, by ctypes: namespaces, mounts, privileges, a filter of system calls.

It runs inside the server process (`starter`), so only the standard library is imported. Every function raises OSError
where the kernel refuses.

Sources: namespaces(7), user_namespaces(7), pivot_root(2), prctl(2), capabilities(7), seccomp(2).
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
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
PDEATHSIG, DUMPABLE, KEEPCAPS, CAPBSET_DROP, SECCOMP, SUBREAPER, NO_NEW_PRIVS = 1, 4, 8, 24, 22, 36, 38
DAC_READ_SEARCH = 2
SIGCHLD = 17

# System calls that no tested program needs and that reach beyond it: (x86_64, aarch64).
DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "clone3": (435, 435), "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "pidfd_getfd": (438, 438), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "execve": (59, 221), "execveat": (322, 281),
}  # fmt: skip
DENIED_ALONE = {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
                "rt_sigqueueinfo": (129, 138), "prlimit64": (302, 261), "setpriority": (141, 140)}  # fmt: skip
SOCKET, UNIX = (41, 198), 1
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


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


def prctl(option: int, value: int = 0) -> None:
    """Set one property of this process."""
    checked(LIBC.prctl(option, ctypes.c_ulong(value), *[ctypes.c_ulong(0)] * 3), "prctl")


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


def new_root(folder: str, shown: Iterable[tuple[str, str]]) -> None:
    """Make an empty folder the root; it shows only these (path, path inside), read-only, and a /tmp.

    Semaphores and shared memory, which the C library keeps in /dev/shm, are files in /tmp too.
    """
    mount("none", "/", "none", REC | PRIVATE)
    mount("tmpfs", folder, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for source, inside in shown:
        _show(source, folder + inside)
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


def give_up_privileges(user: int | None, keep_reading: bool) -> None:
    """Drop all capabilities for good, and become that user and group, if one is given.

    keep_reading: keep the capability to read any file, for a Python that is in a folder which others may not read.
    """
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        if keep_reading:
            prctl(KEEPCAPS, 1)
        os.setresuid(user, user, user)
    prctl(NO_NEW_PRIVS, 1)
    capabilities = 1 << DAC_READ_SEARCH if keep_reading else 0
    header = struct.pack("Ii", 0x20080522, 0)
    data = struct.pack("6I", capabilities, capabilities, 0, 0, 0, 0)
    if MACHINE in CAPSET:
        checked(LIBC.syscall(ctypes.c_long(CAPSET[MACHINE]), header, data), "capset")


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def filter_calls(alone: bool) -> None:
    """Refuse the system calls of DENIED, all but local sockets and, with `alone`, signals to any process.

    A classic BPF program loads the number, compares, and refuses with EPERM; x32 numbers of x86_64 are refused too.
    """
    column = ("x86_64", "aarch64").index(MACHINE) if MACHINE in CLONE else None
    if column is None:
        raise OSError(errno.ENOSYS, f"there is no filter for {MACHINE}")
    numbers = [pair[column] for pair in (*DENIED.values(), *(DENIED_ALONE.values() if alone else ()))]
    load, equal, at_least, any_bit, result = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse = _step(result, REFUSE | errno.EPERM)
    steps = [_step(load, 4), _step(equal, ARCHITECTURE[MACHINE], 1, 0), refuse, _step(load, 0)]
    steps += [_step(at_least, 0x40000000, 0, 1), refuse]
    for number in numbers:  # clone3 must seem not to exist: libc then uses clone, whose flags can be read
        code = errno.ENOSYS if number == DENIED["clone3"][column] else errno.EPERM
        steps += [_step(equal, number, 0, 1), _step(result, REFUSE | code)]
    steps += [_step(equal, CLONE[MACHINE], 0, 3), _step(load, 16), _step(any_bit, 0x7E020000, 0, 1), refuse]
    steps += [_step(load, 0), _step(equal, SOCKET[column], 0, 3), _step(load, 16), _step(equal, UNIX, 1, 0), refuse]
    steps += [_step(result, ALLOW)]
    code_bytes = ctypes.create_string_buffer(b"".join(steps))
    program = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code_bytes))
    prctl(NO_NEW_PRIVS, 1)
    buffer = ctypes.create_string_buffer(program)
    checked(
        LIBC.prctl(SECCOMP, ctypes.c_ulong(2), ctypes.byref(buffer), ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp"
    )
