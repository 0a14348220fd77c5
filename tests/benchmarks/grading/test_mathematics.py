import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import PUBLISHED
from reference import functions

from lowtax.benchmarks.grading import mathematics, reference_rules
from lowtax.benchmarks.grading.extract import Rule, final_answer
from lowtax.benchmarks.grading.mathematics import same
from lowtax.benchmarks.grading.normalise import normalise
from lowtax.data.readers import read_table

DATA = PUBLISHED
pytest.importorskip("math_verify", reason="needs math-verify: pip install 'lowtax[eval]'")

EQUAL = r"""
\frac{1}{2} | \dfrac12
\frac{1}{2} | \tfrac{1}{2}
1/2 | \frac{1}{2}
0.5 | \frac{1}{2}
.5 | 0.50
-\frac{1}{2} | \frac{-1}{2}
-\frac{1}{2} | -1/2
\frac{-1}{-2} | \frac12
\frac{2}{4} | \frac{1}{2}
\frac1{2} | \frac12
\frac{14}{3} | 4\frac{2}{3}
1\frac{1}{2} | \frac{3}{2}
1 \frac{1}{2} | 1.5
2 1/2 | 5/2
-1\frac12 | -1.5
10{,}000 | 10000
10\,000 | 10,000
10,\!000 | 10000
1{,}234{,}567 | 1234567
10 000 | 10000
1{,}234.50 | 1234.5
\$18 | 18
\$ 1{,}234.50 | 1234.5
18\text{ dollars} | \$18
18 dollars | 18
18.00 | 18
025 | 25
25.0 | 25
+7 | 7
18 \text{ cm} | 18
18\text{ cm}^2 | 18
18\,\text{cm}^{2} | 18
18 \mathrm{~cm} | 18
18\ \mathrm{km/h} | 18
5\text{ miles per hour} | 5
32\text{ square units} | 32
3 \mbox{ inches} | 3
12\,\mathrm{cm}^3 | 12\text{ cubic centimeters}
50\% | 50
50\% | 0.5
50\% | \frac{1}{2}
12.5% | 12.5\%
90^\circ | 90
90^{\circ} | 90\text{ degrees}
90° | 90^\circ
98.6^\circ\text{F} | 98.6
x=5 | 5
x = 5 | x=5
5 | x=5
y = -\frac{1}{2} | -0.5
f(x) = x^2 + 1 | x^2+1
a_1 = 3 | 3
\text{Area} = 12 | 12
AB = 7 | 7
\theta = \frac{\pi}{4} | \frac{\pi}{4}
x \in [0,1] | [0,1]
x\in\{1,2\} | \{2,1\}
\text{Evelyn} | Evelyn
\text{evelyn} | \text{Evelyn}
\mathrm{even} | \text{even}
\text{no solution} | \text{No solution}
\textbf{Saturday} | \text{Saturday}
\text{(C)} | C
(C) | \text{C}
\mathbf{(B)} | \text{(B)}
(1,2) | (1, 2)
\left(1, 2\right) | (1,2)
\left( \frac{1}{2}, 3 \right) | (0.5,3)
(3, \frac{\pi}{2}) | \left(3,\frac{\pi}{2}\right)
1,2 | (1,2)
(x,y) = (1,2) | (1,2)
(x, y, z) = (1,2,3) | (1,2,3)
x=1, y=2 | (1,2)
x=1, y=2 | y=2, x=1
[1,2) | \left[1,2\right)
(-\infty, 2] | \left(-\infty,2\right]
(-\infty,2)\cup(3,\infty) | (3,\infty)\cup(-\infty,2)
(-\infty,2) \cup (3,+\infty) | (-\infty,2)\cup(3,\infty)
[1,2] {cup} [3,4] | [1,2]\cup[3,4]
1 \le x \le 5 | [1,5]
1 < x \leq 5 | (1,5]
x \geq 2 | [2,\infty)
x > 2 | (2,\infty)
x \leqslant 3 | (-\infty,3]
-2 < x < 7 | (-2,7)
\{1,2\} | 2,1
\{1,2,3\} | \{3, 2, 1\}
\left\{ 1, 2 \right\} | \{1,2\}
1,2 | 2, 1
1 \text{ and } 2 | 1,2
4 \text{ or } 5 | 5, 4
-3, 5 | 5,-3
x=2 \text{ or } x=3 | 2,3
1, \frac{1}{2}, -4 | -4, 0.5, 1
\{5\} | 5
\pm 2 | 2,-2
\pm\sqrt{3} | \sqrt{3}, -\sqrt{3}
3 \pm 2\sqrt{2} | 3+2\sqrt{2}, 3-2\sqrt{2}
1 \pm i | 1+i, 1-i
\sqrt{8} | 2\sqrt{2}
\sqrt 2 | \sqrt{2}
\frac{\sqrt2}{2} | \frac{1}{\sqrt{2}}
3\sqrt{2} | \sqrt{18}
\sqrt[3]{8} | 2
\frac{3\sqrt{3}}{4} | 0.75\sqrt{3}
5\cdot\sqrt{3} | 5\sqrt3
x^2+2x+1 | (x+1)^2
x^2 + 2x + 1 | 1+2x+x^2
(x-1)(x+2) | (x+2)(x-1)
2(x+3) | 2x+6
-x+3 | 3-x
\frac{x+1}{2} | \frac{1}{2}x+\frac{1}{2}
y = 2x + 3 | 2x+3
y=2x+3 | y = 3 + 2x
\pi r^2 | r^2\pi
\frac{\pi}{2} | \pi/2
2\pi | 2 \pi
36\pi | 36π
\frac{3}{4}\pi | \frac{3\pi}{4}
9\pi\text{ square units} | 9\pi
1011_2 | 1011_{2}
1011 | 1011_2
4321_5 | 4321_{5}
2A_{16} | 2A_{16}
1.5 \times 10^{3} | 1500
1.5\cdot 10^3 | 1500
6.02e3 | 6020
2^{10} | 1024
\binom{5}{2} | 10
5! | 120
\infty | \infty
+\infty | \infty
3+2i | 2i + 3
\frac{1+i}{2} | \frac12+\frac12i
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
\begin{pmatrix} 1/2 \\ 3 \end{pmatrix} | \begin{pmatrix} \frac12 \\ 3 \end{pmatrix}
\begin{pmatrix}1&2\\3&4\end{pmatrix} | \left(\begin{array}{cc} 1 & 2 \\ 3 & 4 \end{array}\right)
\left[\begin{matrix} 1 \\ 2 \end{matrix}\right] | \begin{pmatrix} 1 \\ 2 \end{pmatrix}
5:30 | 5\!:\!30
5:30 \text{ PM} | 5:30
5:30\text{ p.m.} | 5:30 PM
7:00 PM | 7\text{ PM}
\boxed{5} | 5
\boxed{x=5} | 5
0.333333 | \frac{1}{3}
\{ (1,2), (3,4) \} | \{(3,4),(1,2)\}
(1,2), (3,4) | (3,4),(1,2)
\log_2 8 | 3
\frac{\ln 2}{2} | \frac{1}{2}\ln 2
\langle 1, 2 \rangle | \langle 1,2\rangle
{minus}5 | -5
{5} | 5
\displaystyle \frac{3}{4} | 0.75
$\frac{3}{4}$ | 0.75
\(12\) | 12
12. | 12
**12** | 12
6 - 5i | 6-5i
0.\overline{3} | \frac{1}{3}
-0.1\overline{6} | -\frac{1}{6}
\emptyset | \varnothing
\{\} | \emptyset
\mathbb{R} | (-\infty,\infty)
\cos 60^\circ | \frac12
\approx 3.46 | 3.46
f^{-1}(x)=\frac{x-1}{2} | \frac{x-1}{2}
2x+3y=6 | 4x+6y=12
P(A)=\frac12 | 0.5
1.23\times10^{-4} | 0.000123
"""

CHAINS = r"""
3\cdot 2 = 6 | 6
1{,}200 + 900 = \$2{,}100 | 2100
\frac{400}{11} \approx 36.36 | \frac{400}{11}
\frac{400}{11} \approx 36.36 | 36.36
x = 2\cdot 3 = 6 | 6
\text{Total: } 18 | 18
\$245 \text{ (or }24{,}500\text{ cents)} | 245
3\text{ hours }45\text{ minutes} | 225
3 hours 45 minutes | 3.75
1 hour and 35 minutes | 95
2 h 30 min | 2\text{ hours }30\text{ minutes}
\text{She makes } 18 \text{ dollars a day} | 18
"""

UNEQUAL = r"""
\frac{1}{2} | \frac{1}{3}
1\frac{1}{2} | \frac{1}{2}
0.33 | \frac{1}{3}
10{,}000 | 1000
10,00 | 1000
\$18 | 19
-5 | 5
50\% | 51
50\% | 0.05
5\% | 0.5
x=5 | x=-5
x = 5 | 6
18 \text{ cm} | 81
\text{Evelyn} | Briana
\text{even} | odd
\text{no solution} | 0
\text{(C)} | D
A | B
(1,2) | [1,2]
(1,2) | (2,1)
(1,2] | [1,2)
(1,2) | \{1,2\}
(1,2) | (1,2,3)
[1,2) | [1,2]
(-\infty,2)\cup(3,\infty) | (-\infty,2)\cup(4,\infty)
(-\infty,2) | (-\infty,2)\cup(3,\infty)
1 < x < 5 | [1,5]
x \geq 2 | (2,\infty)
x < 2 | (2,\infty)
\{1,2\} | \{1,3\}
1,2 | 1,2,3
1,2,2 | 1,1,2
1,2 | 1
x=2, y=1 | x=1, y=2
\pm 2 | 2
\pm 2 | 2,-3
\sqrt{8} | \sqrt{2}
\sqrt{2} | 2
\sqrt[3]{2} | \sqrt{2}
x^2+2x+1 | (x-1)^2
x+1 | x-1
2x | x^2
y = 2x + 3 | 2x-3
\frac{\pi}{2} | \frac{\pi}{3}
2\pi | 2
\pi | 3.14
1011_3 | 1011_2
1011_2 | 1101_2
1.5 \times 10^{3} | 150
2^{10} | 2^{11}
\infty | -\infty
3+2i | 3-2i
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{bmatrix} 1 & 2 \\ 3 & 5 \end{bmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix} | \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
5:30 PM | 5:30 AM
5:30 | 5:45
3\text{ hours }45\text{ minutes} | 3
3 hours 45 minutes | 2 hours 45 minutes
1000000 | 1000001
0.1234567 | 0.1234568
 | 5
\text{18 or 19} | 18
\text{between 3 and 5} | 4
(3,4),(1,2) | (4,3),(1,2)
9^{9^{9^{9}}} | 5
x | y
\frac{a}{b} | \frac{b}{a}
5 \text{ and } 6 | 5
abcd | dcba
0.\overline{3} | 0.3
0 | \emptyset
\sin x | \cos x
2x+3y=6 | 2x+3y=7
11 | 1,1
7 | 7!
"""


def pairs(table):
    table = table.replace("{cup}", "\u222a").replace("{minus}", "\u2212")
    return [tuple(part.strip() for part in line.split(" | ")) for line in table.split("\n") if " | " in line]


def test_there_are_enough_pairs():
    assert len(pairs(EQUAL)) + len(pairs(UNEQUAL)) >= 150


@pytest.mark.parametrize(("found", "gold"), pairs(EQUAL))
def test_equal_answers(found, gold):
    assert same(found, gold)
    assert same(gold, found)


@pytest.mark.parametrize(("found", "gold"), pairs(UNEQUAL))
def test_unequal_answers(found, gold):
    assert not same(found, gold)
    assert not same(gold, found)


@pytest.mark.parametrize(("found", "gold"), pairs(CHAINS))
def test_answers_that_say_more_than_the_gold_one(found, gold):
    assert same(found, gold)


@pytest.mark.parametrize(("text", "found"), [
    ("so \\boxed{18}", "18"), ("\\boxed{1} no, \\boxed{2}", "2"), ("\\boxed{1} or \\boxed{2}", "1, 2"),
    ("$x = \\boxed{1}$ and $x = \\boxed{2}$", "1, 2"), ("#### 18", "18"), ("#### 1,800", "1800"), ("so\nA: 18", "18"),
    ("The answer is 18.", "18"), ("The answer is 17. Wait.\nThe answer is 18", "18"), ("Final Answer: 3/4", "3/4"),
    ("**Answer:** She makes **\\$18 per day** at the market.", "18"), ("**Final answer:**\n\n12 apples", "12"),
    ("### Answer\n**5 hours**", "5"), ("Answer: $1,234.50", "1234.50"), ("The answer is $x=5$.", "5"),
    ("Therefore the answer is \\(x^2+1\\).", "x^2+1"), ("x^2+1", "x^2+1"), ("\\frac{1}{2}", "\\frac{1}{2}"),
    ("18", "18"),
    ("Evelyn", "Evelyn"), ("In total 5 + 6 = 11 apples.", "11"), ("He pays $10 for 2, so **$5 each**.", "5"),
    ("5 \\times 45 = 225\n\nThe work takes 225 minutes for all 40 students.", "225"),
    ("It is 4 * 40 = 160\n\n**Fred must bring 160 roses by 5 pm.** (Or more.)", "160"),
    ("Since there are 360 pieces, it takes 1 hour.", "1"),
    ("It takes 3\u202fhours\u202f45\u202fminutes for 40 students.", "3 hours 45 minutes"),
    ("He has 3 red and 4 blue ones, for a total of 7 balls.", "7"), ("I cannot say what it would be in the end", None),
    ("", None), ("\\boxed{5", None), ("It is 160\u202f000 then.", "160000"),
    ("It takes 160 min, which is 2 h 40 min.", "160"),
])  # fmt: skip
def test_final_answers(text, found):
    assert final_answer(text)[0] == found


def test_a_box_goes_before_a_phrase_and_a_number():
    assert final_answer("\\boxed{5}. The answer is 6. Also 7.") == ("5", Rule.BOX)
    assert final_answer("The answer is 6. Also 7.") == ("6", Rule.PHRASE)


@pytest.mark.parametrize(("text", "found"), [
    ("025", "25"), ("25.0", "25"), ("25", "25"), ("000", "0"), ("-7", "-7"), ("1,000", "1000"), ("x = 25", "25"),
    ("\\frac{50}{2}", "25"), ("25^\\circ", "25"), ("25\\text{ apples}", "25"), ("2.5", None), ("abc", None), ("", None),
    ("9" * 5000, None),
])  # fmt: skip
def test_integers(text, found):
    assert normalise(text).integer == found


def test_without_algebra_it_is_said_that_it_is_needed():
    with mathematics.no_algebra():
        assert same("\\frac12", "0.5")
        assert not same("3", "4")
        with pytest.raises(mathematics.Undecided):
            same("\\sqrt{8}", "2\\sqrt{2}")
    assert same("\\sqrt{8}", "2\\sqrt{2}")


PIECES = ["\\boxed{", "\\frac", "\\sqrt", "{", "}", "}{", "\\text{", "(", ")", "[", "]", "\\{", "\\}", ",", "=", "^",
"_",
          "1", "12", "0.5", "x", "\\pi", "\\cup", "\\pm", "%", "$", " ", "answer is ", "Answer: ", "A", "(B)", "\n",
          "**",
          "####", "!", "\\infty", "\\begin{pmatrix}", "\\\\", "&", "\\left", "or", "é", "\ud800", "\x00", "९", "²",
          "-", "/"]  # fmt: skip
ANSWER = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
MANY = settings(max_examples=1000, deadline=6000, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@MANY
@given(text=ANSWER)
def test_any_text_has_an_answer_or_none_and_that_is_its_own_answer(text):
    found, rule = final_answer(text)
    assert rule
    again = final_answer(found)[0] if found is not None else None
    if again is not None and not set(found) & set("{}$*\\=#:\n") and " " not in found:
        assert again == found


@MANY
@given(text=ANSWER, gold=st.one_of(ANSWER, st.just("5")))
def test_any_two_texts_are_compared(text, gold):
    assert same(text, gold) in (True, False)
    assert same(text, text)


@MANY
@given(text=ANSWER)
def test_an_integer_is_its_own_integer(text):
    found = normalise(text).integer
    assert found is None or normalise(found).integer == found


@pytest.mark.parametrize("text", [
    "\\boxed{" * 20_000, "{" * 100_000, "\\boxed{" + "{" * 50_000 + "}" * 50_000 + "}", "(" * 50_000 + ")" * 50_000,
    "answer is " * 20_000, " " * 200_000, "1," * 60_000, "\\(" * 40_000, "$" * 99_999, "1 " * 60_000, "a" * 300_000,
    "\\frac" * 30_000, "####" * 40_000, "**1" * 40_000, "=" * 100_000, "\n" * 100_000 + "A: 1", "-" * 100_000 + "1",
    "\\boxed" + "{" * 50_000 + "}" * 50_000, "<answer>" * 20_000, '"answer": "' * 9_000,
    "\u7b54\u6848\u662f" * 30_000,
    "$x=1$ and " * 20_000, "is 5, " * 30_000, "x>1," * 30_000, "4 million " * 20_000, "that is 5 " * 20_000,
    "_" * 150_000,
    "\\text{" * 20_000 + "}" * 20_000, "1/" * 50_000, "\\boxed " * 20_000, "9" * 200_000, "answer for " * 20_000,
])  # fmt: skip
def test_long_texts_take_little_time(text):
    began = time.monotonic()
    found, _ = final_answer(text)
    same(text, "5")
    same(found or "", "5")
    same(text[-250:], "5")
    normalise(text)
    reference_rules.correct(text, "5")
    assert time.monotonic() - began < 6


STORED = DATA / "outputs_gsm8k_gpt3_labelled.jsonl.gz"
SOLUTIONS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


@pytest.mark.skipif(not STORED.exists(), reason="needs OpenAI's labelled GSM8K solutions in ../shared/data")
def test_labels_of_stored_solutions_are_met():
    rows = read_table(STORED)
    stored = [(row[name], final_answer(row["ground_truth"])[0]) for row in rows for name in SOLUTIONS]
    agree = [same(final_answer(each["solution"])[0], gold) == each["is_correct"] for each, gold in stored]
    assert len(agree) == 5276
    assert all(agree)


# What the reference's own code says; (text, gold, right by its AIME task, right by its check of mathematics).
REFERENCE = [
    ("\\boxed{025}", "25", True, False), ("\\boxed{25}", "025", True, False), ("\\boxed{25.0}", "025", True, False),
    ("\\boxed{\\frac12}", "0.5", True, True), ("\\boxed{1/2}", "\\frac{1}{2}", True, True),
    ("\\boxed 5$", "5", True, True),
    ("\\fbox{5}", "5", True, True), ("\\boxed{5", "5", False, False), ("5", "5", False, False),
    ("\\boxed{x=5}", "5", True, True), ("\\boxed{5\\text{ cm}}", "5", True, True),
    ("\\boxed{\\sqrt3}", "\\sqrt{3}", True, True),
    ("\\boxed{5} and \\boxed{6}", "6", True, True), ("\\boxed{90^\\circ}", "90", True, True),
    ("\\boxed{1,000}", "1000", False, False),
]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "aime", "general"), REFERENCE)
def test_reference_rules(text, gold, aime, general):
    assert reference_rules.correct(text, gold)[0] == aime
    assert reference_rules.correct(text, gold, zeros=False)[0] == general


def theirs(code, text, gold):
    try:
        box = code["last_boxed_only_string"](text)
        return box is not None and code["is_equiv"](code["remove_boxed"](box), gold)
    except AssertionError:
        return False


@settings(MANY, max_examples=300)
@given(text=ANSWER.map("\\boxed{{{}}}".format) | ANSWER, gold=ANSWER | st.sampled_from(["5", "025", "\\frac{1}{2}"]))
def test_reference_parity(text, gold):
    aime, general = functions("lm_eval/tasks/AIME/utils.py"), functions("math_metric_llm_eval_general.py")
    assert reference_rules.correct(text, gold)[0] == theirs(aime, text, gold)
    assert reference_rules.correct(text, gold, zeros=False)[0] == theirs(general, text, gold)


def test_reference_parity_on_stored_replies():
    aime = functions("lm_eval/tasks/AIME/utils.py")
    path = DATA / "outputs_gsm8k_gpt_oss_120b.jsonl.gz"
    if not path.exists():
        pytest.skip("needs stored replies in ../shared/data")
    for row in read_table(path):
        assert reference_rules.correct(row["response"], row["gold"])[0] == theirs(aime, row["response"], row["gold"])
