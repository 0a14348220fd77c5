"""The filter of system calls, run as the kernel runs it, for both machines."""

import errno
import struct
from collections.abc import Sequence

import pytest

from lowtax.benchmarks.sandbox import calls

EXAMPLES = {  # calls that a program may make: number on x86_64, on aarch64, arguments
    "read": (0, 63, []), "openat": (257, 56, [0, 0, 0]), "mmap": (9, 222, []), "getpid": (39, 172, []),
    "fork by clone": (56, 220, [17]), "a thread": (56, 220, [0x3D0F00]), "own limit": (302, 261, [0, 7]),
    "own affinity": (203, 122, [0]), "own priority": (141, 140, [0, 0, 5]), "F_GETFD": (72, 25, [3, 1]),
    "F_SETLK": (72, 25, [3, 6]), "F_DUPFD_CLOEXEC": (72, 25, [3, 1030]), "isatty": (16, 29, [1, 0x5401]),
    "FIOCLEX": (16, 29, [1, 0x5451]), "stream pair": (53, 199, [1, 0x80001, 0]), "packet pair": (53, 199, [1, 5, 0]),
    "kill": (62, 129, [77, 9]), "futex": (202, 98, []), "truncate": (76, 45, []), "fchmodat": (268, 53, []),
    "sendto on a pair": (44, 206, []), "statx": (332, 291, []), "epoll_pwait2": (441, 441, []),
}  # fmt: skip
REFUSED = {
    "a new user": (56, 220, [0x10000011]), "with high bits": (56, 220, [1 << 40 | 0x20000]),
    "limits of another": (302, 261, [77, 7]), "limits by a wide number": (302, 261, [1 << 32 | 77, 7]),
    "affinity of another": (203, 122, [1]), "setscheduler": (144, 119, [1]), "setparam": (142, 118, [1]),
    "setattr": (314, 274, [1]), "priority of another": (141, 140, [0, 77, 5]), "of a group": (141, 140, [1, 0, 5]),
    "of a user": (141, 140, [2, 0, 5]), "F_SETOWN": (72, 25, [3, 8]), "F_SETSIG": (72, 25, [3, 10]),
    "F_SETOWN_EX": (72, 25, [3, 15]), "F_SETLEASE": (72, 25, [3, 1024]), "F_NOTIFY": (72, 25, [3, 1026]),
    "F_SETPIPE_SZ": (72, 25, [3, 1031]), "with bits that the kernel drops": (72, 25, [3, 1 << 32 | 8]),
    "datagram pair": (53, 199, [1, 2, 0]), "raw pair": (53, 199, [1, 3, 0]),
    "flags on a datagram pair": (53, 199, [1, 0x80802]),
    "a pair of another family": (53, 199, [16, 1, 0]), "everyone": (62, 129, [(1 << 64) - 1, 9]),
    **{name: (*numbers, []) for name, numbers in calls.DENIED.items()},
}  # fmt: skip


def decision(steps: bytes, machine: str, number: int, arguments: Sequence[int]) -> int:
    """Run a filter as the kernel does, and return its decision: 0 for allowed, or the number of the error plus one."""
    values = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, calls.ARCHITECTURE.get(machine, 0x40000003), 0, *values)
    at, register = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("HBBI", steps, 8 * at)
        at += 1
        if code == calls.RETURN:
            return 0 if value == calls.ALLOW else (value & 0xFFFF) + 1
        if code == calls.LOAD:
            register = struct.unpack_from("=I", data, value)[0]
        elif code == calls.AND:
            register &= value
        elif code == calls.JUMP:
            at += value
        else:
            test = {calls.EQUAL: register == value, calls.GREATER: register > value,
                    calls.AT_LEAST: register >= value, calls.ANY_BIT: bool(register & value)}[code]  # fmt: skip
            at += yes if test else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_decides_by_number_and_arguments(machine, column):
    steps = calls.program(machine)
    assert len(steps) < 8 * 4096  # the kernel's limit
    allowed = {name: decision(steps, machine, row[column], row[2]) for name, row in EXAMPLES.items()}
    assert {name for name, code in allowed.items() if code} == set()
    refused = {name: decision(steps, machine, row[column], row[2]) for name, row in REFUSED.items() if row[column] >= 0}
    assert {name: code for name, code in refused.items() if code != errno.EPERM + 1} == {}
    missing = [decision(steps, machine, number, []) for number in (435, 470, 500, 0x3FFFFFFF)]
    assert missing == [errno.ENOSYS + 1] * 4
    assert decision(steps, machine, 16 if column == 0 else 29, [1, 0x5412]) == errno.ENOTTY + 1
    for other in ("i386", "aarch64" if column == 0 else "x86_64"):
        assert decision(steps, other, EXAMPLES["getpid"][column], []) == errno.EPERM + 1
    assert decision(steps, machine, 0x40000000 + 39, []) == errno.EPERM + 1
    more = calls.program(machine, ("signals", "truncation", "attributes"))
    codes = [
        decision(more, machine, EXAMPLES[name][column], [77, 9]) for name in ("kill", "truncate", "fchmodat", "read")
    ]
    assert codes == [errno.EPERM + 1, errno.EPERM + 1, 1, 0]  # a change of attributes reports success


def test_no_number_is_in_two_rules():
    for column in (0, 1):
        numbers = [pair[column] for pair in (*calls.DENIED.values(), *calls.MISSING.values())]
        numbers += [pair[column] for pair, _ in calls.OWN.values()]
        numbers += [pair[column] for pair in (calls.FCNTL, calls.IOCTL, calls.SOCKETPAIR, calls.CLONE, calls.KILL)]
        numbers = [number for number in numbers if number != calls.NONE]
        assert len(set(numbers)) == len(numbers)
