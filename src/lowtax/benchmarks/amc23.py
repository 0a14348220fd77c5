"""The American Mathematics Competitions of 2023, 12A and 12B: the 40 problems whose answer is a number.

Dataset   `math-ai/amc23` on the hub (columns question, answer; 27.0 for 27), or a local file; the reference's will do.
Metric    the final answer equals the gold number.
Preset    paper, reference: the prompt of the reference's task `AMC`, without its stop string.
"""

from typing import Literal

from lowtax import exam
from lowtax.benchmarks import Score
from lowtax.benchmarks.base import Task
from lowtax.records import Prompt


class Amc23:
    """The benchmark `amc23`."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        """The problems with their gold answers."""
        return exam.open_rows("amc23", self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Whether the final answer equals the gold one."""
        return exam.open_score(row, answer, self.task.preset)
