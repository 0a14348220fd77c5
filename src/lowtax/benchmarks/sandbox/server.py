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
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.log import complain

from .values import NotPlain, receive, send

GRACE = 2.0  # seconds that a keeper has to end its program after the time is up
MODE = "LOWTAX_SANDBOX"
# The child gets this folder as a package that has no parent, so that neither `lowtax` nor its `__init__` is imported.
BOOT = (
    "import sys, types; package = types.ModuleType('lowtax_sandbox'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['lowtax_sandbox'] = package; from lowtax_sandbox.starter import main; main()"
)
SHOWN = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
DEVICES = ("null", "zero", "full", "random", "urandom")


class Server:
    """The process that starts sandboxes: one for all threads of this process, ended with it."""

    _lock = threading.Lock()
    _running: "dict[tuple[int, str], Server]" = {}  # noqa: RUF012  (shared on purpose)

    def __init__(self, mode: str) -> None:
        self.socket, theirs = socket.socketpair()
        self.lock = threading.Lock()
        library, package = str(Path(sysconfig.get_path("stdlib")).parent), Path(__file__).parent
        numpy = importlib.util.find_spec("numpy")
        site = Path(numpy.origin).parents[1] if numpy and numpy.origin else None
        folders = [site / name for name in ("numpy", "numpy.libs") if (site / name).is_dir()] if site else []
        shown = [(path, path) for path in dict.fromkeys((*SHOWN, library)) if os.path.lexists(path)]
        shown = [(path, inside) for path, inside in shown if not _inside(path, shown)]
        shown += [(str(path), f"/packages/{path.name}") for path in folders]
        shown += [(f"/dev/{name}", f"/dev/{name}") for name in DEVICES]
        folder = tempfile.mkdtemp(prefix="lowtax-root-")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-s", "-P", "-S", "-c", BOOT, str(package)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
        send(
            self.socket,
            {
                "mode": mode,
                "folder": folder,
                "shown": shown,
                "packages": "/packages",
                "packages_plain": str(site) if site else "",
                "names": ["numpy"],
            },
        )
        try:
            report = receive(self.socket)
        except (EOFError, NotPlain) as error:
            raise UserError(
                f"The sandbox could not be started (its server ended with code {self.process.wait()}): it needs Linux; "
                "see docs/explanation/sandbox.md."
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.mode, self.notes = str(report["mode"]), list(report["notes"])
        if not report["filtered"]:
            complain("WARNING: the sandbox cannot filter system calls here (docs/explanation/sandbox.md).")
        if self.mode == "plain":
            why = "; ".join(self.notes) or f"{MODE} asks for it"
            complain(
                f"WARNING: the sandbox has NO namespaces here ({why}): programs can read this machine's files"
                f"{'' if os.geteuid() == 0 else ', write yours'} and are only limited and killed "
                "(docs/explanation/sandbox.md)."
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
                server = None
            if server is None:
                server = cls._running[key] = cls(mode)
            return server

    def start(
        self, role: str, job: Mapping[str, Any], limits: Mapping[str, Any], handles: Sequence[int]
    ) -> socket.socket:
        """Start one program; the socket gets the report, and closing it ends the program."""
        ours, theirs = socket.socketpair()
        with theirs, self.lock:
            socket.send_fds(self.socket, [b"+"], [theirs.fileno(), *handles])
        ours.settimeout(limits["wall_s"] + GRACE + 5)
        send(ours, {"role": role, "job": job, "limits": limits})
        return ours


def _inside(path: str, shown: Sequence[tuple[str, str]]) -> bool:
    """Return True if a path is in another one that is shown, and is not a link."""
    return any(path != other and path.startswith(other + "/") for other, _ in shown) and not os.path.islink(path)
