"""Exams from any file: `math`, whose answers are mathematics, and `multiple_choice`.

Dataset   the task's `file`, or owner/name of the hub. `math`: columns problem, question or prompt, and answer, gold,
          final_answer or solution; a gold answer may be `... #### 1,234`, or end with a box. `multiple_choice`: the
          same columns for the question; choices or options (a list, in CSV its JSON text) or the columns A, B, C, ...;
          and answer: a letter, an index from 0, or an option's text.
Metric    the final answer equals the gold one, or the letter that the answer chooses is that of the right option.
Pattern   `questions` turns rows into questions for `mmlu`, too.
"""

import string
from collections.abc import Iterable
from typing import Literal

from lowtax.benchmarks import catalog
from lowtax.benchmarks import questions as exam
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.competition_math import OpenExam
from lowtax.benchmarks.questions import Question
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers
from lowtax.data.tables import Row

ANSWER = ("answer", "answer_index", "gold", "label", "answerkey", "correct")


class OpenAnswer(OpenExam):
    """The benchmark `math`."""

    name = "math"


class MultipleChoice:
    """The benchmark `multiple_choice`."""

    workers: Literal["none", "processes", "threads"] = "none"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole_replies = task.preset == "reference"

    def rows(self) -> list[Prompt]:
        """Return the questions with the letter of the right option."""
        rows = catalog.rows("multiple_choice", self.task)
        return exam.choice_rows("multiple_choice", questions(rows, str(self.task.file)), self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the letter that the answer chooses with the right one."""
        return exam.choice_score(row, answer, self.task.preset)


def questions(rows: Iterable[Row], origin: str) -> list[Question]:
    """Turn rows into questions. A question's id is a hash of its text and its options in any order."""
    result = []
    for number, row in enumerate(rows, 1):
        where = f"{origin}, row {number}"
        text = str(readers.cell(row, exam.PROBLEM, where))
        options = _options(row, where)
        right = exam.right_place(readers.cell(row, ANSWER, where), options, where)
        rest = sorted(option for place, option in enumerate(options) if place != right)
        category = readers.find_column(row, ("subject", "category"))
        result.append(
            Question(
                key=row_id(text.strip(), sorted(option.strip() for option in options)),
                text=text,
                options=(options[right], *rest),
                category=str(row[category] or "") if category else "",
            )
        )
    return result


def _options(row: Row, where: str) -> list[str]:
    if column := readers.find_column(row, ("choices", "options")):
        return exam.listed(row[column], where)
    columns = [readers.find_column(row, [letter]) for letter in string.ascii_uppercase]
    present = [row[name] for name in columns if name is not None and row[name] not in (None, "")]
    return exam.listed(present or readers.cell(row, ("choices", "options", "A"), where), where)
