"""Arithmetic: worked thoughts are true, splits never overlap, and written answers are extracted."""

import operator
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowtax.benchmarks.arithmetic import Arithmetic
from lowtax.benchmarks.base import Task
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt
from lowtax.data.arithmetic import TAUGHT, UNSEEN, Problem, problems

STEP = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)\.")
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@pytest.fixture(scope="module")
def many() -> list[Problem]:
    return [*problems(2000, "train", 0), *problems(1000, "train", 0, UNSEEN)]


def test_every_step_of_every_thought_is_true_and_the_last_is_the_answer(many: list[Problem]):
    assert len(many) == 3000
    for problem in many:
        steps = STEP.findall(problem.thought)
        assert " ".join(f"{a} {op} {b} = {c}." for a, op, b, c in steps) == problem.thought
        for a, op, b, c in steps:
            assert OPERATORS[op](int(a), int(b)) == int(c), problem
        assert int(steps[-1][-1]) == problem.answer, problem


def test_answers_of_plain_expressions_agree_with_python(many: list[Problem]):
    asked = [(p, re.search(r"\d+(?: [-+*] \d+)+", p.question)) for p in many]
    plain = [(p, m) for p, m in asked if m]
    assert len(plain) > 500
    for problem, match in plain:
        first, *rest = match[0].split(" ")
        value = int(first)
        for op, number in zip(rest[::2], rest[1::2], strict=True):
            value = OPERATORS[op](value, int(number))
        assert value == problem.answer, problem


def test_word_problems_agree_with_their_own_numbers(many: list[Problem]):
    meaning = {
        "buys": lambda a, b, c: a + b - c,
        "packs_subtract": lambda a, b, c: a * b - c,
        "packs_add": lambda a, b, c: a * b + c,
        "more_than": lambda a, b: 2 * a + b,
        "buys_twice": lambda a, b, c: a + b + c,
    }
    seen = set()
    for problem in many:
        if problem.kind in meaning:
            seen.add(problem.kind)
            numbers = [int(n) for n in re.findall(r"\d+", problem.question)]
            assert meaning[problem.kind](*numbers) == problem.answer, problem
    assert seen == set(meaning)


def test_splits_are_disjoint_for_any_seeds():
    keys = {s: {p.key for seed in range(3) for p in problems(300, s, seed)} for s in ("train", "validation", "test")}
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_problems_are_a_function_of_their_arguments():
    assert problems(50, "test", 3) == problems(50, "test", 3)
    assert problems(50, "test", 3) != problems(50, "test", 4)
    assert problems(20, "test", 3) == problems(50, "test", 3)[:20]


def test_problems_are_distinct_and_of_many_kinds():
    found = problems(100, "test", 0)
    assert len({p.key for p in found}) == len({p.question for p in found}) == 100
    assert len({p.kind for p in found}) >= 7


def test_questions_of_a_task_have_their_answer():
    task = Task(n=30, split="test", seed=1)
    rows = Arithmetic(task).rows()
    assert [(row.text, row.gold) for row in rows] == [(p.question, str(p.answer)) for p in problems(30, "test", 1)]
    assert len({row.id for row in rows}) == 30
    assert {row.id for row in rows} > {row.id for row in Arithmetic(task.model_copy(update={"n": 10})).rows()}
    assert all(Arithmetic(task).grade(row, rf"The answer is \boxed{{{row.gold}}}.").correct for row in rows)


def extracted(answer: str) -> str | None:
    score = Arithmetic(Task()).grade(Prompt(id="1", source="arithmetic", text="?", gold="7"), answer)
    assert score.correct == (score.extracted == "7")
    return score.extracted


def test_unknown_split():
    with pytest.raises(UserError, match="train, validation and test"):
        problems(1, "dev", 0)


def test_more_problems_than_there_are():
    with pytest.raises(UserError, match="ask for fewer"):
        problems(1200, "test", 0, TAUGHT[:1])  # sums alone: about a thousand in a split


def test_unseen_kinds_are_none_that_was_taught():
    task = Task(n=120, subset="unseen")
    kinds = {row.category for row in Arithmetic(task).rows()}
    assert len(kinds) == len(UNSEEN)
    assert not kinds & {problem.kind for problem in problems(500, "train", 0)}
    with pytest.raises(UserError, match="no subset 'hard': write unseen"):
        Arithmetic(Task(subset="hard")).rows()


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        (r"The answer is \boxed{12}.", 12),
        (r"\boxed{1,024}", 1024),
        (r"\boxed{ -7 }", -7),
        (r"First \boxed{1}, no: \boxed{2}", 2),
        (r"\boxed{007}", 7),
        ("The answer is 12.", None),
        (r"\boxed{}", None),
        (r"\boxed{,}", None),
        (r"\boxed{-,}", None),
        (r"\boxed{twelve}", None),
        (r"\boxed{1.5}", None),
        ("", None),
    ],
)
def test_extract(answer: str, value: int | None):
    assert extracted(answer) == (None if value is None else str(value))


@settings(deadline=None)
@given(st.integers(-(10**9), 10**9), st.text())
def test_extract_finds_what_is_boxed_last(value: int, before: str):
    assert extracted(rf"{before} \boxed{{{value:,}}}") == str(value)


@settings(deadline=None)
@given(st.text())
def test_extract_never_fails(answer: str):
    extracted(answer)
    extracted(rf"\boxed{{{answer}}}")
