"""Grade many answers at once, in the workers that their benchmark needs.

An answer may be anything: a tower of powers, a hundred thousand braces. A worker process has `SECONDS` for each; then
it is killed and replaced, and the answer is wrong. Workers start fresh, without torch, and live for one call.
"""

import inspect
import json
import os
import pickle
import selectors
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lowtax.benchmarks.base import Benchmark, Score
from lowtax.benchmarks.grading import mathematics
from lowtax.benchmarks.grading.worker import CRASHED
from lowtax.common import launch
from lowtax.common.errors import UserError
from lowtax.common.log import SPEAK_EVERY, counted, say
from lowtax.common.records import Prompt

SECONDS = 6.0  # for one answer
START = 60.0  # seconds for a worker to start
CHUNK = 32  # answers that a worker gets at once
CHUNK_TEXT = 200_000  # characters of them
FIRST = 256  # up to this number, answers are tried without algebra before a worker is started
SHORT = 4_000  # characters of an answer that may be tried here, where nothing can stop it
FIRST_SECONDS = 3.0  # for all answers that are tried here; the rest goes to workers
SLOW = Score(False, None, f"grading took over {SECONDS:g} s")
CRASH = Score(False, None, CRASHED)

Pair = tuple[Prompt, str]


def grade_all(benchmark: Benchmark, pairs: Sequence[Pair], workers: int | None = None) -> list[Score]:
    """Return a score for every (question, answer after the thought), in their order.

    workers: the number of workers, for a benchmark that needs them; if absent, the processors, divided by the workers
        of a study on this machine.
    """
    count = workers or max(1, (os.cpu_count() or 1) // launch.on_this_machine())
    if benchmark.workers == "none" or not pairs:
        return [benchmark.grade(row, answer) for row, answer in pairs]
    if benchmark.workers == "threads":
        with ThreadPoolExecutor(count) as pool:
            graded = pool.map(lambda pair: benchmark.grade(*pair), pairs)
            return list(counted(graded, len(pairs), "answers graded"))
    scores = _by_spelling(benchmark, pairs)
    remaining = [place for place, score in enumerate(scores) if score is None]
    if remaining:
        with _Pool(benchmark, min(count, len(remaining))) as pool:
            for place, score in zip(remaining, pool.grade([pairs[place] for place in remaining]), strict=True):
                scores[place] = score
    return [score for score in scores if score is not None]


def _by_spelling(benchmark: Benchmark, pairs: Sequence[Pair]) -> list[Score | None]:
    """Return the scores that need no algebra, for a few answers to an exam of mathematics; None for all others.

    Nothing can stop an answer here, so long ones, and those left after `FIRST_SECONDS`, are for the workers.
    """
    scores: list[Score | None] = [None] * len(pairs)
    if len(pairs) > FIRST or not getattr(benchmark, "spelling_first", False):
        return scores
    began = time.monotonic()
    for place, (row, answer) in enumerate(pairs):
        if len(answer) + len(str(row.gold)) > SHORT or time.monotonic() - began > FIRST_SECONDS:
            continue
        try:
            with mathematics.no_algebra():
                scores[place] = benchmark.grade(row, answer)
        except mathematics.Undecided:
            continue
    return scores


@dataclass
class _Worker:
    """A worker process and its work. `todo` holds places in the list of answers; the first one is being graded."""

    process: subprocess.Popen[bytes]
    since: float
    ready: bool = False
    todo: deque[int] = field(default_factory=deque)
    rest: bytes = b""

    def late(self, now: float) -> bool:
        """Return True if its time is over."""
        return bool(self.todo or not self.ready) and now - self.since > (SECONDS if self.ready else START)


class _Pool:
    """Worker processes for one benchmark; all are stopped when the context ends, however it ends."""

    def __init__(self, benchmark: Benchmark, count: int) -> None:
        self.setup = _setup(benchmark)
        self.count = count
        self.workers: list[_Worker] = []
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in list(self.workers):
            self._stop(worker)
        self.selector.close()

    def grade(self, pairs: Sequence[Pair]) -> list[Score]:
        """Return the scores in the order of the answers."""
        self.pairs = pairs
        self.scores: dict[int, Score] = {}
        self.waiting = deque(range(len(pairs)))
        self.chunk = max(1, min(CHUNK, len(pairs) // (4 * self.count)))
        spoke = time.monotonic()
        while len(self.scores) < len(pairs):
            if time.monotonic() - spoke > SPEAK_EVERY:
                spoke = time.monotonic()
                say(f"  {len(self.scores):,} of {len(pairs):,} answers graded")
            while len(self.workers) < min(self.count, len(pairs) - len(self.scores)):
                self._start()
            for worker in self.workers:
                if worker.ready and not worker.todo and self.waiting:
                    self._hand_out(worker)
            for key, _ in self.selector.select(timeout=0.2):
                self._read(key.data)
            now = time.monotonic()
            for worker in [each for each in self.workers if each.late(now)]:
                self._give_up(worker, SLOW)
        return [self.scores[place] for place in range(len(pairs))]

    def _start(self) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lowtax.benchmarks.grading.worker"],  # imports nothing of the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": "0"},  # math-verify depends on the order of sets
            bufsize=0,
        )
        worker = _Worker(process, time.monotonic())
        self.workers.append(worker)
        assert process.stdout
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._send(worker, self.setup)

    def _send(self, worker: _Worker, message: bytes) -> None:
        """Write to a worker; if it is gone, the next read notices."""
        assert worker.process.stdin
        view = memoryview(message)
        try:
            while view:
                view = view[worker.process.stdin.write(view) :]
        except BrokenPipeError:
            return

    def _read(self, worker: _Worker) -> None:
        assert worker.process.stdout
        output = os.read(worker.process.stdout.fileno(), 1 << 16)
        if not output:
            self._give_up(worker, CRASH)
            return
        *lines, worker.rest = (worker.rest + output).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if isinstance(message, dict):
                raise UserError(message["error"])
            if message == "ready":
                worker.ready = True
            else:
                self.scores[worker.todo.popleft()] = Score(*message)
            worker.since = time.monotonic()

    def _hand_out(self, worker: _Worker) -> None:
        length = 0
        while self.waiting and len(worker.todo) < self.chunk and length < CHUNK_TEXT:
            place = self.waiting.popleft()
            worker.todo.append(place)
            length += len(self.pairs[place][1])
        self._send(worker, pickle.dumps([self.pairs[place] for place in worker.todo]))
        worker.since = time.monotonic()

    def _give_up(self, worker: _Worker, score: Score) -> None:
        """Stop a worker; the answer that it was grading gets this score, its others go back into the queue."""
        self._stop(worker)
        if not worker.ready:
            raise UserError("A grading process could not start; its output above says why.")
        if worker.todo:
            self.scores[worker.todo.popleft()] = score
            self.waiting.extendleft(reversed(worker.todo))

    def _stop(self, worker: _Worker) -> None:
        assert worker.process.stdout
        assert worker.process.stdin
        self.workers.remove(worker)
        self.selector.unregister(worker.process.stdout)
        worker.process.kill()
        worker.process.wait()
        worker.process.stdout.close()
        worker.process.stdin.close()


def _setup(benchmark: Benchmark) -> bytes:
    """Pickle the benchmark for a worker, with the file of its class if it is not one of ours."""
    kind = type(benchmark)
    from_file = inspect.getsourcefile(kind) if kind.__module__.startswith("lowtax_file_") else None
    return pickle.dumps(
        {"module": kind.__module__, "file": from_file, "name": kind.__name__, "benchmark": pickle.dumps(benchmark)}
    )
