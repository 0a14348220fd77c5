"""Threads: the cores that others use, the limits of containers, and what a user has set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lowtax.common import threads
from lowtax.common.threads import Load

STAT = """cpu  1000 50 400 9000 100 7 3 10 20 0
cpu0 600 20 300 4000 50 4 2 5 10 0
cpu1 400 30 100 5000 50 3 1 5 10 0
cpu12 9 9 9 9 9 9 9 9 9 9
intr 12345
"""
RUN = """
import os, sys, time
from lowtax.common import threads
os.sched_setaffinity(0, CORES)
threads.prepare()
import torch
usual = torch.get_num_threads()
time.sleep(threads.SHORTEST)
note = threads.settle()
print(usual, torch.get_num_threads(), os.environ["GOMP_SPINCOUNT"], note, threads.settle(), sep="|")
"""


def test_time_of_the_own_cores_alone_counts_and_no_idle_time():
    assert threads.work(STAT, {1}, with_nice=False) == 400 + 100 + 3 + 1 + 5
    assert threads.work(STAT, {0, 1}, with_nice=True) == 600 + 300 + 4 + 2 + 5 + 20 + 400 + 100 + 3 + 1 + 5 + 30
    with pytest.raises(ValueError, match="literal"):
        threads.work("cpu0 many", {0}, with_nice=False)


def test_own_work_is_not_that_of_others():
    start = Load(at=100.0, all=50.0, own=3.0)
    assert threads.others(start, Load(at=102.0, all=53.5, own=4.5)) == pytest.approx(1.0)
    assert threads.others(start, Load(at=102.0, all=51.0, own=4.5)) == 0, "the counters have steps"
    assert threads.others(start, Load(at=100.1, all=50.2, own=3.0)) == 0, "too short a time to tell"


@pytest.mark.parametrize(
    ("usual", "cores", "busy", "limit", "expected"),
    [
        (2, 2, 0.0, None, 2),
        (2, 2, 0.4, None, 2),
        (2, 2, 1.0, None, 1),
        (2, 2, 1.9, None, 1),
        (32, 64, 20.0, None, 32),  # a thread for each two hyperthreads
        (32, 64, 40.0, None, 24),
        (64, 64, 20.0, 4.0, 4),
        (64, 64, 0.0, 0.5, 1),
    ],
)
def test_threads_are_as_many_as_free_cores(usual: int, cores: int, busy: float, limit: float | None, expected: int):
    assert threads.free(usual, cores, busy, limit) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"cpu.max": "400000 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ("4:memory:/m\n1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpu,a:/x", {"cpu,a/x/cpu.cfs_quota_us": "300000", "cpu,a/x/cpu.cfs_period_us": "100000"}, 3.0),
        ("0::/", {}, None),
    ],
)  # fmt: skip
def test_limits_of_a_container(
    own: str, files: dict[str, str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(threads, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(threads, "OWN_CGROUP", tmp_path / "own")
    assert threads.quota() is None
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert threads.quota() == expected


def test_a_busy_core_is_left_to_its_process_and_a_user_decides():
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        os.sched_setaffinity(busy.pid, cores[:1])
        usual, number, spin, note, again = _run(cores, {})
        assert (usual, number, spin, again) == ("2", "1", "10000", "None")
        assert note.startswith("1 of 2 threads, since other processes keep ")
        usual, number, spin, note, _ = _run(cores, {"OMP_NUM_THREADS": "2", "GOMP_SPINCOUNT": "77"})
        assert (usual, number, spin, note) == ("2", "2", "77", "None")
    finally:
        busy.kill()
        busy.wait()


def _run(cores: list[int], more: dict[str, str]) -> list[str]:
    hidden = {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE"}
    env = {name: value for name, value in os.environ.items() if name not in hidden} | more
    script = RUN.replace("CORES", str(set(cores)))
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip().split("|")
