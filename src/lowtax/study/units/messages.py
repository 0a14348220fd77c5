"""Messages between workers and their driver, and the interface of a set of workers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from lowtax.common.allocator import release_memory

State = Literal["ready", "said", "progress", "done", "refused", "broken", "lost"]


@dataclass(frozen=True)
class Message:
    """A message of a worker.

    ready: it takes tasks; value is its machine and process id. said: a line of progress. progress: (items, tokens) so
    far. done: the task's result. refused: a sentence for users, which another try would end with, too. broken: the
    traceback of another error. lost: the worker is gone; value is the reason.
    """

    state: State
    value: Any = None


class Task(Protocol):
    """Work for one worker, which can be pickled. Paths in it are below the folder of the study."""

    def run(self, desk: "Desk") -> Any:
        """Do the work and return what the driver stores."""
        ...

    def at(self, root: Path) -> "Task":
        """Return the task with the study's folder somewhere else."""
        ...

    def inputs(self) -> list[Path]:
        """Return the folders that it reads, relative to that of the study."""
        ...

    def outputs(self) -> list[Path]:
        """Return the folders that it writes, relative to that of the study."""
        ...


@runtime_checkable
class Shared(Task, Protocol):
    """A task that processes on several machines do together, if its number of them is not None."""

    processes: int | None

    def part(self, rank: int, number: int, address: str, port: int) -> Task:
        """Return the part of one machine, by its rank among so many; the first process listens at the address."""
        ...


class Desk:
    """The things that a worker keeps between tasks: the loaded model, and the way to its driver."""

    def __init__(self, tell: Callable[[Message], None]) -> None:
        self._tell = tell
        self._key: Any = None
        self._loaded: Any = None

    def progress(self, items: int, tokens: int = 0) -> None:
        """Tell the driver how much is done."""
        self._tell(Message("progress", (items, tokens)))

    def loaded(self, key: Any, load: Callable[[], Any]) -> Any:
        """Return what `load` returned when it was last called with this key; it is kept until another key comes."""
        if key != self._key:
            self.clear()
            self._loaded, self._key = load(), key
        return self._loaded

    def clear(self) -> None:
        """Release what is loaded, with its memory on a GPU."""
        if self._key is None:
            return
        self._key = self._loaded = None
        release_memory()


class Pool(Protocol):
    """Workers that take tasks. A worker that is lost is replaced by another one of another name."""

    def give(self, worker: str, task: Task) -> None:
        """Give a task to a worker that is ready."""
        ...

    def poll(self, seconds: float) -> list[tuple[str, Message]]:
        """Return the messages that have come, after at most so many seconds."""
        ...

    def end(self, worker: str) -> None:
        """End a worker at once; its place is taken by a new one."""
        ...

    def close(self) -> None:
        """End all workers; training saves its state first."""
        ...
