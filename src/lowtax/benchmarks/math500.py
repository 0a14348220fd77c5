"""MATH-500: 500 competition problems of MATH, with answers in LaTeX.

Dataset   `HuggingFaceH4/MATH-500` on the hub (columns problem, answer, subject, level), or a local file.
Metric    the final answer is the same mathematics as the gold one (math-verify).
Preset    paper, reference: the prompt of the reference's task `hendrycks_math_500`, without its stop string.
"""

from typing import Literal

from lowtax import exam
from lowtax.benchmarks import Score
from lowtax.benchmarks.base import Task
from lowtax.records import Prompt


class Math500:
    """The benchmark `math500`."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        """The problems with their gold answers."""
        return exam.open_rows("math500", self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Whether the final answer equals the gold one."""
        return exam.open_score(row, answer, self.task.preset)
