"""Reasoning exams, one file each: which questions, and whether a finished answer is right."""

from dataclasses import dataclass
from typing import Literal, Protocol

from lowtax import registry
from lowtax.benchmarks.base import Task
from lowtax.records import Prompt

TABLE = {
    "arithmetic": "lowtax.benchmarks.arithmetic:Arithmetic",
    "aime24": "lowtax.benchmarks.aime:Aime",
    "aime25": "lowtax.benchmarks.aime:Aime25",
    "math500": "lowtax.benchmarks.math500:Math500",
    "amc23": "lowtax.benchmarks.amc23:Amc23",
    "gsm8k": "lowtax.benchmarks.gsm8k:Gsm8k",
    "gpqa_diamond": "lowtax.benchmarks.gpqa:Diamond",
    "gpqa_main": "lowtax.benchmarks.gpqa:Main",
    "gpqa_extended": "lowtax.benchmarks.gpqa:Extended",
    "mmlu": "lowtax.benchmarks.mmlu:Mmlu",
    "multiple_choice": "lowtax.benchmarks.multiple_choice:MultipleChoice",
    "math": "lowtax.benchmarks.open_answer:OpenAnswer",
    "humaneval": "lowtax.benchmarks.humaneval:HumanEval",
    "humaneval_plus": "lowtax.benchmarks.humaneval:HumanEvalPlus",
    "mbpp": "lowtax.benchmarks.mbpp:Mbpp",
    "mbpp_plus": "lowtax.benchmarks.mbpp:MbppPlus",
    "reasoning_gym": "lowtax.benchmarks.gym:Gym",
}


@dataclass(frozen=True)
class Score:
    """What became of an answer.

    extracted: what was taken as the final answer, written so that equal answers are equal texts; None if there is none.
    rule: which rule found it, or what was wrong: for people who read the rows.
    """

    correct: bool
    extracted: str | None
    rule: str = ""


class Benchmark(Protocol):
    """An exam, made as `Class(task)`. `rows` is pure and `grade` needs no model: stored answers are graded again.

    workers: what grading is done by, since an answer may be anything. `none`: here, for rules that cannot hang;
    `processes`: a pool that survives a hang or a crash; `threads`: `grade` itself starts a limited process.
    A class attribute `spelling_first = True` says that most answers are decided without algebra (see `grading`).
    """

    workers: Literal["none", "processes", "threads"]

    def __init__(self, task: Task) -> None: ...

    def rows(self) -> list[Prompt]:
        """The questions, each with its gold answer."""
        ...

    def grade(self, row: Prompt, answer: str) -> Score:
        """Whether the text after the thought is right. `row.gold` may be as any published copy writes it."""
        ...


def load(name: str, task: Task | None = None) -> Benchmark:
    """The benchmark of that name, or of `file.py:Class`, with its settings; the task's `benchmark` goes before."""
    settings = task or Task()
    found: Benchmark = registry.resolve("task", settings.benchmark or name, TABLE)(settings)
    return found
