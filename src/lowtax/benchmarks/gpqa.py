"""GPQA: four-choice questions of biology, physics and chemistry that a web search does not answer.

Dataset   `Idavidrein/gpqa` on the hub, gated: 198 (diamond), 448 (main), 546 (extended); or a local CSV with columns
          Question, Correct Answer, Incorrect Answer 1 to 3, and Record ID, the question's id where present.
Metric    the letter that the answer chooses is that of the right option.
Preset    paper, reference: the prompt of `gpqa_diamond_better_prompt`, the options (not the question) cleaned as
          lm-evaluation-harness does: " [title]" becomes ". ", text in brackets is removed, two blanks become one, once.
          Brackets may be chemistry, so the default keeps them.
"""

import re
from typing import Literal

from lowtax.benchmarks import catalog
from lowtax.benchmarks import questions as exam
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.questions import Question
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers
from lowtax.data.tables import Row

OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


class Diamond:
    """The benchmark `gpqa_diamond`; its subclasses differ in the subset."""

    workers: Literal["none", "processes", "threads"] = "none"
    name = "gpqa_diamond"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole_replies = task.preset == "reference"

    def rows(self) -> list[Prompt]:
        """Return the questions with the letter of the right option."""
        rows = enumerate(catalog.rows(self.name, self.task), 1)
        questions = [_question(row, f"{self.name}, row {number}", self.task.preset) for number, row in rows]
        return exam.choice_rows(self.name, questions, self.task)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the letter that the answer chooses with the right one."""
        return exam.choice_score(row, answer, self.task.preset)


class Main(Diamond):
    """The benchmark `gpqa_main`."""

    name = "gpqa_main"


class Extended(Diamond):
    """The benchmark `gpqa_extended`."""

    name = "gpqa_extended"


def _question(row: Row, where: str, preset: str) -> Question:
    text = str(readers.cell(row, ["Question"], where))
    right, *wrong = (str(readers.cell(row, [name], where)) for name in OPTIONS)
    options = [right, *sorted(wrong)]
    record, domain = readers.find_column(row, ["Record ID"]), readers.find_column(row, ["High-level domain"])
    return Question(
        key=str(row[record])
        if record and row[record]
        else row_id(text.strip(), sorted(option.strip() for option in options)),
        text=text,
        options=tuple(options if preset == "default" else map(_cleaned, options)),
        category=str(row[domain] or "") if domain else "",
    )


def _cleaned(option: str) -> str:
    """Clean an option as lm-evaluation-harness does."""
    return re.sub(r"\[.*?\]", "", option.strip().replace(" [title]", ". ")).replace("  ", " ")
