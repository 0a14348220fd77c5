"""Competition mathematics with one final answer: AIME, AMC and MATH-500.

    aime24    30   integers of 0 to 999   `Maxwell-Jia/AIME_2024` on the hub
    aime25    30   integers of 0 to 999   `math-ai/aime25`
    amc23     40   numbers                `math-ai/amc23`: the problems of 12A and 12B whose answer is a number
    math500   500  mathematics            `HuggingFaceH4/MATH-500` (columns problem, answer, subject, level)

Dataset   the hub's, or a local file; the reference's files will do.
Metric    the final answer equals the gold one: 025 = 25 = 25.0; an integer above 999 is not refused, only wrong.
Preset    paper, reference: the prompts of the reference's tasks `AIME`, `AMC` and `hendrycks_math_500`, without stop
          strings such as "Problem:". reference: also their rules, which ignore zeros (025, 25.0) for AIME and AMC, and
          not for MATH-500.
"""

from typing import Literal

from lowtax.benchmarks import questions
from lowtax.benchmarks.base import Score, Task
from lowtax.common.records import Prompt


class OpenExam:
    """An exam whose answers are mathematics; a subclass names it."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True
    name: str
    zeros = False  # ignored by the reference's rules

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole_replies = task.preset == "reference"

    def rows(self) -> list[Prompt]:
        """Return the problems with their gold answers."""
        return questions.open_rows(self.name, self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the final answer with the gold one."""
        return questions.open_score(row, answer, self.task.preset, self.zeros)


class Aime(OpenExam):
    """The benchmark `aime24`."""

    name = "aime24"
    zeros = True


class Aime25(OpenExam):
    """The benchmark `aime25`."""

    name = "aime25"
    zeros = True


class Amc23(OpenExam):
    """The benchmark `amc23`."""

    name = "amc23"
    zeros = True


class Math500(OpenExam):
    """The benchmark `math500`."""

    name = "math500"
