"""Decide whether two normalised answers are equal.

Lists, tuples, sets, intervals, unions and matrices are compared part by part. Spelling and numbers decide most parts;
for the rest `expressions` computes both sides and `relations` compares equations, inequalities and sets. Only calculus
(sums, integrals, limits) goes to math-verify, whose time limit is an alarm signal: it works in the main thread only.
"""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from lowtax.benchmarks.grading import expressions, relations, values
from lowtax.benchmarks.grading.extract import unboxed
from lowtax.benchmarks.grading.normalise import (
    DECIMAL,
    FRACTION,
    LABEL,
    LONGEST,
    Answer,
    exact,
    has_words,
    is_words,
    normalise,
    number,
    same_number,
    unlabelled,
)
from lowtax.benchmarks.grading.reals import depths, split
from lowtax.common.errors import UserError

SECONDS = 2  # for algebra: each of two parses and a comparison
LONGEST_ALGEBRA = 300  # characters
DEEPEST = 20  # brackets inside of brackets
HUGE = re.compile(r"\^\{?-?\d{5,}|\d\^\{?\d+\^|\d{4,}!|!!!|\d{40,}\^|\}\^\{?\d{4,}")
NUMBERS = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])")
CONDITION = re.compile(r"[<>]|\\[lg]e(?![a-z])|\\ne(?![a-z])|\\setminus|\\mid(?![a-z])")
SET = re.compile(r"\\c[ua]p(?![a-z])|\\setminus|[\[(].*,.*[\])]|\\mid|\\\{.*\\\}|[<>]|\\[lgn]e(?![a-z])")
CALCULUS = re.compile(r"\\(?:int|sum|prod|lim|iint|det)(?![a-z])")
OF_CALCULUS = re.compile(
    r"(?:\\(?:int|sum|prod|lim|iint|det|frac|sqrt|pi|infty|to|sin|cos|tan|ln|log|exp|cdot|times|binom|limits)(?![a-z])"
    r"|[\dA-Za-z+\-*/^_=(){}!.,\s])+"
)
OPTION = re.compile(r"\(([A-Z])\)(?=[-\d\\(\[])(.+)|([A-E])[.:)](?=[-\d\\(\[])(.+)")
SCALE = re.compile(r"hundred|thousand|[mbtr]+illion|dozen|\b(?:and|or)\b|half|third|quarter|\bnot\b|less|more|about")
CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
COORDINATE = re.compile(r"[xyz]=(?=[-\d\\.])(?!.*[xyz,])")
NAMED_TUPLE = re.compile(r"\(?([A-Za-z](?:,[A-Za-z]){1,3})\)?=\((.*)\)")
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
    before, _here.algebra = _here.algebra, False
    try:
        yield
    finally:
        _here.algebra = before


def same(answer: str, gold: str) -> bool:
    """Return True if two answers as they were written are equal."""
    return equal(normalise(unboxed(answer)), normalise(unboxed(gold)))


def equal(answer: Answer, gold: Answer) -> bool:
    """Return True if two answers are equal: as texts, as numbers, part by part, or by their values.

    Lists without brackets, sets and unions may have any order; pairs and intervals may not, and names give pairs their
    order: `y=1, x=2` is (2,1). A chain such as `3\\cdot2=6` equals its last part, a value that is stated twice equals
    one, and a decimal comma is read where the gold answer is one number. Two known units must agree; one may be absent.
    Call it in the main thread of a process that may be killed: calculus on a hostile answer can outlive its alarm.

    Raises:
        UserError: Calculus is needed and math-verify is not installed.
        Undecided: More than spelling and numbers is needed inside `no_algebra`.
    """
    if answer.written == gold.written:
        return True
    if answer.duration:
        return number(gold.text) in answer.duration or answer.duration == gold.duration
    hours = [re.search(r"\b([ap])\.?m\b", each.written, re.IGNORECASE) for each in (answer, gold)]
    if hours[0] and hours[1] and hours[0][1].lower() != hours[1][1].lower():
        return False
    if COORDINATE.match(answer.text) and COORDINATE.match(gold.text) and answer.text[0] != gold.text[0]:
        return False
    if answer.unit and gold.unit and answer.unit != gold.unit:
        return _same_measure(answer, gold)
    chain = gold.text.rpartition("=")[2] if gold.text.count("=") > 1 and "," not in gold.text else ""
    for right in (gold.text, chain) if chain else (gold.text,):
        if any(_equal(each, right) for each in _readings(answer.text, right)):
            return True
    point = _with_point(gold.text, answer.text)  # a gold answer with a decimal comma
    once = _once(gold.text)
    return any(other is not None and _equal(answer.text, other) for other in (point, once))


def _same_measure(answer: Answer, gold: Answer) -> bool:
    """Compare measures in two units: 500 cm is 5 m, 5 cm is not 5 m."""
    x, y = number(unlabelled(answer.text)), number(unlabelled(gold.text))
    if not answer.unit or not gold.unit or answer.unit[0] != gold.unit[0] or x is None or y is None:
        return False
    return x * answer.unit[1] == y * gold.unit[1]


def _readings(text: str, gold: str) -> Iterator[str]:
    """Return what an answer may mean beside this gold answer, the likeliest first."""
    sides = _sides(text, unlabelled(gold))
    yield from [text, *sides] if "=" in gold else sides or [text]
    if option := OPTION.fullmatch(text):
        yield option[2] or option[4]
        yield option[1] or option[3]
    if (comma := _with_point(text, gold)) is not None:
        yield comma
    if (once := _once(text)) and not _is_list(gold):
        yield once
    if _is_list(text) and _is_list(gold):
        ours, theirs = (list(dict.fromkeys(split(each, ","))) for each in (text, gold))
        if len(ours) < text.count(",") + 1 and len(theirs) == len(split(gold, ",")):
            yield ",".join(ours)


def _with_point(text: str, gold: str) -> str | None:
    """Return a number with a decimal comma, written with a point, if the gold answer is a number that is not whole."""
    plain, value = unlabelled(text), number(unlabelled(gold))
    if not re.fullmatch(r"-?\d+,\d+%?", plain) or number(plain) is not None or value is None or "," in gold:
        return None
    point = plain.replace(",", ".")
    return point if value.denominator > 1 or re.fullmatch(r".*\.00?%?", point) else None


def _is_list(text: str) -> bool:
    part = _parts(unlabelled(text)) if len(text) <= LONGEST else Part(text)
    return bool(part.parts) and not part.kind


def _once(text: str) -> str | None:
    """Return the value that a list states several times, as in `15\\frac{39}{40}, \\frac{639}{40}`."""
    if not _is_list(text):
        return None
    parts = split(text, ",")
    return parts[0] if 2 <= len(parts) <= 4 and all(_equal(part, parts[0]) for part in parts[1:]) else None


def _sides(text: str, gold: str) -> list[str]:
    """Return what a chain such as `3\\cdot2=6` or `\\pi\\approx3.14` gives for a gold answer that is no equation."""
    if re.search(r"[=<>]|\\[lg]e |\\approx", gold) or re.search(r"=[^=]*,[^=]*=", text) or NAMED_TUPLE.fullmatch(text):
        return []
    exact, *approximate = re.split(r"\\approx ?|≈", text)
    last = re.split(r"(?<![<>\\])=", exact)[-1].strip()
    if re.fullmatch(r"[A-Za-z]", last):
        return approximate if all(approximate) else []
    return [last, *approximate] if last and last != text and all(approximate) else []


def _equal(text: str, gold: str) -> bool:
    """Return True if two texts in their one spelling are equal."""
    if text == gold:
        return True
    if not text or not gold or max(len(text), len(gold)) > LONGEST:
        return False
    text, gold = _in_order(text), _in_order(gold)
    parts = _parts(unlabelled(text)), _parts(unlabelled(gold))
    decided = _same(*parts, _same_leaf)  # first without algebra: a number that differs makes it unnecessary
    related = decided is not True and _may_be_related(text, gold)
    if (decided is not None and not related) or not (_here.algebra or decided):
        if decided is None or related:
            raise Undecided
        return bool(decided)
    if related and (same := relations.same(text, gold)) is not None and (same or decided is False):
        return same
    return decided is None and bool(_same(*parts, _same_by_algebra))


def _may_be_related(text: str, gold: str) -> bool:
    """Return True if two texts may be one equation, inequality or set of numbers in two forms."""
    if max(len(text), len(gold)) > LONGEST_ALGEBRA:
        return False
    equations = ["=" in each and len(split(each, ",")) == 1 for each in (text, gold)]
    if all(equations) and not all(unlabelled(each) != each for each in (text, gold)):
        return True
    return any(
        bool(CONDITION.search(a)) and bool(CONDITION.search(b) or SET.search(b))
        for a, b in ((text, gold), (gold, text))
    )


def _in_order(text: str) -> str:
    """Write `(y,x)=(1,2)` with its names in the order of the alphabet."""
    match = NAMED_TUPLE.fullmatch(text)
    names, members = (match[1].split(","), split(match[2], ",")) if match else ([], [])
    if not names or len(names) != len(members) or len(set(names)) < len(names):
        return text
    both = sorted(zip(names, members, strict=True))
    return f"({','.join(name for name, _ in both)})=({','.join(value for _, value in both)})"


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
    if number(bare) is not None or max(map(abs, depths(bare)), default=0) > DEEPEST:
        return Part(text)
    if "\\begin" in bare and (matrix := MATRIX.fullmatch(bare.strip("()[]"))):
        rows = [row.split("&") for row in matrix[2].split("\\\\") if row.strip()]
        cells = [Part("&".join(row), "row", tuple(_parts(cell.strip()) for cell in row)) for row in rows]
        return Part(text, f"matrix {matrix[1].strip('pb')}", tuple(cells))
    for kind, parts in (("\\cup", split(bare, "\\cup")), ("", _listed(bare))):
        if len(parts) > 1:
            members = tuple(map(_parts, parts))
            if kind and all(part.startswith("\\{") for part in parts):
                return Part(
                    text, "\\{\\}", tuple(dict.fromkeys(one for each in members for one in each.parts or (each,)))
                )
            return Part(text, kind, members)
    ratio = split(bare, ":")
    if len(ratio) > 1 and not CLOCK.fullmatch(bare) and "\\{" not in bare:
        return Part(text, ":", tuple(map(_parts, ratio)))
    brackets = BRACKETS.fullmatch(bare)
    kind = brackets[1] + brackets[3] if brackets else ""
    if not brackets or kind not in CLOSED | HALF_OPEN or min(depths(brackets[2]), default=0) < 0:
        return Part(text)
    inside = tuple(map(_parts, _listed(brackets[2])))
    return inside[0] if len(inside) == 1 and not inside[0].parts and kind in CLOSED else Part(text, kind, inside)


def _listed(text: str) -> list[str]:
    """Split a text at its commas; outside of brackets `a \\pm b` is two parts."""
    parts = []
    for part in split(text, ","):
        if part.count("\\pm") == 1 and not BRACKETS.fullmatch(part):
            both = (re.sub(r"\\pm ?", sign, part) for sign in "+-")
            parts += [re.sub(r"^\+|(?<=\()\+", "", each) for each in both]
        else:
            parts.append(part)
    return parts


def _same(a: Part, b: Part, leaf: Leaf) -> bool | None:
    """Compare part by part; None if nothing differs, but a leaf is undecided."""
    if a.text == b.text:
        return True
    if not a.parts and not b.parts:
        return leaf(a.text, b.text)
    if not a.parts or not b.parts:  # an inequality can be an interval or a union, but not a bare list
        alone, whole = (b, a) if a.parts else (a, b)
        if whole.kind == ":" and len(whole.parts) == 2 and not any(part.parts for part in whole.parts):
            return leaf(f"\\frac{{{whole.parts[0].text}}}{{{whole.parts[1].text}}}", alone.text)
        return leaf(a.text, b.text) if whole.kind and CONDITION.search(alone.text) else False
    kinds = {a.kind, b.kind}
    if (len(kinds) > 1 and not ("" in kinds and kinds <= {""} | CLOSED | HALF_OPEN)) or len(a.parts) != len(b.parts):
        return False
    if kinds <= UNORDERED:
        return _same_in_any_order(a.parts, b.parts, leaf)
    if kinds == {":"} and len(a.parts) == 2:
        x, y = (f"\\frac{{{each.parts[0].text}}}{{{each.parts[1].text}}}" for each in (a, b))
        return leaf(x, y)
    pairs = zip(_by_name(a), _by_name(b), strict=True)
    results = [_same(x, y, leaf) for x, y in pairs]
    return False if False in results else None if None in results else True


def _by_name(part: Part) -> tuple[Part, ...]:
    """Return the parts of a list such as `y=1,x=2` in the order of their names, if all have different ones."""
    labels = [LABEL.match(each.text) for each in part.parts]
    names = [label[0] for label in labels if label and "=" in label[0]]
    if part.kind not in ("", "()") or len(set(names)) < len(part.parts):
        return part.parts
    ordered = sorted(zip(names, part.parts, strict=True), key=lambda pair: (pair[0].startswith("\\"), pair[0]))
    return tuple(each for _, each in ordered)


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
    names = [each.partition("=")[0] for each in (text, gold)]
    if x != text and y != gold and names[0] != names[1] and not _of_x(names, x, y):
        return False
    if x.removesuffix(":00") == y.removesuffix(":00"):
        return True
    if (decided := same_number(x, y)) is not None:
        return decided
    if _is_number(x) and _is_number(y):  # one of them is infinite
        return x.removeprefix("+") == y.removeprefix("+")
    if CLOCK.fullmatch(x) or CLOCK.fullmatch(y):
        if FRACTION.fullmatch(x) or FRACTION.fullmatch(y):  # a ratio
            return number(x.replace(":", "/")) == number(y.replace(":", "/"))
        return x.lstrip("0") == y.lstrip("0")
    if is_words(x) or is_words(y):
        return _phrase(x) == _phrase(y)
    if has_words(x) or has_words(y):
        return _only_number(x, y)
    if (decided := _same_in_base(x, y)) is not None:
        return decided
    return None if _short(x) and _short(y) else False


def _of_x(names: list[str], x: str, y: str) -> bool:
    """Return True for `y=` and `f(x)=` before functions of x."""
    return "y" in names and any(re.fullmatch(r"[a-zA-Z]\(x\)", name) for name in names) and "x" in x and "x" in y


def _phrase(words: str) -> str:
    return re.sub(
        r" (?:function|number)$", "", words.casefold().removeprefix("the ").replace("-", " ").removesuffix("s")
    )


def _same_by_algebra(text: str, gold: str) -> bool:
    """Compare two texts without parts, by their values if nothing else decides."""
    if (decided := _same_leaf(text, gold)) is not None:
        return decided
    if not _here.algebra:
        raise Undecided
    related, calculus = relations.same(text, gold), bool(CALCULUS.search(text + gold))
    if related is not None and (related or not calculus):
        return related
    x, y = unlabelled(text), unlabelled(gold)
    x, y = (each if (value := number(each)) is None else exact(value) for each in (x, y))
    same = expressions.equal(x, y)
    if same is None:
        return calculus and _calculus(x, y)
    return same or _rounded(unlabelled(text), y) or _rounded(unlabelled(gold), x)


def _rounded(decimal: str, text: str) -> bool:
    """Return True if a decimal with many places is the value of an expression, rounded."""
    value = expressions.constant(text) if DECIMAL.fullmatch(decimal) else None
    return value is not None and not isinstance(value, Fraction) and bool(values.near(decimal, value))


def _is_number(text: str) -> bool:
    return text in INFINITE or number(text) is not None


def _only_number(text: str, gold: str) -> bool:
    """Return True if the only number among words is the gold one."""
    numbers = NUMBERS.findall(text)
    return len(numbers) == 1 and not SCALE.search(text) and bool(same_number(numbers[0], gold))


def _same_in_base(text: str, gold: str) -> bool | None:
    """Compare digits with a base as subscript; a base that only one of the two states is taken for both."""
    both = [re.fullmatch(r"(-?[0-9A-F]+)(?:_\{?(\d+|[a-z])\}?)?", each) for each in (text, gold)]
    if not both[0] or not both[1] or not (both[0][2] or both[1][2]):
        return None
    return both[0][1] == both[1][1] and (both[0][2] or both[1][2]) == (both[1][2] or both[0][2])


# --- calculus


def _short(text: str) -> bool:
    """Return True if a text is short enough to be computed, and its brackets closed and not deep."""
    if len(text) > LONGEST_ALGEBRA:
        return False
    at = depths(text)
    return not at or max(map(abs, at)) <= DEEPEST


@lru_cache(maxsize=20_000)
def _calculus(text: str, gold: str) -> bool:
    """Return math-verify's opinion on texts that hold nothing but calculus; it takes the gold answer first."""
    if not OF_CALCULUS.fullmatch(text) or not OF_CALCULUS.fullmatch(gold) or HUGE.search(text + " " + gold):
        return False
    try:
        from math_verify import verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("Comparing mathematics needs math-verify: pip install 'lowtax[eval]'.") from error
    limit = SECONDS if threading.current_thread() is threading.main_thread() else None
    expected, parsed = _parsed(gold, limit), _parsed(text, limit)
    return bool(expected and parsed) and bool(
        verify(expected, parsed, float_rounding=12, numeric_precision=40, timeout_seconds=limit)
    )


@lru_cache(maxsize=20_000)
def _parsed(text: str, limit: int | None) -> list[object]:
    import logging

    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    return list(parse(f"${text}$", parsing_timeout=limit))
