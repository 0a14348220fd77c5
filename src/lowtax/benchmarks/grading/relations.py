"""Compare equations, inequalities and intervals: `x>3` is (3, oo), `7\\ge x` is x \\le 7, `y=2x` is 2x-y=0.

Sets of real numbers are compared by their bounds, which are exact. A condition such as `x^2<9` beside a set is tested
at the bounds of the set, on both sides of each and at other places. Two equations in several letters are equal if one
is a multiple of the other, or if both give the same value for a letter that is linear in both.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

from lowtax.benchmarks.grading import expressions
from lowtax.benchmarks.grading.expressions import DIGITS_AT, Expression, Place, Value, close, constant, read

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
ANY = (Fraction(-1000), Fraction(-41, 7), Fraction(0), Fraction(1, 3), Fraction(1), Fraction(29, 3), Fraction(1000))
NEAR = Fraction(1, 10**6)


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


def same(text: str, gold: str) -> bool | None:
    """Return True if two texts state the same relation or the same set of real numbers; None if neither is one."""
    ours, theirs = relation(text), relation(gold)
    if ours and theirs and "=" in ours.signs and "=" in theirs.signs:
        return _same_chains(ours, theirs) or _same_equations(ours, theirs)
    sets = reals(text), reals(gold)
    if sets[0] and sets[1]:
        letters = {each.letter for each in sets if each and each.letter}
        return len(letters) < 2 and _same_sets(sets[0], sets[1])
    for condition, known in ((text, sets[1]), (gold, sets[0])):
        if known and (chain := _condition(condition)) is not None:
            return _satisfies(chain, known)
    if ours and theirs:
        return _same_chains(ours, theirs) or _same_chains(_turned(ours), theirs) or _same_inequalities(ours, theirs)
    return None


# --- sets of real numbers


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
    for separator, join in ((JOINED, _any_of), (BOTH, _all_of), (",", _listed)):
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
    return None if value is None or expressions.is_complex(value) else Bound(value, closed)


def _interval(text: str) -> Reals | None:
    """Return an interval such as (1,2], or points such as `\\{1,2\\}`."""
    if points := POINTS.fullmatch(text):
        ends = [_end(each, True) for each in split(points[1], ",")]
        if not all(ends):
            return None
        return _any_of([Reals(((end, end),)) for end in ends if end])
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


def _less(x: Value, y: Value) -> bool:
    """Compare two bounds exactly."""
    return not close(x, y) and bool(expressions.difference(x, y) < 0)


def _any_of(sets: Sequence[Reals | None]) -> Reals | None:
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
    return _less(a.value, b.value) or (close(a.value, b.value) and a.closed)


def _touch(high: Bound, low: Bound) -> bool:
    """Return True if nothing is between the end of an interval and the start of the next one."""
    if high.value is None or low.value is None:
        return True
    return _less(low.value, high.value) or (close(low.value, high.value) and (high.closed or low.closed))


def _further(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return Bound(None, False)
    if close(a.value, b.value):
        return Bound(a.value, a.closed or b.closed)
    return b if _less(a.value, b.value) else a


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
        if _less(high.value, low.value):
            return None
        if close(low.value, high.value) and not (low.closed and high.closed):
            return None
    return low, high


def _later(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return b if a.value is None else a
    if close(a.value, b.value):
        return Bound(a.value, a.closed and b.closed)
    return b if _less(a.value, b.value) else a


def _earlier(a: Bound, b: Bound) -> Bound:
    if a.value is None or b.value is None:
        return b if a.value is None else a
    if close(a.value, b.value):
        return Bound(a.value, a.closed and b.closed)
    return a if _less(a.value, b.value) else b


def _listed(sets: Sequence[Reals | None]) -> Reals | None:
    """Return what inequalities with commas between them mean: all of them if they overlap, else any of them."""
    common = _all_of(sets)
    return common if common is None or common.intervals else _any_of(sets)


def _same_sets(a: Reals, b: Reals) -> bool:
    a, b = _any_of([a]) or a, _any_of([b]) or b
    return len(a.intervals) == len(b.intervals) and all(
        _same_bounds(x, y) for left, right in zip(a.intervals, b.intervals, strict=True)
        for x, y in zip(left, right, strict=True)
    )  # fmt: skip


def _same_bounds(a: Bound, b: Bound) -> bool:
    if a.value is None or b.value is None:
        return a.value is None and b.value is None
    return a.closed == b.closed and close(a.value, b.value)


# --- conditions beside a set


def _condition(text: str) -> tuple[Relation, str] | None:
    """Return a chain of inequalities in one letter, and the letter."""
    if builder := BUILDER.fullmatch(text):
        text = builder[2]
    chain = relation(text)
    if chain is None or "=" in chain.signs:
        return None
    read_parts = [read(part) for part in chain.parts]
    letters = frozenset().union(*(each.letters for each in read_parts if each))
    return (chain, next(iter(letters))) if all(read_parts) and len(letters) == 1 else None


def _satisfies(condition: tuple[Relation, str], known: Reals) -> bool:
    """Return True if a condition holds at the places of a set, and at no others of those tried."""
    chain, letter = condition
    if known.letter and known.letter != letter:
        return False
    bounds = [bound.value for interval in known.intervals for bound in interval if bound.value is not None]
    tried = [*ANY, *(expressions.difference(bound, -step) for bound in bounds for step in (Fraction(0), NEAR, -NEAR))]
    tried += [expressions.middle(a, b) for a, b in pairwise(bounds)]
    return all(_holds(chain, letter, value) == _contains(known, value) for value in tried)


def _holds(chain: Relation, letter: str, value: Value) -> bool:
    place = expressions.place_of(letter, value)
    values = [expressions.value_at(part, place) for part in chain.parts]
    for sign, x, y in zip(chain.signs, values, values[1:], strict=False):
        if x is None or y is None or expressions.is_complex(x) or expressions.is_complex(y):
            return False
        equal, less = close(x, y), _less(x, y)
        if not {"<": less, "<=": less or equal, ">": not less and not equal, ">=": not less, "\\ne": not equal}[sign]:
            return False
    return True


def _contains(known: Reals, value: Value) -> bool:
    for low, high in known.intervals:
        above = low.value is None or _less(low.value, value) or (low.closed and close(low.value, value))
        below = high.value is None or _less(value, high.value) or (high.closed and close(high.value, value))
        if above and below:
            return True
    return False


# --- equations and inequalities with several letters


def _turned(chain: Relation) -> Relation:
    return Relation(chain.parts[::-1], tuple(REVERSED[sign] for sign in chain.signs[::-1]))


def _same_chains(ours: Relation, theirs: Relation) -> bool:
    """Return True if all parts of two chains are equal, and the signs between them."""
    return ours.signs == theirs.signs and all(
        a == b or bool(expressions.equal(a, b)) for a, b in zip(ours.parts, theirs.parts, strict=True)
    )


def _differences(chain: Relation) -> tuple[Expression, Expression] | None:
    sides = [read(part) for part in chain.parts]
    return (sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None


def _at(sides: tuple[Expression, Expression], place: Place) -> Value | None:
    x, y = (expressions.value_of(side, place) for side in sides)
    return None if x is None or y is None else expressions.difference(x, y, DIGITS_AT)


def _ratios(ours: Relation, theirs: Relation) -> list[Value] | None:
    """Return left side minus right side of one relation divided by that of the other, at some places."""
    a, b = _differences(ours), _differences(theirs)
    if a is None or b is None:
        return None
    letters = a[0].letters | a[1].letters | b[0].letters | b[1].letters
    ratios = []
    for place in expressions.places(letters):
        x, y = _at(a, place), _at(b, place)
        if x is None or y is None or close(x, Fraction(0), DIGITS_AT) or close(y, Fraction(0), DIGITS_AT):
            continue
        ratios.append(expressions.ratio(x, y))
    return ratios if len(ratios) >= expressions.FEWEST else None


def _same_inequalities(ours: Relation, theirs: Relation) -> bool:
    for one in (ours, _turned(ours)):
        ratios = _ratios(one, theirs) if one.signs == theirs.signs else None
        if ratios and all(close(each, ratios[0], DIGITS_AT) for each in ratios):
            return "\\ne" in one.signs or (not expressions.is_complex(ratios[0]) and bool(ratios[0] > 0))
    return False


def _same_equations(ours: Relation, theirs: Relation) -> bool:
    ratios = _ratios(ours, theirs)
    if ratios and all(close(each, ratios[0], DIGITS_AT) for each in ratios):
        return True
    a, b = _differences(ours), _differences(theirs)
    if a is None or b is None:
        return False
    shared = (a[0].letters | a[1].letters) & (b[0].letters | b[1].letters)
    others = a[0].letters | a[1].letters | b[0].letters | b[1].letters
    return any(_same_solution(a, b, letter, others) for letter in sorted(shared))


def _same_solution(a: tuple[Expression, Expression], b: tuple[Expression, Expression], letter: str,
                   letters: frozenset[str]) -> bool:  # fmt: skip
    """Return True if both equations are linear in a letter and give it the same values."""
    agreed = 0
    for place in expressions.places(letters):
        roots = [_linear_root(sides, letter, place) for sides in (a, b)]
        if roots[0] is None or roots[1] is None or not close(roots[0], roots[1], DIGITS_AT):
            return False
        agreed += 1
    return agreed >= expressions.FEWEST


def _linear_root(sides: tuple[Expression, Expression], letter: str, place: Place) -> Value | None:
    """Return where a difference that is linear in a letter is zero; None if it is not linear."""
    values = []
    for number in range(4):
        there = Place({**place.letters, letter: Fraction(number)}, place.context, real=place.real)
        values.append(_at(sides, there))
    if any(value is None for value in values):
        return None
    steps = [expressions.difference(y, x, DIGITS_AT) for x, y in pairwise(values)]
    if close(steps[0], Fraction(0), DIGITS_AT) or not all(close(step, steps[0], DIGITS_AT) for step in steps):
        return None
    return expressions.ratio(-values[0], steps[0])  # type: ignore[operator]
