"""Compare equations, inequalities and intervals: `x>3` is (3, oo), `7\\ge x` is x \\le 7, `y=2x` is 2x-y=0.

Sets of real numbers are compared by their bounds, which are exact. A condition such as `x^2<9` beside a set is tested
at the bounds of the set, on both sides of each and at other places. Two equations in several letters are equal if one
is a multiple of the other, or if both give the same value for a letter that is linear in both.
"""

from fractions import Fraction
from itertools import pairwise

from lowtax.benchmarks.grading import expressions, values
from lowtax.benchmarks.grading.expressions import Expression, read
from lowtax.benchmarks.grading.reals import BUILDER, REVERSED, Bound, Reals, Relation, any_of, less, reals, relation
from lowtax.benchmarks.grading.values import DIGITS_AT, Place, Value, close

ANY = (Fraction(-1000), Fraction(-41, 7), Fraction(0), Fraction(1, 3), Fraction(1), Fraction(29, 3), Fraction(1000))
NEAR = Fraction(1, 10**6)


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


def _same_sets(a: Reals, b: Reals) -> bool:
    a, b = any_of([a]) or a, any_of([b]) or b
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
    tried = [*ANY, *(values.difference(bound, -step) for bound in bounds for step in (Fraction(0), NEAR, -NEAR))]
    tried += [values.middle(a, b) for a, b in pairwise(bounds)]
    return all(_holds(chain, letter, value) == _contains(known, value) for value in tried)


def _holds(chain: Relation, letter: str, value: Value) -> bool:
    place = expressions.place_of(letter, value)
    computed = [expressions.value_at(part, place) for part in chain.parts]
    for sign, x, y in zip(chain.signs, computed, computed[1:], strict=False):
        if x is None or y is None or values.is_complex(x) or values.is_complex(y):
            return False
        equal, below = close(x, y), less(x, y)
        if not {"<": below, "<=": below or equal, ">": not below and not equal, ">=": not below, "\\ne": not equal}[
            sign
        ]:
            return False
    return True


def _contains(known: Reals, value: Value) -> bool:
    for low, high in known.intervals:
        above = low.value is None or less(low.value, value) or (low.closed and close(low.value, value))
        below = high.value is None or less(value, high.value) or (high.closed and close(high.value, value))
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
    return None if x is None or y is None else values.difference(x, y, DIGITS_AT)


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
        ratios.append(values.ratio(x, y))
    return ratios if len(ratios) >= expressions.FEWEST else None


def _same_inequalities(ours: Relation, theirs: Relation) -> bool:
    for one in (ours, _turned(ours)):
        ratios = _ratios(one, theirs) if one.signs == theirs.signs else None
        if ratios and all(close(each, ratios[0], DIGITS_AT) for each in ratios):
            return "\\ne" in one.signs or (not values.is_complex(ratios[0]) and bool(ratios[0] > 0))
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
    computed = []
    for number in range(4):
        there = Place({**place.letters, letter: Fraction(number)}, place.context, real=place.real)
        computed.append(_at(sides, there))
    if any(value is None for value in computed):
        return None
    steps = [values.difference(y, x, DIGITS_AT) for x, y in pairwise(computed)]
    if close(steps[0], Fraction(0), DIGITS_AT) or not all(close(step, steps[0], DIGITS_AT) for step in steps):
        return None
    return values.ratio(-computed[0], steps[0])  # type: ignore[operator]
