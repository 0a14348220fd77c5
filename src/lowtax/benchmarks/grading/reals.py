"""Read relations, intervals and sets of real numbers, and join and cut them; their bounds are exact."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lowtax.benchmarks.grading import values
from lowtax.benchmarks.grading.expressions import constant, read
from lowtax.benchmarks.grading.values import Value, close

SIGN = re.compile(r"<=|>=|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>|(?<![<>\\])=(?!=)")
ONE_SPELLING = {"\\le": "<=", "\\ge": ">="}
REVERSED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "\\ne": "\\ne"}
BUILDER = re.compile(
    r"\\\{([A-Za-z])(?:\\in ?(?:\(-\\infty ?,\\infty ?\)|\\text\{R\}))?(?:\\mid ?|\||:|\\vert ?)(.*)\\\}"
)
MEMBER = re.compile(r"([A-Za-z]|\\[a-z]+ ?)\\(?:not)?in(?![a-z]) ?(.*)")
WITHOUT = re.compile(r"(.*?)(?:\\setminus|\\backslash|(?<=\))-(?=\\\{)|\\smallsetminus) ?(.*)")
JOINED = re.compile(r"\\cup(?![a-z]) ?|\\lor(?![a-z]) ?|\\vee(?![a-z]) ?")
BOTH = re.compile(r"\\cap(?![a-z]) ?|\\land(?![a-z]) ?|\\wedge(?![a-z]) ?")
INTERVAL = re.compile(r"([(\[\]])(.*)([)\]\[])")
POINTS = re.compile(r"\\\{(.*)\\\}")


@dataclass(frozen=True)
class Bound:
    """An end of an interval; `value` is None at infinity."""

    value: Value | None
    closed: bool


@dataclass(frozen=True)
class Reals:
    """A set of real numbers: intervals from left to right. `letter` is the name that the text gives to its members."""

    intervals: tuple[tuple[Bound, Bound], ...]
    letter: str = ""


@dataclass(frozen=True)
class Relation:
    """A chain of expressions with the signs between them."""

    parts: tuple[str, ...]
    signs: tuple[str, ...]


def depths(text: str) -> list[int]:
    """Return how many brackets are open after each character."""
    return list(accumulate((sign in "([{") - (sign in ")]}") for sign in text))


def split(text: str, separator: str | re.Pattern[str]) -> list[str]:
    """Split a text where a separator is outside of all brackets; empty parts are left out."""
    pattern = re.compile(re.escape(separator)) if isinstance(separator, str) else separator
    at = [0, *depths(text)]
    parts, start = [], 0
    for match in pattern.finditer(text):
        if at[match.start()] <= 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [part for each in [*parts, text[start:]] if (part := each.strip())] or [text]


def relation(text: str) -> Relation | None:
    """Return a chain of relations, or None if the text has no sign outside of brackets."""
    at = [0, *depths(text)]
    signs = [match for match in SIGN.finditer(text) if at[match.start()] <= 0]
    if not signs:
        return None
    ends = [0, *(match.end() for match in signs)]
    starts = [*(match.start() for match in signs), len(text)]
    parts = tuple(text[a:b].strip() for a, b in zip(ends, starts, strict=True))
    return Relation(parts, tuple(ONE_SPELLING.get(match[0], match[0]) for match in signs)) if all(parts) else None


def reals(text: str) -> Reals | None:
    """Return the set of real numbers that a text describes, or None."""
    letter = ""
    if builder := BUILDER.fullmatch(text):
        letter, text = builder[1], builder[2]
    if (member := MEMBER.fullmatch(text)) and "\\notin" not in text:
        inner = reals(member[2])
        return inner and Reals(inner.intervals, member[1].strip())
    if without := WITHOUT.fullmatch(text):
        outer, points = reals(without[1]), POINTS.fullmatch(without[2])
        if not outer or not points:
            return None
        holes = [_hole(each) for each in split(points[1], ",")]
        return _all_of([outer, *holes]) if all(holes) else None
    for separator, join in ((JOINED, any_of), (BOTH, _all_of), (",", _listed)):
        parts = split(text, separator)
        if len(parts) > 1:
            if separator == "," and not all(relation(part) for part in parts):
                return None
            sets = [reals(part) for part in parts]
            return join(sets)
    single = _interval(text) or _inequality(text)
    return Reals(single.intervals, letter) if single and letter else single


def _hole(point: str) -> Reals | None:
    value = constant(point)
    if value is None:
        return None
    return Reals(((Bound(None, False), Bound(value, False)), (Bound(value, False), Bound(None, False))))


def _end(text: str, closed: bool) -> Bound | None:
    text = text.strip()
    if text in ("\\infty", "+\\infty", "-\\infty"):
        return Bound(None, False)
    value = constant(text)
    return None if value is None or values.is_complex(value) else Bound(value, closed)


def _interval(text: str) -> Reals | None:
    """Return an interval such as (1,2], or points such as `\\{1,2\\}`."""
    if points := POINTS.fullmatch(text):
        ends = [_end(each, True) for each in split(points[1], ",")]
        if not all(ends):
            return None
        return any_of([Reals(((end, end),)) for end in ends if end])
    match = INTERVAL.fullmatch(text)
    ends_at = split(match[2], ",") if match else []
    if not match or len(ends_at) != 2 or ends_at[0] in ("\\infty", "+\\infty") or ends_at[1] == "-\\infty":
        return None
    low, high = _end(ends_at[0], match[1] == "["), _end(ends_at[1], match[3] == "]")
    if low is None or high is None:
        return None
    return Reals(((low, high),))


def _inequality(text: str) -> Reals | None:
    """Return the numbers for which a chain holds that has one letter, alone, on one of its places."""
    chain = relation(text)
    if chain is None or "=" in chain.signs:
        return None
    named = [
        place
        for place, part in enumerate(chain.parts)
        if re.fullmatch(r"[A-Za-z](?:_\{?\w+\}?)?(?:\([a-z]\))?|\\[a-z]+", part)
    ]
    named = [place for place in named if (each := read(chain.parts[place])) and each.letters]
    if len(named) != 1:
        return None
    middle = named[0]
    letter = chain.parts[middle]
    sides = []
    for place, part in enumerate(chain.parts):
        if place == middle:
            continue
        if abs(place - middle) != 1:
            return None
        sign = chain.signs[middle] if place > middle else REVERSED[chain.signs[place]]
        half = _half(sign, part)
        if half is None:
            return None
        sides.append(half)
    joined = _all_of(sides)
    return joined and Reals(joined.intervals, letter)


def _half(sign: str, text: str) -> Reals | None:
    """Return the numbers that are less, greater, or not equal."""
    if sign == "\\ne":
        return _hole(text)
    end = _end(text, "=" in sign)
    if end is None:
        return None
    return Reals(((Bound(None, False), end),) if sign[0] == "<" else ((end, Bound(None, False)),))


def less(x: Value, y: Value) -> bool:
    """Compare two bounds exactly."""
    return not close(x, y) and bool(values.difference(x, y) < 0)


def any_of(sets: Sequence[Reals | None]) -> Reals | None:
    """Return the union of sets, its intervals sorted and joined where they touch."""
    known = [each for each in sets if each]
    letters = {each.letter for each in known if each.letter}
    if len(known) < len(sets) or len(letters) > 1:
        return None
    ordered: list[tuple[Bound, Bound]] = []
    for interval in (each for one in known for each in one.intervals):
        place = 0
        while place < len(ordered) and _starts_before(ordered[place][0], interval[0]):
            place += 1
        ordered.insert(place, interval)
    result: list[tuple[Bound, Bound]] = []
    for low, high in ordered:
        if result and _touch(result[-1][1], low):
            result[-1] = (result[-1][0], _further(result[-1][1], high))
        else:
            result.append((low, high))
    return Reals(tuple(result), letters.pop() if letters else "")


def _starts_before(a: Bound, b: Bound) -> bool:
    if a.value is None or b.value is None:
        return a.value is None
    return less(a.value, b.value) or (close(a.value, b.value) and a.closed)


def _touch(high: Bound, low: Bound) -> bool:
    """Return True if nothing is between the end of an interval and the start of the next one."""
    if high.value is None or low.value is None:
        return True
    return less(low.value, high.value) or (close(low.value, high.value) and (high.closed or low.closed))


def _further(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return Bound(None, False)
    if close(a.value, b.value):
        return Bound(a.value, a.closed or b.closed)
    return b if less(a.value, b.value) else a


def _all_of(sets: Sequence[Reals | None]) -> Reals | None:
    """Return the intersection of sets."""
    known = [each for each in sets if each]
    letters = {each.letter for each in known if each.letter}
    if len(known) < len(sets) or len(letters) > 1 or not known:
        return None
    result = known[0].intervals
    for other in known[1:]:
        pairs = [_overlap(a, b) for a in result for b in other.intervals]
        result = tuple(each for each in pairs if each)
    return Reals(result, letters.pop() if letters else "")


def _overlap(a: tuple[Bound, Bound], b: tuple[Bound, Bound]) -> tuple[Bound, Bound] | None:
    low, high = _later(a[0], b[0]), _earlier(a[1], b[1])
    if low.value is not None and high.value is not None:
        if less(high.value, low.value):
            return None
        if close(low.value, high.value) and not (low.closed and high.closed):
            return None
    return low, high


def _later(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return b if a.value is None else a
    if close(a.value, b.value):
        return Bound(a.value, a.closed and b.closed)
    return b if less(a.value, b.value) else a


def _earlier(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return b if a.value is None else a
    if close(a.value, b.value):
        return Bound(a.value, a.closed and b.closed)
    return a if less(a.value, b.value) else b


def _listed(sets: Sequence[Reals | None]) -> Reals | None:
    """Return what inequalities with commas between them mean: all of them if they overlap, else any of them."""
    common = _all_of(sets)
    return common if common is None or common.intervals else any_of(sets)
