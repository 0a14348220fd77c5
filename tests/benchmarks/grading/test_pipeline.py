"""Grading as one pipeline: extract, normalise, compare. What needs no algebra also needs no math-verify."""

import ast
import json
import sys
import time
from pathlib import Path

import pytest

from lowtax.benchmarks import grading, questions
from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.grading import mathematics, normalise
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt

FOLDER = Path(str(grading.__file__)).parent
IMPORTS = {
    "units": set(),
    "normalise": {"units"},
    "languages": set(),
    "structured": set(),
    "values": {"normalise"},
    "expressions": {"values"},
    "reals": {"expressions", "values"},
    "relations": {"expressions", "reals", "values"},
    "stated": {"languages", "normalise"},
    "extract": {"languages", "normalise", "stated", "structured"},
    "mathematics": {"expressions", "extract", "normalise", "reals", "relations", "values"},
    "letters": {"expressions", "extract", "languages", "mathematics", "normalise", "structured"},
    "reference_rules": set(),
    "worker": set(),
    "pool": {"mathematics", "worker"},
}


def imports(path: Path) -> set[str]:
    """The modules of this package that a module imports."""
    package = "lowtax.benchmarks.grading"
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            names.add(str(node.module).rpartition(".")[2])
    return names


def test_the_modules_of_grading_import_in_one_direction():
    assert {path.stem: imports(path) for path in FOLDER.glob("*.py") if path.stem != "__init__"} == IMPORTS


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("\\boxed{(1,\\frac12)}", "(1,0.5)", True),
        ("\\boxed{x = 5}", "6", False),
        ("\\boxed{3 hours 45 minutes}", "225", True),
        ("\\boxed{025}", "25", True),
    ],
)
def test_each_side_is_normalised_once(monkeypatch: pytest.MonkeyPatch, answer: str, gold: str, right: bool):
    seen = []
    plain = normalise.plain
    monkeypatch.setattr(normalise, "plain", lambda text: seen.append(text) or plain(text))
    row = Prompt(id="1", source="math", text="?", gold=gold)
    assert questions.open_score(row, answer, "default").correct is right
    assert seen == [answer.removeprefix("\\boxed{").removesuffix("}"), gold]


PARTS = r"""
(1,\frac{1}{2}) | (1,0.5) | equal
(1,2) | (2,1) | unequal
(1,2) | [1,2] | unequal
(1,2) | \{1,2\} | unequal
\{1,2\} | \{2,1.0\} | equal
\{1,2,2\} | \{1,1,2\} | unequal
1,2 | \{2,1\} | equal
1,2 | (1,2) | equal
2,1 | (1,2) | unequal
1,234 | 1234 | equal
(1,234) | 1234 | unequal
[0,125) | (0,125) | unequal
[0,125)\cup(125,\infty) | (0,125)\cup(125,\infty) | unequal
(-\infty,2)\cup(3,+\infty) | (3,\infty)\cup(-\infty,2) | equal
(-\infty,2) | (-\infty,2)\cup(3,\infty) | unequal
(-\infty,2) | (\infty,2) | unequal
(1,2),(3,4) | (3,4),(1,2) | equal
(1,2),(3,4) | (2,1),(3,4) | unequal
\{5\} | 5 | equal
x=1,y=2 | y=2,x=1 | equal
x=1,y=2 | x=2,y=1 | unequal
x=2 \text{ or } x=3 | 2,3 | equal
Ann, Bob | Bob, Ann | equal
\langle 1,2 \rangle | \langle 1,3 \rangle | unequal
\langle 1,2 \rangle | (1,2) | equal
\begin{pmatrix} 1/2 \\ 3 \end{pmatrix} | \begin{bmatrix} 0.5 \\ 3 \end{bmatrix} | equal
x = \begin{pmatrix} 1 \\ 3 \end{pmatrix} | \begin{pmatrix} 1 \\ 3 \end{pmatrix} | equal
\begin{pmatrix} 1 & 3 \end{pmatrix} | \begin{pmatrix} 1 \\ 3 \end{pmatrix} | unequal
\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | unequal
\infty | 5 | unequal
(1,\sqrt{8}) | (2,2\sqrt{2}) | unequal
(1,\sqrt{8}) | (1,2\sqrt{2}) | algebra
\{3,\sqrt{8}\} | \{2\sqrt{2},3\} | algebra
\{3,4\} | \{4,\sqrt{9}\} | algebra
\pm 2 | 2,-2 | equal
(-3,\pm 2) | (-3,2,-2) | equal
x=0,x=\pm 2 | x=0,x=\pm 3 | unequal
x=0,x=\pm\sqrt{2} | x=0,x=\pm\sqrt{3} | algebra
x>2 | (2,\infty) | algebra
x<0 \cup x>2 | (-\infty,0)\cup(2,\infty) | algebra
x>2 | 2,\infty | unequal
"""


def decided(answer: str, gold: str) -> str:
    try:
        with mathematics.no_algebra():
            return "equal" if mathematics.same(answer, gold) else "unequal"
    except mathematics.Undecided:
        return "algebra"


@pytest.mark.parametrize(("answer", "gold", "expected"), [line.split(" | ") for line in PARTS.strip().split("\n")])
def test_parts_are_compared_without_algebra_where_numbers_decide(answer: str, gold: str, expected: str):
    assert decided(answer, gold) == expected
    assert decided(gold, answer) == expected


def test_without_math_verify_only_calculus_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    benchmark = load("math", Task())

    def right(answer: str, gold: str) -> bool:
        return benchmark.grade(Prompt(id="1", source="math", text="?", gold=gold), answer).correct

    assert right("The answer is 1,800.", "1800")
    assert right("\\boxed{(1,\\frac12)}", "(1,0.5)")
    assert right("\\boxed{\\{2,1\\}}", "\\{1,2\\}")
    assert not right("\\boxed{[1,2)}", "[1,3)")
    assert right("\\boxed{\\sqrt{x}+1}", "\\sqrt{x} + 1")
    assert right("\\boxed{\\sqrt{4x}+1}", "2\\sqrt{x}+1")
    with pytest.raises(UserError, match=r"pip install 'lowtax\[eval\]'"):
        right("\\boxed{\\int_0^1 x}", "\\frac12")


CORPUS = [json.loads(line) for line in (Path(__file__).parent / "corpus.jsonl").read_text("utf-8").splitlines()]
AGREEMENT = 0.995


def test_the_corpus_is_large_and_has_both_verdicts():
    assert len(CORPUS) >= 1000
    assert len({row["style"] for row in CORPUS}) >= 8
    assert min(sum(row["right"] is verdict for row in CORPUS) for verdict in (True, False)) >= 300


def test_verdicts_agree_with_the_corpus():
    wrong, slowest = [], 0.0
    for row in CORPUS:
        options = tuple(row.get("options", ()))
        prompt = Prompt(id="1", source="corpus", text="?", gold=row["gold"], choices=options)
        began = time.monotonic()
        score = (questions.choice_score if options else questions.open_score)(prompt, row["reply"], "default")
        slowest = max(slowest, time.monotonic() - began)
        if score.correct is not row["right"]:
            wrong.append((row["style"], row["reply"], row["gold"], row["right"], score.extracted, score.rule))
    assert len(wrong) <= (1 - AGREEMENT) * len(CORPUS), "\n".join(map(repr, wrong))
    assert slowest < 2
