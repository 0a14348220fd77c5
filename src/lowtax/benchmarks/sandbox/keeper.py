"""The process that starts one program, waits for it, ends it with all that it started, and reports how it ended.

It never runs the program's code. With namespaces it is process 1 of its namespace, so the kernel ends everything
inside when it ends; without them it adopts the processes that the program leaves behind, and kills them. Standard
library only.
"""

import fcntl
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

from . import calls, kernel, landlock, roles
from .values import receive, send

FIRST_USER = 1_879_048_192  # of users that no system has; each program is another one, so limits are not shared
NOBODY = 65534
LIBRARY = 32  # handles that lead to the library are below; all handles of a program are below 64


@dataclass(frozen=True)
class Files:
    """Files that a program without namespaces may open, and the place of its folder.

    version: of Landlock.
    rules: open handles and the rights to them, as `landlock.confine` takes them.
    parent: the folder that holds the programs' folders.
    path_handles: handles that lead to the library, which a program keeps.
    """

    version: int
    rules: list[tuple[int, int]]
    parent: str
    path_handles: list[int]


@dataclass(frozen=True)
class KeeperSetup:
    """Configuration of a keeper.

    mode: root, user or plain (docs/explanation/sandbox.md).
    ids: the user and group that started it.
    proc: an open /proc.
    user: a user for this program alone, if root can give it one.
    filter: of system calls, as `calls.program` makes it.
    files: for plain.
    """

    mode: str
    ids: tuple[int, int]
    proc: int
    user: int | None
    filter: bytes
    files: Files | None


class Keeper:
    """Starts one program, waits for it, ends it, and reports how it ended."""

    def __init__(self, setup: KeeperSetup, control: socket.socket, handles: list[int]) -> None:
        self.setup, self.control, self.handles = setup, control, handles
        self.folder = "/tmp"

    def keep(self) -> None:
        """Receive the job, run it, and send the report."""
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        kernel.prctl(kernel.SUBREAPER, 1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if self.setup.mode == "user":
            kernel.map_ids(self.setup.proc, NOBODY, NOBODY, *self.setup.ids)
        job = receive(self.control)
        limits = job["limits"]
        self._make_folder(limits["file_mb"])
        began = time.monotonic()
        program = os.fork()
        if program == 0:
            self._become(job)
        for handle in self.handles:
            os.close(handle)
        timed_out, status, usage = self._wait(program, began + limits["wall_s"])
        seconds = time.monotonic() - began
        self._end_the_rest()
        if self.setup.files:
            os.chdir("/")
            remove(self.folder)
        code = os.waitstatus_to_exitcode(status)
        peak = usage.ru_maxrss / 1024
        report = {"timed_out": timed_out, "code": code, "seconds": round(seconds, 4), "peak_mb": round(peak, 1)}
        send(self.control, report | {"cpu_s": round(usage.ru_utime + usage.ru_stime, 4)})

    def _make_folder(self, file_mb: int) -> None:
        if self.setup.files:
            self.folder = tempfile.mkdtemp(dir=self.setup.files.parent)
            if self.setup.user is not None:
                os.chown(self.folder, self.setup.user, self.setup.user)
        else:
            owner = f",uid={self.setup.user},gid={self.setup.user}" if self.setup.user else ""
            options = f"mode=700,size={file_mb}m,nr_inodes=4096{owner}"
            kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV | kernel.NOEXEC, options)
        os.chdir(self.folder)

    def _wait(self, program: int, deadline: float) -> tuple[bool, int, resource.struct_rusage]:
        """Wait until the program ends, its time is up, or lowtax closes the control socket; reap orphans meanwhile."""
        handle = os.pidfd_open(program)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.register(self.control, select.POLLIN | select.POLLHUP)
        timed_out = False
        while True:
            remaining = deadline - time.monotonic()
            events = dict(poll.poll(max(0.0, min(remaining, 0.1)) * 1000 + 1))
            if handle in events:
                break
            if remaining <= 0 or self.control.fileno() in events:
                timed_out = remaining <= 0
                os.kill(program, signal.SIGKILL)
                break
            self._reap(program)
        _, status, usage = os.wait4(program, 0)
        os.close(handle)
        return timed_out, status, usage

    def _reap(self, program: int) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid == program:
                return
            os.waitpid(ended.si_pid, 0)

    def _end_the_rest(self) -> None:
        """End what the program started. In a namespace the kernel does so when this process ends, but later."""
        for attempt in range(2000):
            try:  # orphans are this process' children, so without children nothing is left
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            if self.setup.files:
                _kill_descendants(self.setup.proc)
            elif os.getpid() == 1:  # all processes of this namespace, and no other
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            time.sleep(0.0005 if attempt < 20 else 0.005)

    def _become(self, job: dict[str, Any]) -> None:
        """In the program's process: give up all privileges, then play the role."""
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
        play, work = roles.ROLES[job["role"]], job["job"]
        job.clear()
        self.control = None  # type: ignore[assignment]  # closed already; the program must find nothing of the keeper
        play(work, *ends)

    def _confine(self, limits: dict[str, int]) -> None:
        os.setsid()
        files = self.setup.files
        threads = _tasks_of(os.getuid(), self.setup.proc) if files and self.setup.user is None else 0
        if files:
            landlock.confine(files.version, files.rules, os.open(self.folder, os.O_PATH | os.O_DIRECTORY))
        handles = [os.open("/dev/null", os.O_RDONLY), *self.handles]
        high = [fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, LIBRARY) for handle in handles]
        for i, handle in enumerate(high):
            os.dup2(handle, i)
        first = len(high)
        for handle in sorted(files.path_handles) if files else []:
            os.closerange(first, handle)
            first = handle + 1
        os.closerange(first, 1 << 16)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        megabyte = 2**20
        for kind, soft, hard in (
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
            (resource.RLIMIT_AS, limits["memory_mb"] * megabyte, limits["memory_mb"] * megabyte),
            (resource.RLIMIT_FSIZE, limits["file_mb"] * megabyte, limits["file_mb"] * megabyte),
            (resource.RLIMIT_NOFILE, 64, 64),
            (resource.RLIMIT_NPROC, threads + limits["processes"], threads + limits["processes"]),
            (resource.RLIMIT_MSGQUEUE, 0, 0),
            (resource.RLIMIT_SIGPENDING, 128, 128),
        ):
            resource.setrlimit(kind, (soft, hard))
        kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
        kernel.give_up_privileges(self.setup.user)
        calls.install(self.setup.filter)
        os.environ.clear()
        tempfile.tempdir = self.folder
        for name in [name for name in sys.modules if name.split(".")[0] == __package__]:
            del sys.modules[name]


def unconfined(version: int, *, as_root: bool) -> list[str]:
    """Return the groups of system calls (`calls.GROUPS`) that a version of Landlock does not confine.

    as_root: True if each program is another user, who owns no file but those of its folder.
    """
    groups = ["signals"] if version < landlock.SIGNALS else []
    if not as_root:
        groups += ["attributes"] if version >= landlock.TRUNCATES else ["attributes", "truncation"]
    return groups


def remove(folder: str) -> None:
    """Remove a folder, however deep it is and whatever rights its parts have."""
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        for command in (["/bin/chmod", "-R", "u+rwx", folder], ["/bin/rm", "-rf", folder]):
            with suppress(OSError):
                os.waitpid(os.posix_spawn(command[0], command, {}), 0)


def _parents(proc: int) -> dict[int, int]:
    """Return the parent of every process, by process id."""
    parents = {}
    for name in os.listdir(proc):
        if name.isdigit():
            try:
                with open(os.open(f"{name}/stat", os.O_RDONLY, dir_fd=proc)) as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    return parents


def _kill_descendants(proc: int) -> None:
    parents = _parents(proc)
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
    """Count the threads of a user, which the kernel counts against the limit of processes."""
    count = 0
    for name in os.listdir(proc):
        if name.isdigit():
            with suppress(OSError), open(os.open(f"{name}/status", os.O_RDONLY, dir_fd=proc)) as file:
                status = dict(line.split(":", 1) for line in file if ":" in line)
                count += int(status["Threads"]) if int(status["Uid"].split()[0]) == uid else 0
    return count
