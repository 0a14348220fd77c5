"""Reasoning exams, one file each: which questions, and where the answer stands in a finished reply."""

from typing import Protocol

from lowtax import registry
from lowtax.recipe import Task
from lowtax.records import Prompt

TABLE = {"arithmetic": "lowtax.benchmarks.arithmetic:Arithmetic"}


class Benchmark(Protocol):
    """An exam. `rows` is pure and `extract` needs no model, so stored answers can be graded again."""

    def rows(self, task: Task) -> list[Prompt]:
        """The questions, each with its gold answer."""
        ...

    def extract(self, answer: str) -> str | None:
        """The final answer within the text after the thought; None if there is none."""
        ...


def load(name: str) -> Benchmark:
    """The benchmark of that name, or of `file.py:Class`."""
    found: Benchmark = registry.resolve("task", name, TABLE)()
    return found
