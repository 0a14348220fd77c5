"""The board of units where there is no terminal: a line when the units change, and rarely else."""

import pytest

from lowtax.common import log
from lowtax.study.units import progress


class Clock:
    """A clock that the test turns."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_line_is_not_repeated_while_the_same_units_run(monkeypatch: pytest.MonkeyPatch):
    clock, lines = Clock(), list[str]()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(log, "OUTPUTS", [lines.append])
    board = progress.Board(began=0.0)
    for _ in range(2):
        board.waits("train")

    def looked(until: float) -> list[str]:
        """The lines of a driver that looks at the board ten times a second."""
        lines.clear()
        while clock.now < until:
            clock.now += 0.1
            board.show()
        return [line.split(";")[0].strip() for line in lines]

    board.begins("train/a/seed-0", "train", "worker-1")
    first = ["units: 1 waiting, 1 running, 0 done", "worker-1: train/a/seed-0"]
    assert looked(11) == first
    assert looked(100) == []
    assert looked(140) == first  # nothing changed for two minutes
    board.ends("worker-1", "train", "done", 130.0)
    board.begins("train/b/seed-0", "train", "worker-1")
    assert looked(150.5) == ["units: 0 waiting, 1 running, 1 done", "worker-1: train/b/seed-0"]
