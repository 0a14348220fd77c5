"""Open answers: where a reply states its final answer, and whether that equals the gold one.

Spelling decides most answers (spelling.py); the rest goes to math-verify, whose own limit of time is an alarm signal.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from lowtax import parts, reference_rules, spelling
from lowtax.answers import boxed
from lowtax.conclusion import final as final
from lowtax.errors import UserError

SECONDS = 2  # for algebra: each of two parses and a comparison
LONGEST_ALGEBRA = 300  # characters
DEEPEST = 20  # brackets inside of brackets
HUGE = re.compile(r"\^\{?-?\d{5,}|\d\^\{?\d+\^|\d{4,}!|!!!|\d{40,}\^|\}\^\{?\d{4,}")


class Undecided(Exception):
    """Algebra is needed to compare two answers, and the caller wants none here."""


class _Here(threading.local):
    algebra = True


_here = _Here()


@contextmanager
def no_algebra() -> Iterator[None]:
    """Inside, `same` raises `Undecided` instead of starting algebra, which may hang."""
    _here.algebra = False
    try:
        yield
    finally:
        _here.algebra = True


def integer(text: str) -> str | None:
    """An integer in plain digits: `025`, `25.0`, `x = 25` and `\\frac{50}{2}` are "25"; None if it is none."""
    value = spelling.number(spelling.unlabelled(spelling.plain(text)))
    return str(value.numerator) if value is not None and value.denominator == 1 else None


def reference_correct(text: str, gold: str) -> tuple[bool, str | None]:
    """Whether the reference project counts a reply as right, by its rules for AIME, and the answer that it finds."""
    return reference_rules.correct(text, gold)


def same(found: str, gold: str) -> bool:
    """Whether two answers are equal: as texts, numbers, lists, intervals, matrices, or by algebra.

    Lists without brackets, sets and unions may have any order; pairs and intervals may not. Call it in the main thread
    of a process that may be killed: algebra on an unkind answer can outlive its alarm.
    """
    if found == gold:
        return True
    found, gold = (boxed(text) or text if "box" in text else text for text in (found, gold))
    a, b = spelling.plain(found), spelling.plain(gold)
    if times := spelling.duration(found):
        return spelling.number(b) in times or times == spelling.duration(gold)
    hours = [re.search(r"\b([ap])\.?m\b", text, re.IGNORECASE) for text in (found, gold)]
    if hours[0] and hours[1] and hours[0][1].lower() != hours[1][1].lower():
        return False
    return any(parts.equal(side, b, _leaf) for side in _sides(a, b) or [a])


def _leaf(found: str, gold: str) -> bool:
    """Whether two answers without parts are equal, both in their one spelling."""
    if found == gold:
        return True
    if not found or not gold:
        return False
    a, b = spelling.unlabelled(found), spelling.unlabelled(gold)
    if a.removesuffix(":00") == b.removesuffix(":00"):
        return True
    if (decided := spelling.same_number(a, b)) is not None:
        return decided
    if spelling.is_words(b) or spelling.is_words(a):
        return a.casefold().removeprefix("the ") == b.casefold().removeprefix("the ")
    if spelling.has_words(a) or spelling.has_words(b):
        return _only_number(a, b)
    if (decided := _same_in_base(a, b)) is not None:
        return decided
    if not (_kindly(a) and _kindly(b)):
        return False
    if not _here.algebra:
        raise Undecided
    return _algebra(a, b)


def _kindly(text: str) -> bool:
    """Whether algebra may have a text: short, its braces closed and not deep, no numbers that fill the memory."""
    depth = deepest = 0
    for sign in text[: LONGEST_ALGEBRA + 1]:
        depth += (sign in "{([") - (sign in "})]")
        deepest = max(deepest, abs(depth))
    return len(text) <= LONGEST_ALGEBRA and depth == 0 and deepest <= DEEPEST and not HUGE.search(text)


def _sides(found: str, gold: str) -> list[str]:
    """What a chain such as `3\\cdot2=6` or `\\pi\\approx3.14` gives for an answer that is no equation."""
    if re.search(r"[=<>]|\\[lg]e |\\approx", gold) or re.search(r"=[^=]*,[^=]*=", found):
        return []
    exact, *rounded = re.split(r"\\approx ?|≈", found)
    last = re.split(r"(?<![<>!\\])=", exact)[-1]
    return [last, *rounded] if last and last != found and all(rounded) else []


def _only_number(found: str, gold: str) -> bool:
    """Whether the only number among words is the gold one."""
    numbers = NUMBERS.findall(found)
    return len(numbers) == 1 and bool(spelling.same_number(numbers[0], gold))


NUMBERS = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])")


def _same_in_base(found: str, gold: str) -> bool | None:
    """Digits with a base as subscript; a base that only one of the two states is taken for both."""
    both = [re.fullmatch(r"([0-9A-Z]+)(?:_\{?(\d+)\}?)?", text) for text in (found, gold)]
    if not both[0] or not both[1] or not (both[0][2] or both[1][2]):
        return None
    return both[0][1] == both[1][1] and (both[0][2] or both[1][2]) == (both[1][2] or both[0][2])


@lru_cache(maxsize=20_000)
def _algebra(found: str, gold: str) -> bool:
    """math-verify's opinion, the gold answer first."""
    try:
        from math_verify import verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("Comparing mathematics needs math-verify: pip install 'lowtax[eval]'.") from error
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    right, given = _parsed(gold, limit), _parsed(found, limit)
    return bool(right and given) and bool(
        verify(right, given, timeout_seconds=limit, allow_set_relation_comp=bool(re.search(r"[<>]|\\[lg]e ", found)))
    )


@lru_cache(maxsize=20_000)
def _parsed(text: str, limit: int | None) -> list[object]:
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return list(parse(f"${text}$", parsing_timeout=limit))
