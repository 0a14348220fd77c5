"""Workers as processes of this machine: one GPU each, or a share of the processor's cores."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import connection as connections
from multiprocessing.connection import Connection
from typing import IO, Any

from lowtax.common.errors import UserError
from lowtax.common.launch import WORKERS
from lowtax.study.units.messages import Message, Task

GRACE = 30.0  # seconds in which training saves its state
STARTS = 3  # failed starts of one worker after which there is no other try


@dataclass
class Process:
    """A worker's process."""

    place: int
    connection: Connection
    errors: IO[bytes]
    starts: int
    popen: subprocess.Popen[bytes] | None = None
    pid: int | None = None
    ready: bool = False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        with suppress(ProcessLookupError):
            if self.popen is not None:
                self.popen.send_signal(number)
            elif self.pid is not None:
                os.kill(self.pid, number)

    def last_words(self) -> str:
        """Return the last line of its standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no reason"


def environments(workers: int, gpus: list[str], cores: int, gpus_each: int = 1) -> list[dict[str, str]]:
    """Return the variables of each worker: its GPUs if there are any, and its threads.

    Args:
        gpus: the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.
        cores: those that this process may use. OMP_NUM_THREADS is for each worker, if it is set.
        gpus_each: the GPUs of a worker.

    Raises:
        UserError: There are fewer GPUs than the workers need.
    """
    if gpus and workers * gpus_each > len(gpus):
        raise UserError(
            f"--workers {workers} needs {workers * gpus_each} GPUs, {gpus_each} for each, and there are {len(gpus)} "
            f"here: give --workers {len(gpus) // gpus_each}."
            if gpus_each <= len(gpus)
            else f"--gpus-each {gpus_each} needs {gpus_each} GPUs, and there are {len(gpus)} here."
        )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // workers))
    room = os.environ.get("VLLM_CPU_KVCACHE_SPACE") or str(max(1, 4 // workers))  # GiB
    common = {"OMP_NUM_THREADS": threads, WORKERS: str(workers), "VLLM_CPU_KVCACHE_SPACE": room}
    own = [",".join(gpus[place * gpus_each : (place + 1) * gpus_each]) for place in range(workers)]
    return [common | ({"CUDA_VISIBLE_DEVICES": names} if gpus else {}) for names in own]


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


@dataclass
class Processes:
    """A pool of local processes (`messages.Pool`).

    Args:
        environments: the variables of each worker.
        copied: make the workers copies of one process, which has imported the libraries.
    """

    environments: list[dict[str, str]]
    copied: bool = True
    prefix: str = "worker"
    _workers: dict[str, Process] = field(default_factory=dict)
    _made: int = 0
    _control: socket.socket | None = None
    _template: subprocess.Popen[bytes] | None = None
    _template_errors: IO[bytes] | None = None

    def __post_init__(self) -> None:
        """Start all workers."""
        for place in range(len(self.environments)):
            self._start(place)

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of the workers, None while one starts."""
        return {name: worker.pid for name, worker in self._workers.items()}

    def give(self, worker: str, task: Task) -> None:
        """Give a task to a worker that is ready."""
        with suppress(OSError):  # a worker that is gone is reported by `poll`
            self._workers[worker].connection.send(task)

    def poll(self, seconds: float) -> list[tuple[str, Message]]:
        """Return the messages that have come, after at most so many seconds."""
        by_connection = {worker.connection: name for name, worker in self._workers.items()}
        messages = list[tuple[str, Message]]()
        for connection in connections.wait(list(by_connection), seconds):
            assert isinstance(connection, Connection)
            messages += self._read(by_connection[connection], connection)
        return messages

    def _read(self, name: str, connection: Connection) -> list[tuple[str, Message]]:
        messages = list[tuple[str, Message]]()
        try:
            while connection.poll():
                message: Message = connection.recv()
                if message.state == "ready":
                    self._workers[name].pid, self._workers[name].ready = message.value[1], True
                messages.append((name, message))
        except (EOFError, OSError):
            messages.append((name, Message("lost", self._replace(name))))
        return messages

    def end(self, worker: str) -> None:
        """End a worker at once; its place is taken by a new one."""
        self._replace(worker)

    def _replace(self, name: str) -> str:
        """Start a new worker in the place of one; return the last words of that one."""
        gone = self._workers.pop(name)
        gone.kill()
        if gone.popen is not None:
            gone.popen.wait()
        gone.connection.close()
        words = gone.last_words()
        gone.errors.close()
        starts = 0 if gone.ready else gone.starts + 1
        if starts >= STARTS:
            raise UserError(f"A worker could not be started, {STARTS} times in a row ({words}).")
        self._start(gone.place, starts)
        return f"the worker's process ended ({words})"

    def _start(self, place: int, starts: int = 0) -> None:
        ours, theirs = connections.Pipe()
        errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the worker
        worker = Process(place, ours, errors, starts)
        self._made += 1
        self._workers[f"{self.prefix}-{self._made}"] = worker
        variables = self.environments[place]
        if self.copied:
            self._copy(json.dumps(variables).encode(), theirs.fileno(), errors.fileno())
        else:
            worker.popen = _process("serve", theirs.fileno(), errors, variables)
        theirs.close()

    def _copy(self, text: bytes, *numbers: int) -> None:
        if self._template is None or self._template.poll() is not None:
            ours, theirs = socket.socketpair()
            if self._template_errors is None:
                self._template_errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._template = _process("copies", theirs.fileno(), self._template_errors, self.environments[0])
            theirs.close()
            self._control = ours
        assert self._control is not None
        socket.send_fds(self._control, [text], list(numbers))

    def close(self) -> None:
        """End all workers; training saves its state first."""
        for worker in self._workers.values():
            worker.kill(signal.SIGTERM)
        until = time.monotonic() + GRACE
        left = {worker.connection for worker in self._workers.values() if worker.ready}
        while left and time.monotonic() < until:
            for connection in connections.wait(list(left), 0.2):
                assert isinstance(connection, Connection)
                try:
                    connection.recv()
                except (EOFError, OSError):
                    left.discard(connection)
        for worker in self._workers.values():
            worker.kill()
            if worker.popen is not None:
                worker.popen.wait()
            worker.connection.close()
            worker.errors.close()
        self._workers.clear()
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.kill()
            self._template.wait()
        if self._template_errors is not None:
            self._template_errors.close()


def _process(what: str, number: int, errors: IO[bytes], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lowtax.study.units.worker", what, str(number), str(os.getpid())]
    environment: dict[str, Any] = {**os.environ, **variables}
    return subprocess.Popen(
        command,
        env=environment,
        pass_fds=[number],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        start_new_session=True,
    )
