"""Workers on the machines of a Ray cluster: an actor for each, which holds one worker's process (`seat`).

Ray places the actors, tells when one is gone, and carries files where no folder is shared. Plain tasks of Ray would
lose the loaded model between shares; `ray.data.llm` pins another vLLM.

A worker may be on several nodes, an actor on each, for training that one does not hold: a placement group of Ray. The
first actor does all tasks; in training each starts its machine's part of the processes (`training.group`). If one
fails, all are replaced, and the unit is begun again. Ray Train would bring a second way to save and resume.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowtax.common.errors import UserError
from lowtax.common.log import say
from lowtax.study.units.messages import Message, Shared, Task
from lowtax.study.units.seat import Seat, inside, packed, unpacked

INSTALL = "pip install 'lowtax[ray]'"
WAIT_FOR_PLACE = 300.0  # seconds until an actor has its place
LOOK = 1.0  # seconds that one call of an actor waits for messages
CPUS = 1  # of an actor
MOST_GONE = 20  # actors that end one after the other before a worker is ready
PASSED_ON = ("ACCELERATE_", "FSDP_")  # variables by which a user chooses how a group of processes trains


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


def spread(requested: int | None, room: Sequence[int], nodes_each: int) -> int:
    """Return the number of workers that are on several nodes each.

    Args:
        room: of each node, the workers whose part it can hold.
        nodes_each: the nodes of a worker.

    Raises:
        UserError: The cluster has room for fewer than requested.
    """
    fit = (n for n in range(1, sum(room) + 1) if sum(min(n, each) for each in room) >= n * nodes_each)
    most = max(fit, default=0)
    if not most:
        raise UserError(
            f"--nodes-each {nodes_each} needs as many nodes of the Ray cluster with the GPUs of a worker's part, and "
            f"there are {sum(each > 0 for each in room)}: add nodes (`ray start --address=...`)."
        )
    if requested is not None and requested > most:
        raise UserError(
            f"--workers {requested} with --nodes-each {nodes_each} needs more than the Ray cluster has: give "
            f"--workers {most}, or add nodes."
        )
    return requested or most


def passed_on(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the driver that its workers need on other machines."""
    from lowtax import __file__ as ours

    # Workers import the lowtax of this driver where the file is there, as in an editable installation.
    path = os.pathsep.join(filter(None, [str(Path(ours).parents[1]), variables.get("PYTHONPATH")]))
    return {name: value for name, value in variables.items() if name.startswith(PASSED_ON)} | {"PYTHONPATH": path}


@dataclass
class _Actor:
    """An actor of a worker. `call` refers to its call that is under way; None while it has no task."""

    handle: Any
    call: Any
    up: bool = False


@dataclass
class _Place:
    """A worker: an actor, or one on each of several nodes, of which the first speaks."""

    actors: list[_Actor]
    since: float
    bundles: Any = None  # the placement group of several
    had: set[str] = field(default_factory=set)  # folders
    together: bool = False  # all do their parts of one task
    ended: list[Message] = field(default_factory=list)  # of the first actor, until the others have ended, too

    @property
    def up(self) -> bool:
        return all(actor.up for actor in self.actors)


class Cluster:
    """A pool of actors (`messages.Pool`).

    Args:
        gpus: the GPUs of an actor. nodes_each: the nodes of a worker, with an actor on each.
    """

    def __init__(
        self,
        ray: Any,
        out: Path,
        workers: int,
        gpus: int,
        threads: int,
        close: Callable[[], None],
        shared: bool,
        nodes_each: int = 1,
    ) -> None:
        self.ray, self.out, self.gpus, self.threads = ray, out.absolute(), gpus, threads
        self.nodes_each = nodes_each
        self.on_node = -(-workers * nodes_each // max(1, sum(node["Alive"] for node in ray.nodes())))
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
    def connect(
        cls,
        on: str,
        workers: int | None,
        out: Path,
        gpus_each: int = 1,
        shared: bool = True,
        nodes_each: int = 1,
    ) -> "Cluster":
        """Join a cluster, or start one on this machine.

        Args:
            on: `ray`, for the cluster of RAY_ADDRESS or a new one here; `ray://ADDRESS` for another.
            gpus_each: the GPUs of a worker, where there are any.
            shared: False sends files also where a node has the study's folder.
            nodes_each: the nodes of a worker, each with its part of the GPUs.

        Raises:
            UserError: Ray is not installed, the cluster cannot be reached, or it is too small.
        """
        ray = require()
        address = on.partition("://")[2] or os.environ.get("RAY_ADDRESS")
        begun = not ray.is_initialized()
        if begun:
            environment = {"runtime_env": {"env_vars": passed_on(os.environ)}, "log_to_driver": False}
            options: dict[str, Any] = {"include_dashboard": None if address else False, **environment}
            say(f"joining the Ray cluster at {address} ..." if address else "starting Ray on this machine ...")
            try:
                ray.init(address=address or "local", **options)  # None would join any cluster of this machine
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                raise UserError(
                    f"The Ray cluster{f' at {address}' if address else ''} cannot be used "
                    f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}): look at "
                    "`ray status`, and give its address as --on ray://HOST:6379."
                ) from error
        close = ray.shutdown if begun else lambda: None
        try:
            resources = ray.cluster_resources()
            cpus, gpus = resources.get("CPU", 0), int(resources.get("GPU", 0))
            part = gpus_each // nodes_each if gpus else 0  # of an actor
            if nodes_each == 1:
                number = places(workers, cpus, gpus, gpus_each)
            else:
                of_nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                room = [int(each.get("GPU", 0)) // part if part else int(each.get("CPU", 0)) for each in of_nodes]
                number = spread(workers, room, nodes_each)
        except UserError:
            close()
            raise
        each = f"{part} GPU" if gpus else "one core"
        say(
            f"{number} workers on {len(ray.nodes())} nodes of Ray, {each} each"
            + (f" on each of {nodes_each} nodes" if nodes_each > 1 else "")
        )
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, cpus // (number * nodes_each)))
        return cls(ray, out, number, part, threads, close, shared, nodes_each)

    def _start(self) -> None:
        options: dict[str, Any] = {"num_cpus": CPUS, "num_gpus": self.gpus, "max_restarts": 0}
        bundles, strategies = None, [dict[str, Any]()]
        if self.nodes_each > 1:
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Strategy

            bundles = self.ray.util.placement_group(
                [{"CPU": CPUS, **({"GPU": self.gpus} if self.gpus else {})}] * self.nodes_each, strategy="STRICT_SPREAD"
            )
            strategies = [{"scheduling_strategy": Strategy(bundles, number)} for number in range(self.nodes_each)]
        actors = list[_Actor]()
        for strategy in strategies:
            handle = self._kind.options(**options, **strategy).remote(
                str(self.out), self._token, self.threads, self.on_node
            )
            actors.append(_Actor(handle, handle.is_shared.remote()))
        self._made += 1
        self._places[f"ray-{self._made}"] = _Place(actors, time.monotonic(), bundles)

    def give(self, worker: str, task: Task) -> None:
        """Give a task to a worker that is ready, with the folders it reads where no folder is shared."""
        place = self._places[worker]
        names = [] if self._shared[worker] else [str(f) for f in task.inputs() if str(f) not in place.had]
        for name in names:
            if name not in self._folders:
                self._folders[name] = self.ray.put(packed(self.out / name))
        place.had.update(names)
        files = [self._folders[name] for name in names]
        first, *others = place.actors
        if others and isinstance(task, Shared) and task.processes is not None:
            endpoint, place.together = first.handle.endpoint.remote(), True
            for rank, actor in enumerate(place.actors):
                actor.handle.join.remote(task, rank, len(place.actors), endpoint, names, *files)
                actor.call = actor.handle.poll.remote(LOOK)
            return
        first.handle.give.remote(task, names, *files)
        first.call = first.handle.poll.remote(LOOK)

    def poll(self, seconds: float) -> list[tuple[str, Message]]:
        """Return the messages that have come, after at most so many seconds."""
        by_call = {
            actor.call: (name, actor)
            for name, place in self._places.items()
            for actor in place.actors
            if actor.call is not None
        }
        if not by_call:
            time.sleep(seconds)
            return []
        done, _ = self.ray.wait(list(by_call), num_returns=1, timeout=seconds)
        if done:
            done, _ = self.ray.wait(list(by_call), num_returns=len(by_call), timeout=0)
        messages = [message for call in done for message in self._read(*by_call[call])]
        late = [p for p in self._places.values() if not p.up and time.monotonic() - p.since > WAIT_FOR_PLACE]
        if len(late) == len(self._places):
            raise UserError(
                f"No worker got a place in the Ray cluster within {WAIT_FOR_PLACE:g} s, and each needs {CPUS} core and "
                f"{self.gpus} GPU{f' on {self.nodes_each} nodes' * (self.nodes_each > 1)}: look at `ray status` for "
                "who has them."
            )
        return messages

    def _read(self, name: str, actor: _Actor) -> list[tuple[str, Message]]:
        place = self._places.get(name)
        if place is None:  # it was replaced a moment ago, because of another of its actors
            return []
        try:
            value = self.ray.get(actor.call)
        except self.ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            self._gone += 1
            if self._gone > MOST_GONE:
                raise UserError(
                    f"{MOST_GONE} actors in a row ended before their worker was ready ({reason})."
                ) from error
            self._replace(name)
            return [(name, Message("lost", f"its actor is gone ({reason})"))]
        if not actor.up:
            self._is_up(name, place, actor, value)
            value = []
        messages = list[Message]()
        for message, folders in value:
            for folder, files in folders.items():
                unpacked(files, inside(self.out, folder))
            messages.append(message)
        waits = bool(messages) and messages[-1].state in ("ready", "done", "refused", "broken")
        self._gone = 0 if waits else self._gone
        actor.call = None if waits else actor.handle.poll.remote(LOOK)  # a task would wait behind the call
        of_place = messages if len(place.actors) == 1 else self._of_several(name, place, actor, messages)
        return [(name, message) for message in of_place]

    def _is_up(self, name: str, place: _Place, actor: _Actor, shared: bool) -> None:
        """Note that an actor has its place, and whether its machine sees the study's folder."""
        if len(place.actors) > 1 and not shared:
            raise UserError(
                f"Training on several nodes needs a folder that all of them see, and one of them does not see "
                f"{self.out}: give --out on a shared disk."
            )
        actor.up, self._shared[name] = True, shared

    def _of_several(self, name: str, place: _Place, actor: _Actor, messages: list[Message]) -> list[Message]:
        """Return the messages of a worker of several actors: those of the first, and the end when all have ended.

        If one fails, the others may wait for it without an end, so all are replaced.
        """
        for message in messages:
            if place.together and message.state in ("refused", "broken", "lost"):
                self._replace(name)
                gone = Message("lost", "another of its actors failed")
                return [message] if message.state == "lost" else [message, gone]
        end = messages[-1:] if actor.call is None else []
        if actor is place.actors[0]:
            place.ended += end
            messages = messages[: len(messages) - len(end)]
        else:
            messages = []
        if all(each.call is None for each in place.actors):
            messages, place.ended, place.together = [*messages, *place.ended], [], False
        return messages

    def pids(self) -> dict[str, int | None]:
        """Return the process ids of the workers."""
        up = {name: place.actors[0].handle for name, place in self._places.items() if place.up}
        return {name: self.ray.get(handle.pid.remote()) for name, handle in up.items()}

    def end(self, worker: str) -> None:
        """End a worker at once; its place is taken by a new one."""
        self._replace(worker)

    def _replace(self, name: str) -> None:
        self._remove(self._places.pop(name))
        self._start()

    def _remove(self, place: _Place) -> None:
        for actor in place.actors:
            with suppress(self.ray.exceptions.RayError):
                self.ray.kill(actor.handle)
        if place.bundles is not None:
            with suppress(self.ray.exceptions.RayError):
                self.ray.util.remove_placement_group(place.bundles)

    def close(self) -> None:
        """End all workers; training saves its state first."""
        up = [actor for place in self._places.values() for actor in place.actors if actor.up]
        if calls := [actor.handle.close.remote() for actor in up]:
            self.ray.wait(calls, num_returns=len(calls), timeout=40)
        for place in self._places.values():
            self._remove(place)
        self._places.clear()
        (self.out / self._token).unlink(missing_ok=True)
        self._close()
