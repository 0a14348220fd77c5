"""The server that starts sandboxed processes: a small Python, kept ready, that forks one limited process per program.

    lowtax --(socket)--> server --(clone: new pid, mount, ipc and user namespaces)--> keeper --(fork)--> program

The server has left the network and sees a root that holds only Python's library, read-only. The keeper is process 1 of
its namespace: it never runs the program's code, waits for it, and when it ends the kernel ends everything inside. It
dies when its socket to lowtax closes, so nothing outlives lowtax. Without namespaces, the keeper adopts the processes
that the program leaves behind and kills them. Standard library only; `server` starts it as `python -s -P -S`.
"""

import builtins
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder

from . import kernel
from .keeper import FIRST_USER, NOBODY, Keeper, KeeperSetup
from .values import receive, send

SPACES = kernel.NEW_PID | kernel.NEW_NS | kernel.NEW_IPC
WARM = "abc bisect collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools json \
math operator random re statistics string typing"


class Packages:
    """A finder of modules that finds these packages in a folder, and nothing else of what is there."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Return where a package is; its own modules are found by its path."""
        return PathFinder.find_spec(name, [self.folder]) if path is None and name in self.names else None


class Starter:
    """Sets up isolation: `mode` is root (real root), user (user namespaces) or plain (none), `notes` say why."""

    def __init__(self, requested: str, folder: str, shown: list[tuple[str, str]]) -> None:
        self.ids = os.geteuid(), os.getegid()
        self.root = self.ids[0] == 0
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.notes: list[str] = []
        self.mode = "plain"
        self.count = random.SystemRandom().randrange(1 << 20) << 6
        self.keep_reading = False
        self.filtered = _works(lambda: kernel.filter_calls(False)) == 0
        for mode in {"auto": ["root", "user"] if self.root else ["user"], "plain": []}.get(requested, [requested]):
            if self._try(mode, folder, shown):
                self.mode = mode
                return
        kernel.prctl(kernel.DUMPABLE, 0)  # no program may open the memory of the server or a keeper
        self.keep_reading = self.root and not _readable_by_all(os.__file__)

    def _try(self, mode: str, folder: str, shown: list[tuple[str, str]]) -> bool:
        """Enter a mode; it is tried in another process first, so that a failure half-way leaves this one as it was."""

        def probe() -> None:
            self._enter(mode, folder, shown)
            if inside := kernel.clone(SPACES | (kernel.NEW_USER if mode == "user" else 0)):
                os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]))
            if mode == "user":
                kernel.map_ids(self.proc, NOBODY, NOBODY, *self.ids)
            kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV)

        if code := _works(probe):
            self.notes.append(f"no namespaces as {mode} ({os.strerror(code)})")
            return False
        self._enter(mode, folder, shown)
        return True

    def _enter(self, mode: str, folder: str, shown: list[tuple[str, str]]) -> None:
        kernel.unshare(SPACES & ~kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_UTS | (
            kernel.NEW_USER if mode == "user" else 0))  # fmt: skip
        if mode == "user":
            kernel.map_ids(self.proc, *self.ids, *self.ids)
        kernel.new_root(folder, shown)

    def start(self, control: socket.socket, handles: list[int]) -> None:
        """Start a keeper for one more program."""
        self.count += 1
        user = FIRST_USER + self.count % (1 << 26) if self.root and self.mode != "user" else None
        setup = KeeperSetup(self.mode, self.ids, self.proc, user, self.keep_reading, self.filtered)
        flags = 0 if self.mode == "plain" else SPACES | (kernel.NEW_USER if self.mode == "user" else 0)
        if (kernel.clone(flags) if flags else os.fork()) == 0:
            code = 1
            try:
                Keeper(setup, control, handles).keep()
                code = 0
            except (EOFError, BrokenPipeError, ConnectionResetError):
                pass  # lowtax is gone or has cancelled
            finally:
                os._exit(code)


def _works(action: Callable[[], None]) -> int:
    """Try an action in another process; return 0, or the number of the error."""
    if child := os.fork():
        return abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    code = 1
    try:
        action()
        code = 0
    except OSError as error:
        code = error.errno or 1
    finally:
        os._exit(code)


def _readable_by_all(path: str) -> bool:
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def main() -> None:
    """Receive the setup, report which mode works, start keepers until lowtax closes the socket."""
    lowtax = socket.socket(fileno=os.dup(0))
    setup = receive(lowtax)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in WARM.split():
        try:
            __import__(name)
        except ImportError:
            continue
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    os.putenv("OMP_NUM_THREADS", "1")
    os.putenv("TZ", "UTC0")  # the file with this machine's own time zone is not shown
    time.tzset()
    for name in ("exit", "quit"):  # which `site` would define
        setattr(builtins, name, sys.exit)
    starter = Starter(setup["mode"], setup["folder"], [tuple(pair) for pair in setup["shown"]])
    folder = setup["packages_plain"] if starter.mode == "plain" else setup["packages"]
    sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
    if folder:
        sys.meta_path.append(Packages(folder, setup["names"]))
    send(lowtax, {"mode": starter.mode, "notes": starter.notes, "filtered": starter.filtered})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, handles, _, _ = socket.recv_fds(lowtax, 1, 8)
        if not message:
            return
        control = socket.socket(fileno=handles[0])
        starter.start(control, handles[1:])
        control.close()
        for handle in handles[1:]:
            os.close(handle)
