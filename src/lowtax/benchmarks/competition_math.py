"""The American Invitational Mathematics Examination, 30 problems a year, answers from 0 to 999.

Dataset   `Maxwell-Jia/AIME_2024` and `math-ai/aime25` on the hub, or a local file; the reference's file will do.
Metric    the final answer equals the gold integer: 025 = 25 = 25.0; an answer above 999 is not refused, only wrong.
Preset    paper, reference: the prompt of the reference's task `AIME`, without its stop string "Problem:".
"""

from typing import Literal

from lowtax import exam
from lowtax.benchmarks import Score
from lowtax.benchmarks.base import Task
from lowtax.records import Prompt


class Aime:
    """The benchmark `aime24`; its subclass differs in the year."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True
    name = "aime24"

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        """The problems with their gold answers."""
        return exam.open_rows(self.name, self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Whether the final answer equals the gold one."""
        return exam.open_score(row, answer, self.task.preset)


class Aime25(Aime):
    """The benchmark `aime25`."""

    name = "aime25"
