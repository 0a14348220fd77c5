"""Decide whether two normalised answers are equal.

Lists, tuples, sets, intervals, unions and matrices are compared part by part. Spelling and numbers decide most parts;
the rest goes to math-verify, whose time limit is an alarm signal: it works in the main thread only. math-verify does
not get whole structures: it finds `d=4\\sqrt{20},M=(1,-4)` equal to `d=4\\sqrt{10},M=(1,-4)`, and 1,2,2 equal to 1,1,2.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

from lowtax.benchmarks.grading.extract import unboxed
from lowtax.benchmarks.grading.normalise import (
    LONGEST,
    Answer,
    has_words,
    is_words,
    normalise,
    number,
    same_number,
    unlabelled,
)
from lowtax.common.errors import UserError

SECONDS = 2  # for algebra: each of two parses and a comparison
LONGEST_ALGEBRA = 300  # characters
DEEPEST = 20  # brackets inside of brackets
HUGE = re.compile(r"\^\{?-?\d{5,}|\d\^\{?\d+\^|\d{4,}!|!!!|\d{40,}\^|\}\^\{?\d{4,}")
NUMBERS = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])")
RELATION = re.compile(r"[<>]|\\[lg]e(?![a-z])")
MATRIX = re.compile(
    r"\\begin\{([pbvV]?)(?:small)?(?:matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{[pbvV]?(?:small)?(?:matrix|array)\}"
)
BRACKETS = re.compile(r"(\(|\[|\\\{)(.*)(\)|\]|\\\})")
CLOSED, HALF_OPEN = {"()", "[]", "\\{\\}"}, {"(]", "[)"}  # kinds of brackets; "" is a bare list
UNORDERED = {"", "\\{\\}", "\\cup"}
INFINITE = ("\\infty", "+\\infty", "-\\infty")
MOST = 30  # parts that are compared in any order; more must have one spelling


class Undecided(Exception):
    """Raised inside `no_algebra` if only algebra can compare two answers."""


class _Here(threading.local):
    algebra = True


_here = _Here()


@contextmanager
def no_algebra() -> Iterator[None]:
    """Make `equal` raise `Undecided` instead of starting algebra, which may hang."""
    _here.algebra = False
    try:
        yield
    finally:
        _here.algebra = True


def same(answer: str, gold: str) -> bool:
    """Return True if two answers as they were written are equal."""
    return equal(normalise(unboxed(answer)), normalise(unboxed(gold)))


def equal(answer: Answer, gold: Answer) -> bool:
    """Return True if two answers are equal: as texts, as numbers, part by part, or by algebra.

    Lists without brackets, sets and unions may have any order; pairs and intervals may not. Call it in the main thread
    of a process that may be killed: algebra on a hostile answer can outlive its alarm.

    Raises:
        UserError: Algebra is needed and math-verify is not installed.
        Undecided: Algebra is needed inside `no_algebra`.
    """
    if answer.written == gold.written:
        return True
    if answer.duration:
        return number(gold.text) in answer.duration or answer.duration == gold.duration
    hours = [re.search(r"\b([ap])\.?m\b", each.written, re.IGNORECASE) for each in (answer, gold)]
    if hours[0] and hours[1] and hours[0][1].lower() != hours[1][1].lower():
        return False
    return any(_equal(side, gold.text) for side in _sides(answer.text, gold.text) or [answer.text])


def _sides(text: str, gold: str) -> list[str]:
    """Return what a chain such as `3\\cdot2=6` or `\\pi\\approx3.14` gives for a gold answer that is no equation."""
    if re.search(r"[=<>]|\\[lg]e |\\approx", gold) or re.search(r"=[^=]*,[^=]*=", text):
        return []
    exact, *rounded = re.split(r"\\approx ?|≈", text)
    last = re.split(r"(?<![<>!\\])=", exact)[-1].strip()
    return [last, *rounded] if last and last != text and all(rounded) else []


def _equal(text: str, gold: str) -> bool:
    """Return True if two texts in their one spelling are equal."""
    if text == gold:
        return True
    if not text or not gold or max(len(text), len(gold)) > LONGEST:
        return False
    parts = _parts(unlabelled(text)), _parts(unlabelled(gold))
    decided = _same(*parts, _same_leaf)  # first without algebra: a number that differs makes it unnecessary
    return bool(_same(*parts, _same_by_algebra)) if decided is None else decided


# --- parts


@dataclass(frozen=True)
class Part:
    """An answer, or a part of one. `kind` is its brackets, empty for a bare list; without `parts` it is a leaf."""

    text: str
    kind: str = ""
    parts: tuple["Part", ...] = ()


Leaf = Callable[[str, str], bool | None]  # compares two texts; None if only algebra can decide


def _parts(text: str) -> Part:
    """Take an answer apart: lists, tuples, sets, intervals, unions, matrices."""
    bare = unlabelled(text).replace("\\langle", "(").replace("\\rangle", ")")
    if number(bare) is not None or max(map(abs, _depths(bare)), default=0) > DEEPEST:
        return Part(text)
    if "\\begin" in bare and (matrix := MATRIX.fullmatch(bare.strip("()[]"))):
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        cells = [Part("&".join(row), "row", tuple(_parts(cell.strip()) for cell in row)) for row in rows]
        return Part(text, f"matrix {matrix[1].strip('pb')}", tuple(cells))
    for kind, parts in (("\\cup", _split(bare, "\\cup")), ("", _listed(bare))):
        if len(parts) > 1:
            return Part(text, kind, tuple(map(_parts, parts)))
    brackets = BRACKETS.fullmatch(bare)
    kind = brackets[1] + brackets[3] if brackets else ""
    if not brackets or kind not in CLOSED | HALF_OPEN or min(_depths(brackets[2]), default=0) < 0:
        return Part(text)
    inside = tuple(map(_parts, _listed(brackets[2])))
    return inside[0] if len(inside) == 1 and not inside[0].parts and kind in CLOSED else Part(text, kind, inside)


def _split(text: str, separator: str) -> list[str]:
    """Split a text where a separator is outside of all brackets."""
    depths = [0, *_depths(text)]
    parts, start = [], 0
    for match in re.finditer(re.escape(separator), text):
        if depths[match.start()] <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for each in [*parts, text[start:]] if (part := each.strip())] or [text]


def _listed(text: str) -> list[str]:
    """Split a text at its commas; outside of brackets `a \\pm b` is two parts."""
    parts = []
    for part in _split(text, ","):
        if part.count("\\pm") == 1 and not BRACKETS.fullmatch(part):
            both = (re.sub(r"\\pm ?", sign, part) for sign in "+-")
            parts += [re.sub(r"^\+|(?<=\()\+", "", each) for each in both]
        else:
            parts.append(part)
    return parts


def _depths(text: str) -> list[int]:
    """Return how many brackets are open after each character."""
    return list(accumulate((sign in "([{") - (sign in ")]}") for sign in text))


def _same(a: Part, b: Part, leaf: Leaf) -> bool | None:
    """Compare part by part; None if nothing differs, but a leaf is undecided."""
    if a.text == b.text:
        return True
    if not a.parts and not b.parts:
        return leaf(a.text, b.text)
    if not a.parts or not b.parts:  # an inequality can be an interval or a union, but not a bare list
        alone, whole = (b, a) if a.parts else (a, b)
        return leaf(a.text, b.text) if whole.kind and RELATION.search(alone.text) else False
    kinds = {a.kind, b.kind}
    if (len(kinds) > 1 and not ("" in kinds and kinds <= {""} | CLOSED | HALF_OPEN)) or len(a.parts) != len(b.parts):
        return False
    if kinds <= UNORDERED:
        return _same_in_any_order(a.parts, b.parts, leaf)
    results = [_same(x, y, leaf) for x, y in zip(a.parts, b.parts, strict=True)]
    return False if False in results else None if None in results else True


def _same_in_any_order(left: Sequence[Part], right: Sequence[Part], leaf: Leaf) -> bool | None:
    """Pair every part with an equal one of the other side."""
    ours, theirs = Counter(left), Counter(right)
    remaining, undecided = list((theirs - ours).elements()), False
    if len(left) > MOST:
        return not remaining
    for part in (ours - theirs).elements():
        decided: bool | None = False
        for place, other in enumerate(remaining):
            same = _same(part, other, leaf)
            if same:
                remaining.pop(place)
                break
            decided = None if same is None else decided
        else:
            if decided is False:
                return False
            undecided = True
    return None if undecided else True


def _same_leaf(text: str, gold: str) -> bool | None:
    """Compare two texts without parts; `x=1` and `y=1` differ, but `x=1` is 1."""
    x, y = unlabelled(text), unlabelled(gold)
    if x != text and y != gold and text.partition("=")[0] != gold.partition("=")[0]:
        return False
    if x.removesuffix(":00") == y.removesuffix(":00"):
        return True
    if (decided := same_number(x, y)) is not None:
        return decided
    if _is_number(x) and _is_number(y):  # one of them is infinite
        return x.removeprefix("+") == y.removeprefix("+")
    if is_words(x) or is_words(y):
        return x.casefold().removeprefix("the ") == y.casefold().removeprefix("the ")
    if has_words(x) or has_words(y):
        return _only_number(x, y)
    if (decided := _same_in_base(x, y)) is not None:
        return decided
    return None if _harmless(x) and _harmless(y) else False


def _same_by_algebra(text: str, gold: str) -> bool:
    """Compare two texts without parts, by algebra if nothing else decides."""
    if (decided := _same_leaf(text, gold)) is not None:
        return decided
    if not _here.algebra:
        raise Undecided
    return _algebra(unlabelled(text), unlabelled(gold))


def _is_number(text: str) -> bool:
    return text in INFINITE or number(text) is not None


def _only_number(text: str, gold: str) -> bool:
    """Return True if the only number among words is the gold one."""
    numbers = NUMBERS.findall(text)
    return len(numbers) == 1 and bool(same_number(numbers[0], gold))


def _same_in_base(text: str, gold: str) -> bool | None:
    """Compare digits with a base as subscript; a base that only one of the two states is taken for both."""
    both = [re.fullmatch(r"([0-9A-Z]+)(?:_\{?(\d+)\}?)?", each) for each in (text, gold)]
    if not both[0] or not both[1] or not (both[0][2] or both[1][2]):
        return None
    return both[0][1] == both[1][1] and (both[0][2] or both[1][2]) == (both[1][2] or both[0][2])


# --- algebra


def _harmless(text: str) -> bool:
    """Return True if algebra may have a text: short, its brackets closed and not deep, no numbers that fill memory."""
    if len(text) > LONGEST_ALGEBRA or HUGE.search(text):
        return False
    depths = _depths(text)
    return not depths or (depths[-1] == 0 and max(map(abs, depths)) <= DEEPEST)


@lru_cache(maxsize=20_000)
def _algebra(text: str, gold: str) -> bool:
    """Return math-verify's opinion; it takes the gold answer first."""
    try:
        from math_verify import verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("Comparing mathematics needs math-verify: pip install 'lowtax[eval]'.") from error
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    expected, parsed = _parsed(gold, limit), _parsed(text, limit)
    return bool(expected and parsed) and bool(
        verify(expected, parsed, timeout_seconds=limit, allow_set_relation_comp=bool(RELATION.search(text)))
    )


@lru_cache(maxsize=20_000)
def _parsed(text: str, limit: int | None) -> list[object]:
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return list(parse(f"${text}$", parsing_timeout=limit))
