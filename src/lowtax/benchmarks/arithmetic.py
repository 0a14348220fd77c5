"""Procedural arithmetic and short word problems: a reasoning exam that a 135M model can sit.

Dataset   `lowtax.problems`, generated; no download. No problem of a split stands in another.
Metric    the integer inside the last `\\boxed{}` of the answer equals the gold integer.
Pattern   `rows` is a pure function of the task's n, split and seed.
"""

import re

from lowtax.problems import problems
from lowtax.recipe import Task
from lowtax.records import Prompt, row_id

BOX = re.compile(r"\\boxed\{\s*(-?[\d,]+)\s*\}")


class Arithmetic:
    """The benchmark `arithmetic`."""

    def rows(self, task: Task) -> list[Prompt]:
        """The questions with their gold integers."""
        return [
            Prompt(
                id=row_id("arithmetic", p.question),
                source="arithmetic",
                text=p.question,
                category=p.kind,
                gold=str(p.answer),
            )
            for p in problems(task.n, task.split, task.seed)
        ]

    def extract(self, answer: str) -> str | None:
        """The integer in the last box, in plain digits, or None."""
        found = BOX.findall(answer)
        digits = found[-1].replace(",", "") if found else ""
        if not digits.strip("-"):
            return None
        plain = digits.lstrip("-").lstrip("0") or "0"
        return f"-{plain}" if digits.startswith("-") and plain != "0" else plain
