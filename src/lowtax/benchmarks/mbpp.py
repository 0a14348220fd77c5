"""MBPP, and MBPP+ with EvalPlus' further tests: short functions described by a sentence and three asserts.

Dataset   `google-research-datasets/mbpp`, sanitized (257 of the test split) or, with split and file, full; `evalplus/
          mbppplus` (378, its `test` joins base and plus tests), or EvalPlus' own MbppPlus.jsonl (v0.2.0).
Metric    the program in the answer passes all tests, in the sandbox; pass@1, or pass@k over the samples.
Preset    default: the prompt of Austin et al. 2021 (arXiv:2108.07732); paper, reference: EvalPlus' chat wording.
"""

from collections.abc import Callable
from typing import Any

from lowtax.benchmarks import catalog, questions
from lowtax.benchmarks import code as coding
from lowtax.benchmarks.code import Problem
from lowtax.benchmarks.humaneval import PAPER, HumanEval
from lowtax.benchmarks.sandbox.values import packed
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt, row_id
from lowtax.data import readers

DEFAULT = (
    "You are an expert Python programmer, and here is your task: {} Your code should pass these tests:\n\n{}\n\n"
    "Answer with the whole function, with the imports that it needs, in one ```python code block."
)


def _all_tuples(value: Any) -> Any:
    return tuple(_all_tuples(item) for item in value) if isinstance(value, list) else value


def _tuples(values: list[Any]) -> list[Any]:
    return [tuple(value) for value in values]


# Types that JSON lost from the inputs of MbppPlus.jsonl: (tasks, a function that restores their arguments).
RESTORED: tuple[tuple[str, Callable[[list[Any]], Any]], ...] = (
    ("2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809", _tuples),
    ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", lambda a: [_tuples(part) for part in a]),
    ("75 413 444 753", lambda a: [_tuples(a[0]), a[1]]),
    ("106 750", lambda a: [a[0], tuple(a[1])]),
    ("115", lambda a: [[set(part) if isinstance(part, list) and part else {} for part in a[0]]]),
    ("124", lambda a: [float(a[0]), complex(a[1])]),
    ("250 405 446 617 720 763 808", lambda a: [tuple(a[0]), a[1]]),
    ("259 401 445", lambda a: [tuple(_tuples(part)) for part in a]),
    ("278", lambda a: [tuple(tuple(part) if isinstance(part, list) else part for part in a[0])]),
    ("307", lambda a: [tuple(a[0]), a[1], a[2]]),
    ("722", lambda a: [{key: tuple(value) for key, value in a[0].items()}, *a[1:]]),
    ("252", lambda a: [complex(a[0])]),
    ("580 615 791", _all_tuples),
)
RESTORE = {int(number): how for numbers, how in RESTORED for number in numbers.split()}


class Mbpp(HumanEval):
    """The benchmark `mbpp`."""

    name = "mbpp"

    def problem(self, row: dict[str, Any]) -> Problem:
        """Read a row of any of the published files."""
        key = str(readers.cell(row, ("task_id",), self.name))
        where = f"{self.name} {key}"
        if "base_input" in row:
            return self._by_inputs(row, key, where)
        code = str(readers.cell(row, ("code",), where))
        tests = [str(test) for test in readers.cell(row, ("test_list",), where)]
        test_imports = row.get("test_imports")
        entry = coding.entry_in(code, tests, where)
        imports = "\n".join([*(test_imports if test_imports is not None else []), *coding.imports_of(code)])
        setup = f"{imports}\n{row.get('test_setup_code') or ''}"
        source = str(readers.cell(row, ("test",), where)) if self.plus else "\n".join(tests)
        if self.plus and "inputs" not in source:
            raise UserError(f"{where} has only MBPP's own tests: for mbpp_plus give EvalPlus' file.")
        groups = {"base and plus" if self.plus else "base": coding.tests_by_source(source, setup)}
        return Problem(key, entry, "", code, groups, imports)

    def _by_inputs(self, row: dict[str, Any], key: str, where: str) -> Problem:
        entry, prompt, canonical = (
            str(readers.cell(row, (name,), where)) for name in ("entry_point", "prompt", "canonical_solution")
        )
        restore = RESTORE.get(int(key.rpartition("/")[2]), list)
        inputs_by_group = {
            "base": row["base_input"],
            **({"plus": readers.cell(row, ("plus_input",), where)} if self.plus else {}),
        }
        groups = {
            name: coding.tests_by_inputs(
                [packed(list(restore(values))) for values in inputs], entry, float(row.get("atol") or 0)
            )
            for name, inputs in inputs_by_group.items()
        }
        return Problem(key, entry, "", f"{prompt}\n{canonical}", groups)

    def rows(self) -> list[Prompt]:
        """Return the problems; the gold answer is a problem's id, by which its tests are found."""
        rows = catalog.rows(self.name, self.task)
        keys = [str(readers.cell(row, ("task_id",), self.name)) for row in rows]
        prompts = [
            (key, Prompt(id=row_id(self.name, key), source=self.name, text=self.prompt(row, key), gold=key))
            for key, row in zip(keys, rows, strict=True)
        ]
        return questions.chosen(prompts, self.task.n, self.task.seed)

    def prompt(self, row: dict[str, Any], key: str) -> str:
        """Write the prompt: the sentence with all tests by default, with the first one in EvalPlus' wording."""
        text = str(readers.cell(row, ("prompt", "text"), f"{self.name} {key}")).strip()
        if "base_input" in row:  # EvalPlus' file has a docstring of the sentence and one assert
            inner = text.strip('"').strip()
            sentence, _, test = inner.partition("\nassert ")
            tests = [f"assert {test}"] if test else []
        else:
            sentence, tests = text, [str(test) for test in readers.cell(row, ("test_list",), f"{self.name} {key}")]
        if self.task.preset == "default":
            return DEFAULT.format(sentence, "\n".join(tests))
        return PAPER.format("\n".join(['"""', sentence, *tests[:1], '"""']))


class MbppPlus(Mbpp):
    """The benchmark `mbpp_plus`."""

    name = "mbpp_plus"
    plus = True
