"""Arithmetic and short word problems with a worked chain of thought, generated from a seed.

The kinds in TAUGHT teach the embedded reasoner (split `train`) and examine it (`validation`, `test`). Those in UNSEEN
need the same steps put together in ways that it was not taught, and examine it only: it solves about half of them.
A problem's split is a hash of its kind and numbers, so that no problem of one split can be in another, in any wording
and with any seeds.
"""

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lowtax.common.errors import UserError

NAMES = "Anna Ben Carla David Emma Felix Grace Hugo Iris Jack Kira Liam Mona Noah Olga Paul".split()
ITEMS = "apples books coins stamps marbles pencils shells cards stickers eggs flowers cups".split()
SPLITS = ("train", "train", "train", "train", "train", "train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """A question, its integer answer, and one correct chain of thought."""

    question: str
    answer: int
    thought: str
    kind: str

    @property
    def key(self) -> str:
        """The kind and the numbers in order, which are the problem in any wording."""
        return f"{self.kind} {' '.join(re.findall(r'[0-9]+', self.question))}"

    @property
    def split(self) -> str:
        """The split of the problem, from a hash of its key."""
        return SPLITS[hashlib.sha256(self.key.encode()).digest()[0] % len(SPLITS)]


def add(a: int, b: int) -> list[str]:
    """Return the steps of a + b, the tens of b first."""
    tens, ones = b // 10 * 10, b % 10
    if not tens or not ones:
        return [f"{a} + {b} = {a + b}."]
    return [f"{a} + {tens} = {a + tens}.", f"{a + tens} + {ones} = {a + b}."]


def subtract(a: int, b: int) -> list[str]:
    """Return the steps of a - b, the tens of b first."""
    tens, ones = b // 10 * 10, b % 10
    if not tens or not ones:
        return [f"{a} - {b} = {a - b}."]
    return [f"{a} - {tens} = {a - tens}.", f"{a - tens} - {ones} = {a - b}."]


def multiply(a: int, b: int) -> list[str]:
    """Return the steps of a * b for a one-digit a: tens of b, ones of b, then their sum."""
    tens, ones = b // 10 * 10, b % 10
    if not tens or not ones:
        return [f"{a} * {b} = {a * b}."]
    return [f"{a} * {tens} = {a * tens}.", f"{a} * {ones} = {a * ones}.", *add(a * tens, a * ones)]


def _sum(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    return f"{a} + {b}", a + b, add(a, b)


def _difference(rng: random.Random) -> tuple[str, int, list[str]]:
    b, a = sorted((rng.randint(11, 99), rng.randint(11, 99)))
    return f"{a} - {b}", a - b, subtract(a, b)


def _product(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b = rng.randint(2, 9), rng.randint(11, 99)
    return f"{a} * {b}", a * b, multiply(a, b)


def _chain(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b = rng.randint(11, 79), rng.randint(11, 49)
    c = rng.randint(11, a + b - 1 if a + b < 99 else 99)
    return f"{a} + {b} - {c}", a + b - c, [*add(a, b), *subtract(a + b, c)]


def _expression(build: Callable[[random.Random], tuple[str, int, list[str]]], kind: str, rng: random.Random) -> Problem:
    text, answer, steps = build(rng)
    form = rng.choice(["What is {}?", "Compute {}.", "Work out {}.", "Calculate {}."])
    return Problem(form.format(text), answer, " ".join(steps), kind)


def _buys(rng: random.Random) -> Problem:
    who, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b = rng.randint(11, 79), rng.randint(11, 49)
    c = rng.randint(3, 9)
    question = rng.choice(
        [
            f"{who} has {a} {item}, buys {b} more and gives {c} away. How many {item} does {who} have now?",
            f"A box holds {a} {item}. {who} puts in {b} more and then takes out {c}. How many {item} are in the box?",
        ]
    )
    return Problem(question, a + b - c, " ".join([*add(a, b), *subtract(a + b, c)]), "buys")


def _packs(rng: random.Random) -> Problem:
    who, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b, c = rng.randint(2, 9), rng.randint(11, 29), rng.randint(3, 9)
    question, answer, last = rng.choice(
        [
            (f"{who} buys {a} packs of {b} {item} and loses {c}. How many {item} are left?", a * b - c, subtract),
            (
                f"{who} fills {a} bags with {b} {item} each and has {c} left over. How many {item} are there in all?",
                a * b + c,
                add,
            ),
        ]
    )
    return Problem(question, answer, " ".join([*multiply(a, b), *last(a * b, c)]), f"packs_{last.__name__}")


def _more_than(rng: random.Random) -> Problem:
    (one, two), item = rng.sample(NAMES, 2), rng.choice(ITEMS)
    a, b = rng.randint(11, 49), rng.randint(3, 29)
    question = f"{one} has {a} {item}. {two} has {b} more than {one}. How many {item} do they have together?"
    return Problem(question, a + a + b, " ".join([*add(a, b), *add(a + b, a)]), "more_than")


def _sum_of_three(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b, c = (rng.randint(11, 49) for _ in range(3))
    return f"{a} + {b} + {c}", a + b + c, [*add(a, b), *add(a + b, c)]


def _hundreds(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b = rng.randint(100, 499), rng.randint(11, 99)
    return f"{a} + {b}", a + b, add(a, b)


def _two_differences(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b, c = rng.randint(70, 99), rng.randint(11, 30), rng.randint(11, 30)
    return f"{a} - {b} - {c}", a - b - c, [*subtract(a, b), *subtract(a - b, c)]


def _product_and_sum(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b, c = rng.randint(2, 9), rng.randint(11, 29), rng.randint(11, 49)
    return f"{a} * {b} + {c}", a * b + c, [*multiply(a, b), *add(a * b, c)]


def _product_and_difference(rng: random.Random) -> tuple[str, int, list[str]]:
    a, b, c = rng.randint(2, 9), rng.randint(11, 29), rng.randint(3, 9)
    return f"{a} * {b} - {c}", a * b - c, [*multiply(a, b), *subtract(a * b, c)]


def _buys_twice(rng: random.Random) -> Problem:
    who, item = rng.choice(NAMES), rng.choice(ITEMS)
    a, b, c = (rng.randint(11, 49) for _ in range(3))
    question = f"{who} has {a} {item}, buys {b} more and then buys {c} more. How many {item} does {who} have now?"
    return Problem(question, a + b + c, " ".join([*add(a, b), *add(a + b, c)]), "buys_twice")


Builder = Callable[[random.Random], Problem]
TAUGHT: tuple[Builder, ...] = (
    lambda rng: _expression(_sum, "sum", rng),
    lambda rng: _expression(_difference, "difference", rng),
    lambda rng: _expression(_product, "product", rng),
    lambda rng: _expression(_chain, "chain", rng),
    _buys,
    _packs,
    _more_than,
)
UNSEEN: tuple[Builder, ...] = (
    lambda rng: _expression(_sum_of_three, "sum_of_three", rng),
    lambda rng: _expression(_hundreds, "hundreds", rng),
    lambda rng: _expression(_two_differences, "two_differences", rng),
    lambda rng: _expression(_product_and_sum, "product_and_sum", rng),
    lambda rng: _expression(_product_and_difference, "product_and_difference", rng),
    _buys_twice,
)


def problems(n: int, split: str, seed: int, builders: Sequence[Builder] = TAUGHT) -> list[Problem]:
    """Return n distinct problems of one split, one kind after another; a kind that is used up is skipped.

    Args:
        n: how many.
        split: train, validation or test.
        seed: decides the problems.
        builders: the kinds, TAUGHT or UNSEEN.

    Raises:
        UserError: There is no such split, or it has fewer distinct problems.
    """
    if split not in SPLITS:
        raise UserError(f"arithmetic has no split {split!r}; its splits are train, validation and test.")
    rng, by_key = random.Random(f"arithmetic-{seed}"), dict[str, Problem]()
    for draw in range(100 * n + 1000):
        if len(by_key) == n:
            return list(by_key.values())
        problem = builders[draw % len(builders)](rng)
        if problem.split == split:
            by_key.setdefault(problem.key, problem)
    raise UserError(f"arithmetic has fewer than {n} distinct problems in split {split!r}; ask for fewer.")
