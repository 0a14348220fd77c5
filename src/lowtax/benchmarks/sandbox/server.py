"""Start and use the server of sandboxed processes: one per process of lowtax, shared by its threads."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.log import complain

from . import kernel
from .values import NotPlain, frame, receive, send

GRACE = 2.0  # seconds that a keeper has to end its program after the time is up
MODE = "LOWTAX_SANDBOX"
# The child gets this folder as a package that has no parent, so that neither `lowtax` nor its `__init__` is imported.
BOOT = (
    "import sys, types; package = types.ModuleType('lowtax_sandbox'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['lowtax_sandbox'] = package; from lowtax_sandbox.starter import main; main()"
)
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
SHOWN = ("/usr/share/zoneinfo", "/etc/ld.so.cache")
PACKAGES = ("numpy", "numpy.libs")
DEVICES = ("null", "zero", "full", "random", "urandom")


class Server:
    """The process that starts sandboxes: one for all threads of this process, ended with it."""

    _lock = threading.Lock()
    _running: "dict[tuple[int, str], Server]" = {}  # noqa: RUF012  (shared on purpose)

    def __init__(self, mode: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.lock = threading.Lock()
        numpy = importlib.util.find_spec("numpy")
        site = Path(numpy.origin).parents[1] if numpy and numpy.origin else None
        shown, hidden = _library()
        pairs = [(path, path) for path in shown]
        pairs += [(str(site / name), f"/packages/{name}") for name in PACKAGES if site and (site / name).is_dir()]
        pairs += [(f"/dev/{name}", f"/dev/{name}") for name in DEVICES]
        self.folder = tempfile.mkdtemp(prefix="lowtax-sandbox-")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", "-c", BOOT, str(Path(__file__).parent)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        send(
            self.socket,
            {
                "mode": mode,
                "folder": self.folder,
                "shown": pairs,
                "hidden": hidden,
                "packages": str(site) if site else "",
                "names": ["numpy"],
            },
        )
        try:
            report = receive(self.socket)
        except (EOFError, NotPlain) as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise UserError(
                f"The sandbox could not be started (its server ended with code {self.process.wait()}): it needs Linux; "
                "see docs/explanation/sandbox.md."
            ) from error
        self.mode, why = str(report["mode"]), "; ".join(report["notes"]) or f"{MODE} asks for it"
        if self.mode != "plain":  # there the folders of programs are in it; the server removes it at its end
            shutil.rmtree(self.folder, ignore_errors=True)
        if not self.mode:
            raise UserError(
                f"The sandbox cannot keep programs from the files of this machine ({why}): grade code where Linux has "
                "user namespaces or Landlock, on x86_64 or aarch64; see docs/explanation/sandbox.md."
            )
        if self.mode == "plain":
            kernel.prctl(kernel.DUMPABLE, 0)  # programs may be the same user, and expected values are in this memory
            complain(
                f"WARNING: the sandbox has NO namespaces here ({why}): Landlock closes files and signals to programs, "
                "and the disk is limited for each of their files alone (docs/explanation/sandbox.md)."
            )

    @classmethod
    def running(cls) -> "Server":
        """Return this process's server; it is started on first use."""
        mode = os.environ.get(MODE, "auto")
        if mode not in ("auto", "root", "user", "plain"):
            raise UserError(f"{MODE} is {mode!r}: it can be auto, root, user or plain.")
        if sys.platform != "linux":
            raise UserError(f"The sandbox needs Linux (this is {sys.platform}): grade code there, or in a container.")
        with cls._lock:
            key = (os.getpid(), mode)  # a forked process needs another one
            server = cls._running.get(key)
            if server is not None and server.process.poll() is not None:
                server.socket.close()
                shutil.rmtree(server.folder, ignore_errors=True)
                server = None
            if server is None:
                server = cls._running[key] = cls(mode)
            return server

    def start(
        self, role: str, job: Mapping[str, Any], limits: Mapping[str, Any], handles: Sequence[int]
    ) -> socket.socket:
        """Start one program; the socket gets the report, and closing it ends the program.

        Raises NotPlain if the job is too large to be sent.
        """
        text = frame({"role": role, "job": job, "limits": limits})
        ours, theirs = socket.socketpair()
        with theirs, self.lock:
            socket.send_fds(self.socket, [b"+"], [theirs.fileno(), *handles])
        ours.settimeout(limits["wall_s"] + GRACE + 5)
        ours.sendall(text)
        return ours


def _library() -> tuple[list[str], list[str]]:
    """Return the files and folders of Python's library and of shared ones, and the folders of packages in them.

    Distributions that keep shared libraries in a folder of their own show that one alone.
    """
    triplet = str(sysconfig.get_config_var("MULTIARCH") or "-")
    shown = [path if os.path.islink(path) or not os.path.isdir(f"{path}/{triplet}") else f"{path}/{triplet}"
             for path in SYSTEM if os.path.lexists(path)]  # fmt: skip
    base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
    for name in ("stdlib", "platstdlib"):
        library = sysconfig.get_path(name, vars=base)
        parent = os.path.dirname(library)
        shown += [library] if parent in SYSTEM else [parent, os.path.realpath(parent)]
    shown += [path for path in SHOWN if os.path.lexists(path)]
    shown = [path for path in dict.fromkeys(shown) if not _inside(path, shown)]
    hidden = [
        package
        for path in shown
        if not os.path.islink(path)
        for inner in ("", "python*/")
        for package in glob(f"{path}/{inner}site-packages") + glob(f"{path}/{inner}dist-packages")
    ]
    return shown, hidden


def _inside(path: str, shown: Sequence[str]) -> bool:
    """Return True if a path is in another one that is shown, and is not a link."""
    return any(path != other and path.startswith(other + "/") for other in shown) and not os.path.islink(path)
