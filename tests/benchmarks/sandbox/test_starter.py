"""The programs of tests/hostile/attacks.txt and right.txt in every mode, by root and by an ordinary user.

`tests/support/hostile_programs.py` runs them with real targets: files, a process, listening sockets, lowtax itself.
"""

import json
import os
import subprocess
import sys
from functools import cache

import hostile_programs
import pytest
from places import TESTS

from lowtax.benchmarks.sandbox import calls, run
from lowtax.benchmarks.sandbox.run import Limits

DRIVER = TESTS / "support" / "hostile_programs.py"


@cache
def attack(mode: str, *options: str) -> dict[str, dict]:
    """Run the driver in one mode and return its results."""
    done = subprocess.run([sys.executable, str(DRIVER), mode, *options], capture_output=True, text=True, timeout=120)
    if done.returncode == hostile_programs.CANNOT:
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
