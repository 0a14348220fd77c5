"""A benchmark of your own: spell a word backwards.

Use it in a recipe (`tasks: {backwards: {benchmark: "examples/own_benchmark.py:Backwards", n: 20}}`) that is run with
`--trust`, or by itself:
`lowtax evaluate --model M --task examples/own_benchmark.py:Backwards --out exam`.
"""

from typing import Literal

import lowtax as lt

WORDS = "table river stone cloud paper light green house music bread winter summer letter number".split()


class Backwards:
    """Ask for a word backwards. The last word of the answer counts."""

    workers: Literal["none", "processes", "threads"] = "none"

    def __init__(self, task: lt.Task) -> None:
        self.task = task

    def rows(self) -> list[lt.Prompt]:
        """Return the questions with their gold answers."""
        return [
            lt.Prompt(
                id=f"backwards-{word}",
                source="backwards",
                text=f"Spell the word '{word}' backwards. End with the result alone.",
                gold=word[::-1],
            )
            for word in WORDS[: self.task.n]
        ]

    def grade(self, row: lt.Prompt, answer: str) -> lt.Score:
        """Return a score: right if the last word is the gold answer."""
        words = answer.strip().rstrip(".!").split()
        last = words[-1].strip("'\"*").lower() if words else None
        return lt.Score(last == row.gold, last, "last word" if words else "empty answer")
