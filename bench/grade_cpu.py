"""How many stored mathematics answers are graded in a second, worker start included.

Usage: python bench/grade_cpu.py [ANSWERS]
"""

import json
import random
import sys
import time

from lowtax.benchmarks.base import Task, load
from lowtax.benchmarks.grading import pool
from lowtax.common.records import Prompt

ANSWERS = 10_000
GOLDS = (
    r"{a}", r"{a}", r"{a}", r"\frac{{{a}}}{{{b}}}", r"-\frac{{{a}}}{{{b}}}", r"{a}\sqrt{{{b}}}", r"\frac{{\pi}}{{{b}}}",
    r"({a},{b})", r"[{a},{b})", r"{a},{b}", r"x^2+{a}x+{b}", r"(-\infty,{a})\cup({b},\infty)", r"\text{{Monday}}",
    r"{a}^\circ", r"{a}\%", r"{a}+{b}i", r"\begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}", r"{a}.{b}", r"{b}_{{9}}",
)  # fmt: skip
SAID = (
    ("{gold}", "{gold}", 4),
    (r"\frac", r"\dfrac", 2),
    ("{gold}", r"{gold}\text{{ units}}", 1),
    ("{gold}", "x = {gold}", 1),
    ("{gold}", "{other}", 3),
)
THOUGHT = "We write the condition as an equation, and solve it step by step: $x^2 = 4$, so $x = 2$. "


def answers(count: int, seed: int = 0) -> list[tuple[Prompt, str]]:
    """Questions with answers of a few hundred to a few thousand characters, about two thirds of them right."""
    draw = random.Random(seed)
    pairs = []
    for number in range(count):
        a, b = draw.randint(2, 999), draw.randint(2, 9)
        pattern = draw.choice(GOLDS)
        gold = pattern.format(a=a, b=b)
        old, new, _ = draw.choices(SAID, [weight for _, _, weight in SAID])[0]
        said = gold.replace(old, new) if old != "{gold}" else new.format(gold=gold, other=pattern.format(a=a + 1, b=b))
        text = THOUGHT * draw.randint(3, 30) + rf"Therefore the final answer is $\boxed{{{said}}}$."
        pairs.append((Prompt(id=str(number), source="math", text="?", gold=gold), text))
    return pairs


def main() -> None:
    """Grade them once and print the figures."""
    pairs = answers(int(sys.argv[1]) if len(sys.argv) > 1 else ANSWERS)
    began = time.perf_counter()
    scores = pool.grade_all(load("math", Task()), pairs, workers=2)
    seconds = time.perf_counter() - began
    right = sum(score.correct for score in scores)
    print(json.dumps({
        "grades_per_second": round(len(pairs) / seconds, 1), "answers": len(pairs), "seconds": round(seconds, 2),
        "accuracy": right / len(pairs), "workers": 2,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
