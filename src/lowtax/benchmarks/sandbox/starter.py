"""The server that starts sandboxed processes: a small Python, kept ready, that forks one limited process per program.

    lowtax --(socket)--> server --(clone: new pid, mount, ipc and user namespaces)--> keeper --(fork)--> program

The server has left the network and sees a root that holds only Python's library, read-only. The keeper is process 1 of
its namespace: it never runs the program's code, waits for it, and when it ends the kernel ends everything inside. It
dies when its socket to lowtax closes, so nothing outlives lowtax. Without namespaces, Landlock leaves the program the
same files, and the keeper adopts the processes that it leaves behind and kills them. Standard library only; `server`
starts it as `python -s -P -S`.
"""

import builtins
import os
import random
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location

from . import calls, kernel, landlock
from .keeper import FIRST_USER, LIBRARY, NOBODY, Files, Keeper, KeeperSetup, unconfined
from .parallel import without_shared_files
from .values import receive, send

SPACES = kernel.NEW_PID | kernel.NEW_NS | kernel.NEW_IPC
UNLIMITED = 254  # the exit code of a probe, beside numbers of errors
WARM = "abc bisect collections copy dataclasses datetime decimal enum fractions functools hashlib heapq itertools json \
math operator random re statistics string typing"


class Packages:
    """A finder of modules that finds these packages in a folder, and nothing else of what is there."""

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        """Return where a package is; its own modules are found by its path. The folder need not be readable."""
        if path is not None or name not in self.names:
            return None
        package = os.path.join(self.folder, name)
        return spec_from_file_location(name, f"{package}/__init__.py", submodule_search_locations=[package])


@dataclass(frozen=True)
class Setup:
    """Settings that lowtax sends to the server.

    mode: auto, root, user or plain.
    folder: an empty one, for the new root, or for the folders of programs without namespaces.
    shown: files and folders to show, and their paths in the new root.
    hidden: folders to hide in them.
    packages: the folder of packages outside of the new root; empty if there are none.
    names: of the packages that can be imported.
    """

    mode: str
    folder: str
    shown: list[tuple[str, str]]
    hidden: list[str]
    packages: str
    names: list[str]


class Starter:
    """Sets up isolation: `mode` is root (real root), user (user namespaces) or plain (Landlock), `notes` say why.

    `mode` is empty where none works. `packages` is the folder of packages.
    """

    def __init__(self, setup: Setup) -> None:
        self.ids = os.geteuid(), os.getegid()
        self.root = self.ids[0] == 0
        self.proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        self.notes: list[str] = []
        self.mode = ""
        self.setup, self.packages = setup, setup.packages
        self.count = random.SystemRandom().randrange(1 << 20) << 6
        self.files: Files | None = None
        if kernel.MACHINE not in calls.ARCHITECTURE:
            self.notes.append(f"no filter of system calls for {kernel.MACHINE}")
            return
        self.filter = calls.program(kernel.MACHINE)
        if code := _works(lambda: calls.install(self.filter)):
            self.notes.append(f"no filter of system calls ({os.strerror(code)})")
            return
        modes = {"auto": ["root", "user"] if self.root else ["user"], "plain": []}
        for mode in modes.get(setup.mode, [setup.mode]):
            if self._try(mode):
                self.mode, self.packages = mode, setup.packages and "/packages"
                return
        self._without_namespaces()

    def _without_namespaces(self) -> None:
        """Prepare `plain`: Landlock leaves each program the library and a separate folder."""
        version = landlock.version()
        if not version:
            self.notes.append("no Landlock, which Linux has from 5.13 on")
            return
        kernel.prctl(kernel.DUMPABLE, 0)  # no program may open the memory of the server or a keeper
        handles = self._reach_library() if self.root else []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
        shown = landlock.readable([path for path, _ in self.setup.shown], self.setup.hidden)
        rules = [(os.open(path, os.O_PATH | os.O_NOFOLLOW), rights) for path, rights in shown]
        if self.root:
            os.chmod(self.setup.folder, 0o711)
        self.files = Files(version, rules, self.setup.folder, handles)
        if code := _works(self._read_as_program):
            library = os.path.dirname(os.__file__)
            self.notes.append(f"no program can run as another user and read {library} ({os.strerror(code)})")
            return
        self.filter = calls.program(kernel.MACHINE, unconfined(version, as_root=self.root))
        self.mode = "plain"

    def _reach_library(self) -> list[int]:
        """Replace each folder that others cannot reach by a path through an open handle, and return these handles.

        So a Python in /root serves programs that are other users and have no right to anything else there.
        """
        handles: list[int] = []
        for folder in (os.path.dirname(os.__file__), self.packages):
            if not folder or _reached_by_all(folder):
                continue
            handle = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            handles.append(os.dup2(handle, LIBRARY - 1 - len(handles)))
            os.close(handle)
            name = f"/proc/self/fd/{handles[-1]}"
            if folder == self.packages:
                self.packages = name
                continue
            for paths in (sys.path, *(module.__dict__.get("__path__", []) for module in [*sys.modules.values()])):
                if isinstance(paths, list):
                    paths[:] = [name + path.removeprefix(folder) if _below(path, folder) else path for path in paths]
        return handles

    def _read_as_program(self) -> None:
        kernel.give_up_privileges(FIRST_USER if self.root else None)
        for folder, name in ((sys.modules["json"].__path__[0], "tool.py"), (self.packages, "numpy/__init__.py")):
            if folder:
                os.close(os.open(os.path.join(folder, name), os.O_RDONLY))

    def close(self) -> None:
        """Wait for the keepers, which end when lowtax has, and remove what a keeper could not."""
        with suppress(ChildProcessError):
            os.wait()
        if self.files:
            shutil.rmtree(self.files.parent, ignore_errors=True)

    def _try(self, mode: str) -> bool:
        """Enter a mode; it is tried in another process first, so that a failure half-way leaves this one as it was."""

        def probe() -> None:
            self._enter(mode)
            if inside := kernel.clone(SPACES | (kernel.NEW_USER if mode == "user" else 0)):
                os._exit(os.waitstatus_to_exitcode(os.waitpid(inside, 0)[1]))
            if mode == "user":
                kernel.map_ids(self.proc, NOBODY, NOBODY, *self.ids)
                if not _processes_are_limited():
                    os._exit(UNLIMITED)
            kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV)

        if code := _works(probe):
            why = "root's processes are under no limit there" if code == UNLIMITED else os.strerror(code)
            self.notes.append(f"no namespaces as {mode} ({why})")
            return False
        self._enter(mode)
        return True

    def _enter(self, mode: str) -> None:
        kernel.unshare(SPACES & ~kernel.NEW_PID | kernel.NEW_NET | kernel.NEW_UTS | (
            kernel.NEW_USER if mode == "user" else 0))  # fmt: skip
        if mode == "user":
            kernel.map_ids(self.proc, *self.ids, *self.ids)
        kernel.new_root(self.setup.folder, self.setup.shown, self.setup.hidden)

    def start(self, control: socket.socket, handles: list[int]) -> None:
        """Start a keeper for one more program."""
        self.count += 1
        user = FIRST_USER + self.count % (1 << 26) if self.root and self.mode != "user" else None
        setup = KeeperSetup(self.mode, self.ids, self.proc, user, self.filter, self.files)
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


def _processes_are_limited() -> bool:
    """Return False if this process may fork beyond its limit, as the kernel lets the machine's root."""
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        if child := os.fork():
            os.waitpid(child, 0)
            return False
    except BlockingIOError:
        return True
    os._exit(0)


def _reached_by_all(path: str) -> bool:
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def main() -> None:
    """Receive the setup, report which mode works, start keepers until lowtax closes the socket."""
    lowtax = socket.socket(fileno=os.dup(0))
    setup = Setup(**receive(lowtax))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in WARM.split():
        try:
            __import__(name)
        except ImportError:
            continue
    without_shared_files()
    os.putenv("OPENBLAS_NUM_THREADS", "1")
    os.putenv("OMP_NUM_THREADS", "1")
    os.putenv("TZ", "UTC0")  # the file with this machine's own time zone is not shown
    time.tzset()
    for name in ("exit", "quit"):  # which `site` would define
        setattr(builtins, name, sys.exit)
    sys.path[:] = [path for path in sys.path if os.path.isdir(path)]
    starter = Starter(setup)
    if starter.packages:
        sys.meta_path.append(Packages(starter.packages, setup.names))
    send(lowtax, {"mode": starter.mode, "notes": starter.notes})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while starter.mode:
        message, handles, _, _ = socket.recv_fds(lowtax, 1, 8)
        if not message:
            break
        control = socket.socket(fileno=handles[0])
        starter.start(control, handles[1:])
        control.close()
        for handle in handles[1:]:
            os.close(handle)
    starter.close()
