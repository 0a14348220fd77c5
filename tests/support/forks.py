"""Processes that start at once, as copies of one that has imported the libraries: commands of lowtax, and functions.

For tests of what a process of its own does (signals, kills, limits, output). How a new Python starts, with its imports
and warnings, is shown by the tests that start one.
"""

import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path

from places import TESTS

PATH = "PYTHONPATH"


def context() -> ForkServerContext:
    """Return the context whose processes have all that `warm` imports."""
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["warm"])
    before = os.environ.get(PATH)
    os.environ[PATH] = os.pathsep.join(filter(None, (str(TESTS / "support"), before)))
    try:
        forkserver.ensure_running()
    finally:
        os.environ[PATH] = before or ""
    return chosen


class Command:
    """A command of lowtax that runs meanwhile, with the methods of `subprocess.Popen` that the tests use.

    Args:
        arguments: the words after `lowtax`.
        file_bytes: the size that a file may have, None for any.
    """

    def __init__(self, *arguments: object, file_bytes: int | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        words = (list(map(str, arguments)), dict(os.environ), os.getcwd(), self._outputs, file_bytes)
        self._process = context().Process(target=_command, args=words)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float) -> list[str]:
        """Wait for the end; return what was printed to the standard output and error."""
        self._process.join(timeout)
        assert self.returncode is not None, f"no end after {timeout:g} s"
        return [path.read_text() for path in self._outputs]

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._folder.cleanup()


def _command(
    words: list[str], environment: dict[str, str], folder: str, outputs: list[Path], file_bytes: int | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for path, number in zip(outputs, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    from lowtax.cli.main import main

    sys.argv = ["lowtax", *words]
    main()
