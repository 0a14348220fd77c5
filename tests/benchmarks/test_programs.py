"""The program in an answer: what models write around a right function, and which lines of it are run."""

import ast
import gzip
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import PUBLISHED, TESTS

from lowtax.benchmarks import code
from lowtax.benchmarks.programs import Target, blocks, program

HUMANEVAL = PUBLISHED / "HumanEval.jsonl.gz"
needs_data = pytest.mark.skipif(not HUMANEVAL.exists(), reason="no copy of HumanEval.jsonl.gz beside the project")

PROMPT = 'from typing import List\n\n\ndef double(xs: List[int]) -> List[int]:\n    """Twice each.\n    """\n'
BODY = "    return [2 * x for x in xs]\n"
FULL = "def double(xs: List[int]) -> List[int]:\n" + BODY
TARGET = Target("double", PROMPT, "from typing import List")
F, NBSP, BOM = "```", "\u00a0", "\ufeff"
FENCED = f"{F}python\n{FULL}{F}"
LONGER = "def double(xs):\n    ys = []\n    for x in xs:\n        ys.append(2 * x)\n    return ys"
AROUND = (("<code>", "</code>"), ("[PYTHON]", "[/PYTHON]"), ("<answer>", "</answer>"), ("", "<|im_end|>"), ("", "</s>"),
          (f"{F}python\n", F), (f"So: {F}python\n", f"\n{F}"), ("<pre><code>", "</code></pre>\nFine."),
          (f"<answer>{F}python\n", f"{F}</answer>"))  # fmt: skip
_, *STORED = (TESTS / "benchmarks" / "answers_with_programs.txt").read_text().split("\n==== ")
RIGHT = {name: answer for name, _, answer in (case.partition("\n") for case in STORED)} | {
    "line ends of Windows": FENCED.replace("\n", "\r\n"),
    "byte-order mark": BOM + FENCED,
    "byte-order mark in the block": f"{F}python\n{BOM}{FULL}{F}",
    "byte-order mark, no fence": BOM + FULL,
    "non-breaking spaces": FENCED.replace("    ", NBSP * 4),
    "non-breaking spaces, no fence": FULL.replace("    ", NBSP * 4),
    "non-breaking spaces before the fence": NBSP * 2 + FENCED,
    "zero-width space": f"{F}python\n\u200b{FULL}{F}",
    **{f"{start!r} on the lines of code": f"{start}{LONGER}{end}" for start, end in AROUND},
    "curly quotes": FENCED.replace("[2 *", "\u201cx\u201d and [2 *"),
    "curly quotes in a string": f"It\u2019s:\n{FULL}".replace("[2 *", "'don\u2019t' and [2 *") + "Done, isn\u2019t it?",
    "JSON": json.dumps({"thoughts": "Easy.", "code": LONGER}),
    "JSON in a fence": f"{F}json\n{json.dumps({'code': FENCED}, indent=1)}\n{F}",
    "one line in backquotes": "So:\n\n`def double(xs): return [2 * x for x in xs]`",
    "one line in a fence": f"{F}python def double(xs): return [2 * x for x in xs]{F}",
    "fence behind a tab": "- x\n" + "".join(f"\t{line}\n" for line in FENCED.split("\n")),
}


def doubled(text: str) -> object:
    """Load a program as the sandbox does, and call its function."""
    names: dict = {"__name__": "program"}
    exec(text, names)
    return names["double"]([3])


def test_a_right_function_is_found_whatever_is_around_it():
    wrong = {}
    for name, answer in RIGHT.items():
        text, rule = program(answer, TARGET)
        try:
            assert doubled(str(text)) == [6]
        except (Exception, SystemExit) as error:  # noqa: BLE001  # row recorded as failed
            wrong[name] = (rule, type(error).__name__)
    assert wrong == {}


NONE = (
    "I cannot.",
    "",
    f"{F}python\n{F}",
    "Sorry, return to sender.",
    "return of the king",
    "I will not double the xs.",
)


def test_prose_is_no_program():
    assert [program(answer, TARGET) for answer in NONE] == [(None, "no code")] * len(NONE)
    assert program("def other(xs):\n    pass", TARGET) == (None, "no function double")
    assert program(f"{F}python\nfrom mine import double\nprint(double([1]))\n{F}", TARGET)[0] is None


def test_only_what_the_function_reaches_is_run():
    text, _ = program(RIGHT["class"], TARGET)
    assert all(part in text for part in ("class P", "class Q", "from dataclasses"))
    text, _ = program(RIGHT["pytest import"], TARGET)
    assert "pytest" not in text
    assert "pandas" not in text
    text, _ = program(RIGHT["sys exit"], TARGET)
    assert "setrecursionlimit(5000)" in text
    assert "exit" not in text
    text, _ = program(RIGHT["future"], TARGET)
    assert text.startswith("from __future__ import annotations\n")


def test_what_the_function_needs_is_run_though_it_fails():
    reading = f"{F}python\nn = int(input())\ndef double(xs):\n    return [n * x for x in xs]\n{F}"
    assert "input()" in str(program(reading, TARGET)[0])
    broken = program(f"{F}python\ndef double(:\n{F}", TARGET)
    assert broken == ("from typing import List\n\ndef double(:\n", "block")


def test_a_sanitizer_keeps_functions_classes_and_constants_in_reach():
    """The kinds of EvalPlus' own cases: chains, cycles of names, classes, constants, prose between lines."""
    lines = "import math\nfrom math import cos\n\nK = 5\n\ndef a(x):\n    return c(x)\nassert a(1) == 9\ndef g(x):\n"
    lines += (
        "    return cos(a(x))\n\ndef c(x):\n    o = H()\n    return x\n\nclass H:\n    def k(self):\n        return K\n"
    )
    lines += "\ndef d(x):\n    return g(x)\n\nassert g(0) == 2\n"
    for answer in (f"Following:\n{F}python\n{lines}{F}\n", lines, f"Some code\n{lines}As you can see above"):
        text, _ = program(answer, Target("g"))
        names: dict = {}
        exec(text, names)
        assert names["g"](0) == 1
        assert {"a", "c", "g", "H", "K", "cos"} <= names.keys()
        assert not {"d", "math"} & names.keys()


def test_long_answers_take_linear_time():
    texts = ["```python\ndef double(x): pass\n```\n" * 1000, "def double(x):\n    return 1\n" * 1500]
    texts += ["x = (\n" * 1000 + FULL, 'x = """\n' * 1001 + FULL, "return 1\nx\n" * 5000, "def double(:\n" * 1500]
    texts += ["".join(f"def f{i}(x):\n    return f{i + 1}(x)\n" for i in range(1500)) + "double = f0\n"]
    began = time.process_time()
    for text in texts:
        program(text, TARGET)
    assert time.process_time() - began < 3


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("`~<>code[PYTHON]\"'#:;=()def double(xs):\n\r\t return\u00a0\ufeff@")))
def test_any_text_can_be_an_answer(text):
    for answer in (text, f"{F}python\n{text}\n{F}", f"def double(xs):\n{text}"):
        found, rule = program(answer, TARGET)
        assert rule
        assert found is None or found.endswith("\n")
        blocks(answer)


FORMS = {
    "fenced": lambda row: f"So:\n{F}python\n{row['prompt']}{row['canonical_solution']}\n{F}\n",
    "demonstrated": lambda row: f"{F}python\n{row['prompt']}{row['canonical_solution']}\nn = int(input())\nexit()\n{F}",
    "text": lambda row: (row["prompt"] + row["canonical_solution"]).strip(),
    "prose": lambda row: f"Here's the code:\n\n{row['prompt']}{row['canonical_solution']}\nThis isn't hard.",
    "fenced body": lambda row: f"{F}python\n{row['canonical_solution']}\n{F}",
    "body": lambda row: row["canonical_solution"].strip(),
    "body, prose": lambda row: row["canonical_solution"].strip() + "\n\nThis works, it's right.",
    "body, demonstrated": lambda row: row["canonical_solution"].strip() + "\n\nprint(1)\nexit()",
}


@needs_data
@pytest.mark.parametrize("form", FORMS)
def test_all_canonical_solutions_and_bodies_are_found(form):
    with gzip.open(HUMANEVAL, "rt") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:
        problem = code.Problem(row["task_id"], row["entry_point"], row["prompt"], "")
        found, rule = code.program(FORMS[form](row), problem)
        names: dict = {}
        exec(f"{found}\n{row['test']}\n", names)
        assert callable(names[row["entry_point"]]), row["task_id"]
        if "body" in form:
            assert rule == ("body" if form == "fenced body" else "text")
            whole = ast.parse(row["prompt"] + row["canonical_solution"])
            assert ast.dump(ast.parse(found)) == ast.dump(whole), row["task_id"]
        else:
            names["check"](names[row["entry_point"]])
