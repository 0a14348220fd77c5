"""A benchmark: its settings in a recipe, its interface and its score, and the table of those that are built in."""

from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field, NonNegativeInt, PositiveInt

from lowtax.common import registry
from lowtax.common.config import SEED, Section
from lowtax.common.records import Prompt
from lowtax.engines.settings import Sampling


class Task(Section):
    """A reasoning task."""

    benchmark: str | None = Field(
        None, description="the benchmark (docs/reference/benchmarks.md); the task's name if absent"
    )
    file: str | None = Field(None, description="a local copy of the benchmark's questions, or your own questions")
    n: PositiveInt | None = Field(
        None, le=1_000_000, description="number of problems, chosen by the seed; all if absent, 100 if generated"
    )
    split: str | None = Field(None, description="the split; the one that is usually evaluated if absent")
    subset: str | None = Field(
        None, description="mmlu: subjects, separated by commas; reasoning_gym: a data set; arithmetic: unseen"
    )
    seed: NonNegativeInt = Field(
        0, le=SEED, description="decides problems and order of options, the same for every arm"
    )
    preset: Literal["default", "paper", "reference"] = Field(
        "default",
        description="paper: the paper's prompts; reference: its code's extraction of answers, too, from whole replies",
    )
    checker: str | None = Field(
        None, description="a model that checks the boxed answers which the rules reject; reported separately"
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=32768, temperature=0.6, top_p=0.95), description="sampling of answers"
    )


TABLE = {
    "arithmetic": "lowtax.benchmarks.arithmetic:Arithmetic",
    "aime24": "lowtax.benchmarks.competition_math:Aime",
    "aime25": "lowtax.benchmarks.competition_math:Aime25",
    "math500": "lowtax.benchmarks.competition_math:Math500",
    "amc23": "lowtax.benchmarks.competition_math:Amc23",
    "gsm8k": "lowtax.benchmarks.gsm8k:Gsm8k",
    "gpqa_diamond": "lowtax.benchmarks.gpqa:Diamond",
    "gpqa_main": "lowtax.benchmarks.gpqa:Main",
    "gpqa_extended": "lowtax.benchmarks.gpqa:Extended",
    "mmlu": "lowtax.benchmarks.mmlu:Mmlu",
    "multiple_choice": "lowtax.benchmarks.custom:MultipleChoice",
    "math": "lowtax.benchmarks.custom:OpenAnswer",
    "humaneval": "lowtax.benchmarks.humaneval:HumanEval",
    "humaneval_plus": "lowtax.benchmarks.humaneval:HumanEvalPlus",
    "mbpp": "lowtax.benchmarks.mbpp:Mbpp",
    "mbpp_plus": "lowtax.benchmarks.mbpp:MbppPlus",
    "reasoning_gym": "lowtax.benchmarks.reasoning_gym:Gym",
}


@dataclass(frozen=True)
class Score:
    """The grade of one answer.

    extracted: the final answer, written so that equal answers are equal texts; None if there is none.
    rule: the rule that found it, or what was wrong: prose for people, which no code reads.
    checkable: True if a model checker may be asked about the answer when the rules reject it (see `checker`): it was in
        a box, or the reference's rules read it.
    """

    correct: bool
    extracted: str | None
    rule: str = ""
    checkable: bool = False


class Benchmark(Protocol):
    """An exam, made as `Class(task)`. `rows` is pure and `grade` needs no model, so stored answers can be graded again.

    workers: where answers, which may be anything, are graded. `none`: in this process, for rules that cannot hang;
    `processes`: in a pool that survives a hang or a crash; `threads`: here, since `grade` starts a limited process.
    A class attribute `spelling_first = True` says that most answers are decided without algebra (see `grading.pool`).
    An attribute `whole_replies = True` says that `grade` gets whole replies, with their thoughts (see `whole_replies`).
    """

    workers: Literal["none", "processes", "threads"]

    def __init__(self, task: Task) -> None: ...

    def rows(self) -> list[Prompt]:
        """Return the questions, each with its gold answer."""
        ...

    def grade(self, row: Prompt, answer: str) -> Score:
        """Grade the text after the thought. `row.gold` may be written as in any published copy."""
        ...


def whole_replies(benchmark: Benchmark) -> bool:
    """Return True if a benchmark reads whole replies, finished or not, as the reference's scripts do."""
    return bool(getattr(benchmark, "whole_replies", False))


def load(name: str, task: Task | None = None) -> Benchmark:
    """Load a benchmark by name, or from `file.py:Class`, with its settings; the task's `benchmark` takes precedence."""
    settings = task or Task()
    benchmark: Benchmark = registry.resolve("task", settings.benchmark or name, TABLE)(settings)
    return benchmark
