"""HumanEval, and HumanEval+ with EvalPlus' further tests: 164 functions to complete.

Dataset   `openai/openai_humaneval` (OpenAI's HumanEval.jsonl.gz is the same); `evalplus/humanevalplus`, whose `test`
          joins base and plus tests, or EvalPlus' own HumanEvalPlus.jsonl (v0.1.10), which keeps them apart.
Metric    the program in the answer passes all tests, in the sandbox; pass@1, or pass@k over the samples.
Preset    paper, reference: EvalPlus' chat wording, without the start of the answer that it writes for the model.
"""

import json
import threading
from typing import Any, Literal

from lowtax.benchmarks import catalog, code, questions
from lowtax.benchmarks.base import Score, Task
from lowtax.benchmarks.code import Problem
from lowtax.benchmarks.sandbox.values import packed
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers

DEFAULT = (
    "Complete the Python function below so that it does what its docstring says. "
    "Answer with the whole function, with the imports that it needs, in one ```python code block.\n\n"
    "```python\n{}\n```"
)
PAPER = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```\n{}\n```\n"
)


class HumanEval:
    """The benchmark `humaneval`."""

    name = "humaneval"
    plus = False
    workers: Literal["none", "processes", "threads"] = "threads"

    def __init__(self, task: Task) -> None:
        self.task = task
        self.lock = threading.Lock()
        self.by_id: dict[str, Problem] = {}

    def problem(self, row: dict[str, Any]) -> Problem:
        """Read a row of any of the published files."""
        where = f"{self.name} {row.get('task_id', '?')}"
        key, entry, prompt, canonical = (
            str(readers.cell(row, (name,), where))
            for name in ("task_id", "entry_point", "prompt", "canonical_solution")
        )
        if "base_input" in row:
            if self.plus and row.get("plus_input") is None:
                raise UserError(
                    f"{where} has no column plus_input, so no plus tests: give EvalPlus' HumanEvalPlus file."
                )
            inputs_by_group = {"base": row["base_input"], **({"plus": row["plus_input"]} if self.plus else {})}
            groups = {
                name: code.tests_by_inputs([packed(i) for i in inputs or []], entry, float(row.get("atol") or 0))
                for name, inputs in inputs_by_group.items()
            }
        else:
            source = str(readers.cell(row, ("test",), where))
            if self.plus and "inputs" not in source:
                raise UserError(f"{where} has only HumanEval's own tests: for humaneval_plus give EvalPlus' file.")
            name = "base and plus" if self.plus else "base"
            groups = {name: code.tests_by_source(source, f"{prompt.rstrip()}\n    pass\n")}
        return Problem(key, entry, prompt, prompt + canonical, groups)

    def problems(self) -> dict[str, Problem]:
        """Return the problems by id; the file is read once."""
        with self.lock:
            if not self.by_id:
                problems = [self.problem(row) for row in catalog.rows(self.name, self.task)]
                self.by_id = {problem.id: problem for problem in problems}
            return self.by_id

    def rows(self) -> list[Prompt]:
        """Return the problems; the gold answer is a problem's id, by which its tests are found."""
        template = DEFAULT if self.task.preset == "default" else PAPER
        prompts = [
            (
                p.id,
                Prompt(id=row_id(self.name, p.id), source=self.name, text=template.format(p.prompt.strip()), gold=p.id),
            )
            for p in self.problems().values()
        ]
        return questions.chosen(prompts, self.task.n, self.task.seed)

    def grade(self, row: Prompt, answer: str) -> Score:
        """Run the tests on the program in the answer; the gold is a problem's id, or its row as JSON."""
        gold = (row.gold or "").strip()
        if gold.startswith("{"):
            return code.score(self.problem(json.loads(gold)), answer)
        problem = self.problems().get(gold)
        if problem is None:
            raise UserError(f"{self.name} has no problem {gold[:40]!r}: the gold of a row is its task_id.")
        return code.score(problem, answer)


class HumanEvalPlus(HumanEval):
    """The benchmark `humaneval_plus`."""

    name = "humaneval_plus"
    plus = True
