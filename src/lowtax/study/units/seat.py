"""A seat for a worker on a machine of a cluster: one process there, and the study's folder, shared or copied."""

import os
import shutil
import tempfile
from pathlib import Path

from lowtax.common.files import atomic_folder
from lowtax.common.launch import WORKERS
from lowtax.study.units.messages import Message, Shared, Task
from lowtax.study.units.processes import Processes
from lowtax.training.group import free_port

Files = dict[str, bytes]  # of a folder, by relative path
OWN = (".lock", ".state")  # what training keeps for itself


class Seat:
    """One worker. It runs inside an actor, whose end is also the end of the worker's process.

    Args:
        out: the study's folder as the driver names it.
        token: the name of a file in it, by which a shared folder is known.
        threads: of the worker.
        on_node: the number of workers that share the memory of a machine.
    """

    def __init__(self, out: str, token: str, threads: int, on_node: int) -> None:
        self.out, self.scratch = Path(out), Path(tempfile.mkdtemp(prefix="lowtax-worker-"))
        self.shared = (self.out / token).exists()
        self._task: Task | None = None
        self._pool = Processes([{"OMP_NUM_THREADS": str(threads), WORKERS: str(on_node)}], copied=False)
        self._name = ""

    def is_shared(self) -> bool:
        """Return whether this machine sees the study's folder."""
        return self.shared

    def give(self, task: Task, names: list[str], *files: Files) -> None:
        """Begin a task; `names` are those of its input folders that this seat has not had yet, `files` what is in them.

        Ray fetches only whole arguments from its object store, so there is one for each folder.
        """
        for name, of_folder in zip(names, files, strict=True):
            unpacked(of_folder, self.scratch / name)
        self._task = task if self.shared else task.at(self.scratch)
        self._pool.give(self._name, self._task)

    def endpoint(self) -> tuple[str, int]:
        """Return the address of this machine, and a port, for the first process of a group to listen."""
        from ray.util import get_node_ip_address  # a seat is in an actor

        return get_node_ip_address(), free_port()

    def join(
        self, task: Shared, rank: int, number: int, endpoint: tuple[str, int], names: list[str], *files: Files
    ) -> None:
        """Begin this machine's part of a task, as `give` does."""
        self.give(task.part(rank, number, *endpoint), names, *files)

    def poll(self, seconds: float) -> list[tuple[Message, dict[str, Files]]]:
        """Return the messages of the worker, with the folders that a finished task wrote where nothing is shared."""
        messages = []
        for name, message in self._pool.poll(seconds):
            if message.state == "ready":
                self._name = name
            files: dict[str, Files] = {}
            if message.state == "done" and self._task is not None and not self.shared:
                files = {str(folder): packed(self.scratch / folder) for folder in self._task.outputs()}
                for folder in self._task.outputs():  # else the next try of a unit would find it trained
                    shutil.rmtree(self.scratch / folder)
            messages.append((message, files))
        return messages

    def pid(self) -> int | None:
        """Return the process id of the worker, None while it starts."""
        return next(iter(self._pool.pids().values()), None)

    def close(self) -> None:
        """End the worker."""
        self._pool.close()
        shutil.rmtree(self.scratch, ignore_errors=True)


def packed(folder: Path) -> Files:
    """Return the files of a folder without those that training keeps for itself."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = ((path, path.relative_to(folder)) for path in paths)
    return {str(name): path.read_bytes() for path, name in names if not set(name.parts) & set(OWN)}


def unpacked(files: Files, folder: Path) -> None:
    """Write the files of a folder as a whole or not at all, in the place of what is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, replace=True) as work:
        for name, content in files.items():
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def inside(out: Path, name: str) -> Path:
    """Return a folder of the study that a worker may write.

    Raises:
        ValueError: the name leads out of it.
    """
    path = os.path.normpath(out / name)
    if not Path(path).is_relative_to(os.path.normpath(out)) or Path(path) == out:
        raise ValueError(f"{name} is no folder in {out}")
    return Path(path)
