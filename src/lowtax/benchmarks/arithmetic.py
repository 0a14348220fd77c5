"""Procedural arithmetic and short word problems: a reasoning exam for a model of 135M parameters.

Dataset   `lowtax.problems`, generated; no download. The splits share no problem.
Metric    the integer inside the last `\\boxed{}` of the answer equals the gold integer.
Pattern   `rows` is a pure function of the task's n (100 if absent), split, seed and subset: `unseen` are kinds of
          problem that the embedded reasoner was not taught, without one those that it was.
"""

import re
from typing import Literal

from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.grading.extract import Rule
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, row_id
from lowtax.data.arithmetic import TAUGHT, UNSEEN, problems

BOX = re.compile(r"\\boxed\{\s*(-?[\d,]+)\s*\}")


class Arithmetic:
    """The benchmark `arithmetic`."""

    workers: Literal["none", "processes", "threads"] = "none"

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        """Return the questions with their gold integers.

        Raises:
            UserError: the task has another subset than `unseen`.
        """
        task = self.task
        if task.subset not in (None, "unseen"):
            raise UserError(f"arithmetic has no subset {task.subset!r}: write unseen, or leave it out.")
        kinds = UNSEEN if task.subset else TAUGHT
        return [
            Prompt(
                id=row_id("arithmetic", p.question),
                source="arithmetic",
                text=p.question,
                category=p.kind,
                gold=str(p.answer),
            )
            for p in problems(task.n or 100, task.split or "test", task.seed, kinds)
        ]

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the integer in the last box with the gold one."""
        boxes = BOX.findall(answer)
        digits = boxes[-1].replace(",", "") if boxes else ""
        if not digits.strip("-"):
            return Score(False, None, "no integer in a box")
        plain = digits.lstrip("-").lstrip("0") or "0"
        number = f"-{plain}" if digits.startswith("-") and plain != "0" else plain
        return Score(number == row.gold, number, Rule.BOX.value, checkable=True)
