"""Any file of problems whose answers are mathematics: `math`.

Dataset   the task's `file`, or owner/name of the hub; columns problem, question or prompt, and answer, gold,
          final_answer or solution. A gold answer may be `... #### 1,234`, or end with a box.
Metric    the final answer equals the gold one, integers as numbers, the rest as math-verify reads it.
"""

from typing import Literal

from lowtax import exam
from lowtax.benchmarks import Score
from lowtax.benchmarks.base import Task
from lowtax.records import Prompt


class OpenAnswer:
    """The benchmark `math`."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True

    def __init__(self, task: Task) -> None:
        self.task = task

    def rows(self) -> list[Prompt]:
        """The problems with their gold answers."""
        return exam.open_rows("math", self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Whether the final answer equals the gold one."""
        return exam.open_score(row, answer, self.task.preset)
