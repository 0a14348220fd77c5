"""Code exams: the program that is taken from an answer, and what passes base and plus tests."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from places import PUBLISHED

from lowtax.benchmarks import code
from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.code import Problem, program
from lowtax.benchmarks.sandbox.roles import right
from lowtax.benchmarks.sandbox.values import packed
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt

HUMANEVAL = PUBLISHED / "HumanEval.jsonl.gz"
needs_data = pytest.mark.skipif(not HUMANEVAL.exists(), reason="no copy of HumanEval.jsonl.gz beside the project")

PROMPT = 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each.\n    """\n'
BODY = "    return [2 * x for x in xs]\n"
FULL = "def double(xs: List[int]) -> List[int]:\n" + BODY
ROW = {
    "task_id": "Mini/0", "prompt": PROMPT, "entry_point": "double", "canonical_solution": BODY,
    "test": "METADATA = {}\ndef check(candidate):\n    assert candidate([1]) == [2]\n    assert candidate([]) == []\n",
}  # fmt: skip
ROOT = {
    "task_id": "Mini/1", "entry_point": "root", "canonical_solution": "    return -xs[0] / xs[1]\n",
    "prompt": "def poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef root(xs):\n    '''Where poly is 0.'''\n",
    "test": "def check(candidate):\n    for c in (1, 2.5):\n        assert abs(poly([c, 2], candidate([c, 2]))) < 1\n",
}  # fmt: skip
MBPP = {
    "task_id": 3, "prompt": "Write a function to add.",
    "code": "def helper(a):\n    return a\ndef add(a, b):\n    return a + b\n",
    "test_imports": ["import math"], "test_list": ["assert math.floor(add(1, 2)) == 3", "assert add('a', 'b') == 'ab'"],
}  # fmt: skip
PROBLEM = Problem("Mini/0", "double", PROMPT, PROMPT + BODY)


def exam(tmp_path: Path, name: str, rows: list[dict], **settings: object):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load(name, Task(file=str(path), **settings))


@pytest.mark.parametrize(("answer", "rule", "text"), [
    (f"Sure:\n```python\n{FULL}```\nDone.", "block", FULL),
    (f"```\n{FULL}```", "block", FULL),
    (f"~~~py\n{FULL}~~~", "block", FULL),
    (f"````python\n{FULL}````", "block", FULL),
    (f"```python\r\n{FULL}```".replace("\n", "\r\n"), "block", FULL),
    (f"1. So:\n   ```python\n{''.join('   ' + line + chr(10) for line in FULL.splitlines())}   ```", "block", FULL),
    (f"```python\ndef double(xs): return 0\n```\nBetter:\n```python\n{FULL}```", "block", FULL),
    (f"```python\n{FULL}```\nUse it:\n```python\nprint(double([1]))\n```\nIt prints\n```\n[2]\n```", "block", FULL),
    (f"```python\n{FULL}", "block", FULL),
    (f"```bash\nls\n```\n```python\n{FULL}```\n```bash\ndef double\n```", "block", FULL),
    ("```python\ndouble = lambda xs: [2 * x for x in xs]\n```", "block", "double = lambda xs: [2 * x for x in xs]\n"),
    (f"```python\n{BODY}```", "body", BODY),
    (f"```python\n\n{BODY}```", "body", BODY),
    (f"```python\n    \n{BODY}```", "body", BODY),
    ("```python\nreturn [2 * x for x in xs]\n```", "body", BODY),
    (BODY, "text", BODY),
    (FULL, "text", FULL),
    (f"from typing import List\n\n{FULL}", "text", f"from typing import List\n\n{FULL}"),
])  # fmt: skip
def test_the_program_in_an_answer(answer, rule, text):
    found, said = program(answer, PROBLEM)
    assert said == rule
    assert found.startswith("from typing import List")
    assert found.rstrip().endswith(text.rstrip())
    names: dict = {}
    exec(found, names)
    assert names["double"]([3]) == [6]


@pytest.mark.parametrize(("answer", "rule"), [
    ("I cannot.", "no code"),
    ("", "no code"),
    ("```python\n```", "no code"),
    ("```python\ndef other(xs):\n    pass\n```", "no function double"),
    ("```python\ndef doubled(xs):\n    pass\n```", "no function double"),
    ("def other(xs):\n    pass", "no function double"),
])  # fmt: skip
def test_an_answer_without_the_function(answer, rule):
    assert program(answer, PROBLEM) == (None, rule)
    assert code.score(PROBLEM, answer) == code.Score(False, None, rule)


def test_ten_thousand_lines_are_read_in_linear_time():
    began = time.process_time()
    for text in ("word word\n" * 100_000, "```python\nx = 1\n```\n" * 30_000, "```\n" * 100_000, "`" * 300_000,
                 "```python\n" + " " * 300_000 + "\n```", "\n" * 300_000, "def double" * 30_000):  # fmt: skip
        program(text + f"\n```python\n{FULL}```", PROBLEM)
        program(text, PROBLEM)
    assert time.process_time() - began < 5


def test_humaneval_of_ones_own(tmp_path):
    mini = exam(tmp_path, "humaneval", [ROW, ROOT])
    rows = {row.gold: row for row in mini.rows()}
    assert mini.workers == "threads"
    assert "```python\nfrom typing import List" in rows["Mini/0"].text
    assert mini.grade(rows["Mini/0"], f"```python\n{FULL}```").rule == "block; base passed"
    wrong = mini.grade(rows["Mini/0"], f"```python\n{PROMPT}    pass\n```")
    assert (wrong.correct, wrong.rule) == (False, "block; base failed: call 1: AssertionError")
    assert not mini.grade(rows["Mini/0"], "```python\n    return None\n```").correct
    assert mini.grade(rows["Mini/1"], "```python\ndef root(xs):\n    return -xs[0] / xs[1]\n```").correct
    cheat = "```python\ndef poly(xs, x):\n    return 0\ndef root(xs):\n    return 0\n```"
    assert not mini.grade(rows["Mini/1"], cheat).correct  # the helper of the tests is the prompt's
    assert "program: SyntaxError" in mini.grade(rows["Mini/0"], "```python\ndef double(:\n```").rule


def test_the_gold_may_be_the_row_itself(tmp_path):
    mini = exam(tmp_path, "humaneval", [ROOT])
    row = Prompt(id="1", source="file", text="?", gold=json.dumps(ROW))
    assert mini.grade(row, f"```python\n{FULL}```").correct
    with pytest.raises(UserError, match="task_id"):
        mini.grade(row.model_copy(update={"gold": "Mini/9"}), "x")


def test_the_papers_wording_has_no_start_of_the_answer(tmp_path):
    [row] = exam(tmp_path, "humaneval", [ROW], preset="paper").rows()
    assert row.text.startswith("Please provide a self-contained Python script that solves the following problem in a")
    assert row.text.endswith("```\n")


def test_rows_are_pure_and_chosen_by_the_seed(tmp_path):
    given = [ROW | {"task_id": f"Mini/{i}"} for i in range(20)]
    first = [row.gold for row in exam(tmp_path, "humaneval", given, n=10, seed=1).rows()]
    assert first == [row.gold for row in exam(tmp_path, "humaneval", given[::-1], n=10, seed=1).rows()]
    assert first != [row.gold for row in exam(tmp_path, "humaneval", given, n=10, seed=2).rows()]


def plus_row(**changes: object) -> dict:
    row = {key: value for key, value in ROW.items() if key != "test"}
    return row | {"base_input": [[[1]]], "plus_input": [[[]], [[-3, 4]]], "atol": 0, "contract": ""} | changes


def test_evalplus_files_have_base_and_plus_tests(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path))
    mini = exam(tmp_path, "humaneval_plus", [plus_row()])
    [row] = mini.rows()
    assert mini.grade(row, f"```python\n{FULL}```").rule == "block; base passed; plus passed"
    positive = "```python\ndef double(xs):\n    return [2 * abs(x) for x in xs]\n```"
    score = mini.grade(row, positive)
    assert not score.correct
    assert score.rule == "block; base passed; plus failed: call 2: AssertionError: [6, 8] instead of [-6, 8]"
    tuples = "```python\ndef double(xs):\n    return tuple(2 * x for x in xs)\n```"
    assert not mini.grade(row, tuples).correct
    assert len(list((tmp_path / "expected").glob("*.json"))) == 2
    assert exam(tmp_path, "humaneval", [plus_row()]).grade(row, positive).rule == "block; base passed"


def test_where_there_are_no_plus_tests_it_is_said(tmp_path):
    for name, rows in (("humaneval_plus", [ROW]), ("mbpp_plus", [MBPP | {"test": "assert add(1, 2) == 3"}])):
        with pytest.raises(UserError, match="own tests"):
            exam(tmp_path, name, rows).problems()
    with pytest.raises(UserError, match="plus_input"):
        exam(tmp_path, "humaneval_plus", [{k: v for k, v in plus_row().items() if k != "plus_input"}]).problems()


def test_the_hubs_copies_have_their_tests_as_source(tmp_path):
    checks = "def check(candidate):\n    inputs, results = [[[1]], [[2]]], [[2], [4]]\n"
    checks += "    for inp, exp in zip(inputs, results):\n        assert candidate(*inp) == exp\n"
    mini = exam(tmp_path, "humaneval_plus", [ROW | {"test": "import numpy as np\n" + checks}])
    [row] = mini.rows()
    assert mini.grade(row, f"```python\n{FULL}```").rule == "block; base and plus passed"
    source = "inputs, results = [[1, 2]], [3]\nfor inp, exp in zip(inputs, results):\n    assert add(*inp) == exp\n"
    mini = exam(tmp_path, "mbpp_plus", [MBPP | {"test": source}])
    [row] = mini.rows()
    assert mini.grade(row, "```python\ndef add(x, y):\n    return x + y\n```").correct
    assert not mini.grade(row, "```python\ndef add(x, y):\n    return x - y\n```").correct


def test_mbpp(tmp_path):
    mini = exam(tmp_path, "mbpp", [MBPP])
    [row] = mini.rows()
    assert row.text.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to add. Your"
    )
    assert "assert add('a', 'b') == 'ab'" in row.text
    assert mini.problems()["3"].entry == "add"
    assert mini.grade(row, "```python\ndef add(x, y):\n    return x + y\n```").rule == "block; base passed"
    assert "call 2" in mini.grade(row, "```python\ndef add(x, y):\n    return int(x) + int(y)\n```").rule
    [row] = exam(tmp_path, "mbpp", [MBPP], preset="paper").rows()
    assert 'block:\n```\n"""\nWrite a function to add.\nassert math.floor(add(1, 2)) == 3\n"""\n```\n' in row.text


def test_published_tests_of_mbpp_find_what_they_relied_on(tmp_path):
    row = MBPP | {"code": "import re\ndef check(a):\n    return re.match('x', a)\n", "test_imports": [],
                  "test_list": ["assert check('xy')", "assert re.escape('.') and not check('y')"]}  # fmt: skip
    mini = exam(tmp_path, "mbpp", [row])
    [asked] = mini.rows()
    assert mini.problems()["3"].entry == "check"
    assert mini.grade(asked, "```python\ndef check(a):\n    return re.match('x', a)\n```").correct
    assert not mini.grade(asked, "```python\ndef check(a):\n    return re.compile(a)\n```").correct


def test_inputs_of_mbpp_plus_get_their_tuples_back(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path))
    row = {
        "task_id": "Mbpp/2", "entry_point": "similar_elements", "atol": 0, "contract": "",
        "prompt": '"""\nWrite a function to share.\nassert similar_elements((1, 2), (2, 3)) == (2,)\n"""\n',
        "canonical_solution": "def similar_elements(a, b):\n    assert type(a) is tuple\n    return (*{*a} & {*b},)\n",
        "base_input": [[[1, 2], [2, 3]]], "plus_input": [[[5, 4, 3], [3, 4]]],
    }  # fmt: skip
    mini = exam(tmp_path, "mbpp_plus", [row])
    [asked] = mini.rows()
    assert "assert similar_elements((1, 2), (2, 3)) == (2,)" in asked.text
    assert mini.problems()["Mbpp/2"].groups["base"]["inputs"] == [packed([(1, 2), (2, 3)])]
    other_order = "```python\ndef similar_elements(a, b):\n    return [x for x in a if x in b]\n```"
    assert mini.grade(asked, other_order).correct  # EvalPlus compares these as sets
    assert not mini.grade(asked, "```python\ndef similar_elements(a, b):\n    return a\n```").correct


def test_a_solution_that_does_not_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("LOWTAX_HOME", str(tmp_path))
    mini = exam(tmp_path, "humaneval_plus", [plus_row(canonical_solution="    return 1 / 0\n")])
    with pytest.raises(UserError, match="does not run"):
        mini.grade(mini.rows()[0], f"```python\n{FULL}```")


@pytest.mark.parametrize(("found", "expected", "tolerance", "is_right"), [
    (1, 1, 0, True), (1, 1.0, 0, True), (True, 1, 0, True), ([1], (1,), 0, False), ((1,), (1,), 0, True),
    (0.1 + 0.2, 0.3, 0, True), ([0.1 + 0.2, 1.0], [0.3, 1.0], 0, True), ([0.1 + 0.2, 1], [0.3, 1], 0, False),
    ((0.1 + 0.2,), [0.3], 0, False), (0.31, 0.3, 0, False), (0.31, 0.3, 0.05, True), (1, 1.05, 0.1, False),
    ([0.3], [0.3, 0.3], 0.1, False), (float("nan"), float("nan"), 0.1, False), ("a", "a", 0, True),
    (None, None, 0, True),
    (float("inf"), float("inf"), 0.1, True), (1e9 + 1, 1e9, 1e-6, True), ("a", "b", 1e-6, False),
])  # fmt: skip
def test_values_are_compared_as_evalplus_does(found, expected, tolerance, is_right):
    assert right(found, expected, [], "", tolerance) is is_right


def test_special_rules_of_evalplus():
    assert right(-0.5, None, [[1, 2]], "root", 1e-4)
    assert not right(0.5, None, [[1, 2]], "root", 1e-4)
    assert right([2, 1, 1], [1, 2], [], "set", 0)
    assert right("x", "y", [], "some", 0)
    assert not right(None, "y", [], "some", 0)
    assert right(0, 7, [], "or_zero", 0)
    assert right(5, 7, [], "any", 0)
    assert right(8, 3, [1, 234], "digits", 0)
    assert right(35, 1, [3, 4], "pyramid", 1)


@pytest.fixture(scope="module")
def humaneval():
    with gzip.open(HUMANEVAL, "rt") as file:
        return {row["task_id"]: row for row in map(json.loads, file)}


def graded(humaneval: dict, answer) -> list:
    benchmark = load("humaneval", Task(file=str(HUMANEVAL)))
    rows = benchmark.rows()
    with ThreadPoolExecutor(2) as pool:
        scores = list(pool.map(benchmark.grade, rows, [answer(humaneval[row.gold]) for row in rows]))
    assert len(scores) == 164
    return [(row.gold, score.rule) for row, score in zip(rows, scores, strict=True) if score.correct]


@needs_data
def test_all_canonical_solutions_pass(humaneval):
    fenced = "Here it is.\n```python\n{}\n```\n"
    assert len(graded(humaneval, lambda r: fenced.format(r["prompt"] + r["canonical_solution"]))) == 164


@needs_data
@pytest.mark.parametrize("body", ["pass", "return None"])
def test_all_empty_bodies_fail(humaneval, body):
    assert graded(humaneval, lambda r: f"```python\n{r['prompt']}    {body}\n```") == []
