"""The process that starts one program, waits for it, ends it with all that it started, and says how it ended.

It never runs the program's code. With namespaces it is process 1 of its own, so that the kernel ends what is left
inside when it ends; without them it adopts what the program leaves behind, and kills that. Standard library only.
"""

import os
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lowtax import sandbox_kernel as kernel
from lowtax import sandbox_roles as roles
from lowtax.sandbox_plain import receive, send

FIRST_USER = (
    1_879_048_192  # of users that no system has; each program is one of its own, so that its limits are its own
)
NOBODY = 65534


@dataclass(frozen=True)
class Ground:
    """What a keeper stands on. mode: root, user or plain, as in `lowtax.sandbox`; ids: user and group that started it;
    proc: an open /proc; user: one for this program alone, if root can give it one; keep_reading: see the kernel's;
    filtered: whether system calls can be."""

    mode: str
    ids: tuple[int, int]
    proc: int
    user: int | None
    keep_reading: bool
    filtered: bool


class Keeper:
    """Starts one program, waits for it, ends it, says how it ended."""

    def __init__(self, ground: Ground, control: socket.socket, handles: list[int]) -> None:
        self.ground, self.control, self.handles = ground, control, handles
        self.folder = "/tmp"

    def keep(self) -> None:
        """From the job to the report."""
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.ground.mode == "user":
            kernel.map_ids(self.ground.proc, NOBODY, NOBODY, *self.ground.ids)
        job = receive(self.control)
        limits = job["limits"]
        self._own_folder(limits["file_mb"])
        began = time.monotonic()
        program = os.fork()
        if program == 0:
            self._become(job)
        for handle in self.handles:
            os.close(handle)
        timed_out, status, usage = self._wait(program, began + limits["wall_s"])
        seconds = time.monotonic() - began
        self._end_the_rest()
        if self.ground.mode == "plain":
            os.chdir("/")
            shutil.rmtree(self.folder, ignore_errors=True)
        code = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss / 1024
        report = {"timed_out": timed_out, "code": code, "seconds": round(seconds, 4), "peak_mb": round(peak, 1)}
        send(self.control, report | {"cpu_s": round(usage.ru_utime + usage.ru_stime, 4)})

    def _own_folder(self, file_mb: int) -> None:
        if self.ground.mode == "plain":
            self.folder = tempfile.mkdtemp(prefix="lowtax-sandbox-")
            if self.ground.user is not None:
                os.chown(self.folder, self.ground.user, self.ground.user)
        else:
            owner = f",uid={self.ground.user},gid={self.ground.user}" if self.ground.user else ""
            options = f"mode=700,size={file_mb}m,nr_inodes=4096{owner}"
            kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, options)
        os.chdir(self.folder)

    def _wait(self, program: int, deadline: float) -> tuple[bool, int, resource.struct_rusage]:
        """Until the program ends, its time is up, or lowtax lets go of it; orphans are reaped meanwhile."""
        handle = os.pidfd_open(program)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self.control, select.POLLIN | select.POLLHUP)
        timed_out = False
        while True:
            left = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, min(left, 0.1)) * 1000 + 1))
            if handle in events:
                break
            if left <= 0 or self.control.fileno() in events:
                timed_out = left <= 0
                os.kill(program, signal.SIGKILL)
                break
            self._reap(program)
        _, status, usage = os.wait4(program, 0)
        os.close(handle)
        return timed_out, status, usage

    def _reap(self, program: int) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None or found.si_pid == program:
                return
            os.waitpid(found.si_pid, 0)

    def _end_the_rest(self) -> None:
        """End what the program started. In a namespace the kernel does it when this process ends, but later."""
        for attempt in range(2000):
            if self.ground.mode == "plain":
                _kill_descendants(self.ground.proc)
            elif os.getpid() == 1:  # everyone in this namespace, and nobody else
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.0005 if attempt < 20 else 0.005)

    def _become(self, job: dict[str, Any]) -> None:
        """In the program's process: give up everything, then play the role."""
        code = 1
        try:
            self._confine(job["limits"])
            ends = [socket.socket(fileno=3 + i) for i in range(len(self.handles) - 2)]
            self._play(job, ends)
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            if isinstance(leaving.code, str):
                print(leaving.code, file=sys.stderr)
        except BaseException as error:  # noqa: BLE001  # row recorded as failed
            trace = error.__traceback__
            while trace and trace.tb_frame.f_code.co_filename != "program.py":
                trace = trace.tb_next
            sys.excepthook(type(error), error.with_traceback(trace), trace)
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):
                    code = code or 1
            os._exit(code & 255)

    def _play(self, job: dict[str, Any], ends: list[socket.socket]) -> None:
        play, sent = roles.ROLES[job["role"]], job["job"]
        job.clear()
        self.control = None  # type: ignore[assignment]  # closed already; nothing of the keeper is of use here
        play(sent, *ends)

    def _confine(self, limits: dict[str, int]) -> None:
        os.setsid()
        alone = self.ground.mode == "plain"
        own = _tasks_of(os.getuid(), self.ground.proc) if alone and self.ground.user is None else 0
        wanted = [os.open("/dev/null", os.O_RDONLY), *self.handles]
        high = [os.dup2(handle, 100 + i, inheritable=False) for i, handle in enumerate(wanted)]
        for i, handle in enumerate(high):
            os.dup2(handle, i)
        os.closerange(len(high), 1 << 16)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        megabyte = 2**20
        for kind, soft, hard in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
            (resource.RLIMIT_AS, limits["memory_mb"] * megabyte, limits["memory_mb"] * megabyte),
            (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte, limits["file_mb"] * megabyte),
            (resource.RLIMIT_NOFILE, 64, 64),
            (resource.RLIMIT_NPROC, own + limits["processes"], own + limits["processes"]),
        ):
            resource.setrlimit(kind, (soft, hard))
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        kernel.give_up_privileges(self.ground.user, self.ground.keep_reading)
        if self.ground.filtered:
            kernel.filter_calls(alone)
        os.environ.clear()
        for name in [name for name in sys.modules if name.split(".")[0] == "lowtax"]:
            del sys.modules[name]


def _stats(proc: int) -> dict[int, int]:
    """Parent by process id."""
    found = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                with open(os.open(f"{name}/stat", os.O_RDONLY, dir_fd=proc)) as file:
                    found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    return found


def _kill_descendants(proc: int) -> None:
    parents = _stats(proc)
    mine, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in mine and pid not in mine}
        mine, grown = mine | more, bool(more)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in mine - {os.getpid()}:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def _tasks_of(uid: int, proc: int) -> int:
    """How many threads a user has, which the kernel counts against the limit of processes."""
    count = 0
    for name in os.listdir(proc):
        if name.isdigit():
            with suppress(OSError), open(os.open(f"{name}/status", os.O_RDONLY, dir_fd=proc)) as file:
                said = dict(line.split(":", 1) for line in file if ":" in line)
                count += int(said["Threads"]) if int(said["Uid"].split()[0]) == uid else 0
    return count
