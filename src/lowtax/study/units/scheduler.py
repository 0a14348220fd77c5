"""The scheduler: it gives units to workers that are free, stores what they return, and tries again what was lost.

The scheduler alone writes to the study's folder, but for folders of training and edits, each of which has one worker.
"""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lowtax.common.files import append_rows
from lowtax.common.log import say
from lowtax.common.records import row_id
from lowtax.study.units.base import KINDS, Event, Kind
from lowtax.study.units.messages import Message, Pool, Task
from lowtax.study.units.progress import Board

LOG = "units.jsonl"
TRIES = 3  # of a unit whose worker is lost or whose task breaks
PATIENCE = 7200.0  # seconds without a word from a worker after which its unit is given to another
POLL = 0.2  # seconds
Owner = tuple[str, int]  # an arm and a seed


@dataclass(eq=False)
class Work:
    """A unit that can be done now.

    owner: the arm and seed that fail with it.
    task: make the task, when a worker is there.
    store: store the result, and return the units that can be done now.
    holds: what a worker has to load for it: workers that have it loaded come first.
    """

    id: str
    kind: Kind
    owner: Owner
    task: Callable[[], Task]
    store: Callable[[Any], "Iterable[Work]"]
    holds: str = ""
    tries: int = 0


@dataclass
class _Running:
    work: Work
    began: float
    heard: float  # when its worker last sent word
    tokens: int = 0


@dataclass
class Scheduler:
    """Units, and the workers that do them.

    on_failure: called with the owner of a unit that failed, and the reason.
    """

    pool: Pool
    out: Path
    on_failure: Callable[[Owner, str], None]
    patience: float = PATIENCE
    board: Board = field(default_factory=Board)
    failed: dict[Owner, str] = field(default_factory=dict)
    scheduling: float = 0.0  # processor seconds of handing out units, of their messages and of the log, in this thread
    storing: float = 0.0  # the same of storing results, and of planning what follows them
    ended: int = 0  # units
    _free: dict[str, str] = field(default_factory=dict)  # worker -> what it has loaded
    _hosts: dict[str, str] = field(default_factory=dict)
    _running: dict[str, _Running] = field(default_factory=dict)
    _ready: list[Work] = field(default_factory=list)
    _results: list[tuple[str, _Running, Any]] = field(default_factory=list)

    def run(self, works: Iterable[Work]) -> None:
        """Do these units, and all that they make possible."""
        self._add(works)
        gc.freeze()  # a collection reads all that is there, plan and libraries too: workers would wait half a second
        try:
            self._do_all()
        finally:
            gc.unfreeze()

    def _do_all(self) -> None:
        while self._ready or self._running:
            began, stored = time.thread_time(), self.storing
            self._hand_out()
            for worker, message in self.pool.poll(POLL):
                self._hear(worker, message)
            self._look_for_silent_ones()
            if kinds := [KINDS.index(running.work.kind) for _, running, _ in self._results]:
                self._hand_out(min(kinds))  # no worker waits for the disk
                self._store()
            self.board.show()
            self.scheduling += time.thread_time() - began - (self.storing - stored)

    def fail(self, owner: Owner, reason: str) -> None:
        """Leave out an arm and seed: the units of it that are not begun are dropped."""
        if owner in self.failed:
            return
        self.failed[owner] = reason
        dropped = [work for work in self._ready if work.owner == owner]
        self._ready = [work for work in self._ready if work.owner != owner]
        for work in dropped:
            self.board.dropped(work.kind)
        self.on_failure(owner, reason)

    def _add(self, works: Iterable[Work]) -> None:
        for work in works:
            if work.owner not in self.failed:
                self._ready.append(work)
                self.board.waits(work.kind)
        self._ready.sort(key=lambda work: KINDS.index(work.kind))  # stable: in the order in which they came

    def _hand_out(self, latest: int = len(KINDS)) -> None:
        """Give units to free workers, but for kinds after the `latest`: results may make others possible before."""
        while self._ready and self._free and KINDS.index(kind := self._ready[0].kind) <= latest:
            first = [work for work in self._ready if work.kind == kind]
            pairs = ((work, worker) for work in first for worker, loaded in self._free.items() if loaded == work.holds)
            work, worker = next(pairs, (first[0], next(iter(self._free))))
            self._ready.remove(work)
            del self._free[worker]
            work.tries += 1
            now = time.monotonic()
            self._running[worker] = _Running(work, now, now)
            self._write(work.id, "begun", worker)
            self.board.begins(work.id, work.kind, worker)
            self.pool.give(worker, work.task())

    def _hear(self, worker: str, message: Message) -> None:
        running = self._running.get(worker)
        if running:
            running.heard = time.monotonic()
        if message.state == "ready":
            host, pid = message.value
            self._free[worker], self._hosts[worker] = "", f"{worker} on {host}, process {pid}"
        elif message.state == "said":
            self.board.said(running.work.id if running else worker, message.value)
        elif message.state == "progress" and running:
            running.tokens = message.value[1]
            self.board.progress(worker, *message.value)
        elif message.state == "lost":
            self._lost(worker, str(message.value))
        elif running:
            self._ended(worker, running, message)

    def _ended(self, worker: str, running: _Running, message: Message) -> None:
        work = running.work
        del self._running[worker]
        self._free[worker] = work.holds
        if message.state == "done":
            self.board.ends(worker, work.kind, "done", time.monotonic() - running.began)
            self._results.append((worker, running, message.value))
        elif message.state == "refused":
            self._failed(work, worker, running, str(message.value))
        else:
            self._again(work, worker, running, str(message.value).strip())

    def _store(self) -> None:
        """Store the results that have come, and add what they make possible."""
        while self._results:
            worker, running, result = self._results.pop(0)
            work = running.work
            self.ended += 1
            if work.owner not in self.failed:
                began = time.thread_time()
                new = list(work.store(result))
                self.storing += time.thread_time() - began
                self._add(new)
            self._write(work.id, "done", worker, running)

    def _lost(self, worker: str, reason: str) -> None:
        self._free.pop(worker, None)
        if running := self._running.pop(worker, None):
            self._again(running.work, worker, running, reason)

    def _again(self, work: Work, worker: str, running: _Running, reason: str) -> None:
        if work.owner in self.failed:
            self.board.ends(worker, work.kind, "failed", 0.0)
        elif work.tries >= TRIES:
            last = reason.splitlines()[-1] if reason else "no reason"
            self._failed(work, worker, running, f"{last} ({TRIES} tries)", reason)
        else:
            self._write(work.id, "again", worker, running, reason)
            say(f"  {work.id} is begun again: {reason.splitlines()[-1] if reason else 'no reason'}")
            self.board.ends(worker, work.kind, "again", 0.0)
            self._ready.insert(0, work)

    def _failed(self, work: Work, worker: str, running: _Running, reason: str, trace: str = "") -> None:
        self._write(work.id, "failed", worker, running, trace or reason)
        self.board.ends(worker, work.kind, "failed", 0.0)
        say(f"  {work.id} FAILED: {reason}")
        self.fail(work.owner, f"{work.id}: {reason}")

    def _look_for_silent_ones(self) -> None:
        now = time.monotonic()
        for worker, running in list(self._running.items()):
            if now - running.heard > self.patience:
                self.pool.end(worker)
                self._lost(worker, f"no word for {self.patience:g} s")

    def _write(self, unit: str, state: Any, worker: str, running: _Running | None = None, reason: str = "") -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        event = Event(
            id=row_id(unit, state, at, worker),
            unit=unit,
            state=state,
            at=at,
            worker=self._hosts.get(worker, worker),
            seconds=round(running.heard - running.began, 3) if running else None,
            tokens=running.tokens or None if running else None,
            reason=reason or None,
        )
        append_rows(self.out / LOG, [event], flush=False)
