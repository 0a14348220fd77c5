import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import functions

from lowtax.benchmarks.grading.extract import boxed
from lowtax.benchmarks.grading.letters import letter
from lowtax.benchmarks.grading.reference_rules import letter as reference_letter

OPTIONS = ["Mars", "Venus", "a dog", "4.5 m/s"]


@pytest.mark.parametrize(("text", "inside"), [
    ("\\boxed{5}", "5"), ("\\boxed 5", "5"), ("$\\boxed 5$ it is", "5"), ("\\fbox{7}", "7"), ("\\boxed {5}", "5"),
    ("\\boxed{1} \\boxed{2}", "2"), ("\\boxed{\\boxed{5}}", "5"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\boxed{\\{1,2\\}}", "\\{1,2\\}"), ("\\boxed{\\left\\{1\\right.}", "\\left\\{1\\right."), ("\\\\boxed{5}", "5"),
    ("\\boxed\\frac12$", "\\frac12"), ("\x08oxed{5}", "5"), ("\\boxed{5", None), ("\\boxed{\\text{a}", None),
    ("\\boxed{1} or \\boxed{2", "1"), ("give it as \\boxed{}", None), ("the \\boxed format", None), ("", None),
    ("} \\boxed{5} {", "5"), ("{\\boxed{5}", "5"),
])  # fmt: skip
def test_the_last_closed_box(text, inside):
    assert boxed(text) == inside


@pytest.mark.parametrize(("text", "found"), [
    ("\\boxed{\\text{(C)}}", "C"), ("\\boxed{C. a dog}", "C"), ("\\boxed{\\mathrm{B}}", "B"), ("\\boxed{c}", "C"),
    ("$\\boxed{\\textbf{(B)}\\ Venus}$", "B"), ("\\boxed{A} then \\boxed{D}", "D"), ("\\boxed{Answer: C}", "C"),
    ("\\boxed{\\text{Option C}}", "C"), ("\\boxed{\\text{C: a dog}}", "C"), ("\\boxed{\\text{(C) a dog}}", "C"),
    ("\\boxed{Mars}", "A"), ("\\boxed{\\text{Venus}}", "B"), ("\\boxed{4.5\\ \\text{m/s}}", "D"),
    ("\\boxed{A dog}", "C"),
    ("\\boxed{D.\\,4.5}", "D"), ("\\boxed{D}\n\nThe answer is A.", "A"),
    ("Answer: C.", "C"), ("**Answer: (C)**", "C"), ("The answer is C", "C"), ("The answer is A because x", "A"),
    ("Answer: A", "A"), ("Answer: b", "B"), ("The correct answer is (b).", "B"),
    ("The best answer would be D: 4.5", "D"),
    ("Answer: B\nWait. Answer: C", "C"), ("Final Answer: $\\text{(B)}$", "B"), ("the answer is Mars.", "A"),
    ("The answer is A dog", "C"), ("The answer is:\n\nC", "C"), ("**Answer**\n\n(B)", "B"),
    ("The answer is C, not A", "C"),
    ("### Final Answer\nB. Venus", "B"), ("The answer is option (D).", "D"), ("Correct answer: (A) Mars", "A"),
    ("Answer: The correct choice is **(D) 4.5 m/s**", "D"), ("So the correct answer is therefore B", "B"),
    ("The answer is **B**. This is not A.", "B"), ("The answer to this question is C.", "C"), ("Answer = B", "B"),
    ("Option B is correct", "B"), ("(D) is the correct answer", "D"), ("Therefore, **A** is the answer.", "A"),
    ("I choose option C.", "C"), ("A is not correct. B is correct", "B"), ("It follows that we pick (B)", "B"),
    ("so\n\n**C**", "C"), ("C", "C"), ("(c)", "C"), ("C) a dog", "C"), ("So:\n\nMars", "A"),
    ("Only one is left, (B), as shown", "B"), ("\uff21 is out. Answer: \uff08\uff23\uff09", "C"),
])  # fmt: skip
def test_letters(text, found):
    assert letter(text, OPTIONS)[0] == found


@pytest.mark.parametrize("text", [
    "\\boxed{E}", "\\boxed{A and C}", "\\boxed{A, C}", "\\boxed{(A) and (B)}", "\\boxed{204", "Answer: E",
    "The answer is a cat", "answer: a good one", "The answer is not C.", "The answer is A or B", "Answer: (A), (B)",
    "My answer: I", "The answer is I think nothing", "Hmm (A) or (B)", "A and B are wrong, so it is something else",
    "None of the above", "", "Because of that", "A new day begins", "The answer is Ceres",
])  # fmt: skip
def test_no_letter(text):
    assert letter(text, OPTIONS)[0] is None


def test_rules_have_names():
    rules = [letter(text, OPTIONS)[1] for text in (
        "\\boxed{B}", "\\boxed{Mars}", "The answer is B", "B is correct", "x\nB", "it is (B), then", "x",
        "\\boxed{A, B}",
        "\\boxed{E}")]  # fmt: skip
    assert rules == ["last box", "option text in the box", "phrase", "statement", "last line",
                     "last resort: the only letter in the last line", "no letter", "several letters",
                     "letter out of range"]  # fmt: skip


def test_letters_follow_the_number_of_options():
    assert letter("The answer is J.", [str(n) for n in range(10)])[0] == "J"
    assert letter("The answer is C.", ["yes", "no"])[0] is None
    assert letter("\\boxed{C}")[0] == "C"


def test_an_option_that_two_have_is_no_answer():
    assert letter("\\boxed{same}", ["same", "same", "other"])[0] is None


PIECES = ["\\boxed{", "\\text{", "}", "{", "(", ")", "A", "B", "C", "D", "E", "a", "c", " ", "\n", "Answer",
"answer is ",
          "The answer is ", "Final Answer: ", "The correct answer is ", ":", ".", ",", " and ", "**", "Mars", "\\fbox{",
          "\\boxed ", "$", "is correct", "option ", "I choose ", "\ud800", "\u00df", "\u212a"]  # fmt: skip
TEXT = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
MANY = settings(max_examples=1000, deadline=6000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(text=TEXT)
def test_any_text_has_a_letter_of_the_options_or_none(text):
    found, rule = letter(text, OPTIONS)
    assert found is None or found in "ABCD"
    assert rule
    if found:
        assert letter(found, OPTIONS)[0] == found
        assert letter(f"\\boxed{{{found}}}", OPTIONS)[0] == found


@MANY
@given(text=TEXT)
def test_the_box_of_a_box_is_its_content(text):
    inside = boxed(text)
    assert inside is None or (inside and inside == inside.strip())
    assert inside is None or boxed(f"\\boxed{{{inside}}}") is not None


@settings(MANY, max_examples=500)
@given(text=TEXT)
def test_reference_letter_is_the_references(text):
    code = functions("mcq_metric_gpqa.py")
    try:
        theirs = code["extract_answer"](text)
    except AssertionError:
        theirs = None
    assert reference_letter(text) == theirs


@pytest.mark.parametrize(("text", "found"), [
    ("\\boxed{C}", "C"), ("\\boxed{(C)}", "C"), ("\\boxed{c}", "C"), ("\\boxed{\\text{C}}", None), ("Answer: (B)", "B"),
    ("Answer: because", None), ("Answer: Because", "B"), ("Answer: B. Answer: b", None), ("The answer is D", "D"),
    ("\\boxed D$", "D"),
    ("C", None),
    ("Final answer (A)", "A"), ("\\boxed{E} Answer: A", "A"), ("the best is (C)", None),
])  # fmt: skip
def test_reference_letters(text, found):
    assert reference_letter(text) == found


@pytest.mark.parametrize("text", [
    "\\boxed{" * 20_000, "{" * 100_000, "\\boxed " * 20_000, "answer is " * 20_000, "(A) " * 40_000, "A " * 60_000,
    "<answer>" * 20_000, "[[" * 50_000, "not A " * 30_000, "leaving " * 20_000, "=> " * 40_000, "\u7b54\u6848" * 40_000,
    "option " * 30_000, " " * 200_000, "answer" + " " * 100_000, "choose " * 30_000, "is " * 50_000, "\\text{" * 20_000,
    "A," * 60_000, "*" * 150_000, "_" * 150_000, "answer to this " + "a " * 60_000, "\\" * 150_000,
    "The answer is " * 9_000,
])  # fmt: skip
def test_long_texts_take_little_time(text):
    began = time.monotonic()
    letter(text, OPTIONS)
    letter(text[-15_000:] + "\n(A)", [text[:5000], *OPTIONS])
    reference_letter(text)
    assert time.monotonic() - began < 6
