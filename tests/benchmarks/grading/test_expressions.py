"""Expressions are read whole or refused, and compared by exact values."""

import time
from fractions import Fraction

import pytest

from lowtax.benchmarks.grading import expressions

PAIRS = r"""
\frac{1}{2^{98}} | \frac{1}{2^{99}} | unequal
4\sqrt(2) | 4 | unequal
4\sqrt(2) | \sqrt{32} | equal
4\to5 | 4 | unreadable
4+ | 4 | unreadable
\sqrt{8} | 2\sqrt{2} | equal
x^{2}+2x+1 | (x+1)^2 | equal
x+1 | x-1 | unequal
{10 \choose 3} | \binom{10}{3} | equal
C(10,3) | 120 | equal
e^{i\pi/4} | \frac{\sqrt2}{2}+\frac{\sqrt2}{2}i | equal
i^2 | -1 | equal
\sin^2 x+\cos^2 x | 1 | equal
\sin2x | 2\sin x\cos x | equal
\log_2 8 | 3 | equal
\log_{2}8 | 3 | equal
\frac{\ln2}{2} | \frac{1}{2}\ln 2 | equal
\sqrt[3]{8} | 2 | equal
\sqrt[3]{-8} | -2 | equal
\sqrt{4x}+1 | 2\sqrt{x}+1 | equal
\sqrt{x^2} | x | unequal
7! | 5040 | equal
2^{10} | 1024 | equal
4\mathbb{Z} | 4 | unreadable
\lfloor 3.7\rfloor | 3 | equal
3\frac{1}{2} | 3.5 | equal
x\frac12 | x/2 | equal
\frac{x+1}{2} | \frac{1}{2}x+\frac{1}{2} | equal
\frac{3\sqrt{3}}{4} | 0.75\sqrt{3} | equal
9^{9^{9^{9}}} | 5 | unequal
\arctan 1 | \frac\pi4 | equal
\sin^{-1} 1 | \pi/2 | equal
\frac{n(n-1)}{2} | \binom{n}{2} | equal
\lfloor n/2\rfloor+\lceil n/2\rceil | n | equal
(-1)^n | (-1)^{n+2} | equal
\log x | \frac{\ln x}{\ln 10} | equal
\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5} | 1 | equal
\sqrt{xy} | \sqrt{x}\sqrt{y} | equal
f(x+1) | f(1+x) | equal
\tan^{-1}\frac{1}{2} | \arctan(0.5) | equal
2x | x^2 | unequal
a_1+a_2 | a_{2}+a_{1} | equal
\frac{1+i}{2} | \frac12+\frac12i | equal
\cos(\frac{60\pi}{180}) | \frac12 | equal
x^{2/3} | \sqrt[3]{x^2} | equal
e^{2\ln x} | x^2 | equal
\sin x^2 | (\sin x)^2 | unequal
6\cdot-3 | -18 | equal
2\pi r^2 | 2r^2\pi | equal
\frac{5^{\left(5\right)}}{16} | 1 | unreadable
x^2+ | x^2 | unreadable
\overline{z} | z | unequal
10^{-8}\pi | 10^{-9}\pi | unequal
\frac{1}{2006!} | \frac{1}{2004!} | unequal
\log_2(\log_2(10^{10^{10}})) | 5 | unequal
(10^5)! | 5 | unequal
\binom{10^6}{5\cdot 10^5} | 5 | unequal
2^{2^{2^{2^{2^{2}}}}} | 5 | unequal
\frac{\pi}{\pi-\pi} | 1 | unequal
"""
WORD = {True: "equal", False: "unequal", None: "unreadable"}


def test_pairs_of_expressions():
    rows = [line.split(" | ") for line in PAIRS.strip().split("\n")]
    wrong = [row for row in rows if WORD[expressions.equal(row[0], row[1])] != row[2]]
    assert wrong == []
    assert [row for row in rows if WORD[expressions.equal(row[1], row[0])] != row[2]] == []


def test_absolute_values():
    assert expressions.equal("|x-3|", "|3-x|")
    assert expressions.equal("||x|-3|", "|3-|x||")
    assert not expressions.equal("|x|", "x")
    assert expressions.equal("||1||||", "1") is None


@pytest.mark.parametrize(("text", "value"), [
    ("\\frac{6}{4}", Fraction(3, 2)), ("2^{-3}", Fraction(1, 8)), ("\\sqrt{49}", Fraction(7)),
    ("8^{2/3}", Fraction(4)),
    ("1\\frac{1}{2}", Fraction(3, 2)), ("5!", Fraction(120)), ("\\binom{5}{2}", Fraction(10)),
    ("\\lfloor 7/2\\rfloor", 3),
    ("x+1", None), ("4\\to5", None), ("", None), ("2^{2^{2^{2^{2^{2}}}}}", None), ("1/0", None),
])  # fmt: skip
def test_rational_values_are_exact(text, value):
    assert expressions.constant(text) == value


def test_hostile_expressions_take_little_time():
    began = time.monotonic()
    for text in (
        "9^{9^{9^{9}}}", "(10^5)!", "\\binom{10^6}{5\\cdot10^5}", "\\log_2(\\log_2(10^{10^{10}}))",
        "(" * 150 + ")" * 150,
        "\\frac{5^{5^{5^{5^5}}-4}-5}{16}", "-" * 300 + "1", "\\sqrt" * 60, "2^" * 150,
        "|" * 300, "x^" * 100 + "x", "1!" * 99,
        "+".join(["2^{9999}"] * 30), "(1+10^{-99})^{9999999}", "e^{e^{e^{e^{e}}}}",
    ):  # fmt: skip
        expressions.equal(text, "5")
        expressions.equal(text, "x")
    assert time.monotonic() - began < 2
