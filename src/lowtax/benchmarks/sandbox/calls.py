"""The filter of system calls: which calls a program may make, and with which arguments, on x86_64 and aarch64.

One filter serves every way of isolation, so that a program has the same result in each. It closes what reaches beyond
the program (signals to strangers, sockets, System V memory, queues, mounts, tracing), what no limit counts (memfd), and
starting other programs. Where neither namespaces nor Landlock confine a call, `also` names the group that is refused.
It runs inside the server process (`starter`), so only the standard library is imported.

Sources: seccomp(2), the kernel's tables of system calls, ioctl_list(2), fcntl(2), clone(2), unix(7).
"""

import ctypes
import errno
import struct
from collections.abc import Iterable

from . import kernel

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
LATEST = 469  # of the calls that this table was made for (Linux 6.17); later ones seem not to exist
NONE = -1  # no such call on this machine

# Refused whatever their arguments: (x86_64, aarch64).
DENIED = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "get_robust_list": (274, 100), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ioprio_set": (251, 30),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "bpf": (321, 280),
    # other programs
    "execve": (59, 221), "execveat": (322, 281), "uselib": (134, NONE),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    # files by another way than their path, and watching them
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "inotify_init": (253, NONE),
    "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # memory and messages that outlive a program or that no limit counts
    "shmget": (29, 194), "shmctl": (31, 195), "shmat": (30, 196), "semget": (64, 190), "semctl": (66, 191),
    "semop": (65, 193), "semtimedop": (220, 192), "msgget": (68, 186), "msgctl": (71, 187), "msgrcv": (70, 188),
    "msgsnd": (69, 189), "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_notify": (244, 184),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # sockets: `socketpair` alone makes one, with buffers of the usual size
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "setsockopt": (54, 208),
    # parts of the kernel that no tested program needs
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "syslog": (103, 116), "modify_ldt": (154, NONE),
}  # fmt: skip
MISSING = {"clone3": (435, 435)}  # seems not to exist: libc then uses clone, whose flags can be read

# Where nothing else confines them: refused, but for `attributes`, which have no effect and report success. These are
# closed where Landlock is all that keeps a program from its own user's files.
GROUPS = {
    "signals": {"kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424)},
    "truncation": {"truncate": (76, 45)},
    "attributes": {
        "chmod": (90, NONE), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, NONE),
        "fchown": (93, 55), "lchown": (94, NONE), "fchownat": (260, 54), "utime": (132, NONE), "utimes": (235, NONE),
        "futimesat": (261, NONE), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
        "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
        "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469),
    },
}  # fmt: skip

# Allowed with some arguments.
OWN = {  # the arguments that must be 0: the process itself
    "prlimit64": ((302, 261), (0,)), "sched_setscheduler": ((144, 119), (0,)), "sched_setparam": ((142, 118), (0,)),
    "sched_setaffinity": ((203, 122), (0,)), "sched_setattr": ((314, 274), (0,)), "setpriority": ((141, 140), (0, 1)),
}  # fmt: skip
FCNTL, FCNTL_REFUSED = (
    (72, 25),
    (8, 10, 15, 1024, 1026, 1031),
)  # SETOWN, SETSIG, SETOWN_EX, SETLEASE, NOTIFY, SETPIPE_SZ
KILL, EVERYONE = (62, 129), 0xFFFFFFFF  # it would report success though nobody was killed
IOCTL = (16, 29)
IOCTL_ALLOWED = (  # TCGETS, TCGETS2, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, FICLONE
    0x5401, 0x802C542A, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451, 0x40049409,
)  # fmt: skip
SOCKETPAIR, UNIX, STREAM, SEQPACKET = (53, 199), 1, 1, 5  # a datagram socket can write to any address
CLONE, NAMESPACES = (56, 220), 0x7E020000

LOAD, JUMP, EQUAL, GREATER, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
NUMBER, MACHINE, FIRST = 0, 4, 16  # where a call's number, its machine and its first argument are


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _refuse(code: int = errno.EPERM) -> bytes:
    return _step(RETURN, REFUSE | code)


def _argument(index: int) -> bytes:
    return _step(LOAD, FIRST + 8 * index)  # its lower half, which is all that the kernel reads of these arguments


ALLOWED = _step(RETURN, ALLOW)


def _refuse_values(values: Iterable[int]) -> list[bytes]:
    return [step for value in values for step in (_step(EQUAL, value, 0, 1), _refuse())]


def _zero(arguments: Iterable[int]) -> list[bytes]:
    steps = []
    for index in arguments:
        steps += [_argument(index), _step(EQUAL, 0, 1, 0), _refuse()]
    return [*steps, ALLOWED]


def _by_arguments() -> list[tuple[tuple[int, int], list[bytes]]]:
    """Return the calls that are allowed with some arguments, and the steps that decide."""
    rules = [(numbers, _zero(arguments)) for numbers, arguments in OWN.values()]
    rules += [(FCNTL, [_argument(1), *_refuse_values(FCNTL_REFUSED), ALLOWED])]
    rules += [(KILL, [_argument(0), *_refuse_values([EVERYONE]), ALLOWED])]
    allowed = [step for value in IOCTL_ALLOWED for step in (_step(EQUAL, value, 0, 1), ALLOWED)]
    rules += [(IOCTL, [_argument(1), *allowed, _refuse(errno.ENOTTY)])]
    pair = [_argument(0), _step(EQUAL, UNIX, 1, 0), _refuse(), _argument(1), _step(AND, 0xF)]
    pair += [_step(EQUAL, STREAM, 1, 0), _step(EQUAL, SEQPACKET, 0, 1), ALLOWED, _refuse()]
    return [*rules, (SOCKETPAIR, pair), (CLONE, [_argument(0), _step(ANY_BIT, NAMESPACES, 0, 1), _refuse(), ALLOWED])]


def _tree(rules: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Return the steps that find the rule of a number by halving, so that every call is decided in a few steps."""
    if len(rules) <= 3:
        steps = [step for number, part in rules for step in (_step(EQUAL, number, 0, len(part)), *part)]
        return [*steps, ALLOWED]
    half = len(rules) // 2
    lower, upper = _tree(rules[:half]), _tree(rules[half:])
    return [_step(AT_LEAST, rules[half][0], 0, 1), _step(JUMP, len(lower)), *lower, *upper]


def program(machine: str, also: Iterable[str] = ()) -> bytes:
    """Return the filter as a classic BPF program.

    It is read from the top: the machine, which closes 32-bit calls; the number, which closes x32 and calls that are
    newer than this table; then the rule of the call, if there is one, which ends in a decision.

    Args:
        machine: x86_64 or aarch64.
        also: groups of GROUPS to close too.
    """
    column = list(ARCHITECTURE).index(machine)
    rules = [(numbers, [_refuse()]) for numbers in DENIED.values()] + _by_arguments()
    rules += [(numbers, [_refuse(errno.ENOSYS)]) for numbers in MISSING.values()]
    for group in also:
        code = 0 if group == "attributes" else errno.EPERM
        rules += [(numbers, [_refuse(code)]) for numbers in GROUPS[group].values()]
    steps = [_step(LOAD, MACHINE), _step(EQUAL, ARCHITECTURE[machine], 1, 0), _refuse(), _step(LOAD, NUMBER)]
    steps += [_step(AT_LEAST, 0x40000000, 0, 1), _refuse(), _step(GREATER, LATEST, 0, 1), _refuse(errno.ENOSYS)]
    by_number = {numbers[column]: part for numbers, part in rules if numbers[column] != NONE}
    return b"".join([*steps, *_tree(sorted(by_number.items()))])


def install(steps: bytes) -> None:
    """Put a filter on this process and all that it starts, for good. Raises OSError where the kernel has none."""
    code = ctypes.create_string_buffer(steps)
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps) // 8, ctypes.addressof(code)))
    kernel.prctl(kernel.NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.SECCOMP, 2, ctypes.addressof(header))
