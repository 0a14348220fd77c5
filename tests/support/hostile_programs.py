"""Run the programs of tests/hostile with targets that are really there, and report what became of both.

    python hostile_programs.py [--ordinary] MODE ...

Started by root, `--ordinary` makes it an ordinary user, in a mount namespace that shows Python to all users. Prints
JSON: for each mode the results of attacks and of right programs, and a list of what was harmed or stayed behind.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from lowtax.benchmarks.sandbox import kernel
from lowtax.benchmarks.sandbox.run import Limits, check, run
from lowtax.benchmarks.sandbox.server import Server

HOSTILE = Path(__file__).parents[1] / "hostile"
LIMITS = Limits(wall_s=5, cpu_s=5, memory_mb=1024, file_mb=16, processes=12, output_bytes=100_000)
ORDINARY = 23_456
CANNOT = 77  # the exit code where root may not make an ordinary user here
BEFORE = """
import ctypes, json, os, signal, socket, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
ARM = os.uname().machine == "aarch64"
OTHERS = sorted({{*{others}, os.getppid()}})
SIGNALLED = [pid for pid in OTHERS if pid != 1]  # process 1 of a namespace ignores signals from within
SECRETS, LISTENER, DATAGRAMS, PACKAGE = {secrets}, {listener!r}, {datagrams!r}, {package!r}
LIBRARY = os.path.join(os.path.dirname(json.__path__[0]), "this.py")

def call(x86, arm, *values):
    values = [ctypes.c_long(v) if isinstance(v, int) else ctypes.c_void_p(v) if v is None else v for v in values]
    libc.syscall.restype = ctypes.c_long
    return libc.syscall(ctypes.c_long(arm if ARM else x86), *values)

def tells(what, result):
    if result >= 0:
        print("GOT", what, result)

def attempt(action, *values, **names):
    try:
        result = action(*values, **names)
    except (OSError, ValueError, OverflowError):
        return None
    return True if result is None else result
"""
READS = """
import glob, json, os
def answer(x):
    for path in {paths}:
        try:
            text = open(path).read()
        except OSError:
            continue
        return json.loads(text)[x - 3] if path.endswith("json") else 7919
    for pid in [{pid}, os.getppid(), *range(1, 50)]:
        try:
            memory = open(f"/proc/{{pid}}/mem", "rb")
            return 7919
        except OSError:
            continue
    return 0
"""


def sections(name: str) -> dict[str, str]:
    """Return the programs of a file, by name."""
    _, *parts = (HOSTILE / name).read_text().split("\n==== ")
    return {title: text + "\n" for title, _, text in (part.partition("\n") for part in parts)}


def become_ordinary() -> None:
    """Leave root for a user that no system has; what it needs of root's private folder is shown to it."""
    needed = [Path(path).resolve() for path in (sys.base_prefix, sys.prefix, HOSTILE, kernel.__file__)]
    private = {top for path in needed for top in [*path.parents][::-1] if not top.stat().st_mode & stat.S_IXOTH}
    kernel.unshare(kernel.NEW_NS)
    kernel.mount("none", "/", "none", kernel.REC | kernel.PRIVATE)
    handles = {path: os.open(path, os.O_PATH) for path in needed if any(top in path.parents for top in private)}
    for top in sorted(private)[:1]:
        kernel.mount("tmpfs", str(top), "tmpfs", 0, "mode=755")
    for path, handle in handles.items():
        path.mkdir(parents=True, exist_ok=True)
        kernel.mount(f"/proc/self/fd/{handle}", str(path), "none", kernel.BIND)
        os.close(handle)
    os.setgroups([])
    os.setresgid(ORDINARY, ORDINARY, ORDINARY)
    os.setresuid(ORDINARY, ORDINARY, ORDINARY)


class Targets:
    """What the programs attack: processes, files, sockets, and the places where something could stay behind."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="lowtax-targets-"))
        self.secrets = [self.folder / "secret.txt", self.folder / "expected.json"]
        self.secrets[0].write_text("SECRET of the user")
        self.secrets[1].write_text("[7919, [1, 2]]")
        for path in self.secrets:
            path.chmod(0o644 if path.suffix == ".json" else 0o600)
        self.folder.chmod(0o755)  # programs that are another user may come as far as the files
        self.victim = subprocess.Popen(["sleep", "100"], start_new_session=True)
        self.stream, self.datagrams = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end, name in ((self.stream, "stream"), (self.datagrams, "datagrams")):
            end.bind(str(self.folder / name))
            (self.folder / name).chmod(0o777)
            end.setblocking(False)
        self.stream.listen(5)
        self.state = self.measured()

    def measured(self) -> dict[str, object]:
        """Return all that a program must not change."""
        left = [*Path("/dev/shm").glob("*lowtax-left*"), *Path("/tmp").glob("*lowtax-left*"),
                *Path("/var/tmp").glob("*lowtax-left*"), *Path("/run").glob("*lowtax-left*")]  # fmt: skip
        files = [
            *self.folder.iterdir(),
            Path(os.__file__),
            Path(os.__file__).parent,
            Path(os.__file__).parent / "this.py",
        ]
        ipc = {kind: Path(f"/proc/sysvipc/{kind}").read_text().count("\n") for kind in ("shm", "sem", "msg")}
        queue = ctypes.CDLL(None).mq_open(b"/lowtax-left-queue", os.O_RDONLY)
        processes = {
            name: (os.sched_getaffinity(pid), os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid))
            for name, pid in (("victim", self.victim.pid), ("lowtax", os.getpid()))
        }
        limits = Path(f"/proc/{self.victim.pid}/limits").read_text()
        contents = [path.read_text() for path in self.secrets]
        stats = {
            str(p): (s.st_mode, s.st_uid, s.st_mtime_ns, s.st_size, s.st_nlink) for p in files for s in [p.lstat()]
        }
        return {"left": left, "files": stats, "ipc": ipc, "queue": queue, "processes": processes, "limits": limits,
                "contents": contents, "alive": self.victim.poll() is None}  # fmt: skip

    def harmed(self, server: Server) -> list[str]:
        """Return what is not as it was, in words for people."""
        state = self.measured()
        wrong = [
            f"{name}: {self.state[name]} became {state[name]}" for name in state if state[name] != self.state[name]
        ]
        for end in (self.stream.accept, lambda: self.datagrams.recv(100)):
            try:
                wrong.append(f"the socket received {end()}")
            except BlockingIOError:
                continue
        if server.process.poll() is not None:
            wrong.append("the server has ended")
        for _ in range(200):
            below = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
            folders = [
                path for path in Path(tempfile.gettempdir()).glob("lowtax-sandbox-*/*") if os.access(path, os.X_OK)
            ]
            mine = [path for path in folders if path.parent.stat().st_uid == os.getuid()]
            if not below and not mine:
                return wrong
            time.sleep(0.01)
        return [*wrong, f"running: {below}, folders: {mine}"]


def attacked(mode: str, targets: Targets) -> dict[str, object]:
    """Run all programs in one mode."""
    os.environ["LOWTAX_SANDBOX"], os.environ["SECRET"] = mode, "SECRET of lowtax"
    server = Server.running()
    before = BEFORE.format(
        others=[os.getpid(), server.process.pid, targets.victim.pid],
        secrets=[str(path) for path in targets.secrets],
        listener=str(targets.folder / "stream"),
        datagrams=str(targets.folder / "datagrams"),
        package=importlib.util.find_spec("psutil").origin,
    )
    tight = replace(LIMITS, memory_mb=256)
    reads = READS.format(paths=[str(path) for path in targets.secrets[::-1]], pid=os.getpid())
    tests = {"base": {"setup": "", "source": "assert answer(3) == 7919"}}
    with ThreadPoolExecutor(2) as pool:
        attacks = {
            n: pool.submit(run, f"{before}{p}print('TRIED')\n", tight) for n, p in sections("attacks.txt").items()
        }
        right = {n: pool.submit(run, p, LIMITS) for n, p in sections("right.txt").items()}
        function = pool.submit(check, reads, "answer", tests, LIMITS)
    return {
        "mode": server.mode,
        "attacks": {name: (end.status, end.stdout, end.stderr) for name, f in attacks.items() for end in [f.result()]},
        "right": {name: (end.status, end.stdout, end.stderr) for name, f in right.items() for end in [f.result()]},
        "reads": function.result()[0]["base"].kind,
        "harmed": targets.harmed(server),
    }


def main(arguments: list[str]) -> None:
    """Run and print."""
    if "--ordinary" in arguments:
        try:
            become_ordinary()
        except OSError:
            sys.exit(CANNOT)
    targets = Targets()
    modes = [argument for argument in arguments if not argument.startswith("-")]
    try:
        print(json.dumps({mode: attacked(mode, targets) for mode in modes}))
    finally:
        targets.victim.kill()
        targets.victim.wait()
        shutil.rmtree(targets.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
