"""Workers on the machines of a Ray cluster: an actor for each, which holds one worker's process (`seat`).

Ray places the actors, tells when one is gone, and carries files where no folder is shared. Plain tasks of Ray would
lose the loaded model between shares; `ray.data.llm` pins another vLLM.
"""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.study.units.messages import Message, Task
from lowtax.study.units.seat import Seat, inside, packed, unpacked

INSTALL = "pip install 'lowtax[ray]'"
WAIT_FOR_PLACE = 300.0  # seconds until an actor has its place
LOOK = 1.0  # seconds that one call of an actor waits for messages
CPUS = 1  # of an actor
MOST_GONE = 20  # actors that end one after the other before a worker is ready


def require() -> Any:
    """Return the package ray.

    Raises:
        UserError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns where an actor has no GPU
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--on ray needs the package ray: {INSTALL}.") from error
    return ray


def places(requested: int | None, cpus: float, gpus: float, gpus_each: int = 1) -> int:
    """Return the number of workers for a cluster's resources: one for each GPU, or for each core without GPUs.

    Args:
        gpus_each: the GPUs of a worker, where there are any.

    Raises:
        UserError: The cluster has fewer than requested.
    """
    what, there, each = ("GPUs", int(gpus), gpus_each) if gpus else ("cores", int(cpus), 1)
    if there < each:
        has = f"{there} {what}, and a worker needs {each}" if there else "neither GPUs nor cores"
        raise UserError(f"The Ray cluster has {has}: add a node (`ray start --address=...`).")
    if requested is not None and requested * each > there:
        raise UserError(
            f"--workers {requested} needs {requested * each} {what}, {each} for each, and the Ray cluster has {there}: "
            f"give --workers {there // each}, or add nodes."
        )
    return requested or there // each


@dataclass
class _Place:
    actor: Any
    call: Any  # the reference of the call of the actor that is under way; None while it waits for a task
    since: float
    up: bool = False
    had: set[str] = field(default_factory=set)  # folders


class Cluster:
    """A pool of actors (`messages.Pool`)."""

    def __init__(
        self, ray: Any, out: Path, workers: int, gpus: int, threads: int, close: Callable[[], None], shared: bool
    ) -> None:
        self.ray, self.out, self.gpus, self.threads = ray, out.absolute(), gpus, threads
        self.on_node = -(-workers // max(1, sum(node["Alive"] for node in ray.nodes())))
        self._close = close
        self._token = f".lowtax-{secrets.token_hex(8)}"
        out.mkdir(parents=True, exist_ok=True)
        if shared:
            (self.out / self._token).touch()
        self._places: dict[str, _Place] = {}
        self._shared: dict[str, bool] = {}
        self._folders: dict[str, Any] = {}  # name -> reference of its files
        self._made = self._gone = 0
        self._kind = ray.remote(Seat)
        for _ in range(workers):
            self._start()

    @classmethod
    def connect(cls, on: str, workers: int | None, out: Path, gpus_each: int = 1, shared: bool = True) -> "Cluster":
        """Join a cluster, or start one on this machine.

        Args:
            on: `ray`, for the cluster of RAY_ADDRESS or a new one here; `ray://ADDRESS` for another.
            gpus_each: the GPUs of a worker, where there are any.
            shared: False sends files also where a node has the study's folder.

        Raises:
            UserError: Ray is not installed, the cluster cannot be reached, or it is too small.
        """
        ray = require()
        address = on.partition("://")[2] or os.environ.get("RAY_ADDRESS")
        begun = not ray.is_initialized()
        if begun:
            from lowtax import __file__ as ours

            # Workers import the lowtax of this driver where the file is there, as in an editable installation.
            path = os.pathsep.join(filter(None, [str(Path(ours).parents[1]), os.environ.get("PYTHONPATH")]))
            options: dict[str, Any] = {"runtime_env": {"env_vars": {"PYTHONPATH": path}}, "log_to_driver": False}
            say(f"joining the Ray cluster at {address} ..." if address else "starting Ray on this machine ...")
            try:
                ray.init(address=address, include_dashboard=None if address else False, **options)
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                raise UserError(
                    f"The Ray cluster{f' at {address}' if address else ''} cannot be used "
                    f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): look at "
                    "`ray status`, and give its address as --on ray://HOST:6379."
                ) from error
        try:
            resources = ray.cluster_resources()
            gpus = int(resources.get("GPU", 0))
            number = places(workers, resources.get("CPU", 0), gpus, gpus_each)
        except UserError:
            if begun:
                ray.shutdown()
            raise
        say(f"{number} workers on {len(ray.nodes())} nodes of Ray, {f'{gpus_each} GPU' if gpus else 'one core'} each")
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, resources.get("CPU", 1) // number))
        return cls(ray, out, number, gpus_each if gpus else 0, threads, ray.shutdown if begun else lambda: None, shared)

    def _start(self) -> None:
        options = {"num_cpus": CPUS, "num_gpus": self.gpus, "max_restarts": 0}
        actor = self._kind.options(**options).remote(str(self.out), self._token, self.threads, self.on_node)
        self._made += 1
        self._places[f"ray-{self._made}"] = _Place(actor, actor.is_shared.remote(), time.monotonic())

    def give(self, worker: str, task: Task) -> None:
        """Give a task to a worker that is ready, with the folders it reads where no folder is shared."""
        place = self._places[worker]
        names = [] if self._shared[worker] else [str(f) for f in task.inputs() if str(f) not in place.had]
        for name in names:
            if name not in self._folders:
                self._folders[name] = self.ray.put(packed(self.out / name))
        place.had.update(names)
        place.actor.give.remote(task, names, *(self._folders[name] for name in names))
        place.call = place.actor.poll.remote(LOOK)

    def poll(self, seconds: float) -> list[tuple[str, Message]]:
        """Return the messages that have come, after at most so many seconds."""
        by_call = {place.call: name for name, place in self._places.items() if place.call is not None}
        if not by_call:
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(list(by_call), num_returns=1, timeout=seconds)
        if done:
            done, _ = self.ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        messages = [message for call in done for message in self._read(by_call[call], call)]
        late = [p for p in self._places.values() if not p.up and time.monotonic() - p.since > WAIT_FOR_PLACE]
        if len(late) == len(self._places):
            raise UserError(
                f"No worker got a place in the Ray cluster within {WAIT_FOR_PLACE:g} s, and each needs {CPUS} core and "
                f"{self.gpus} GPU: look at `ray status` for who has them."
            )
        return messages

    def _read(self, name: str, call: Any) -> list[tuple[str, Message]]:
        place = self._places[name]
        try:
            value = self.ray.get(call)
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            self._gone += 1
            if self._gone > MOST_GONE:
                raise UserError(
                    f"{MOST_GONE} actors in a row ended before their worker was ready ({reason})."
                ) from error
            self._replace(name)
            return [(name, Message("lost", f"its actor is gone ({reason})"))]
        if not place.up:
            self._shared[name], place.up, value = value, True, []
        messages = list[tuple[str, Message]]()
        for message, folders in value:
            for folder, files in folders.items():
                unpacked(files, inside(self.out, folder))
            messages.append((name, message))
        waits = bool(messages) and messages[-1][1].state in ("ready", "done", "refused", "broken")
        self._gone = 0 if waits else self._gone
        place.call = None if waits else place.actor.poll.remote(LOOK)  # a task would wait behind the call
        return messages

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of the workers."""
        return {name: self.ray.get(place.actor.pid.remote()) for name, place in self._places.items() if place.up}

    def end(self, worker: str) -> None:
        """End a worker at once; its place is taken by a new one."""
        self._replace(worker)

    def _replace(self, name: str) -> None:
        place = self._places.pop(name)
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(place.actor)
        self._start()

    def close(self) -> None:
        """End all workers; training saves its state first."""
        calls = []
        for place in self._places.values():
            if place.up:
                calls.append(place.actor.close.remote())
        if calls:
            self.ray.wait(calls, num_returns=len(calls), timeout=40)
        for place in self._places.values():
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(place.actor)
        self._places.clear()
        (self.out / self._token).unlink(missing_ok=True)
        self._close()
