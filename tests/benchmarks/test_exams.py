"""Exams: the same questions in the same order everywhere, prompts word for word, and grades that need no model."""

import csv
import json
import os
import pickle
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import PUBLISHED

from lowtax.benchmarks import catalog
from lowtax.benchmarks import questions as exam
from lowtax.benchmarks.base import Score, Task, load
from lowtax.benchmarks.grading import pool
from lowtax.benchmarks.questions import Question
from lowtax.common.errors import UserError
from lowtax.common.records import Prompt

FILES = PUBLISHED
BOX = "\\boxed{%s}"
gym_only = pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="the package reasoning-gym is not installed")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    if not FILES.is_dir():
        pytest.skip("the published task files are not on this machine")
    monkeypatch.setenv(catalog.TASK_COPIES.variable, str(FILES))


def write(path: Path, rows: Sequence[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def synthetic(count: int) -> list[Question]:
    return [Question(f"q{i}", f"Question {i}?", ("right", "a", "b", "c")) for i in range(count)]


def about_equal(letters: Counter[str], sigmas: float = 4.0) -> None:
    """Each of four letters within some standard deviations of a quarter."""
    total = letters.total()
    assert set(letters) == set("ABCD")
    assert all(abs(count - total / 4) < sigmas * (total * 3 / 16) ** 0.5 for count in letters.values()), letters


# --- the same exam


def test_each_letter_is_right_about_equally_often():
    rows = exam.choice_rows("x", synthetic(1000), Task())
    assert len(rows) == 1000
    about_equal(Counter(row.gold or "" for row in rows))
    assert all(row.choices["ABCD".index(row.gold or "")] == "right" for row in rows)
    places = Counter(row.choices.index("a") for row in rows)
    about_equal(Counter({"ABCD"[place]: count for place, count in places.items()}))


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_letter_is_right_about_equally_often_in_mmlu(seed: int):
    about_equal(Counter(row.gold or "" for row in load("mmlu", Task(seed=seed)).rows()))


def test_all_24_orders_occur_and_the_seed_decides():
    orders = Counter(tuple(exam.shuffled("wxyz", f"q{i}", 0)[0]) for i in range(2400))
    assert len(orders) == 24
    assert max(orders.values()) < 160
    same = sum(exam.shuffled("wxyz", f"q{i}", 0) == exam.shuffled("wxyz", f"q{i}", 1) for i in range(2400))
    assert 50 < same < 160  # one in 24 by chance
    assert exam.shuffled("wxyz", "q", 3) == exam.shuffled("wxyz", "q", 3)


def test_options_that_say_the_same_keep_their_places():
    shown, right = exam.shuffled(["same", "same", "other"], "q", 0)
    assert shown[right] == "same"
    assert sorted(shown) == ["other", "same", "same"]


def test_an_exam_follows_from_neither_n_nor_file_order():
    questions = synthetic(60)
    whole = exam.choice_rows("x", questions, Task())
    assert exam.choice_rows("x", questions, Task(n=20)) == whole[:20]
    assert exam.choice_rows("x", questions, Task(n=10)) == whole[:10]
    assert exam.choice_rows("x", random.Random(1).sample(questions, 60), Task()) == whole
    assert exam.choice_rows("x", [*questions, questions[0]], Task()) == whole
    other = exam.choice_rows("x", questions, Task(seed=1, n=20))
    assert {row.text.partition("A)")[0] for row in other} != {row.text.partition("A)")[0] for row in whole[:20]}
    assert not {row.id for row in other} & {row.id for row in whole if row not in other}


@pytest.mark.usefixtures("real")
def test_an_exam_is_the_same_in_every_process_and_for_every_copy(tmp_path: Path):
    rows = [json.loads(line) for line in (FILES / "mmlu_science_mc.jsonl").read_text().splitlines()][:300]
    turned = [{**row, "choices": row["choices"][::-1], "answer": 3 - "ABCD".index(row["answer"])} for row in rows]
    here = load("mmlu", Task(file=write(tmp_path / "a.jsonl", rows), n=25, seed=7)).rows()
    copy = write(tmp_path / "b.jsonl", turned[::-1])
    assert load("mmlu", Task(file=copy, n=25, seed=7)).rows() == here
    code = (
        "import sys, json; from lowtax.benchmarks.base import Task, load\n"
        "rows = load('mmlu', Task(file=sys.argv[1], n=25, seed=7)).rows()\n"
        "print(json.dumps([row.model_dump(mode='json') for row in rows]))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code, copy], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert [Prompt(**row) for row in json.loads(done.stdout)] == here


def test_an_order_that_must_never_change():
    assert exam.shuffled(["right", "a", "b", "c"], "recABC", 0) == (["c", "right", "b", "a"], 1)


@pytest.mark.usefixtures("real")
def test_exams_that_must_never_change():
    """A change here makes stored answers those of another exam."""
    for name, golds, first in (("aime24", AIME, AIME_ID), ("mmlu", MMLU, MMLU_ID)):
        rows = load(name, Task(n=5)).rows()
        assert ([row.gold for row in rows], rows[0].id) == (golds, first)


AIME, AIME_ID = ["116", "902", "113", "025", "204"], "3b4ed8e2761d8afa"
MMLU, MMLU_ID = ["C", "A", "B", "C", "D"], "066181a2e987abb5"


# --- prompts, word for word


def test_prompts_of_mathematics(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", [{"problem": " What is 1+1? ", "answer": "2"}])
    for name in ("aime24", "aime25", "math500", "amc23", "math", "gsm8k"):
        [row] = load(name, Task(file=file)).rows()
        assert row.text == "What is 1+1?\nPlease reason step by step, and put your final answer within \\boxed{}."
        assert row.source == name
        [paper], [reference] = (load(name, Task(file=file, preset=p)).rows() for p in ("paper", "reference"))
        wording = (
            "Solve the following math problem. Present the final answer in the format: Final Answer: "
            "\\boxed{your_answer}.\nProblem:  What is 1+1? \nAnswer:"
        )
        assert paper.text == reference.text == (" What is 1+1? " if name == "gsm8k" else wording)


def test_a_problem_that_stands_twice_is_asked_once_with_its_first_answer(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", [{"problem": "1+1?", "answer": "2"}, {"problem": "1+1? ", "answer": "3"}])
    [row] = load("math", Task(file=file)).rows()
    assert row.gold == "2"


def test_prompts_of_multiple_choice():
    options = [" red ", "green", "blue", "grey"]
    assert exam.choice_prompt("Which? ", options, "default") == (
        "Answer the following multiple choice question. The last line of your response should be of the following "
        "format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by step before answering."
        "\n\nWhich?\n\nA) red\nB) green\nC) blue\nD) grey"
    )
    assert exam.choice_prompt("Which?", options, "paper") == (
        "You are solving a multiple-choice question. At the end, present your final answer using the format: "
        "Final Answer: \\boxed{X}, where X is one of A, B, C, or D.\n\nQuestion: Which?\nChoices:\n"
        "(A)  red \n(B) green\n(C) blue\n(D) grey\n\n"
    )
    assert "one of ABC." in exam.choice_prompt("Which?", options[:3], "default")
    assert "one of A, B, or C." in exam.choice_prompt("Which?", options[:3], "paper")


def test_the_gold_answer_of_a_solution(tmp_path: Path):
    row = {"question": "x?", "solution": "Since $2+3=5$, it is $" + BOX % "\\frac{1}{2}" + "$, not 8."}
    [prompt] = load("math", Task(file=write(tmp_path / "x.jsonl", [row]))).rows()
    assert prompt.gold == "\\frac{1}{2}"


def test_braces_in_a_problem_are_no_placeholders():
    assert "\\frac{1}{2} {0} {}" in exam.mathematics_prompt("\\frac{1}{2} {0} {}", "default")
    assert "{letters} {0}" in exam.choice_prompt("{letters} {0}", ["{}", "{x}"], "paper")


# --- gpqa


def gpqa(path: Path, record: str = "rec1", **changes: str) -> str:
    row = {
        "Record ID": record,
        "Question": "Which? [x] ",
        "Correct Answer": " The [title] [note]right  one ",
        "Incorrect Answer 1": "[Fe(CN)6]",
        "Incorrect Answer 2": "two",
        "Incorrect Answer 3": "three",
        "High-level domain": "Chemistry",
    }
    row.update({key.replace("_", " "): value for key, value in changes.items()})
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(row))
        writer.writeheader()
        writer.writerow(row)
    return str(path)


def test_gpqa_keeps_the_text_by_default_and_cleans_options_as_the_harness_does(tmp_path: Path):
    file = gpqa(tmp_path / "gpqa.csv")
    for name in ("gpqa_diamond", "gpqa_main", "gpqa_extended"):
        [row] = load(name, Task(file=file)).rows()
        assert (row.source, row.category) == (name, "Chemistry")
        assert "\n\nWhich? [x]\n\nA)" in row.text
        assert "[Fe(CN)6]" in row.text
        assert row.choices["ABCD".index(row.gold or "")] == " The [title] [note]right  one "
        [paper] = load(name, Task(file=file, preset="paper")).rows()
        assert "Question: Which? [x] \nChoices:\n(A)" in paper.text
        assert sorted(paper.choices) == ["", "The. right one", "three", "two"]
        assert paper.gold == row.gold


def test_gpqa_s_order_follows_from_the_record_or_else_the_text(tmp_path: Path):
    def choices(**changes: str) -> tuple[str, ...]:
        return load("gpqa_diamond", Task(file=gpqa(tmp_path / "x.csv", **changes))).rows()[0].choices

    orders = {choices(record=f"rec{i}") for i in range(20)}
    assert len(orders) > 10
    assert choices(Question="Other?") == choices()
    turned = {"Incorrect_Answer_1": "three", "Incorrect_Answer_2": "[Fe(CN)6]", "Incorrect_Answer_3": "two"}
    assert all(choices(record=f"rec{i}", **turned) == choices(record=f"rec{i}") for i in range(5))
    assert len({choices(record="", Question=f"Which {i}?") for i in range(20)}) > 10


def test_gpqa_without_its_columns(tmp_path: Path):
    file = write(tmp_path / "x.jsonl", [{"Question": "?", "Correct Answer": "a"}])
    with pytest.raises(UserError, match="gpqa_diamond, row 1 has no column Incorrect Answer 1; its columns are"):
        load("gpqa_diamond", Task(file=file)).rows()


# --- multiple choice from any file


@pytest.mark.parametrize("answer", ["B", "(B)", "b.", 1, "1", "green"])
def test_a_gold_answer_may_be_a_letter_an_index_or_the_text(tmp_path: Path, answer: object):
    row = {"question": "Which?", "choices": ["red", "green", "blue"], "answer": answer}
    [prompt] = load("multiple_choice", Task(file=write(tmp_path / "x.jsonl", [row]))).rows()
    assert prompt.choices["ABC".index(prompt.gold or "")] == "green"
    stored = Prompt(id="1", source="", text="", gold=str(answer), choices=("red", "green", "blue"))
    assert load("multiple_choice", Task()).grade(stored, "Answer: B") == Score(True, "B", "phrase")
    assert not load("multiple_choice", Task()).grade(stored, "Answer: A").correct


def test_layouts_of_options(tmp_path: Path):
    shapes: list[dict[str, object]] = [
        {"question": "Which?", "options": ["red", "green"], "label": 1},
        {"Problem": "Which?", "choices": {"text": ["red", "green"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "Which?", "A": "red", "B": "green", "C": None, "D": "", "answer": "B"},
        {"prompt": "Which?", "choices": '["red", "green"]', "gold": "B"},
    ]
    found = [load("multiple_choice", Task(file=write(tmp_path / "x.jsonl", [shape]))).rows() for shape in shapes]
    assert all(rows == found[0] for rows in found)
    assert sorted(found[0][0].choices) == ["green", "red"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"question": "?", "choices": ["a", "b"], "answer": "C"},
            "row 1: the gold answer 'C' names 0 of its 2 options",
        ),
        ({"question": "?", "choices": ["a", "a"], "answer": "a "}, None),
        ({"question": "?", "choices": ["xx", "xx"], "answer": "xx"}, "the gold answer 'xx' names 2 of its 2 options"),
        ({"question": "?", "choices": ["a"], "answer": "A"}, "the options must be a list of 2 to 26 texts"),
        ({"question": "?", "choices": "a, b", "answer": "A"}, "are neither a list nor JSON of one"),
        ({"question": "?", "answer": "A"}, "has no column choices or options or A; its columns are question, answer."),
        ({"text": "?", "choices": ["a", "b"]}, "has no column problem or question or prompt"),
        ({"question": "?", "choices": ["a", "b"]}, "has no column answer or answer_index"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, row: dict[str, object], sentence: str | None):
    benchmark = load("multiple_choice", Task(file=write(tmp_path / "x.jsonl", [row])))
    if sentence is None:
        assert len(benchmark.rows()) == 1
        return
    with pytest.raises(UserError) as error:
        benchmark.rows()
    assert sentence in str(error.value)


def test_a_number_is_an_index_and_as_text_must_not_be_two_options(tmp_path: Path):
    row: dict[str, object] = {"question": "Which?", "choices": ["2", "1", "0"], "answer": 2}
    [prompt] = load("multiple_choice", Task(file=write(tmp_path / "x.jsonl", [row]))).rows()
    assert prompt.choices["ABC".index(prompt.gold or "")] == "0"
    with pytest.raises(UserError, match="row 1: the gold answer '2' names 2 of its 3 options"):
        load("multiple_choice", Task(file=write(tmp_path / "x.jsonl", [row | {"answer": "2"}]))).rows()


@pytest.mark.usefixtures("real")
def test_mmlu_by_subject():
    rows = load("mmlu", Task(subset="astronomy, high_school_physics")).rows()
    assert Counter(row.category for row in rows) == {"astronomy": 152, "high_school_physics": 151}
    few = load("mmlu", Task(subset="astronomy", n=5)).rows()
    assert {row.category for row in few} == {"astronomy"}
    with pytest.raises(UserError, match="mmlu has no subject 'astronomie'; did you mean 'astronomy'"):
        load("mmlu", Task(subset="astronomie")).rows()


@pytest.mark.usefixtures("real")
def test_every_right_and_every_wrong_letter_of_mmlu_is_graded_so():
    benchmark = load("mmlu", Task())
    for row in benchmark.rows():
        wrong = "ABCD"["ABCD".index(row.gold or "") - 1]
        assert benchmark.grade(row, f"Some words.\nAnswer: {row.gold}").correct
        assert benchmark.grade(row, f"**Final answer:** {BOX % row.gold}").correct
        assert not benchmark.grade(row, f"It could be {row.gold}.\nAnswer: {wrong}").correct


def test_presets_decide_the_extraction():
    row = Prompt(id="1", source="", text="", gold="B", choices=("red", "green", "blue", "grey"))
    text = "I choose (B)."
    assert load("multiple_choice", Task(preset="default")).grade(row, text).correct
    assert load("multiple_choice", Task(preset="paper")).grade(row, text).correct
    assert load("multiple_choice", Task(preset="reference")).grade(row, text) == Score(False, None, "reference")
    assert load("multiple_choice", Task(preset="reference")).grade(row, BOX % "B") == Score(
        True, "B", "reference", True
    )


# --- mathematics


@pytest.mark.parametrize(
    ("name", "gold", "answer", "correct", "extracted"),
    [
        ("aime24", "025", BOX % "25", True, "25"),
        ("aime24", "25", BOX % "025", True, "25"),
        ("aime24", "025", BOX % "25.0", True, "25"),
        ("aime24", "025", BOX % "250", False, "250"),
        ("aime24", "999", BOX % "1024", False, "1024"),
        ("aime25", "70", "So the answer is\n\\[" + BOX % "070" + "\\]", True, "70"),
        ("amc23", "27.0", BOX % "27", True, "27"),
        ("math500", "\\frac{1}{2}", BOX % "0.5", True, "0.5"),
        ("math500", "\\frac{1}{2}", BOX % "\\dfrac{1}{3}", False, None),
        ("math500", "\\left( 3, \\frac{\\pi}{2} \\right)", BOX % "(3, \\frac{\\pi}{2})", True, None),
        ("gsm8k", "some steps\n#### 1,234", BOX % "1234", True, "1234"),
        ("gsm8k", "some steps, 20 of them\nA: 1,234\n", BOX % "1234", True, "1234"),
        ("gsm8k", "18", "A: 18", True, "18"),
        ("gsm8k", "18", "The answer is 18.", True, "18"),
        ("gsm8k", "18", "She makes $18 every day.", True, "18"),
        ("gsm8k", "18", "She makes $19 every day.", False, "19"),
        ("gsm8k", "#### 1,450,000", "The total is \\$1,450,000.00", True, "1450000"),
        ("math", "It follows that $x=" + BOX % "7" + "$.", BOX % "7", True, "7"),
        ("math", "Since $2+3=5$, it is $" + BOX % "7" + "$, not 8.", BOX % "7", True, "7"),
        ("math", "7", "", False, None),
    ],
)
def test_mathematics(name: str, gold: str, answer: str, correct: bool, extracted: str | None):
    row = Prompt(id="1", source=name, text="", gold=gold)
    score = load(name, Task()).grade(row, answer)
    assert score.correct == correct, score
    assert score.rule
    if extracted is not None or not answer:
        assert score.extracted == extracted


@pytest.mark.usefixtures("real")
def test_every_gold_answer_of_the_published_sets_is_right_and_its_neighbour_wrong():
    for name in ("aime24", "gsm8k"):
        benchmark = load(name, Task())
        rows = benchmark.rows()
        assert len(rows) == {"aime24": 30, "gsm8k": 1319}[name]
        for row in rows:
            assert benchmark.grade(row, BOX % row.gold).correct
            assert not benchmark.grade(row, BOX % (int(row.gold or "") + 1)).correct


def test_mathematics_that_needs_algebra_is_graded_in_workers():
    row = Prompt(id="1", source="", text="", gold="\\frac{\\sqrt{8}}{2}")
    pairs = [(row, BOX % answer) for answer in ("\\sqrt{2}", "\\sqrt{3}", "\\frac{\\sqrt{8}}{2}")]
    assert [score.correct for score in pool.grade_all(load("math500", Task()), pairs, workers=1)] == [
        True,
        False,
        True,
    ]


def test_gsm8k_under_reference_takes_the_last_number_as_the_harness_does():
    benchmark, row = load("gsm8k", Task(preset="reference")), Prompt(id="1", source="", text="", gold="#### 1,234")
    for answer, extracted in (
        ("First 12, then $1,234.", "1234"),
        (BOX % "1234", "1234"),
        ("1234. Checked in 2 ways", "2"),
        ("no number", None),
        ("1234.00", "1234.00"),
        ("It is 1,234.,", "1234"),
    ):
        assert benchmark.grade(row, answer) == Score(extracted == "1234", extracted, "reference: last number")


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=80), st.text("AB()\\boxed{}0123.,$answer:is \n", max_size=80)))
def test_any_answer_has_a_grade_and_the_same_one_again(answer: str):
    rows = {
        "multiple_choice": Prompt(id="1", source="", text="", gold="B", choices=("red", "green")),
        "gsm8k": Prompt(id="1", source="", text="", gold="12"),
    }
    for name, row in rows.items():
        for preset in ("default", "reference"):
            benchmark = load(name, Task(preset=preset))
            score = benchmark.grade(row, answer)
            assert score == benchmark.grade(row, answer)
            assert score.rule
            assert not (score.correct and score.extracted is None)


# --- reasoning-gym


@gym_only
def test_the_gym_generates_asks_and_grades():
    benchmark = load("reasoning_gym", Task(subset="chain_sum,min_terms=2,max_terms=2", n=12, seed=3))
    rows = benchmark.rows()
    assert len({row.id for row in rows}) == len(rows) == 12
    assert all(row.category == "chain_sum" and "<answer>" in row.text for row in rows)
    assert load("reasoning_gym", Task(subset="chain_sum,min_terms=2,max_terms=2", n=5, seed=3)).rows() == rows[:5]
    assert load("reasoning_gym", Task(subset="chain_sum,min_terms=2,max_terms=2", n=5, seed=4)).rows() != rows[:5]
    for row in rows:
        for right in ("So <answer>%s</answer>", "So \\boxed{%s}", "So\n%s", "\\boxed{\\text{%s}}"):
            assert benchmark.grade(row, right % row.gold).correct
        assert not benchmark.grade(row, f"<answer>{int(row.gold or '') + 1}</answer>").correct
        assert not benchmark.grade(row, f"<answer>it may be {row.gold}</answer>").correct  # a part of a point
    assert benchmark.grade(rows[0], f"<answer>x</answer> or <answer>\n{rows[0].gold} </answer>.").correct
    assert benchmark.grade(rows[0], "") == Score(False, None, "empty")
    stored = Prompt(id="elsewhere", source="", text="", gold="5")
    for task in (benchmark.task, Task()):
        found = load("reasoning_gym", task).grade(stored, "<answer> 5 </answer>")
        assert found == Score(True, "5", "answer tag, compared as text")
    copy = pickle.loads(pickle.dumps(benchmark))
    assert "_entries" in vars(copy)  # before an answer's time is counted
    assert copy.rows() == rows


@gym_only
def test_the_gym_grades_in_workers():
    benchmark = load("reasoning_gym", Task(subset="spell_backward", n=20))
    rows = benchmark.rows()
    pairs = [(row, f"<answer>{row.gold if number % 2 else 'wrong'}</answer>") for number, row in enumerate(rows)]
    assert [score.correct for score in pool.grade_all(benchmark, pairs, workers=1)] == [False, True] * 10


@gym_only
def test_items_that_come_twice_are_asked_twice():
    task = Task(subset="chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1", n=200)
    rows = load("reasoning_gym", task).rows()
    assert len({row.id for row in rows}) == 200 > len({row.text for row in rows})


@gym_only
@pytest.mark.parametrize(
    ("subset", "sentence"),
    [
        (None, "needs a `subset`, such as chain_sum"),
        ("chain_su", "no dataset 'chain_su': did you mean 'chain_sum'?"),
        ("chain_sum,min_terms=5,max_terms=2", "are refused: max_terms must be >= min_terms."),
        ("chain_sum,terms=5", "are refused: "),
        ("chain_sum,min_terms=[", "cannot be read; write NAME,KEY=VALUE,KEY=VALUE."),
    ],
)
def test_what_the_gym_cannot_do_is_said(subset: str | None, sentence: str):
    with pytest.raises(UserError) as error:
        load("reasoning_gym", Task(subset=subset)).rows()
    assert sentence in str(error.value)


def test_without_the_gym_its_install_command_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(UserError, match=r"`pip install 'lowtax\[eval\]'`"):
        load("reasoning_gym", Task(subset="chain_sum")).rows()
