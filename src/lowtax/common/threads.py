"""Number of threads of torch on a CPU that others use, too, and a short wait of each thread for the others.

torch takes a thread for every core and divides each operation among them. Where another process has a core, all wait
for the thread that lacks it, and OpenMP's threads keep their cores busy while they wait: two processes on two cores
become many times slower than one after the other. So the command line takes only as many threads as cores are free
while it starts, and lets threads wait for `SPIN` rounds (GNU's OpenMP, that of torch's Linux wheels: less than a
millisecond, where 300,000 are usual) before they give their core away. OMP_NUM_THREADS and MKL_NUM_THREADS take
precedence.
"""

import os
import time
from dataclasses import dataclass
from math import floor
from pathlib import Path

from lowtax.common.launch import on_this_machine

SPIN = 10_000  # on an idle machine as fast as the usual number; with others on its cores several times faster
OF_USERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SHORTEST = 0.2  # seconds between two readings of counters that count hundredths
STAT, CGROUPS, OWN_CGROUP = Path("/proc/stat"), Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Load:
    """Seconds that a machine's cores have worked.

    at: time of the reading. all: seconds of all processes on the cores of this process. own: of this one alone.
    """

    at: float
    all: float
    own: float


_start: list[Load] = []  # the reading at the start of the command, until it is used


def prepare() -> None:
    """Shorten the wait of threads and read the load; call it before torch is imported."""
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = str(SPIN)
    if (load := _load()) and on_this_machine() == 1 and not os.environ.keys() & set(OF_USERS):
        _start[:] = [load]


def settle() -> str | None:
    """Lower torch's number of threads to the cores that were free since `prepare`, once; return a note if it is lower.

    Nothing is measured and nothing changes without `prepare`, where a user has set the number, and in a launch of
    several processes on this machine.
    """
    start, now = _start.pop() if _start else None, _load()
    if start is None or now is None:
        return None
    import torch

    usual, cores, limit = torch.get_num_threads(), len(os.sched_getaffinity(0)), quota()
    busy = others(start, now)
    number = free(usual, cores, busy, limit)
    if number == usual:
        return None
    torch.set_num_threads(number)
    why = f"other processes keep {busy:.1f} of {cores} cores busy"
    if limit is not None and free(usual, cores, 0.0, limit) == number:
        why = f"this process may use {limit:g} of {cores} cores"
    return f"{number} of {usual} threads, since {why}; OMP_NUM_THREADS sets another number"


def free(usual: int, cores: int, busy: float, limit: float | None) -> int:
    """Return the number of threads, from 1 to `usual`.

    Args:
        usual: torch's own number. cores: those that this process may run on.
        busy: cores that other processes use. limit: cores that the control group allows, if it limits them.
    """
    cores_free = round(cores - busy)
    return max(1, min(usual, cores_free, cores_free if limit is None else floor(limit)))


def others(start: Load, now: Load) -> float:
    """Return the number of cores that other processes used between two readings; 0 if these are too close."""
    seconds = now.at - start.at
    return max(0.0, (now.all - start.all - now.own + start.own) / seconds) if seconds >= SHORTEST else 0.0


def _load() -> Load | None:
    """Return the load now; None where the system does not tell."""
    try:
        cores, text = os.sched_getaffinity(0), STAT.read_text()
        worked = work(text, cores, os.nice(0) > 0) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return None
    return Load(time.monotonic(), worked, sum(os.times()[:4]))


def work(stat: str, cores: set[int], with_nice: bool) -> int:
    """Return the ticks that some cores have worked, from the content of /proc/stat.

    Args:
        with_nice: with those of processes of a lower priority, which give way to this one.

    Raises:
        ValueError: it has another form.
    """
    total = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            user, nice, system, _, _, *interrupts = map(int, numbers[:8])
            total += user + system + sum(interrupts) + (nice if with_nice else 0)
    return total


def quota() -> float | None:
    """Return the cores that the control groups of this process allow, as those of a container do; None without one."""
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "cpu" not in names.split(","):
            continue
        top = CGROUPS / names if names else CGROUPS
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top) and (limit := _limit(folder)) is not None:
                limits.append(limit)
    return min(limits, default=None)


def _limit(folder: Path) -> float | None:
    """Return the cores that one control group allows: version 2, or 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            amount, period = " ".join((folder / name).read_text() for name in names).split()
            return float(amount) / float(period) if float(amount) > 0 else None
        except (OSError, ValueError):  # absent, or "max"
            continue
    return None
