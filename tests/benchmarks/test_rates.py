"""From grades to rates: what is counted, who votes, and what the tax pairs."""

import random

import pytest

from lowtax.benchmarks import rates as reasoning
from lowtax.benchmarks.rates import Answer, Key, cell
from lowtax.common import stats
from lowtax.common.records import Grade, Reply


def answer(
    correct: bool,
    extracted: str | None = "1",
    finished: bool = True,
    checked: bool | None = None,
    tokens: int = 10,
    **written: str,
) -> Answer:
    own = {"arm": "a", "seed": 0, "checkpoint": None, "source": "s", "prompt": "p", "sample": 0, "text": ""}
    parts = {"prompt_id": "p", "thought": "", "answer": "", "closed": finished, "finish": "stop"} | written
    grade = Grade(
        id="g",
        reply_id="r",
        task="t",
        correct=correct,
        finished=finished,
        extracted=extracted,
        gold="1",
        checked=checked,
    )
    return grade, Reply(id="r", tokens=tokens, **own, **parts)


RIGHT, WRONG = answer(True), answer(False, "2")
UNFINISHED, SILENT = answer(False, None, finished=False), answer(False, None)
FAILED = (None, RIGHT[1])


def asked(*samples: Answer, question: str = "q") -> dict[Key, Answer]:
    return {(question, number): one for number, one in enumerate(samples)}


def test_what_is_no_right_answer_is_told_apart():
    found = cell({0: {("abcde"[i], 0): x for i, x in enumerate((RIGHT, WRONG, UNFINISHED, SILENT, FAILED))}})
    assert (found["value"], found["n"]) == (0.25, 4)
    assert (found["unfinished"], found["unfinished_share"], found["no_answer"], found["failed"]) == (1, 0.25, 1, 1)
    assert (found["low"], found["high"]) == pytest.approx(stats.wilson(1, 4), abs=1e-4)
    assert found["samples"] == 1
    assert found["pass_at_k"] == {"1": {name: found[name] for name in ("value", "low", "high", "n", "seeds")}}
    assert not {"maj_at_k", "checked", "categories"} & set(found)


@pytest.mark.parametrize("nothing", [{}, {0: {}}, {0: {("q", 0): FAILED}}])
def test_a_rate_of_nothing_is_none(nothing: dict):
    found = cell(nothing)
    assert [found[name] for name in ("value", "low", "high", "n", "tokens", "unfinished_share")] == [None] * 3 + [0] + [
        None
    ] * 2
    assert found["pass_at_k"] == {}


def test_pass_at_k_is_unbiased_and_ends_with_all_samples():
    one = asked(RIGHT, *[WRONG] * 5)
    found = cell({0: one | asked(*[WRONG] * 6, question="never")})["pass_at_k"]
    assert {k: c["value"] for k, c in found.items()} == pytest.approx(
        {"1": 1 / 12, "2": 1 / 6, "4": 1 / 3, "6": 0.5}, abs=1e-4
    )
    assert all(c["low"] <= c["value"] <= c["high"] for c in found.values())


def test_a_failed_sample_leaves_its_question_out_of_the_largest_k():
    found = cell({0: asked(RIGHT, FAILED, question="a") | asked(WRONG, WRONG, question="b")})["pass_at_k"]
    assert {k: (c["value"], c["n"]) for k, c in found.items()} == {"1": (0.5, 2), "2": (0.0, 1)}


@pytest.mark.parametrize(
    ("samples", "solved"),
    [
        ([RIGHT, WRONG, WRONG], 0.0),
        ([WRONG, RIGHT, RIGHT], 1.0),
        ([RIGHT, WRONG], 1.0),  # a tie: the first seen
        ([WRONG, RIGHT], 0.0),
        ([UNFINISHED, UNFINISHED, RIGHT], 1.0),  # unfinished ones have no vote
        ([SILENT, SILENT, RIGHT], 1.0),
        ([UNFINISHED, SILENT], 0.0),
        ([WRONG, FAILED, RIGHT, RIGHT], 1.0),
    ],
)
def test_the_most_frequent_answer_counts(samples: list[Answer], solved: float):
    assert cell({0: asked(*samples)})["maj_at_k"]["value"] == solved


def test_first_seen_is_by_sample_and_not_by_the_order_of_the_file():
    backwards = dict(reversed(asked(RIGHT, WRONG).items()))
    assert cell({0: backwards})["maj_at_k"]["value"] == 1.0


def test_votes_of_different_training_seeds_are_not_mixed():
    found = cell({0: asked(RIGHT, RIGHT), 1: asked(WRONG, WRONG)})
    assert found["maj_at_k"]["value"] == 0.5
    assert found["seeds"] == {"0": 1.0, "1": 0.0}
    assert found["samples"] == 2


def test_samples_and_seeds_of_a_question_are_drawn_together():
    half = {seed: {(f"q{i}", k): (RIGHT if i < 20 else WRONG) for i in range(40) for k in (0, 1)} for seed in (0, 1)}
    found, independent = cell(half), stats.wilson(80, 160)
    assert (found["value"], found["n"]) == (0.5, 160)
    assert found["high"] - found["low"] > 1.5 * (independent[1] - independent[0])


def test_tokens_are_shared_out_by_characters():
    half = answer(True, tokens=100, thought="a" * 30, answer="b" * 10)
    cut = answer(False, None, finished=False, tokens=60, thought="a" * 30)
    found = cell({0: {("a", 0): half, ("b", 0): cut}})
    assert (found["tokens"], found["thought_tokens"]) == (80.0, (75 + 60) / 2)


def test_a_checker_is_a_second_column():
    found = cell({0: asked(RIGHT, answer(False, checked=True), answer(False, checked=False), SILENT)})
    assert found["value"] == 0.25
    assert (found["checked"]["value"], found["checked"]["asked"], found["checked"]["accepted"]) == (0.5, 2, 1)


def test_categories_have_rates_of_their_own():
    parts = {("a", 0): answer(True, category="sums"), ("b", 0): answer(False, category="sums"), ("c", 0): RIGHT}
    found = cell({0: parts})["categories"]
    assert {name: (c["value"], c["n"]) for name, c in found.items()} == {"": (1.0, 1), "sums": (0.5, 2)}


def exam(rates: list[float], luck: random.Random, samples: int = 1) -> dict[Key, Answer]:
    return {
        (f"q{i}", k): RIGHT if luck.random() < rate else WRONG for i, rate in enumerate(rates) for k in range(samples)
    }


def test_the_tax_of_an_arm_that_answers_as_the_base_does_is_nothing():
    base = {0: exam([0.5] * 50, random.Random(0))}
    by_task, mean = reasoning.taxes({"t": base}, {"t": {seed: base[0] for seed in (0, 1, 2)}})
    assert by_task["t"] == mean
    assert mean["value"] == 0
    assert mean["high"] == -mean["low"] == round(stats.wilson(0, 50)[1], 4)  # of 50 questions none changed


def test_a_tax_is_base_minus_arm_and_a_mean_over_tasks():
    every, none = {0: asked(RIGHT)}, {0: asked(WRONG)}
    by_task, mean = reasoning.taxes({"a": every, "b": every, "c": every}, {"a": none, "b": every})
    assert {task: c["value"] for task, c in by_task.items()} == {"a": 1.0, "b": 0.0}
    assert mean["value"] == 0.5
    gained, _ = reasoning.taxes({"a": none}, {"a": every})
    assert gained["a"]["value"] == -1.0


def test_questions_that_one_side_failed_are_left_out_of_the_pairs():
    base = {0: {("a", 0): RIGHT, ("b", 0): RIGHT}}
    arm = {0: {("a", 0): WRONG, ("b", 0): FAILED}}
    assert reasoning.taxes({"t": base}, {"t": arm})[0]["t"]["value"] == 1.0
    nothing = reasoning.taxes({"t": base}, {"t": {0: {("a", 0): FAILED}}})[0]["t"]
    assert nothing == {"value": None, "low": None, "high": None}
    assert reasoning.tax_shown(nothing) == "-"


def test_the_table_has_a_line_for_every_task_and_checkpoint():
    base = {"arm": "base", "step": 0, "reasoning": {"t": cell({0: asked(RIGHT, WRONG)}) | {"tax": reasoning.NO_TAX}}}
    lost = {"value": 0.25, "low": -0.1, "high": 0.4}
    arm = {"arm": "r1", "step": 1200, "reasoning": {"t": cell({0: asked(WRONG, UNFINISHED)}) | {"tax": lost}}}
    head, rule, first, second = reasoning.markdown([base, arm]).splitlines()
    assert len({line.count("|") for line in (head, rule, first, second)}) == 1
    assert "| t | base | 0.50 [" in first
    assert "| - | @2 1.00 [" in first
    assert "| t | r1 1,200 | 0.00 [" in second
    assert "| +0.25 [-0.10, +0.40] |" in second
    assert "| 50.0% |" in second


def test_every_run_has_a_row():
    """A run is what an evaluation with one seed reports: the k-th samples of all questions."""
    first = asked(RIGHT, WRONG, question="a") | asked(WRONG, FAILED, question="b")
    second = asked(answer(False, checked=True), RIGHT, question="a")
    rows = reasoning.runs({1: second, 0: first})
    keys = ("seed", "sample", "n", "right", "value", "unfinished", "with_checker")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (0, 0, 2, 1, 0.5, 0, 0.5), (0, 1, 1, 0, 0.0, 0, 0.0), (1, 0, 1, 0, 0.0, 0, 1.0), (1, 1, 1, 1, 1.0, 0, 1.0),
    ]  # fmt: skip
    assert "with_checker" not in reasoning.runs({0: first})[0]
    arm = {"arm": "r1", "step": 5, "runs": {"t": rows}}
    base = {"arm": "base", "step": 0, "runs": {"t": reasoning.runs({0: asked(RIGHT, RIGHT, WRONG)})}}
    assert reasoning.runs_markdown([base, arm]).splitlines() == [
        "| task | who | training seed | mean | sd | run 1 | run 2 | run 3 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| t | base | - | 0.667 | 0.577 | 1.000 | 1.000 | 0.000 |",
        "| t | r1 5 | 0 | 0.250 | 0.354 | 0.500 | 0.000 | - |",
        "| t | r1 5 | 1 | 0.500 | 0.707 | 0.000 | 1.000 | - |",
    ]
    assert reasoning.runs_markdown([{"arm": "r1", "step": 5, "runs": {"t": rows[:1]}}]) == ""


def test_several_tasks_have_a_mean():
    cells = {"a": cell({0: asked(RIGHT)}), "b": cell({0: asked(WRONG)})}
    lost = {"value": 0.25, "low": -0.1, "high": 0.4}
    lines = reasoning.markdown([{"arm": "r1", "step": 3, "reasoning": cells, "tax": lost}]).splitlines()
    assert lines[4].startswith("| mean of 2 | r1 3 | 0.50 [")
    assert "| +0.25 [-0.10, +0.40] | - |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1
    nothing = {"arm": "r1", "step": 3, "reasoning": cells | {"b": cell({})}, "tax": lost}
    assert "| mean of 2 | r1 3 | - |" in reasoning.markdown([nothing])
