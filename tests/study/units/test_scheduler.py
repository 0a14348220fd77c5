"""The scheduler with workers that are scripts: tries, failures, silence, and the order of units."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from worked import events

from lowtax.study.units.messages import Message
from lowtax.study.units.scheduler import TRIES, Scheduler, Work


class Scripted:
    """A pool whose workers answer a task with what it says; the task `silent` is never answered."""

    def __init__(self, workers: int) -> None:
        self.waiting = [(f"w{i}", Message("ready", ("here", i))) for i in range(workers)]
        self.made, self.ended = workers, list[str]()

    def give(self, worker: str, task: Any) -> None:
        if task != "silent":
            message = task if isinstance(task, Message) else Message("done", task)
            self.waiting.append((worker, message))
            if message.state == "lost":
                self.new()

    def new(self) -> None:
        self.waiting.append((f"w{self.made}", Message("ready", ("here", self.made))))
        self.made += 1

    def poll(self, seconds: float) -> list[tuple[str, Message]]:
        if not self.waiting:
            time.sleep(0.01)
        messages, self.waiting = self.waiting, []
        return messages

    def end(self, worker: str) -> None:
        self.ended.append(worker)
        self.new()

    def close(self) -> None:
        pass


def work(id_: str, answers: list[Any], owner: str = "arm", then: Callable[[], list[Work]] = list) -> Work:
    """A unit whose tries get these answers, one after the other."""
    kind: Any = id_.partition("/")[0]
    return Work(id_, kind, (owner, 0), lambda: answers.pop(0) if answers[1:] else answers[0], lambda _: then())


def scheduled(tmp_path: Path, works: list[Work], workers: int = 1, patience: float = 60.0) -> Scheduler:
    scheduler = Scheduler(Scripted(workers), tmp_path, lambda owner, reason: None, patience)
    scheduler.run(works)
    return scheduler


def states(out: Path, unit: str) -> list[str]:
    return [event["state"] for event in events(out) if event["unit"] == unit]


def test_units_of_an_earlier_kind_come_first_and_those_made_possible_follow(tmp_path):
    later = work("sample/arm", [1])
    scheduled(tmp_path, [work("judge/base", [1]), work("train/arm", [1], then=lambda: [later])])
    begun = [event["unit"] for event in events(tmp_path) if event["state"] == "begun"]
    assert begun == ["train/arm", "sample/arm", "judge/base"]


@pytest.mark.parametrize("state", ["lost", "broken"])
def test_a_lost_or_broken_unit_is_begun_again(tmp_path, state):
    scheduler = scheduled(tmp_path, [work("train/arm", [Message(state, "x"), Message(state, "x"), 1])])
    assert states(tmp_path, "train/arm") == ["begun", "again", "begun", "again", "begun", "done"]
    assert scheduler.failed == {}


def test_the_number_of_tries_is_limited(tmp_path):
    scheduler = scheduled(tmp_path, [work("train/arm", [Message("broken", "Traceback\nValueError: no")])])
    assert states(tmp_path, "train/arm").count("begun") == TRIES
    assert scheduler.failed == {("arm", 0): f"train/arm: ValueError: no ({TRIES} tries)"}
    assert events(tmp_path)[-1]["reason"] == "Traceback\nValueError: no"


def test_a_refusal_is_not_tried_again_and_fails_its_arm_alone(tmp_path):
    works = [
        work("train/a", [Message("refused", "It diverged.")], "a"),
        work("sample/a", [1], "a"),
        work("sample/b", [1], "b"),
    ]
    scheduler = scheduled(tmp_path, works)
    assert scheduler.failed == {("a", 0): "train/a: It diverged."}
    assert states(tmp_path, "train/a") == ["begun", "failed"]
    assert (states(tmp_path, "sample/a"), states(tmp_path, "sample/b")) == ([], ["begun", "done"])


def test_the_unit_of_a_silent_worker_goes_to_another(tmp_path):
    scheduler = scheduled(tmp_path, [work("sample/arm", ["silent", 1])], patience=0.3)
    assert scheduler.pool.ended == ["w0"]
    assert states(tmp_path, "sample/arm") == ["begun", "again", "begun", "done"]
    assert scheduler.failed == {}


def test_a_worker_that_has_loaded_what_a_unit_needs_comes_first(tmp_path):
    works = [work(f"sample/{i}", [1]) for i in range(6)]
    for number, one in enumerate(works):
        one.holds = f"engine {number % 2}"
    scheduled(tmp_path, works, workers=2)
    hold = {f"sample/{i}": i % 2 for i in range(6)}
    by_worker: dict[str, set[int]] = {}
    for event in events(tmp_path):
        if event["state"] == "done":
            by_worker.setdefault(event["worker"], set()).add(hold[event["unit"]])
    assert sorted(map(tuple, by_worker.values())) == [(0,), (1,)]
