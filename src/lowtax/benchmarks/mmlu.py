"""MMLU: four-choice questions of 57 subjects; `subset` selects some, separated by commas.

Dataset   `cais/mmlu`, all, split test, on the hub (columns question, subject, choices, answer as an index), or a local
          file, whose answers may be letters.
Metric    the letter that the answer chooses is that of the right option. Options are reordered by a hash, as in
          every other exam.
"""

from typing import Literal

from lowtax.benchmarks import catalog
from lowtax.benchmarks import questions as exam
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.custom import questions
from lowtax.common.records import Prompt


class Mmlu:
    """The benchmark `mmlu`."""

    workers: Literal["none", "processes", "threads"] = "none"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole_replies = task.preset == "reference"

    def rows(self) -> list[Prompt]:
        """Return the questions of the subjects with the letter of the right option."""
        rows = catalog.of_subjects(catalog.rows("mmlu", self.task), self.task.subset, "mmlu")
        return exam.choice_rows("mmlu", questions(rows, "mmlu"), self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the letter that the answer chooses with the right one."""
        return exam.choice_score(row, answer, self.task.preset)
