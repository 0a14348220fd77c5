"""The programs of tests/hostile/attacks.txt and right.txt in every mode, by root and by an ordinary user.

`tests/support/attacked.py` runs them with real targets: files, a process, listening sockets, lowtax itself.
"""

import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from functools import cache

import attacked
import pytest
from places import TESTS

from lowtax.benchmarks.sandbox import calls, landlock, run
from lowtax.benchmarks.sandbox.run import Limits

DRIVER = TESTS / "support" / "attacked.py"
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


@cache
def attack(mode: str, *options: str) -> dict[str, dict]:
    """Run the driver in one mode and return its results."""
    done = subprocess.run([sys.executable, str(DRIVER), mode, *options], capture_output=True, text=True, timeout=120)
    if done.returncode == attacked.CANNOT:
        pytest.skip("root may not make an ordinary user here")
    assert done.returncode == 0, done.stderr
    results: dict[str, dict] = json.loads(done.stdout)
    return results[mode]


@pytest.mark.parametrize(
    ("user", "mode"),
    [("root", "root"), ("root", "plain"), ("ordinary", "user"), ("ordinary", "plain")],
)
def test_programs_reach_nothing_and_right_ones_pass_alike(user, mode):
    if os.geteuid() and user == "root":
        pytest.skip("needs root")
    options = ["--ordinary"] if user == "ordinary" and not os.geteuid() else []
    result, first = attack(mode, *options), attack("plain" if os.geteuid() else "root")
    assert len(result["attacks"]) + len(result["right"]) >= 90
    assert result["mode"] in (mode, "plain")
    ends = result["attacks"].items()
    assert {name: end for name, end in ends if "GOT" in end[1] or not end[1].endswith("TRIED\n")} == {}
    assert {name: end for name, end in result["right"].items() if end[0] != "passed"} == {}
    assert [name for name, end in result["right"].items() if end[1] != first["right"][name][1]] == []
    assert result["reads"] == "failed"
    assert result["harmed"] == []


FORKS = """
import os, time
count = 0
while count < 40:
    try:
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
    except OSError:
        break
    count += 1
print(count)
"""


def test_processes_are_limited_in_every_mode(monkeypatch):
    for mode in ("root", "user", "plain"):  # the kernel limits no process of root: there is no `user` for it
        monkeypatch.setenv("LOWTAX_SANDBOX", mode)
        outcome = run.run(FORKS, Limits(wall_s=0.5, processes=8))
        assert outcome.stdout == "7\n", outcome


OLDER = """
import os, sys, tempfile
sys.path.insert(0, sys.argv[1])
from lowtax.benchmarks.sandbox import landlock
folder, secret = tempfile.mkdtemp(), tempfile.mkstemp()[1]
library = os.path.dirname(os.__file__)
for version in range(1, landlock.version() + 1):
    if os.fork() == 0:
        shown = landlock.readable([library, "/dev/null"], [library + "/json"])
        rules = [(os.open(path, os.O_PATH), rights) for path, rights in shown]
        landlock.confine(version, rules, os.open(folder, os.O_PATH))
        reached = []
        for path, flags in ((secret, 0), (secret, os.O_WRONLY), (library + "/json/tool.py", 0), ("/", 0)):
            try:
                os.open(path, flags)
                reached.append(path)
            except PermissionError:
                pass
        os.open(library + "/this.py", os.O_RDONLY), os.open("/dev/null", os.O_RDWR)
        os.mkdir(folder + "/x"), os.rmdir(folder + "/x")
        print(version, reached, flush=True)
        os._exit(0)
    os.wait()
"""


def test_every_version_of_landlock_keeps_files():
    if not landlock.version():
        pytest.skip("no Landlock here")
    source = str(TESTS.parent / "src")
    done = subprocess.run([sys.executable, "-c", OLDER, source], capture_output=True, text=True)
    versions = range(1, landlock.version() + 1)
    assert (done.stdout, done.stderr) == ("".join(f"{version} []\n" for version in versions), "")


WITHOUT = """
import struct, sys
from lowtax.benchmarks.sandbox import calls, run
from lowtax.common.errors import UserError
number = int(sys.argv[1])
calls.install(struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, number, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7FFF0000))
try:
    run.run("pass")
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(("number", "reason"), [(444, "no Landlock"), (157, "no filter of system calls")])
def test_where_programs_could_read_the_users_files_the_sandbox_refuses(number, reason):
    if calls.kernel.MACHINE != "x86_64":
        pytest.skip("numbers of x86_64")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(number)], capture_output=True, text=True,
        env={**os.environ, "LOWTAX_SANDBOX": "plain"},
    )  # fmt: skip
    assert reason in done.stdout, done.stderr
    assert "docs/explanation/sandbox.md" in done.stdout
