"""Score the program in an answer (`programs`) by its base and plus tests.

The prompt's imports and helpers are put before a definition. The tests are those of the data: asserts as source code
(HumanEval, MBPP, the hub copies of EvalPlus), or inputs whose expected values are what the canonical solution returns
(EvalPlus' own files), compared as in EvalPlus 0.3.1.
"""

import ast
import json
import platform
import re
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lowtax.benchmarks import programs
from lowtax.benchmarks.base import Score
from lowtax.benchmarks.programs import Target
from lowtax.benchmarks.sandbox import run as sandbox
from lowtax.benchmarks.sandbox.run import Limits
from lowtax.common.errors import UserError
from lowtax.common.files import write_text
from lowtax.common.records import row_id
from lowtax.models.embedded import cache

LIMITS = Limits(wall_s=10, cpu_s=10, memory_mb=1024, file_mb=16, processes=16)
LIMITS_PLUS = Limits(wall_s=60, cpu_s=60, memory_mb=2048, file_mb=16, processes=16)
LIMITS_EXPECTED = Limits(wall_s=300, cpu_s=300, memory_mb=4096, file_mb=16, processes=16)
LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by the key of expected values
ORACLES = {
    "find_zero": "root",
    "are_equivalent": "any",
    "sum_div": "or_zero",
    "surface_Area": "pyramid",
    "digit_distance_nums": "digits",
} | dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "some") | dict.fromkeys(
    ("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum",
     "intersection_array", "find_dissimilar", "Diff"), "set",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A problem with its tests.

    entry: the name of the function.
    prompt: the code that the answer completes; empty if there is none.
    canonical: the program that gives the expected values of groups with `inputs`.
    groups: tests by name, with `source` and `setup`, or `inputs`, `oracle` and `tolerance`.
    before: imports of the tests, which the program may use too.
    """

    id: str
    entry: str
    prompt: str
    canonical: str
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    before: str = ""


def program(answer: str, problem: Problem) -> tuple[str | None, str]:
    """Return the program in an answer and the rule that found it, or None and what is missing."""
    return programs.program(answer, Target(problem.entry, problem.prompt, _preamble(problem)))


def _preamble(problem: Problem) -> str:
    """Return the imports and helpers in the prompt, above the function that it asks for."""
    definition = re.search(rf"^(?:async\s+)?def\s+{re.escape(problem.entry)}\b", problem.prompt, re.MULTILINE)
    above = problem.prompt[: definition.start()] if definition else problem.before
    return f"{above.rstrip()}\n\n" if above.strip() else ""


def score(problem: Problem, answer: str) -> Score:
    """Run every group of tests on the program in an answer; the rule names the first call that fails."""
    text, rule = program(answer, problem)
    if text is None:
        return Score(False, None, rule)
    groups = {name: _ready(group, problem) for name, group in problem.groups.items()}
    limits = LIMITS_PLUS if len(groups) > 1 or "plus" in groups else LIMITS
    results, _ = sandbox.check(text, problem.entry, groups, limits)
    if any(result.kind == "unloadable" for result in results.values()):
        return Score(False, text, f"{rule}; program: {next(iter(results.values())).text}")
    passed = {name: result.kind == "passed" for name, result in results.items()}
    shown = [f"{name} passed" if passed[name] else f"{name} failed: {result.text}" for name, result in results.items()]
    return Score(all(passed.values()), text, f"{rule}; {'; '.join(shown)}")


def _ready(group: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """Add the expected values to a group; they are computed once and stored in the cache folder."""
    if "source" in group:
        return dict(group)
    key = row_id("expected", problem.canonical, problem.entry, group["inputs"], platform.python_version())
    path = cache() / "expected" / f"{key}.json"
    with LOCKS[key]:
        if not path.exists():
            expected = sandbox.outputs(problem.canonical, problem.entry, group["inputs"], LIMITS_EXPECTED)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)  # programs may be another user, and must not read what is right
            write_text(path, json.dumps(expected))
    return {**group, "expected": json.loads(path.read_text())}


def tests_by_source(source: str, setup: str) -> dict[str, Any]:
    """Make a group of tests from source code."""
    return {"setup": setup, "source": source}


def tests_by_inputs(inputs: list[Any], entry: str, tolerance: float) -> dict[str, Any]:
    """Make a group of tests from inputs that are already packed."""
    return {"inputs": inputs, "oracle": ORACLES.get(entry, ""), "tolerance": tolerance}


def entry_in(code: str, tests: list[str], where: str) -> str:
    """Find the function that the tests call and the solution defines, for data that does not name it."""
    try:
        trees = [ast.parse(code), *(ast.parse(test) for test in tests)]
    except SyntaxError as error:
        raise UserError(f"{where}: its code or its tests are not Python ({error.msg}).") from error
    defined = {node.name for node in ast.walk(trees[0]) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
    for node in (node for tree in trees[1:] for node in ast.walk(tree)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            return node.func.id
    raise UserError(f"{where}: no test calls a function that its solution defines ({', '.join(sorted(defined))}).")


def imports_of(code: str) -> list[str]:
    """Return the imports of a solution: published tests run beside it, and may use what it imports."""
    return [ast.unparse(node) for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
