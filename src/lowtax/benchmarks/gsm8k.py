"""GSM8K: 1,319 word problems of primary school, whose answers are integers.

Dataset   `openai/gsm8k`, main, split test, on the hub, or a local file; gold answers follow `####`.
Metric    the final answer, boxed or not, equals the gold integer.
Preset    paper: the problem and nothing else, the prompt of the reference's task `gsm8k_cot_zeroshot`.
          reference: also its filter `flexible-extract`, which its script for GSM8K reports: the last text that looks
          like a number, compared without commas, dollar signs and a last full stop.
"""

import re
from typing import Literal

from lowtax.benchmarks import questions
from lowtax.benchmarks.base import Score, Task
from lowtax.common.records import Prompt

FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


class Gsm8k:
    """The benchmark `gsm8k`."""

    workers: Literal["none", "processes", "threads"] = "processes"
    spelling_first = True

    def __init__(self, task: Task) -> None:
        self.task = task
        self.whole_replies = task.preset == "reference"

    def rows(self) -> list[Prompt]:
        """Return the problems with their gold integers."""
        return questions.open_rows("gsm8k", self.task, _prompt)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Compare the final answer with the gold integer."""
        if self.task.preset != "reference":
            return questions.open_score(row, answer, self.task.preset)
        numbers = [first or second for first, second in FLEXIBLE.findall(answer)]
        number = _bare(numbers[-1]) if numbers else None
        return Score(number == _bare(questions.gold_answer(str(row.gold))), number, "reference: last number")


def _bare(number: str) -> str:
    return number.replace(",", "").replace("$", "").removesuffix(".")


def _prompt(problem: str, preset: str) -> str:
    return questions.mathematics_prompt(problem, preset) if preset == "default" else problem
